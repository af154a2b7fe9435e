"""This module reads DICOM, one frame at a time, through pydicom. It is apart because pydicom comes with the optional
extra `medical` only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import ScanError, damage_named, extra_needed
from .slices import slice_number

SUFFIXES = (".dcm", ".dicom")
PREAMBLE, MAGIC = 128, b"DICM"  # a DICOM file starts with so many bytes of any kind, and then with these


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or, because many have no suffix, by its first bytes."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC


def read_dicom(path: Path, index: int | None, name: str) -> np.ndarray:
    """One frame (H, W) in float64, clipped to the window the file states, with bright meaning bright.

    index: the frame's number, or None for the only one. name: the file's name in messages. Raises ScanError for a file
    that cannot be used, and ImportError if pydicom is not installed.
    """
    with extra_needed("pydicom", name):
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    with damage_named(name, "DICOM"):
        data = pydicom.dcmread(path)
        frames = data.pixel_array
        if data.get("SamplesPerPixel", 1) != 1:
            raise ScanError(f"{name} is a colour DICOM; export it as PNG")
        frames = frames[None] if frames.ndim == 2 else frames
        frame = frames[slice_number(len(frames), index, name)]
        values = apply_voi_lut(apply_modality_lut(frame, data), data).astype(np.float64)
    return -values if data.get("PhotometricInterpretation") == "MONOCHROME1" else values


def dicom_unit(path: Path) -> str | None:
    """The unit of a file's values: "HU", Hounsfield units, for computed tomography (PS3.3, C.8.2.1); else None."""
    import pydicom

    return "HU" if pydicom.dcmread(path, stop_before_pixels=True).get("Modality") == "CT" else None
