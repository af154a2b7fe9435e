"""This module holds the rules by which an object gets its place on a background, whoever draws the pair: the paper's
benchmark, or a user's own data set. The benchmark's rules are BENCHMARK.

Decisions are made in whole numbers and fractions, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ..fields import check_ranges, option, ranged
from ..placement import Sample, bounding_box, in_common_terms, true_scale
from ..scans.errors import ScanError
from ..scans.images import Scan
from ..scans.slices import Meaning
from ..variation import BITS, MOST_DEFORMED, Variation, chance, share, varied_mask

FINEST = 10_000  # of the digits of what is drawn, so that a manifest is short, and the same where sines round otherwise


@dataclass(frozen=True)
class Rules:
    """How pairs are drawn. Of every range, both ends may be drawn; what is 0 or false is off.

    Raises ValueError, naming the field, for a value of another kind or outside its range.
    """

    place: str = option(
        "near",
        "near: the box lies in tissue (all that is brighter than air, bone too), as near as it can to where the object "
        "lies in its own scan, relative to the size of the scans; anywhere: anywhere in tissue, drawn",
        ("near", "anywhere"),
    )
    per_background: int = ranged(4, "how many rows use one background at most", 1, 10**6)
    per_object: int = ranged(20, "how many rows use one object at most", 1, 10**6)
    size_jitter: float = ranged(
        0.0,
        "F: multiply the object's size by 1/(1+F) to 1+F. Without, it takes the share of the background that it takes "
        "of its own scan, or keeps its millimetres where both scans know theirs",
        0.0,
        4.0,
    )
    flip: bool = option(False, "mirror half of the objects, drawn, left to right")
    rotate: float = ranged(0.0, "turn the object by up to so many degrees, either way", 0.0, 180.0)
    deform: float = ranged(
        0.0, "bend the object and its mask, by up to this share of its longer side", 0.0, MOST_DEFORMED
    )
    contrast: float = ranged(
        0.0,
        "F: 1/(1+F) to 1+F times the difference in grey between the object and the tissue around it; not in scans "
        "whose values have a unit",
        0.0,
        3.0,
    )
    margin: int = ranged(1, "pixels that are left between the box and the border of the background", 0, 10**4)
    # A box shorter than 1/16 of its scan is shorter than 4 cells of a 64 x 64 latent; one longer than 2/3 of it carries
    # more of its own scan than is left of the background.
    smallest: float = ranged(
        1 / 16, "leave out objects shorter than this share of their scan, along either axis", 0.0, 1.0
    )
    largest: float = ranged(
        2 / 3, "leave out objects longer than this share of their scan, along either axis", 0.0, 1.0
    )

    def __post_init__(self):
        check_ranges(self)

    @property
    def vary(self) -> bool:
        """Whether an object differs from draw to draw."""
        return bool(self.size_jitter or self.flip or self.rotate or self.deform or self.contrast)


BENCHMARK = Rules(per_background=1, per_object=1, margin=0)


@dataclass(frozen=True)
class Place:
    """Where an object goes: the user's box x, y, width, height on the background, and how the object is varied."""

    box: tuple[int, int, int, int]
    variation: Variation = Variation()  # noqa: RUF009 (it is frozen)


def unsuitable(mask: np.ndarray, rules: Rules = BENCHMARK) -> str | None:
    """The reason why an object is not used, or None. mask: the object's, bool (H, W).

    There are three reasons: the object touches the border of its scan, so that a part may be cut off; its bounding box
    is shorter than `smallest` of the scan along either axis; or the box is longer than `largest` of it. The last two
    name the rule.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = bounding_box(mask)
    if x0 == 0 or y0 == 0 or x1 == width or y1 == height:
        return "object touches the border of its scan"
    sides = ((x1 - x0, width), (y1 - y0, height))
    if any(side < _exact(rules.smallest) * length for side, length in sides):
        return f"object is too small: shorter than {rules.smallest:.3g} of its scan along one axis (smallest)"
    if any(side > _exact(rules.largest) * length for side, length in sides):
        return f"object is too large: longer than {rules.largest:.3g} of its scan along one axis (largest)"
    return None


def place_object(
    tissue: np.ndarray, mask: np.ndarray, there: Meaning, own: Meaning, rules: Rules = BENCHMARK, words: tuple = ()
) -> Place | None:
    """Where an object goes on a background and how it is varied, or None if the tissue has no room for it so.

    tissue: bool (H, W) of the background's. mask: the object's, in its own scan. there, own: what the pixels of the
    background and of the object's scan stand for. words: what is drawn is drawn from them.

    Size: without millimetres, the object keeps its share: the factor that fits its scan into the background, times the
    jitter. With millimetres in both scans it is its own size, times the jitter, and the box is that in whole pixels,
    rounded up, so that `Settings.size` "auto" finds room for exactly that size.
    """
    drawn = _drawn_variation(rules, words, own)
    try:
        varied = varied_mask(mask, drawn, own.aspect)
    except ScanError:
        return None
    factor = _jitter(rules, words)
    if there.measured and own.measured:
        size = _true_box(tissue.shape, varied, there, own, factor)
    elif rules.size_jitter:
        size, factor = _jittered_box(tissue.shape, mask.shape, varied, factor, _exact(rules.size_jitter))
    else:
        size = _shared_box(tissue.shape, mask.shape, varied)
    if size is None:
        return None
    corner = _corner(tissue, size, mask[:, ::-1] if drawn.flip else mask, rules, words)
    if corner is None:
        return None
    return Place((*corner, *size), replace(drawn, size=factor) if rules.size_jitter else drawn)


def _fit_of(size: tuple[int, int], own: tuple[int, int]) -> tuple[int, int]:
    """The factor that fits a scan of (height, width) `own` into one of `size`, as numerator and denominator."""
    (height, width), (object_height, object_width) = size, own
    across = width * object_height <= height * object_width  # whether the widths decide how the scan would fit
    return (width, object_width) if across else (height, object_height)


def _shared_box(size: tuple[int, int], own: tuple[int, int], mask: np.ndarray) -> tuple[int, int]:
    """Width and height of the box of a mask that keeps its share of a scan of (height, width) `own`, rounded down."""
    x0, y0, x1, y1 = bounding_box(mask)
    scale, unit = _fit_of(size, own)
    return max(1, (x1 - x0) * scale // unit), max(1, (y1 - y0) * scale // unit)


def _jittered_box(
    size: tuple[int, int], own: tuple[int, int], mask: np.ndarray, factor: float, jitter: Fraction
) -> tuple[tuple[int, int] | None, float]:
    """The box whose longer side, in whole pixels, comes nearest to the factor and stays in the jitter's range, and the
    factor that it stands for. The shorter side is rounded up, so that the longer one decides the object's size."""
    x0, y0, x1, y1 = bounding_box(mask)
    longer, base = max(x1 - x0, y1 - y0), Fraction(*_fit_of(size, own))
    least, most = math.ceil(longer * base / (1 + jitter)), math.floor(longer * base * (1 + jitter))
    if most < max(1, least):
        return None, factor
    side = min(max(round(longer * base * Fraction(factor)), least, 1), most)
    box = tuple(max(1, -(-length * side // longer)) for length in (x1 - x0, y1 - y0))
    return box, float(side / (longer * base))


def _true_box(
    size: tuple[int, int], varied: np.ndarray, there: Meaning, own: Meaning, factor: float
) -> tuple[int, int]:
    """The box of an object of its own size in millimetres, times the factor, in whole pixels, rounded up."""
    scans = [
        Scan(np.zeros(shape, np.uint8), "scan", (0, 1), meaning)
        for shape, meaning in ((size, there), (varied.shape, own))
    ]
    common = in_common_terms(Sample(*scans, varied, np.ones(size, dtype=bool), None))
    scale = true_scale(common.background, common.obj) * factor
    x0, y0, x1, y1 = bounding_box(common.object_mask)
    return math.ceil(scale * (x1 - x0)), math.ceil(scale * (y1 - y0))


def _corner(
    tissue: np.ndarray, size: tuple[int, int], mask: np.ndarray, rules: Rules, words: tuple
) -> tuple[int, int] | None:
    """The left upper corner x, y of a box of this width and height that lies wholly in tissue, with the rules' margin
    to the border of the scan, or None. mask: the object's in its own scan, mirrored if it is."""
    (w, h), (height, width), (object_height, object_width) = size, tissue.shape, mask.shape
    if w > width - 2 * rules.margin or h > height - 2 * rules.margin:
        return None
    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = tissue.cumsum(axis=0).cumsum(axis=1)
    covered = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    free = covered == w * h
    free[: rules.margin] = free[height - h - rules.margin + 1 :] = False
    free[:, : rules.margin] = free[:, width - w - rules.margin + 1 :] = False
    rows, columns = np.nonzero(free)
    if len(rows) == 0:
        return None
    if rules.place == "anywhere":
        chosen = chance(*words, "place") * len(rows) >> BITS
    else:
        x0, y0, x1, y1 = bounding_box(mask)
        x = ((x0 + x1) * width - w * object_width) // (2 * object_width)
        y = ((y0 + y1) * height - h * object_height) // (2 * object_height)
        chosen = ((columns - x) ** 2 + (rows - y) ** 2).argmin()
    return int(columns[chosen]), int(rows[chosen])


def _drawn_variation(rules: Rules, words: tuple, own: Meaning) -> Variation:
    """What is drawn for a pair, but for its size."""
    bent = _rounded(rules.deform * share(*words, "deformation"), 0.0, rules.deform)
    return Variation(
        flip=rules.flip and share(*words, "flip") < 0.5,
        rotation=_rounded(rules.rotate * (2 * share(*words, "rotation") - 1), -rules.rotate, rules.rotate),
        deformation=bent,
        contrast=_factor(rules.contrast, *words, "contrast") if own.unit is None else 1.0,
        seed=chance(*words, "waves") if bent else 0,
    )


def _jitter(rules: Rules, words: tuple) -> float:
    return _factor(rules.size_jitter, *words, "size")


def _factor(most: float, *words: object) -> float:
    """A factor from 1/(1+most) to 1+most, of which it is as often below 1 as above."""
    return _rounded((1 + most) ** (2 * share(*words) - 1), 1 / (1 + most), 1 + most)


def _rounded(value: float, low: float, high: float) -> float:
    """The value in steps of one part in FINEST, not beyond the ends. 0 has no sign."""
    return min(max(round(value * FINEST) / FINEST, low), high) + 0.0


def _exact(number: float) -> Fraction:
    """The simple fraction that a number stands for: 2/3, and not what a float makes of it."""
    return Fraction(number).limit_denominator(FINEST)
