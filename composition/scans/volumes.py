"""This module opens volumes as stacks of slices, of which none is held in memory: a NIfTI file, or a folder of DICOM
slices, sorted by their positions and not by their names.

Both kinds say the same of themselves, so that whoever works in three dimensions knows no format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from .dicom import is_dicom, read_dicom, read_header
from .errors import ScanError, damage_named, extra_needed
from .images import stored_as
from .nifti import is_nifti, open_nifti
from .slices import Meaning, Slice, sampled_ends

# Slices that lie on one line and at equal distances, to so many millimetres; files round to hundredths.
EVEN = 0.05
SAME_PLACE = 1e-2  # millimetres, or voxels, between two volumes on the same voxels


class Volume(Protocol):
    """A stack of slices. affine: (4, 4), from (column, row, slice) to millimetres, to the right, front and head."""

    affine: np.ndarray

    def __len__(self) -> int:
        """How many slices there are."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a slice in pixels."""

    @property
    def meaning(self) -> Meaning:
        """What stored values and pixels stand for."""

    def plane(self, number: int) -> np.ndarray:
        """The stored values (H, W) of a slice."""

    def labels(self, number: int) -> np.ndarray:
        """The values (H, W) of a slice that are classes: a NIfTI file's by its scale, and a DICOM file's as stored."""

    @property
    def inverted(self) -> bool:
        """Whether the lesser stored value is white, unless a stated window says otherwise."""

    def levels(self) -> tuple[float, float] | None:
        """The stored values of black and white, for the whole volume; None for a blank one."""


def open_volume(path: str | Path) -> Volume:
    """The volume in a NIfTI file or in a folder of DICOM slices. Raises ScanError for anything else."""
    path = Path(path)
    if path.is_dir():
        return open_series(path)
    if is_nifti(path):
        volume = open_nifti(path, str(path))
        if volume.plane(0).dtype.names:
            raise ScanError(f"{path} is in colour; expected a volume of gray")
        return volume
    raise ScanError(
        f"{path} is no volume; expected a NIfTI file (.nii, .nii.gz) or a folder of DICOM slices, one frame in a file"
    )


def on_grid_of(labels: Volume, scan: Volume) -> Volume | None:
    """Labels on the slices of a scan: themselves, or, where they hold the same voxels in another order, as a NIfTI
    label of a sagittal DICOM series does, in the scan's. None where they lie on other voxels."""
    if (len(labels), labels.size) == (len(scan), scan.size) and np.allclose(
        labels.affine, scan.affine, atol=SAME_PLACE
    ):
        return labels
    turn = np.linalg.inv(labels.affine) @ scan.affine  # from the scan's (column, row, slice) to the labels'
    axes = np.abs(turn[:3, :3]).argmax(axis=0)
    shape = np.array([scan.size[1], scan.size[0], len(scan)])
    exact = np.zeros((3, 3))
    exact[axes, range(3)] = np.sign(turn[axes, range(3)])
    ends = np.array([turn[:3, 3], exact @ (shape - 1) + turn[:3, 3]])
    own = np.array([labels.size[1], labels.size[0], len(labels)])
    fits = sorted(axes) == [0, 1, 2] and np.allclose(turn[:3, :3], exact, atol=1e-3)  # files round directions
    if not fits or not np.allclose([ends.min(axis=0), ends.max(axis=0)], [[0, 0, 0], own - 1], atol=SAME_PLACE):
        return None
    whole = np.stack([labels.labels(number) for number in range(len(labels))]).transpose(2, 1, 0)
    whole = np.flip(whole.transpose(axes), [place for place in range(3) if exact[axes[place], place] < 0])
    return _Turned(whole.transpose(2, 1, 0), scan)


@dataclass(frozen=True, eq=False)
class _Turned:
    """Labels (slice, row, column) that were turned onto the voxels of a scan."""

    values: np.ndarray
    scan: Volume

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[1:]

    def labels(self, number: int) -> np.ndarray:
        return self.values[number]


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """The slices of one series, along the line on which they lie. affine: as Volume has it. apart: whether each slice
    has a scale of its own, as in positron emission; what is stored here are then the values by these scales.
    one_window: whether all slices state the same window; those of MR often do not, and then none of them counts."""

    paths: tuple[Path, ...]
    affine: np.ndarray
    size: tuple[int, int]
    apart: bool = False
    one_window: bool = True

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def _first(self) -> Slice:
        return self._read(0)

    @property
    def inverted(self) -> bool:
        first = self._first
        return first.inverted != (first.meaning.slope < 0) if self.apart else first.inverted

    @property
    def meaning(self) -> Meaning:
        own = self._first.meaning
        return replace(own, slope=1.0, intercept=0.0) if self.apart else own

    def plane(self, number: int) -> np.ndarray:
        read = self._read(number)
        return _by_scale(read) if self.apart else read.values

    def stored(self, number: int, plane: np.ndarray | None = None) -> np.ndarray:
        """What a slice's own file stores, or would store in place of another plane. Where that has the slice's own
        value, so has this."""
        if plane is not None and not self.apart:
            return plane
        read = self._read(number)
        if plane is None:
            return read.values
        back = stored_as(read.meaning.stored_of(plane), read.values.dtype)
        return np.where(plane == _by_scale(read), read.values, back)

    def labels(self, number: int) -> np.ndarray:
        return self._read(number, labels=True).values

    def _read(self, number: int, *, labels: bool = False) -> Slice:
        path = self.paths[number]
        read = read_dicom(path, None, str(path), labels=labels, windowed=False)
        if labels and read.lossy:
            raise ScanError(f"{path} is compressed with loss, and a mask's edges ring; save it without")
        if read.values.shape != self.size:
            raise ScanError(f"{path} is {read.values.shape} pixels; expected {self.size} as the others")
        return read

    def levels(self) -> tuple[float, float] | None:
        # A table or a sigmoid has no ends among the stored values, and reading through it changes their type.
        stated = read_dicom(self.paths[0], None, str(self.paths[0]))
        if self.one_window and stated.levels is not None and stated.values.dtype == self._first.values.dtype:
            return tuple(stated.meaning.value_of(e) if self.apart else e for e in stated.levels)
        planes = (self.plane(number) for number in range(len(self)))
        return sampled_ends(planes, (len(self), *self.size), inverted=self.inverted)


def _by_scale(read: Slice) -> np.ndarray:
    return read.meaning.value_of(read.values.astype(np.float64))


def open_series(folder: Path) -> DicomSeries:
    """The one series of DICOM slices in a folder. Raises ScanError where there is none or more than one, where slices
    say no position, and where they do not lie at equal distances on one line; ImportError if pydicom is missing."""
    with extra_needed("pydicom", str(folder)):
        import pydicom  # noqa: F401
    wanted = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    found, series, scales, windows = [], {}, set(), set()
    for path in sorted(folder.iterdir()):
        if not is_dicom(path) or path.name.startswith("."):
            continue
        with damage_named(str(path), "DICOM"):
            header, _ = read_header(path, str(path))
            if header.get("Rows") is None:  # a directory, a report
                continue
            if header.get("NumberOfFrames") and int(header.NumberOfFrames) > 1:
                raise ScanError(f"{path} holds several frames; a volume is read from files of one: split it")
            lacking = [name for name in wanted if header.get(name) in (None, "")]
            if lacking:
                raise ScanError(f"{path} lacks {', '.join(lacking)}, so nobody knows where it lies")
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(path.name)
            scales.add((header.get("RescaleSlope"), header.get("RescaleIntercept")))
            windows.add(str([header.get(name) for name in ("WindowCenter", "WindowWidth", "VOILUTFunction")]))
            found.append((path, *(np.array(header.get(name), dtype=np.float64) for name in wanted)))
    if len(found) < 2:
        raise ScanError(
            f"{folder} holds {len(found)} DICOM slices; expected two or more, in the folder itself and not below it"
        )
    if len(series) > 1:
        each = ", ".join(f"{len(names)} files as {names[0]}" for names in list(series.values())[:5])
        raise ScanError(
            f"{folder} holds {len(series)} series ({each}); expected the slices of one: move the others away"
        )
    return replace(_sorted_series(folder, found), apart=len(scales) > 1, one_window=len(windows) == 1)


def _sorted_series(folder: Path, found: list[tuple]) -> DicomSeries:
    _, _, directions, spacing, rows, columns = found[0]
    for path, _, own, distance, *size in found:
        if not (
            np.allclose(own, directions, atol=1e-3)  # files round direction cosines to three or more digits
            and np.allclose(distance, spacing, rtol=1e-3)
            and size == [rows, columns]
        ):
            raise ScanError(f"{path} has another orientation, spacing or size than {found[0][0].name}")
    across, down = directions[:3], directions[3:]
    normal = np.cross(across, down)
    found = sorted(found, key=lambda one: float(one[1] @ normal))
    positions = np.stack([one[1] for one in found])
    step = (positions[-1] - positions[0]) / (len(found) - 1)
    off = np.abs(positions - positions[0] - np.arange(len(found))[:, None] * step).max()
    if off > max(EVEN, 0.02 * np.linalg.norm(step)) or np.linalg.norm(step) < 1e-6:
        gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        at = int(np.abs(gaps - np.median(gaps)).argmax())
        names = f"{found[at][0].name} and {found[at + 1][0].name}"
        raise ScanError(
            f"the slices in {folder} do not lie at equal distances on one line (one is off by {off:.2f} mm): {names} "
            f"are {gaps[at]:.2f} mm apart, most others {np.median(gaps):.2f}; is a slice missing, or there twice?"
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = across * spacing[1], down * spacing[0], step
    affine[:3, 3] = positions[0]
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return DicomSeries(tuple(one[0] for one in found), lps_to_ras @ affine, (int(rows), int(columns)))
