"""This module runs the command `volume` on drawn volumes. The tests of the command share it."""

import json
from pathlib import Path

import nibabel
import numpy as np
from drawn_volumes import CT, ellipsoid, points, spaced, texture, write_series

from composition import cli

QUICK = ["--steps", "4", "--start", "2", "--inversion", "naive"]
BOX = ["--user-box", "10,12,6,20,20,14"]


def arguments(folder: Path, *options, out="out", suffix=".nii.gz") -> list[str]:
    files = {"background": "back", "object": "object", "object-mask": "mask"}
    named = [part for name, file in files.items() for part in (f"--{name}", str(folder / f"{file}{suffix}"))]
    return ["volume", *named, "--prompt", "a lesion", "--out", str(folder / out), *map(str, options), "--quiet"]


def volume(folder: Path, *options, out="out", **keywords) -> dict:
    """Run the command; returns the record."""
    assert cli.main(arguments(folder, *options, out=out, **keywords)) == 0
    return json.loads((folder / out / "record.json").read_text())


def upright(image, data=None):
    """A volume as (slice, row, column), slices from the feet, rows from the front, columns from the right."""
    data = np.asarray(image.dataobj) if data is None else data
    turn = nibabel.io_orientation(image.affine)
    return nibabel.apply_orientation(data, turn)[::-1, ::-1].transpose(2, 1, 0)


def series_pair(folder: Path, **attributes) -> np.ndarray:
    """Write a background, an object and its mask as DICOM slices. Returns the background (slice, row, column)."""
    affine = spaced((1.5, 1.5, 2))
    back = np.rint(40 + 60 * texture(points((40, 44, 12), affine))).astype(np.int16).T
    write_series(folder / "back", back, **{**CT, **attributes})
    own = spaced((1, 1, 2))
    inside = ellipsoid((30, 30, 12), own, (6, 6, 6)).T
    case = np.where(inside, 120, np.rint(-60 + 40 * texture(points((30, 30, 12), own), 3)).T).astype(np.int16)
    write_series(folder / "object", case, (1, 1, 2), **{**CT, **attributes})
    write_series(folder / "mask", inside.astype(np.uint8), (1, 1, 2))
    return back
