"""This module says where a slice lies in the patient, as far as its file says it, so that a mask can be compared with
the scan that it belongs to. It is apart from the readers because most files say nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .dicom import attributes_of, is_dicom, read_header
from .errors import ScanError
from .nifti import is_nifti, open_nifti
from .slices import split_slice

# Of a pixel: programs round the places that they write.
SAME_PLACE = 0.5


def place_of(source: str | Path) -> np.ndarray | None:
    """The millimetres (3, 3) of a slice's first pixel, of the next one across and of the next one down, in DICOM's
    directions; None where the file says none. Raises what reading the file raises."""
    path, index = split_slice(source)
    if is_nifti(path):
        affine = open_nifti(path, str(source)).affine
        points = affine @ np.array([(0, 0, index or 0, 1), (1, 0, index or 0, 1), (0, 1, index or 0, 1)]).T
        return (points[:3].T * (-1, -1, 1)).astype(np.float64)
    if not is_dicom(path):
        return None
    header, _ = read_header(path, str(source))
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    found = attributes_of(header, index or 0, names)
    if any(name not in found for name in names):
        return None
    try:
        origin, directions, spacing = (np.array(found[name].value, dtype=np.float64) for name in names)
        first = origin.reshape(3)
        across, down = directions.reshape(2, 3)
        return np.stack([first, first + across * spacing[1], first + down * spacing[0]])
    except (ValueError, TypeError, IndexError):  # numbers that are none
        return None


def check_same_place(what: str, mask: str | Path, scan: str | Path) -> None:
    """Raises ScanError if both files say where they lie, and it is not one place."""
    own, other = place_of(mask), place_of(scan)
    if own is None or other is None or not (np.isfinite(own).all() and np.isfinite(other).all()):
        return
    pixel = min(np.linalg.norm(other[1] - other[0]), np.linalg.norm(other[2] - other[0]))
    apart = np.linalg.norm(own - other, axis=1).max()
    if apart > SAME_PLACE * pixel:
        raise ScanError(
            f"{what} {mask} lies {apart:.3g} mm off its scan {scan}, or is turned; expected a mask of that very slice: "
            "name the right one, or, if it is, save it with the scan's geometry"
        )
