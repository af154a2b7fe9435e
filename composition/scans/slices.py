"""This module says which slice of a stack is meant. A stack is a NIfTI volume, or a TIFF or DICOM file of several
frames, and `FILE#NUMBER` names one of its slices.

All readers number slices by these two functions, so that a number means the same thing in every format.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ScanError


def split_slice(source: str | Path) -> tuple[Path, int | None]:
    """A path and the slice number after its "#", if there is one and no file of that very name exists."""
    match = re.fullmatch(r"(.+)#(\d+)", str(source))
    if match is None or Path(source).exists():
        return Path(source), None
    return Path(match[1]), int(match[2])


def slice_number(count: int, index: int | None, name: str) -> int:
    """The slice to read of a file that holds `count`: the one that was asked for, or the only one there is.

    Raises ScanError if none of several was named, or if the number is beyond the last.
    """
    if index is None and count > 1:
        raise ScanError(f"{name} holds {count} slices; name one by its number: {name}#{count // 2}")
    if index is not None and index >= count:
        raise ScanError(f"{name}: there are {count} slices, numbered 0 to {count - 1}")
    return index or 0
