"""NIfTI files are read here, one axial slice at a time, through nibabel. The module is apart because nibabel comes with
the optional extra `medical` only."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ScanError, damage_named, extra_needed
from .slices import Meaning, Slice, check_regular, check_size, sampled_ends, slice_number

if TYPE_CHECKING:
    from nibabel import Nifti1Image
    from nibabel.arrayproxy import ArrayProxy

SUFFIXES = (".nii", ".nii.gz")
# What a compressed volume may unpack to: 2 GB take seconds, and a small file can hold terabytes of zeros.
MOST_UNPACKED = 2**31
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # of the header's unit of length; one that is not stated means them


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_nifti(path: Path, index: int | None, name: str, *, labels: bool = False) -> Slice:
    """One axial slice, radiological: anterior up, the patient's right on the left. Grey is (H, W) as stored, RGB24 and
    RGBA32 are (H, W, 3) in uint8.

    index: the slice's number, or None for the only one. name: the file's name in messages. labels: for a mask, whose
    scale counts, because programs store masks with one. Raises ScanError for a file that cannot be used, and
    ImportError if nibabel is not installed.
    """
    volume = open_nifti(path, name)
    with damage_named(name, "NIfTI"):
        number = slice_number(len(volume), index, name)
        values = volume.plane(number)
        meaning = replace(volume.meaning, slice=number if len(volume) > 1 else None)
        if values.dtype.names:
            alpha = values["A"] if "A" in values.dtype.names else None
            meaning = replace(meaning, slope=1.0, intercept=0.0)
            return Slice(np.stack([values[channel] for channel in "RGB"], axis=2), alpha=alpha, meaning=meaning)
        if labels:
            return Slice(volume.labels(number))
        return Slice(values, levels=volume.levels(), inverted=meaning.slope < 0, meaning=meaning)


@dataclass(frozen=True, eq=False)
class NiftiVolume:
    """A volume as a stack of axial slices, of which none is held in memory. Slices count from the feet.

    data: the stored values, read where they are sliced. affine: (4, 4), millimetres of (column, row, slice) in RAS.
    axes: for row, column and slice the axis of the file and whether it runs the other way. slope, intercept: the file's
    scale, value = slope * stored + intercept. image: nibabel's, for its header.
    """

    data: ArrayProxy
    affine: np.ndarray
    axes: tuple[tuple[int, bool], ...]
    slope: float
    intercept: float
    image: Nifti1Image

    def __len__(self) -> int:
        return self.data.shape[self.axes[2][0]]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a slice in pixels."""
        return tuple(self.data.shape[axis] for axis, _ in self.axes[:2])

    @property
    def meaning(self) -> Meaning:
        across, down, _ = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return Meaning(self.slope, self.intercept, spacing=(down, across), measured=True)

    def plane(self, number: int) -> np.ndarray:
        """The stored values (H, W) of a slice."""
        return self._upright(_plane(self.data, self.axes[2][0], self.index_of(number)))

    def index_of(self, number: int) -> int:
        """Where a slice lies along its axis of the file."""
        return len(self) - 1 - number if self.axes[2][1] else number

    def put(self, whole: np.ndarray, number: int, plane: np.ndarray) -> None:
        """Write a slice (H, W) into an array of the file's shape."""
        place, index = [slice(None)] * 3, self.index_of(number)
        place[self.axes[2][0]] = slice(index, index + 1)
        whole[tuple(place)] = self.stored(plane)

    @property
    def inverted(self) -> bool:
        """Whether the lesser stored value is white."""
        return self.slope < 0

    def labels(self, number: int) -> np.ndarray:
        """The values (H, W) of a slice of classes, by the file's scale, because programs store masks with one; whole
        numbers stay whole where there is none."""
        stored = self.plane(number)
        return stored if (self.slope, self.intercept) == (1, 0) else self.meaning.value_of(stored.astype(np.float64))

    def levels(self) -> tuple[float, float] | None:
        """The stored values of black and white: the header's cal_min and cal_max, or the robust ends of a sample of the
        whole volume; None for a volume of one value, or of none that is finite."""
        low, high = (float(self.image.header[name]) for name in ("cal_min", "cal_max"))
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return self.meaning.stored_of(low), self.meaning.stored_of(high)
        planes = (_stored_plane(self.data, last) for last in range(self.data.shape[2]))
        return sampled_ends(planes, self.data.shape, inverted=self.inverted)

    def stored(self, plane: np.ndarray) -> np.ndarray:
        """A slice (H, W) as three axes in the file's order, of which the slice's has length 1."""
        for place, (_, backwards) in enumerate(self.axes[:2]):
            plane = np.flip(plane, place) if backwards else plane
        order = [axis for axis, _ in self.axes]
        return plane[:, :, None].transpose(np.argsort(order))

    def _upright(self, plane: np.ndarray) -> np.ndarray:
        """Three axes in the file's order, of which the slice's has length 1, as (H, W)."""
        plane = plane.transpose([axis for axis, _ in self.axes])[:, :, 0]
        for place, (_, backwards) in enumerate(self.axes[:2]):
            plane = np.flip(plane, place) if backwards else plane
        return np.ascontiguousarray(plane)


def open_nifti(path: Path, name: str) -> NiftiVolume:
    """A volume, of which the header is read and checked. Raises what `read_nifti` raises."""
    with extra_needed("nibabel", name):
        import nibabel
        from nibabel.arrayproxy import ArrayProxy
    check_regular(path, name)
    with damage_named(name, "NIfTI"):
        image = nibabel.load(path, keep_file_open=True)  # opened anew, a compressed file is unpacked from its start
        kind = image.get_data_dtype()
        if kind.kind == "c":
            raise ScanError(f"{name} holds complex numbers ({kind}); expected real ones: save their magnitude")
        shape = _volume_shape(image.shape, name)
        orientation = nibabel.io_orientation(image.affine)
        if np.isnan(orientation).any():
            raise ScanError(f"{name}: its affine matrix is singular and says no orientation; set it anew")
        # The file's axis for left to right, back to front and feet to head, and whether it runs that way.
        of = {int(to): (axis, forwards > 0) for axis, (to, forwards) in enumerate(orientation)}
        axes = (of[1][0], of[1][1]), (of[0][0], of[0][1]), (of[2][0], not of[2][1])
        check_size(shape[axes[0][0]], shape[axes[1][0]], name)
        check_size(*shape[:2], name)  # a plane as it is stored, which is read to take a row of it
        if path.name.lower().endswith(".gz"):
            _check_compressed(path, name)
        proxy = image.dataobj
        data = ArrayProxy(proxy.file_like, (shape, proxy.dtype, proxy.offset, 1.0, 0.0), keep_file_open=True)
        upright = _upright_affine(image.affine, axes, shape)
        upright[:3] *= MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        return NiftiVolume(data, upright, axes, float(proxy.slope), float(proxy.inter), image)


def _upright_affine(affine: np.ndarray, axes: tuple, shape: tuple[int, int, int]) -> np.ndarray:
    """The affine matrix of (column, row, slice), of a file's own."""
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for column, (axis, backwards) in enumerate((axes[1], axes[0], axes[2])):
        turned[axis, column] = -1 if backwards else 1
        turned[axis, 3] = shape[axis] - 1 if backwards else 0
    return affine @ turned


def _volume_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """A file's shape as three lengths: one slice may lack the third, and further axes of length 1 are none."""
    three = (*shape, 1)[:3]
    if len(three) != 3 or any(length != 1 for length in shape[3:]):
        raise ScanError(f"{name} has {len(shape)} dimensions {tuple(shape)}; expected three: save one volume")
    return three


def _plane(data: ArrayProxy, axis: int, number: int) -> np.ndarray:
    """One plane of a volume as an array of three axes, with `axis` of length 1; no more than a plane is held at once.

    The file holds plane after plane of its last axis. Across another axis, a row is taken of each.
    """
    if axis == 2:
        return _stored_plane(data, number)[:, :, None]
    rows = [_stored_plane(data, last).take([number], axis) for last in range(data.shape[2])]
    return np.stack(rows, axis=2)


def _stored_plane(data: ArrayProxy, last: int) -> np.ndarray:
    """A plane of the file's last axis, in the machine's byte order. Raises ScanError for a file that lacks it."""
    with damage_named(str(getattr(data.file_like, "name", data.file_like)), "NIfTI"):
        plane = np.asarray(data[:, :, last])
    return plane if plane.dtype.names else plane.astype(plane.dtype.newbyteorder("="), copy=False)


def _check_compressed(path: Path, name: str) -> None:
    """Read a compressed file to its end, where its checksum stands. gzip raises for damage; raises ScanError for a file
    that unpacks to more than MOST_UNPACKED bytes."""
    unpacked = 0
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            unpacked += len(block)
            if unpacked > MOST_UNPACKED:
                raise ScanError(f"{name} unpacks to more than {MOST_UNPACKED} bytes; unpack it to a .nii file")
