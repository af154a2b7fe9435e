"""This module copies the real scans that the experiment draws, for `pair` to make composites of these and no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sd21.files import atomic, sha256
from sd21.folders import FolderError, owned

from ..datasets import Labelled, LeftOut
from ..datasets.folders import read_folder
from ..runs.request import check_outside
from ..scans.errors import DatasetError, ScanError
from ..scans.images import read_mask, split_slice, write_image
from .arms import Material, ranked
from .data import read_labelled, twins_of
from .run import UtilityRequest


def drawn_of(material: Material, sizes: tuple[int, ...], seeds: tuple[int, ...]) -> set[str]:
    """The SHA-256 of the files of all scans that are drawn as real ones. seeds: how many each of the sizes has."""
    drawn = set()
    for size, count in zip(sizes, seeds, strict=True):
        for seed in range(count):
            drawn |= {case.sha256 for case in ranked(material, seed)[:size]}
    return drawn


def write_drawn(request: UtilityRequest, out: Path) -> str:
    """Copy to `out` what the request draws of its real scans: NAME, and NAME_mask.png. A folder that
    holds them already stays as it is. Returns a line about it.

    Raises DatasetError for a slice of a volume, which is no file to copy, and for names that differ in their suffixes;
    and FolderError for a folder that holds anything but these files, since `pair` would read it too.
    """
    check_outside(out, request.folders)
    left_out = LeftOut()
    pool = read_labelled(request.real, request.training.side, left_out)
    material = Material(pool, twins_of(pool), [], {})
    drawn = drawn_of(material, request.sizes, request.seeds)
    objects = [one for one in read_folder(request.real, name="real", prompt="").objects if _hash(one.path) in drawn]
    if len({one.path.stem for one in objects}) < len(objects):
        raise DatasetError(f"{request.real}: two scans are named alike but for their suffixes or folders; rename one")
    with owned(out):
        _check_alone(objects, out)
        for one in objects:
            with atomic(out / one.path.name) as temporary:
                shutil.copyfile(one.path, temporary)
            write_image(_mask_of(one, out), one.mask)
    return f"{out}: {len(objects)} scans of {request.real}, with their masks"


def _mask_of(one: Labelled, out: Path) -> Path:
    return out / f"{one.path.stem}_mask.png"


def _check_alone(objects: list[Labelled], out: Path) -> None:
    """Raises FolderError for a file in the folder that is not one of those to be written, or differs from it."""
    scans = {out / one.path.name: one for one in objects}
    masks = {_mask_of(one, out): one for one in objects}
    for path in sorted(path for path in out.iterdir() if not path.name.startswith(".")):
        try:
            same = (path in scans and sha256(path) == sha256(scans[path].path)) or (
                path in masks and np.array_equal(read_mask(path), masks[path].mask)
            )
        except (ScanError, OSError):
            same = False
        if not same:
            raise FolderError(f"{path} is none of the files that are drawn now; name an empty folder for them")


def _hash(path: Path) -> str:
    file, number = split_slice(path)
    if number is not None:
        raise DatasetError(f"{path} is a slice of a volume, which cannot be copied; give pair all of --real instead")
    return sha256(file)
