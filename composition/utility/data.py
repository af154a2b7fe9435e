"""This module reads folders into the cases that the segmenter sees: 8-bit images of one size with their masks.

Everything is stretched to a square of `side` pixels, as the training of the small checkpoint does. Pillow shrinks 8-bit
images in whole numbers, so that the cases are the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sd21.files import read_json_lines, sha256
from sd21.words import shown

from ..datasets import LeftOut
from ..datasets.folders import TABLE, is_labelled, read_folder
from ..figures import eight_bit
from ..scans.errors import DatasetError, ScanError
from ..scans.images import read_mask, read_scan, split_slice


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Case:
    """A scan with its label, as the segmenter sees it.

    image: uint8 (side, side). mask: bool (side, side), all False for a tumour-free scan. sha256: of the scan's file.
    object_sha256, background_sha256: of the files that a composite was made from; None for a real scan.
    """

    name: str
    sha256: str
    image: np.ndarray
    mask: np.ndarray
    object_sha256: str | None = None
    background_sha256: str | None = None

    @property
    def content(self) -> str:
        """The SHA-256 of what the segmenter sees of it."""
        return hashlib.sha256(self.image.tobytes() + np.packbits(self.mask).tobytes()).hexdigest()


def read_labelled(folder: Path, side: int, left_out: LeftOut) -> list[Case]:
    """The labelled scans of a folder, by file name: one that `batch` wrote, or any that `read_folder` reads.

    What cannot be used is added to left_out. Raises DatasetError for a folder that is not there or holds none.
    """
    if is_labelled(folder):
        return read_composites(folder, side, left_out)
    found = read_folder(folder, name="real", prompt="")
    left_out.add_all(found.left_out)
    cases = [_case(one.path, one.mask, side) for one in found.objects]
    return _distinct(cases, left_out)


def read_tumour_free(folder: Path, side: int, left_out: LeftOut) -> list[Case]:
    """The scans of a folder, which are said to show no tumour. Raises DatasetError as `read_labelled` does."""
    found = read_folder(None, None, folder, name="tumour-free", prompt="")
    left_out.add_all(found.left_out)
    if not found.backgrounds:
        raise DatasetError(f"{folder} holds no scan; expected images of tumour-free scans")
    return _distinct([_case(path, None, side) for path in found.backgrounds], left_out)


def read_composites(folder: Path, side: int, left_out: LeftOut) -> list[Case]:
    """The composites of a folder that `batch` wrote, in the order of its metadata.jsonl, with the files they are of.

    Raises DatasetError for a folder without metadata.jsonl, and for one whose lines are not a batch's.
    """
    records = folder / TABLE
    if not records.is_file():
        raise DatasetError(
            f"{records} is not there; expected a folder that `python -m composition batch` has written to its end"
        )
    cases = []
    try:
        entries = read_json_lines(records)
        made_of = [[entry["inputs"][role]["sha256"] for role in ("object", "background")] for entry in entries]
        files = [(folder / entry["file_name"], folder / entry["mask_file_name"]) for entry in entries]
        if not all(isinstance(digest, str) for digests in made_of for digest in digests):
            raise TypeError("a sha256 is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{records} is not as `batch` writes it ({shown(error)}); run the batch again, or name another folder"
        ) from None
    for (image, mask), (of, background) in zip(files, made_of, strict=True):
        try:
            cases.append(_case(image, read_mask(mask), side, of, background))
        except (ScanError, OSError):
            left_out.add("composite or its mask cannot be read", image.name)
    if not cases:
        raise DatasetError(f"{folder} holds no composite; see its errors.jsonl")
    return cases


def twins_of(cases: list[Case]) -> list[int]:
    """For each case the number of its group of near-duplicates, the index of the first that belongs to it."""
    import torch

    from sd21.training.data import twin_groups

    return twin_groups(torch.from_numpy(np.stack([case.image for case in cases])))


def _case(path: Path, mask: np.ndarray | None, side: int, of: str | None = None, background: str | None = None) -> Case:
    scan = read_scan(path)
    gray = eight_bit(scan.pixels, scan.window).convert("L")
    image = np.asarray(gray.resize((side, side), Image.Resampling.BILINEAR))
    shrunk = np.zeros((side, side), dtype=bool)
    if mask is not None:
        if mask.shape != scan.size:
            raise ScanError(f"{path}: the mask is of {mask.shape} pixels, and the scan of {scan.size}")
        share = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX))
        # A pixel is inside where most of it is; of a tumour that is smaller than any pixel the most is left.
        shrunk = share >= 128 if (share >= 128).any() else share == share.max()
    return Case(path.name, file_sha256(path), image, shrunk, of, background)


def file_sha256(path: Path) -> str:
    """The hash of a scan's file, as the records of `batch` tell it: of a slice, that of its volume."""
    return sha256(split_slice(path)[0])


def _distinct(cases: list[Case], left_out: LeftOut) -> list[Case]:
    """The cases that differ, in the order of the hashes of their files, which is the same wherever the files lie."""
    first = {}
    for case in sorted(cases, key=lambda case: (case.sha256, case.name)):
        if first.setdefault(case.content, case) is not case:
            left_out.add("scan equal to an earlier one", case.name)
    return list(first.values())


def digest_of(cases: list[Case]) -> str:
    """A SHA-256 of what the segmenter sees of these cases, in their order."""
    return hashlib.sha256(json.dumps([case.content for case in cases]).encode()).hexdigest()
