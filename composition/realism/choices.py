"""This module holds the numbers that one may choose for `realism`. The command line makes its options of the fields."""

from __future__ import annotations

from dataclasses import dataclass

from ..fields import check_ranges, ranged

# The shift-tolerant network has nothing left of smaller images (metrics/lpips.py).
SMALLEST, LARGEST = 63, 512


@dataclass(frozen=True)
class Choices:
    """How crops are made and measured. Raises ValueError, naming the field, for what is no number or out of range."""

    margin: float = ranged(0.25, "tissue shown at each side of a tumour, as a share of its box's longer side", 0, 4)
    size: int = ranged(64, "side of all crops in pixels; smaller ones are left out", SMALLEST, LARGEST)
    rim: int = ranged(3, "the rim is what lies within so many pixels of the mask's edge, in the crop", 1, 64)
    steps: int = ranged(250, "training steps of each classifier", 1, 100_000)
    folds: int = ranged(5, "parts of the cross-validation", 2, 100)
    seeds: int = ranged(3, "how often the cross-validation is repeated, with other folds and weights", 1, 100)
    seed: int = ranged(0, "of all draws", 0, 2**31 - 1)
    reader_crops: int = ranged(
        20, "crops of each set in the reader study; the study has as many real crops as composites", 1, 500
    )

    def __post_init__(self):
        check_ranges(self)
