"""This module says what a slice is: the values that a reader takes from a file, which slice of a stack is meant, and
how large one may be. A stack is a NIfTI volume, or a TIFF or DICOM file of several frames, and `FILE#NUMBER` names one
of its slices.

All readers return a `Slice` and number slices by these functions, so that a number and a value mean the same thing in
every format.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd21.files import irregular

from .errors import ScanError

# 8192 x 8192: more than any scanner's slice, and little enough that a slice and the copies that its reading takes stay
# within 2 GB. It is checked in a file's header, before the memory is taken.
MOST_PIXELS = 2**26


# Where nothing states the window, this share of the values lies beyond each of its ends: hot pixels and metal must not
# turn all tissue black.
TAIL = 2.5e-4
LEAST_TAILED = 2000  # of so many values, one at least lies beyond
SAMPLED = 2**22  # of so many values, evenly spread, the ends of a volume's window are found


@dataclass(frozen=True)
class Meaning:
    """What the pixels and stored values of a scan stand for.

    slope, intercept: value = slope * stored + intercept. unit: of the value where it has a physical scale, as "HU";
    None where grey means nothing by itself. modality: as DICOM has it, "CT", "MR", "US".
    spacing: (down, across), the distance from a pixel to the next; in millimetres if `measured`, else only the ratio of
    the two counts. None where the file says neither. slice: the number of the slice in its file, None for the only one.
    """

    slope: float = 1.0
    intercept: float = 0.0
    unit: str | None = None
    modality: str | None = None
    spacing: tuple[float, float] | None = None
    measured: bool = False
    slice: int | None = None

    @property
    def aspect(self) -> float:
        """How much longer than wide a pixel is; 1 where the file does not say it."""
        return 1.0 if self.spacing is None else self.spacing[0] / self.spacing[1]

    def value_of(self, stored):
        """Stored values, a number or an array, on the file's scale."""
        return stored * self.slope + self.intercept

    def stored_of(self, value):
        """What is stored for values of the file's scale."""
        return (value - self.intercept) / self.slope


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Slice:
    """What a reader took from a file.

    values: (H, W) as they are stored, of any type of number, or (H, W, 3) uint8 in RGB. alpha: (H, W) uint8 where the
    file has transparency, 255 opaque. levels: the two stored values that stand for black and white, of which black may
    be the greater; None where the file states no window: then `robust_ends` gives them, exchanged if `inverted`.
    meaning: what the values stand for. lossy: whether the file's compression rings around edges.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    levels: tuple[float, float] | None = None
    inverted: bool = False
    meaning: Meaning = Meaning()
    lossy: bool = False


def robust_ends(values: np.ndarray) -> tuple[float, float]:
    """Two of the values, of any shape, beyond which a share of TAIL lies on each side, or the least and greatest where
    these two are one. What is not finite does not count. Raises ValueError where nothing is finite."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
    if finite.size == 0:
        raise ValueError("it holds no finite number")
    beyond = max(int(TAIL * finite.size), int(finite.size >= LEAST_TAILED))
    ordered = np.partition(finite, (beyond, finite.size - 1 - beyond)) if beyond else finite
    low, high = (ordered[beyond], ordered[-1 - beyond]) if beyond else (finite.min(), finite.max())
    if low == high:
        low, high = finite.min(), finite.max()
    return low.item(), high.item()


def sampled_ends(
    planes: Iterable[np.ndarray], shape: tuple[int, int, int], *, inverted: bool
) -> tuple[float, float] | None:
    """The stored values of black and white of a volume that states none: `robust_ends` of SAMPLED of its values, white
    first if `inverted`. None for a volume of one value, or of none that is finite.

    planes: of two axes, one after the other, of which one is held at a time. shape: of the volume.
    """
    step = math.ceil(math.sqrt(math.prod(shape) / SAMPLED))
    try:
        low, high = robust_ends(np.concatenate([plane[::step, ::step].ravel() for plane in planes]))
    except ValueError:
        return None
    if low == high:
        return None
    return (high, low) if inverted else (low, high)


def split_slice(source: str | Path) -> tuple[Path, int | None]:
    """A path and the slice number after its "#", if there is one and no file of that very name exists."""
    match = re.fullmatch(r"(.+)#([0-9]{1,9})", str(source))
    if match is None or os.path.exists(source):
        return Path(source), None
    return Path(match[1]), int(match[2])


def slice_number(count: int, index: int | None, name: str) -> int:
    """The slice to read of a file that holds `count`: the one that was asked for, or the only one there is.

    Raises ScanError if none of several was named, or if the number is beyond the last.
    """
    if index is None and count > 1:
        raise ScanError(f"{name} holds {count} slices; name one by its number: {name}#{count // 2}")
    if index is not None and index >= count:
        there = "is one slice, number 0" if count == 1 else f"are {count} slices, numbered 0 to {count - 1}"
        raise ScanError(f"{name}: there {there}")
    return index or 0


def check_regular(path: Path, name: str) -> None:
    """Raises ScanError unless the path is a regular file. This comes before a file is opened."""
    if what := irregular(path):
        raise ScanError(f"{name}: {what}; expected a scan or a mask in a file")


def check_size(height: int, width: int, name: str) -> None:
    """Raises ScanError for a slice of more than MOST_PIXELS pixels, or of none."""
    if height < 1 or width < 1:
        raise ScanError(f"{name} is {width}x{height} pixels by its header; expected at least one")
    if height * width > MOST_PIXELS:
        raise ScanError(
            f"{name} is {width}x{height} pixels by its header; at most {MOST_PIXELS} are read: cut it out or scale it"
        )
