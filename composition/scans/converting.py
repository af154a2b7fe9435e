"""This module writes what stands in one of our DICOM or NIfTI results as NIfTI, in the same place and on the same
scale, for programs that want one kind of file and one channel in each.

It takes the extra `medical`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sd21.files import atomic

from .dicom import attributes_of, read_dicom, read_header
from .nifti import is_nifti, open_nifti
from .places import place_of
from .slices import Meaning
from .writing import SYNTHETIC, save_nifti

Save = Callable[..., None]  # (path, plane (H, W), label=False)


def channels_of(path: Path, count: int) -> tuple[list[np.ndarray], Save]:
    """The stored values (H, W) of a file of one slice, once for each channel, and a function that saves such a plane as
    NIfTI, in the file's place and, unless it is a label, on its scale.

    count: 1 for grey, 3 for colour, which grey gives three times. Raises what reading the file raises.
    """
    if is_nifti(path):
        volume = open_nifti(path, str(path))
        values = volume.plane(0)
        if values.dtype.names:
            values = np.stack([values[channel] for channel in "RGB"], axis=2)

        def save(target: Path, plane: np.ndarray, *, label: bool = False) -> None:
            save_nifti(target, volume, volume.stored(plane), volume.image.affine, label=label)

    else:
        read = read_dicom(path, None, str(path), windowed=False)
        values, affine = read.values, _affine_of(path, read.meaning)

        def save(target: Path, plane: np.ndarray, *, label: bool = False) -> None:
            _save_slice(target, plane, affine, Meaning() if label else read.meaning, label)

    planes = [values] * count if values.ndim == 2 else [values[..., channel] for channel in range(count)]
    return planes, save


def _affine_of(path: Path, meaning: Meaning) -> np.ndarray:
    """The matrix (4, 4) from (column, row, slice) to millimetres to the right, front and head, of a DICOM slice. One
    that says no place lies at the origin, as the patient is looked at from the feet."""
    place = place_of(path)
    if place is None:
        down, across = meaning.spacing or (1.0, 1.0)
        place = np.array([(0, 0, 0), (across, 0, 0), (0, down, 0)])
    header, _ = read_header(path, str(path))
    thickness = attributes_of(header, 0, ("SliceThickness",)).get("SliceThickness")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = place[1] - place[0], place[2] - place[0], place[0]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    affine[:3, 2] = normal / np.linalg.norm(normal) * (float(thickness or 0) or 1.0)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to the left and to the back


def _save_slice(path: Path, plane: np.ndarray, affine: np.ndarray, meaning: Meaning, label: bool) -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(plane.T)[:, :, None], affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(meaning.slope, meaning.intercept)
    image.header["descrip"] = SYNTHETIC.encode() + b" label" * label
    with atomic(path) as temporary:
        nibabel.save(image, temporary)
