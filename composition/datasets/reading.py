"""This module holds the types that a dataset of scans is read into, and the count of what cannot be used. The readers
of all datasets share it, so that the drawing of samples sees only one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..scans.errors import BlankError, DatasetError, ScanError
from ..scans.images import read_scan


@dataclass
class LeftOut:
    """What was not used, by reason: {reason: [names]}. Its text is one line per reason, with the count and examples."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(name)

    @property
    def counts(self) -> dict[str, int]:
        return {reason: len(names) for reason, names in sorted(self.names.items())}

    def __str__(self) -> str:
        lines = []
        for reason, count in self.counts.items():
            examples = ", ".join(self.names[reason][:3]) + (", ..." if count > 3 else "")
            lines.append(f"{count} x {reason}: {examples}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Labelled:
    """A scan with tumours, and the bool mask (H, W) of all of them together."""

    path: Path
    mask: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Scans of one modality: tumour-free ones and labelled ones, in the order of their file names.

    name: its key in DATASETS, and the first part of its samples' ids. prompt: the paper's fixed text for the modality
    (section 5.1). left_out: what in the folder cannot be used.
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


def scan_size(path: Path, left_out: LeftOut) -> tuple[int, int] | None:
    """The (height, width) of a scan, or None and a count if it cannot be used."""
    if not path.is_file():
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
