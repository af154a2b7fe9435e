"""NIfTI files are read here, one axial slice at a time, through nibabel. The module is apart because nibabel comes with
the optional extra `medical` only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import ScanError, damage_named, extra_needed
from .slices import slice_number

SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, index: int | None, name: str) -> np.ndarray:
    """One axial slice (H, W) in float64, radiological: anterior up, the patient's right on the left.

    index: the slice's number, or None for the only one. name: the file's name in messages. Raises ScanError for a file
    that cannot be used, and ImportError if nibabel is not installed.
    """
    with extra_needed("nibabel", name):
        import nibabel
    with damage_named(name, "NIfTI"):
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        shape = volume.shape
        if len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3:
            raise ScanError(f"{name} has {len(shape)} dimensions {shape}; expected a volume of three")
        plane = np.asarray(volume.dataobj, dtype=np.float64).reshape(shape)[:, :, slice_number(shape[2], index, name)]
    return plane[::-1, ::-1].T
