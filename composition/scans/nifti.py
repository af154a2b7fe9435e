"""NIfTI files are read here, one axial slice at a time, through nibabel. The module is apart because nibabel comes with
the optional extra `medical` only."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ScanError, damage_named, extra_needed
from .slices import Slice, check_regular, check_size, slice_number

if TYPE_CHECKING:
    from nibabel.arrayproxy import ArrayProxy

SUFFIXES = (".nii", ".nii.gz")
# What a compressed volume may unpack to: 2 GB take seconds, and a small file can hold terabytes of zeros.
MOST_UNPACKED = 2**31


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, index: int | None, name: str, *, labels: bool = False) -> Slice:
    """One axial slice, radiological: anterior up, the patient's right on the left. Grey is (H, W) in float64, RGB24 and
    RGBA32 are (H, W, 3) in uint8.

    index: the slice's number, or None for the only one. name: the file's name in messages. labels: for a mask, whose
    numbers keep the type that the file gives them; its scale counts, because programs store masks with one. Raises
    ScanError for a file that cannot be used, and ImportError if nibabel is not installed.
    """
    with extra_needed("nibabel", name):
        import nibabel
    check_regular(path, name)
    with damage_named(name, "NIfTI"):
        volume = nibabel.load(path, keep_file_open=True)  # opened anew, a compressed file is unpacked from its start
        kind = volume.get_data_dtype()
        if kind.kind == "c":
            raise ScanError(f"{name} holds complex numbers ({kind}); expected real ones: save their magnitude")
        shape = _volume_shape(volume.shape, name)
        orientation = nibabel.io_orientation(volume.affine)
        if np.isnan(orientation).any():
            raise ScanError(f"{name}: its affine matrix is singular and says no orientation; set it anew")
        axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])  # the one that runs from the feet to the head
        check_size(*(length for number, length in enumerate(shape) if number != axis), name)
        check_size(*shape[:2], name)  # a plane as it is stored, which is read to take a row of it
        number = slice_number(shape[axis], index, name)
        if path.name.lower().endswith(".gz"):
            _check_compressed(path, name)
        number = number if orientation[axis, 1] > 0 else shape[axis] - 1 - number
        plane = nibabel.apply_orientation(_plane(volume.dataobj, shape, axis, number), orientation)[:, :, 0]
        plane = plane[::-1, ::-1].T
        if kind.names:
            alpha = plane["A"] if "A" in kind.names else None
            return Slice(np.stack([plane[channel] for channel in "RGB"], axis=2), alpha=alpha)
        return Slice(plane if labels else plane.astype(np.float64))


def _volume_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """A file's shape as three lengths: one slice may lack the third, and further axes of length 1 are none."""
    three = (*shape, 1)[:3]
    if len(three) != 3 or any(length != 1 for length in shape[3:]):
        raise ScanError(f"{name} has {len(shape)} dimensions {tuple(shape)}; expected three: save one volume")
    return three


def _plane(data: ArrayProxy, shape: tuple[int, int, int], axis: int, number: int) -> np.ndarray:
    """One plane of a volume as an array of three axes, with `axis` of length 1; no more than a plane is held at once.

    The file holds plane after plane of its last axis. Across another axis, a row is taken of each.
    """
    if data.ndim == 2:
        return np.asarray(data)[:, :, None].take([number], axis)

    def stored(last: int) -> np.ndarray:
        return data[(slice(None), slice(None), last, *[0] * (data.ndim - 3))][:, :, None]

    if axis == 2:
        return stored(number)
    return np.concatenate([stored(last).take([number], axis) for last in range(shape[2])], axis=2)


def _check_compressed(path: Path, name: str) -> None:
    """Read a compressed file to its end, where its checksum stands. gzip raises for damage; raises ScanError for a file
    that unpacks to more than MOST_UNPACKED bytes."""
    unpacked = 0
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            unpacked += len(block)
            if unpacked > MOST_UNPACKED:
                raise ScanError(f"{name} unpacks to more than {MOST_UNPACKED} bytes; unpack it to a .nii file")
