"""This module makes the fields of dataclasses of which the command line makes options (options.py): what each is about,
and what it may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, fields
from numbers import Integral, Real

import numpy as np

from sd21.words import shown


def option(default: object, about: str, choices: Sequence[str] = ()):
    """A field and what it means; choices: of a text, all that it may be."""
    return field(default=default, metadata={"about": about, "choices": choices})


def ranged(default: float, about: str, low: float, high: float):
    """A field that is a number from low to high, a whole one if its default is, and what it means."""
    return field(default=default, metadata={"about": about, "choices": (), "range": (low, high)})


def check_ranges(instance) -> None:
    """Keep the fields of a frozen dataclass as Python's own bools and numbers. Raises ValueError, naming the field,
    where one is of another kind than its default, out of its `range`, or not among its `choices`."""
    for one in fields(instance):
        value, kind, choices = getattr(instance, one.name), type(one.default), one.metadata["choices"]
        if kind is bool:
            sound, expected = isinstance(value, bool | np.bool_), "true or false"
        elif choices:
            sound, expected = isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"
        else:
            low, high = one.metadata["range"]
            number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool | np.bool_)
            sound = number and low <= value <= high
            expected = f"{'a whole number' if kind is int else 'a number'} from {low} to {high}"
        if not sound:
            raise ValueError(f"{one.name} is {expected}, got {shown(value)}")
        object.__setattr__(instance, one.name, kind(value))
