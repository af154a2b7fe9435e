"""This module holds the types that a dataset of scans is read into, and the count of what cannot be used. The readers
of all datasets share it, so that the drawing of samples sees only one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sd21.words import one_line

from ..scans.dicom import is_dicom
from ..scans.errors import BlankError, DatasetError, EmptyError, ScanError, damage_named
from ..scans.images import read_mask, read_scan
from ..scans.nifti import is_nifti
from ..scans.slices import split_slice

# NAME_mask, and for further lesions NAME_mask_1 and the like, are masks of NAME; NAME_masked is none.
MASK = re.compile(r"(.+)_mask(?:[^A-Za-z].*)?", re.DOTALL | re.IGNORECASE)


@dataclass
class LeftOut:
    """What was not used, by reason: {reason: [names]}. Its text is one line per reason, with the count and examples."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(name)

    def add_all(self, other: LeftOut) -> None:
        """Add what another report counts, which stays as it is."""
        for reason, names in other.names.items():
            self.names.setdefault(reason, []).extend(names)

    @property
    def counts(self) -> dict[str, int]:
        return {reason: len(names) for reason, names in sorted(self.names.items())}

    def __str__(self) -> str:
        lines = []
        for reason, count in self.counts.items():
            examples = ", ".join(map(one_line, self.names[reason][:3])) + (", ..." if count > 3 else "")
            lines.append(f"{count} x {reason}: {examples}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Labelled:
    """A scan with tumours, and the bool mask (H, W) of all of them together.

    path: the scan's file, of a stack with "#" and the number of its slice. kind: the class of the tumours, as the
    folder's name or the annotation states it; None where nothing does. sources: the SHA-256 of the scans that a
    composite is made of, {"background": ..., "object": ...}; empty for a real scan, and where nobody tells.
    """

    path: Path
    mask: np.ndarray
    kind: str | None = None
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Scans of one modality: tumour-free ones and labelled ones, in the order of their file names.

    name: its key in DATASETS, or another for a user's own folders, and the first part of its samples' ids. prompt: the
    paper's fixed text for the modality (section 5.1). left_out: what in the folder cannot be used.
    """

    name: str
    prompt: str
    backgrounds: list[Path]
    objects: list[Labelled]
    left_out: LeftOut


@dataclass(frozen=True)
class Published:
    """An entry of DATASETS: a dataset that anyone can get, and how to read it.

    title: the name that its authors gave it. read: the function of its folder that returns a Dataset; it raises
    DatasetError for another folder. samples: how many samples the paper draws from it, which is the default.
    """

    title: str
    read: Callable[[Path], Dataset]
    samples: int


_TELL: ContextVar[Callable[[], object]] = ContextVar("tell", default=lambda: None)


@contextmanager
def telling(tell: Callable[[], object]) -> Iterator[None]:
    """Within the block, `tell` is called at every scan that a reader of a dataset comes to: thousands take seconds."""
    before = _TELL.set(tell)
    try:
        yield
    finally:
        _TELL.reset(before)


def scan_size(path: Path, left_out: LeftOut) -> tuple[int, int] | None:
    """The (height, width) of a scan, or None and a count if it cannot be used."""
    _TELL.get()()
    if not split_slice(path)[0].is_file():
        left_out.add("image is missing", path.name)
        return None
    try:
        return read_scan(path).size
    except (ScanError, ImportError) as error:
        left_out.add("image is blank" if isinstance(error, BlankError) else "image cannot be read", path.name)
        return None


def files_of(folder: Path, dataset: str) -> list[Path]:
    """A published folder's files in the order of their names, without hidden ones. Raises DatasetError if it is
    absent."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not there; expected {dataset} in its published layout")
    return sorted((path for path in folder.iterdir() if path.is_file() and path.name[0] != "."), key=lambda p: p.name)


def masks_beside(files: list[Path], left_out: LeftOut) -> list[tuple[Path, list[Path] | None]]:
    """Each image among these files with its masks, which lie beside it and are named as MASK says; None where it has
    no mask at all. What belongs to nothing is counted."""
    images: dict[tuple[Path, str], Path] = {}
    masks: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        if match := MASK.fullmatch(stem_of(path)):
            masks.setdefault((path.parent, match[1]), []).append(path)
        elif (key := (path.parent, stem_of(path))) in images:  # masks are found by the stem, so only one can have them
            left_out.add("image named like an earlier one but for its suffix", path.name)
        else:
            images[key] = path
    for key in sorted(masks.keys() - images.keys()):
        left_out.add("mask without image", masks[key][0].name)
    return [(path, masks.get(key)) for key, path in images.items()]


def mask_union(
    paths: list[Path], size: tuple[int, int], left_out: LeftOut, label: int | None = None
) -> np.ndarray | None:
    """The union of mask files as a bool mask (H, W), in the scan's size, or None and a count if one of them cannot be
    used. A mask may be empty. label: the value of the tumour, in masks of several."""
    union = np.zeros(size, dtype=bool)
    for path in paths:
        try:
            mask = _read_any_mask(path, label)
        except EmptyError:
            continue
        except (ScanError, ImportError):
            left_out.add("mask cannot be read", path.name)
            return None
        if mask.shape != size:
            left_out.add("mask of another size than its image", path.name)
            return None
        union |= mask
    return union


def _read_any_mask(path: Path, label: int | None) -> np.ndarray:
    """A mask as `read_mask` reads it, but for images that are black, which are empty masks. Raises what it raises."""
    file = split_slice(path)[0]
    if label is None and not (is_nifti(file) or is_dicom(file)):
        with damage_named(path.name, "an image"), Image.open(file) as image:
            image.load()
            black = image.convert("RGB").getbbox() is None
            return np.zeros(image.size[::-1], dtype=bool) if black else read_mask(image)
    return read_mask(path, label)


def stem_of(path: Path) -> str:
    """A file's name without its suffix; .nii.gz is one."""
    name = path.name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem
