"""DICOM and NIfTI, through the optional extra `medical`: one slice at a time, as values (H, W) in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class ScanError(ValueError):
    """A file that cannot be used as a scan or as a mask; the message names it."""


@contextmanager
def damage_named(name: str, kind: str) -> Iterator[None]:
    """Within it, what a reader raises for a file that is damaged, or absent, is a ScanError with the file's name."""
    try:
        yield
    except ScanError:
        raise
    except FileNotFoundError:
        raise ScanError(f"{name}: there is no such file") from None
    except Exception as error:  # Pillow, pydicom and nibabel raise a dozen types: whatever parsing rubbish leads to
        raise ScanError(f"{name} cannot be read as {kind}: {str(error) or repr(error)}") from error


def slice_number(count: int, index: int | None, name: str) -> int:
    if index is None and count > 1:
        raise ScanError(f"{name} holds {count} slices; name one by its number: {name}#{count // 2}")
    if index is not None and index >= count:
        raise ScanError(f"{name}: there are {count} slices, numbered 0 to {count - 1}")
    return index or 0


def reader_of(path: Path):
    """The function (path, slice, name) -> values (H, W) for a DICOM or NIfTI file, None for other files."""
    lower = path.name.lower()
    if lower.endswith((".nii", ".nii.gz")):
        return _read_nifti
    if lower.endswith((".dcm", ".dicom")) or _has_dicom_preamble(path):
        return _read_dicom
    return None


def _has_dicom_preamble(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _needs_extra(package: str, name: str) -> ImportError:
    return ImportError(f'reading {name} takes {package}; install the extra: pip install "tumour-composition[medical]"')


def _read_dicom(path: Path, index: int | None, name: str) -> np.ndarray:
    """One frame (H, W) in float64, clipped to the window the file states, with bright meaning bright."""
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise _needs_extra("pydicom", name) from error
    with damage_named(name, "DICOM"):
        data = pydicom.dcmread(path)
        frames = data.pixel_array
        if data.get("SamplesPerPixel", 1) != 1:
            raise ScanError(f"{name} is a colour DICOM; export it as PNG")
        frames = frames[None] if frames.ndim == 2 else frames
        frame = frames[slice_number(len(frames), index, name)]
        values = apply_voi_lut(apply_modality_lut(frame, data), data).astype(np.float64)
    return -values if data.get("PhotometricInterpretation") == "MONOCHROME1" else values


def _read_nifti(path: Path, index: int | None, name: str) -> np.ndarray:
    """One axial slice (H, W) in float64, radiological: anterior up, the patient's right on the left."""
    try:
        import nibabel
    except ImportError as error:
        raise _needs_extra("nibabel", name) from error
    with damage_named(name, "NIfTI"):
        volume = nibabel.as_closest_canonical(nibabel.load(path))
        shape = volume.shape
        if len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3:
            raise ScanError(f"{name} has {len(shape)} dimensions {shape}; expected a volume of three")
        plane = np.asarray(volume.dataobj, dtype=np.float64).reshape(shape)[:, :, slice_number(shape[2], index, name)]
    return plane[::-1, ::-1].T
