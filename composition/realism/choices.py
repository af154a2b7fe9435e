"""This module holds the numbers that one may choose for `realism`. The command line makes its options of the fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

from sd21.words import shown

# The shift-tolerant network has nothing left of smaller images (metrics/lpips.py).
SMALLEST, LARGEST = 63, 512


def _choice(default: float, about: str, least: float, most: float):
    """A field, what it means, and its least and greatest value."""
    return field(default=default, metadata={"about": about, "choices": (), "least": least, "most": most})


@dataclass(frozen=True)
class Choices:
    """How crops are made and measured. Raises ValueError, naming the field, for what is no number or out of range."""

    margin: float = _choice(0.25, "tissue shown at each side of a tumour, as a share of its box's longer side", 0, 4)
    size: int = _choice(64, "side of all crops in pixels; smaller ones are left out", SMALLEST, LARGEST)
    rim: int = _choice(3, "the rim is what lies within so many pixels of the mask's edge, in the crop", 1, 64)
    steps: int = _choice(250, "training steps of each classifier", 1, 100_000)
    folds: int = _choice(5, "parts of the cross-validation", 2, 100)
    seeds: int = _choice(3, "how often the cross-validation is repeated, with other folds and weights", 1, 100)
    seed: int = _choice(0, "of all draws", 0, 2**31 - 1)
    reader_crops: int = _choice(20, "crops of each set in the reader study; as many of all together are real", 1, 500)

    def __post_init__(self):
        for one in fields(self):
            value, least, most = getattr(self, one.name), one.metadata["least"], one.metadata["most"]
            whole = isinstance(one.default, int)
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and least <= value <= most):
                kind = "whole number" if whole else "number"
                raise ValueError(f"{one.name} is a {kind} from {least} to {most}, got {shown(value)}")
