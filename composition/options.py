"""This module makes the options that several commands share, and reads what users write in them.

Of a dataclass it makes an option for every field, and the dataclass of the options: a field's metadata say what it is
"about", which "choices" it has and between which numbers of its "range" it lies, as those of Settings and Limits do, so
that a new field is an option at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from sd21.command import folder
from sd21.words import shown

Made = TypeVar("Made")
QUIET = "no progress bars, no messages; warnings and errors stay"


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
        limits = "{} to {}; ".format(*field.metadata["range"]) if "range" in field.metadata else ""
        about = field.metadata["about"] + ("" if field.default is None else f" ({limits}default: {field.default})")
        group.add_argument("--" + field.name.replace("_", "-"), help=about.replace("%", "%%"), **how)


def made_of(options: argparse.Namespace, kind: type[Made]) -> Made:
    """The dataclass with the values of the options named like its fields, as `add_fields` names them. Raises what it
    raises for values that do not fit."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def number_or_none(kind: type) -> Callable[[str], float | None]:
    def number(text: str) -> float | None:
        return None if text == "none" else kind(text)

    number.__name__ = f"{kind.__name__} or none"  # argparse names it where the text is neither
    return number


def add_meaning(inputs) -> None:
    """Options of how files are read, and the prompt."""
    inputs.add_argument(
        "--window",
        type=window,
        metavar="C,W",
        help="centre and width of the grey window of both, in their own values, as 40,400 in Hounsfield units "
        "(default: what the file states, or the robust ends of its values); for DICOM and NIfTI",
    )
    inputs.add_argument("--label", type=int, metavar="N", help="the value of the tumour in a mask of several labels")
    inputs.add_argument("--prompt", required=True, help='as "An MRI scan of a cancerous brain"')


def add_out(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--out", required=True, type=folder, help=about)
    parser.add_argument("--cache", type=Path, help="folder to keep the inversions in, for reuse")
    parser.add_argument("-q", "--quiet", action="store_true", help=QUIET)


def add_processes(parser: argparse.ArgumentParser, items: str) -> None:
    about = (
        f"processes on this machine that share the {items} out, one for each GPU; as torchrun starts them (default: 1)"
    )
    parser.add_argument("--processes", type=count, default=1, metavar="N", help=about)


def count(text: str) -> int:
    """A whole number from 1 to 1024."""
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1024, got {shown(text)}")
    return int(text)


def add_method(parser: argparse.ArgumentParser) -> None:
    from .methods import METHODS

    about = "ours, or a baseline with its own constants (default: %(default)s)"
    parser.add_argument("--method", choices=tuple(METHODS), default="ours", help=about)


def add_model(parser: argparse.ArgumentParser) -> None:
    from sd21.config import PREDICTION_TYPES
    from sd21.model import DTYPES
    from sd21.sources import DEFAULT

    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT,
        help="a folder in the diffusers layout, a .safetensors file, a hub id, or mini (default: %(default)s)",
    )
    group.add_argument("--revision", help="commit, tag or branch of a hub id")
    group.add_argument("--variant", help="fp16 for *.fp16.safetensors")
    group.add_argument("--prediction-type", choices=PREDICTION_TYPES, help="a single file does not say it")
    group.add_argument("--tokenizer", help="folder or hub id of the tokenizer; a single file has none")
    group.add_argument("--local-files-only", action="store_true", help="do not ask the hub")
    group.add_argument("--device", help="default: cuda, else mps, else cpu")
    group.add_argument(
        "--dtype",
        choices=[str(dtype).removeprefix("torch.") for dtype in DTYPES],
        help="default: bfloat16 on cuda, float32 elsewhere",
    )


def numbers(names: str) -> Callable[[str], tuple[int, ...]]:
    """Reads as many whole numbers as there are names, with commas between."""

    def read(text: str) -> tuple[int, ...]:
        try:
            numbers = tuple(int(number) for number in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(names.split(",")):
            raise argparse.ArgumentTypeError(
                f"expected {len(names.split(','))} whole numbers {names}, got {shown(text)}"
            )
        return numbers

    return read


def window(text: str) -> tuple[float, float]:
    try:
        centre, width = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers C,W, got {shown(text)}") from None
    return centre, width
