"""This module chooses the scans of the bench: of published datasets the part that no training has seen, of a folder all
that it holds, half of them with a tumour.

They are spread evenly over what is there, by their order alone and not by their looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd21.training.data import held_out_names

from ..datasets import DATASETS, Dataset, LeftOut
from ..datasets.folders import TABLE, read_folder
from ..datasets.reading import Labelled
from ..mini.pairs import held_out_part
from ..scans.errors import DatasetError
from ..scans.images import Scan, read_scan

FOLDER = "scans"  # the name of a folder that is no dataset's
# Why one half of a folder's scans is left out of the other.
OTHER_HALF = ("image without mask", "tumour-free scan with a lesion in its mask")


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Chosen:
    """A scan of the bench. source: a name in DATASETS, or FOLDER. number: within its source. mask: of its tumour, bool
    (H, W); None for a scan without one. text: the text prompt that fits it, if one is known."""

    source: str
    number: int
    path: Path
    mask: np.ndarray | None
    text: str | None

    def read(self) -> Scan:
        """Raises ScanError for a file that cannot be read any more."""
        return read_scan(self.path)

    @property
    def name(self) -> str:
        """What the results call it."""
        return as_text(f"{self.path.parent.name}/{self.path.name}")


def choose(folders: dict[str, Path], count: int, text: str | None, left_out: LeftOut) -> list[Chosen]:
    """`count` scans, shared out evenly among the sources, or all where there are fewer.

    folders: by source. text: the text prompt of a folder's scans; a dataset's own is known.
    Raises DatasetError for a folder that is no such dataset, and for one without a scan that can be used.
    """
    chosen = []
    for number, (source, folder) in enumerate(folders.items()):
        dataset = _read(source, folder)
        left_out.add_all(dataset.left_out)
        share = count // len(folders) + (number < count % len(folders))
        scans = [Labelled(path, None) for path in dataset.backgrounds]
        halves = _halves(scans, dataset.objects, share)
        if not halves and share:
            why = f"; left out: {'; '.join(str(dataset.left_out).splitlines())}" if dataset.left_out.names else ""
            raise DatasetError(f"{folder} holds no scan that can be used{why}")
        known = text or dataset.prompt or None
        chosen += [Chosen(source, at, one.path, one.mask, known) for at, one in enumerate(halves)]
    return chosen


def _read(source: str, folder: Path) -> Dataset:
    if source in DATASETS:
        return held_out_part(DATASETS[source].read(folder), held_out_names())
    labelled = read_folder(folder, name=FOLDER, prompt="")
    if (folder / TABLE).is_file():  # batch wrote it: its scans all have a tumour, and its masks are no scans
        return labelled
    free = read_folder(None, backgrounds=folder, name=FOLDER, prompt="")
    left_out: dict[str, dict[str, None]] = {}
    for why, names in (*labelled.left_out.names.items(), *free.left_out.names.items()):
        if why not in OTHER_HALF:
            left_out.setdefault(why, {}).update(dict.fromkeys(names))  # both halves count what neither can use
    told = LeftOut({why: list(names) for why, names in left_out.items()})
    return Dataset(FOLDER, "", free.backgrounds, labelled.objects, told)


def _halves(free: Sequence[Labelled], tumours: Sequence[Labelled], count: int) -> list[Labelled]:
    """So many scans, half of them with a tumour as far as there are so many of each; free ones first."""
    of_tumours = min(len(tumours), max(count // 2, count - len(free)))
    return [*_evenly(free, count - of_tumours), *_evenly(tumours, of_tumours)]


def _evenly(scans: Sequence[Labelled], count: int) -> list[Labelled]:
    count = min(count, len(scans))
    return [scans[number * len(scans) // count] for number in range(count)]


def as_text(name: str) -> str:
    """A name that can be written in UTF-8; that of a file need not be text."""
    return name.encode("utf-8", "backslashreplace").decode()


def digest_of(scan: Scan, mask: np.ndarray | None) -> str:
    """The SHA-256 of what a scan shows, and of its mask."""
    digest = hashlib.sha256(f"{scan.pixels.dtype} {scan.pixels.shape} {scan.window}".encode())
    digest.update(np.ascontiguousarray(scan.pixels).tobytes())
    digest.update(b"" if mask is None else np.packbits(mask).tobytes())
    return digest.hexdigest()
