"""This module makes command-line options of the fields of a dataclass, and the dataclass of the options.

A field's metadata say what it is "about" and which "choices" it has, as those of Settings and Limits do, so that a new
field is an option at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar, get_args, get_type_hints

Made = TypeVar("Made")


def add_fields(parser: argparse.ArgumentParser, title: str, kind: type) -> None:
    """An option for every field of a dataclass, in a group of this title."""
    group = parser.add_argument_group(title)
    kinds = get_type_hints(kind)
    for field in fields(kind):
        of, how = kinds[field.name], {"default": field.default}
        if bool in (of, *get_args(of)):
            how["action"] = argparse.BooleanOptionalAction
        elif choices := field.metadata["choices"]:
            how["choices"] = tuple(choices)
        else:
            how["type"] = number_or_none(get_args(of)[0]) if get_args(of) else of
        about = field.metadata["about"] + ("" if field.default is None else f" (default: {field.default})")
        group.add_argument("--" + field.name.replace("_", "-"), help=about.replace("%", "%%"), **how)


def made_of(options: argparse.Namespace, kind: type[Made]) -> Made:
    """The dataclass with the values that `add_fields` has read. Raises what it raises for values that do not fit."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def number_or_none(kind: type) -> Callable[[str], float | None]:
    def number(text: str) -> float | None:
        return None if text == "none" else kind(text)

    number.__name__ = f"{kind.__name__} or none"  # argparse names it where the text is neither
    return number
