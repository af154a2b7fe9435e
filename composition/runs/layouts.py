"""This module lays a finished batch out as other programs want their data sets: LAYOUTS is the one table of the ways.

    OUT/imagefolder/SPLIT/   an image folder for each split of rows that have one; without, OUT itself is one
    OUT/nnunet/              a folder for nnUNet_raw (nnunet.py)
    OUT/coco/                annotations_SPLIT.json and images/

The batch's own files stay what it resumes by. A layout is made of them as the last step, as a whole and anew each time:
it holds hard links where files can be taken as they are, and a list of its own files (LISTED), so that nothing that a
user has put there is lost. A new layout takes a function and an entry here; `--layout` follows from it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sd21.files import sha256, whole_folder, write_json
from sd21.folders import FolderError

from ..datasets.folders import TABLE
from ..fields import option
from ..scans.errors import RowError
from ..scans.images import read_mask
from . import imagefolder, nnunet
from .columns import check_class
from .manifest import Row

LISTED = ".composition-layout.json"
TRAIN = "train"  # the split of a row that names none


@dataclass(frozen=True)
class Table:
    """The records of metadata.jsonl, read line by line whenever one iterates over them."""

    path: Path

    def __iter__(self) -> Iterator[dict]:
        with self.path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def split_of(record: dict) -> str:
    return record.get("split") or TRAIN


def image_folder(table: Table, out: Path, folder: Path, export: Export) -> list[str]:
    """An image folder for each split, as `imagefolder.write` says; nothing where no row has a split."""
    if not any(record.get("split") for record in table):
        return []
    left_out = imagefolder.write(table, out, folder, split_of, link)
    why = "whose types differ between splits, or that are empty in one; metadata.jsonl has them"
    return [f"Columns that {out / 'imagefolder'} lacks, {why}: {', '.join(left_out)}."] if left_out else []


def coco(table: Table, out: Path, folder: Path, export: Export) -> list[str]:
    """COCO's instance annotations, one file for each split, with the masks as run lengths. Names of images are relative
    to the folder.

    Numbers count from 1: of images and annotations in the order of the table, of categories in that of their names.
    """
    classes = classes_of(table)
    categories = [{"id": number, "name": name, "supercategory": "tumour"} for name, number in classes.items()]
    for split in sorted({split_of(record) for record in table}):
        images, annotations = [], []
        for number, record in enumerate(table, start=1):
            if split_of(record) != split:
                continue
            link(out / record["file_name"], folder / record["file_name"])
            mask = read_mask(out / record["mask_file_name"])
            height, width = mask.shape
            images.append({"id": number, "file_name": record["file_name"], "width": width, "height": height})
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": classes[record["class"]],
                    "bbox": record["bbox"],
                    "area": record["area"],
                    "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                    "iscrowd": 0,
                }
            )
        about = {"description": f"SYNTHETIC: tumours composed into scans, {split}"}
        told = {"info": about, "images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations_{split}.json").write_text(json.dumps(told), encoding="utf-8")
    return []


def annotations_of(out: Path) -> list[Path]:
    """The files of all splits that there are, that of train first."""
    train = out / "coco" / f"annotations_{TRAIN}.json"
    return sorted((out / "coco").glob("annotations_*.json"), key=lambda path: (path != train, path)) or [train]


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a bool mask (H, W): of zeros and ones in turn, column by column, zeros first."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *counts] if flat[0] else counts


def write_nnunet(table: Table, out: Path, folder: Path, export: Export) -> list[str]:
    """A data set in nnU-Net's raw format, below `folder`, as `nnunet.write` says."""
    name = export.nnunet_name(out)
    if not nnunet.write(table, out, folder / name, classes_of(table), link):
        return []
    file = out / "nnunet" / name / "splits_final.json"
    return [f"For the rows of val as nnU-Net's: copy {file} to nnUNet_preprocessed/{name}, and train fold 0."]


def check_nnunet(rows: Sequence[Row], label_name: str) -> None:
    """Raises RowError for rows that are no one data set to nnU-Net."""
    names = {row.columns.get("class", label_name) for row in rows}
    nnunet.check([row.request.files["background"] for row in rows], names)
    if all(row.columns.get("split") == "test" for row in rows):
        raise RowError("every row has the split test, and nnU-Net wants one training case at least")


@dataclass(frozen=True)
class Layout:
    """One way to lay a batch out.

    write: takes the Table, OUT, the empty folder that becomes OUT/NAME, and the Export, and writes into the folder.
        Returns lines that a user should read.
    loads: takes OUT and the Export; returns how one loads what was written, for a user to read.
    check: takes the rows that can be composed and the name of their class; raises RowError before any is composed.
    """

    about: str
    loads: Callable[[Path, Export], str]
    write: Callable[[Table, Path, Path, Export], list[str]]
    check: Callable[[Sequence[Row], str], None] = lambda rows, label_name: None


LAYOUTS = {
    "imagefolder": Layout(
        "Hugging Face's image folder (OUT itself; with splits, OUT/imagefolder)",
        lambda out, _: (
            'datasets.load_dataset("imagefolder", '
            + (
                f'data_dir="{out}/imagefolder")'
                if (out / "imagefolder").is_dir()
                else f'data_files={{"train": "{out}/{TABLE}"}})'
            )
            + "; datasets 3.4.0 or newer"
        ),
        image_folder,
    ),
    "nnunet": Layout(
        "nnU-Net v2's raw format in OUT/nnunet",
        lambda out, export: (
            f"nnUNet_raw={shlex.quote(f'{out}/nnunet')} "
            f"nnUNet_preprocessed={shlex.quote(f'{out}/nnunet_preprocessed')} "
            f"nnUNetv2_plan_and_preprocess -d {export.dataset_id} --verify_dataset_integrity"
        ),
        write_nnunet,
        check_nnunet,
    ),
    "coco": Layout(
        "COCO's annotations in OUT/coco",
        lambda out, _: (
            f"{', '.join(f'pycocotools.coco.COCO({json.dumps(str(path))})' for path in annotations_of(out))}; names of "
            f"images are relative to {out}/coco"
        ),
        coco,
    ),
}


@dataclass(frozen=True)
class Export:
    """How a batch is laid out, and what its class is called. Raises ValueError, naming the field."""

    layout: str = option(
        "imagefolder", "; ".join(f"{name}: {layout.about}" for name, layout in LAYOUTS.items()), tuple(LAYOUTS)
    )
    label_name: str = option("tumour", "name of the class, where a row gives none in its column class")
    dataset_id: int = option(500, "nnunet: NNN in DatasetNNN_NAME, 1 to 999")
    dataset_name: str | None = option(None, "nnunet: NAME, letters, digits and _ (default: made of OUT's name)")

    def __post_init__(self):
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        try:
            check_class(self.label_name)
        except ValueError as error:
            raise ValueError(f"label_name: {error}") from None
        if type(self.dataset_id) is not int or not 1 <= self.dataset_id <= 999:
            raise ValueError(f"dataset_id is a whole number from 1 to 999, got {self.dataset_id!r}")
        name = self.dataset_name
        if name is not None and not (isinstance(name, str) and re.fullmatch("[A-Za-z0-9_]{1,64}", name)):
            raise ValueError(f"dataset_name is 1 to 64 letters, digits and _, got {name!r}")

    def nnunet_name(self, out: Path) -> str:
        """DatasetNNN_NAME."""
        name = self.dataset_name or re.sub("[^A-Za-z0-9]+", "_", out.resolve().name)[:64].strip("_") or "Synthetic"
        return f"Dataset{self.dataset_id:03d}_{name}"

    def check(self, rows: Sequence[Row], out: Path) -> None:
        """Raises RowError for rows that do not fit the layout, and FolderError where its folder holds anything that no
        batch has put there."""
        LAYOUTS[self.layout].check(rows, self.label_name)
        place = out / self.layout
        if (what := foreign(place)) is not None:
            raise FolderError(f"{what} is there, and no batch has made it; move it away, as {place} is made anew")

    def loads(self, out: Path) -> str:
        """How one loads what was laid out."""
        return LAYOUTS[self.layout].loads(out, self)

    def files(self, out: Path) -> list[Path]:
        """The files that an earlier run has laid out, and that are made anew."""
        return [path for path in (out / self.layout).rglob("*") if path.is_file()]

    def write(self, out: Path) -> list[str]:
        """Make the layout of the rows in metadata.jsonl. That of another kind which an earlier run made of other rows
        goes, unless a user's file is in it. Returns lines that a user should read."""
        table, rows, notes = Table(out / TABLE), sha256(out / TABLE), []
        for name in LAYOUTS:
            place = out / name
            earlier = None if name == self.layout else _listed(place)
            if earlier is None or earlier.get("rows") == rows:
                continue
            if (what := foreign(place)) is not None:
                notes.append(f"{place} is of other rows and stays, as no batch has made {what}.")
                continue
            with whole_folder(place):
                pass
        with whole_folder(out / self.layout) as folder:
            if any(True for _ in table):
                notes += LAYOUTS[self.layout].write(table, out, folder, self)
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            if files:
                write_json(folder / LISTED, {"rows": rows, "files": files})
        return notes


def classes_of(table: Table) -> dict[str, int]:
    """The classes in the order of their names, numbered from 1."""
    return {name: number for number, name in enumerate(sorted({record["class"] for record in table}), start=1)}


def foreign(place: Path) -> Path | None:
    """A file in a layout's folder, or in its place, that no batch has made; None where there is none. What the system
    hides, as .DS_Store, does not count."""
    if not os.path.lexists(place):
        return None
    if not place.is_dir() or place.is_symlink():
        return place
    ours = (_listed(place) or {}).get("files", ())
    found = (path for path in sorted(place.rglob("*")) if not path.is_dir() and not path.name.startswith("."))
    return next((path for path in found if path.relative_to(place).as_posix() not in ours), None)


def _listed(place: Path) -> dict | None:
    """What a layout's list says; None where there is none, or a damaged one."""
    try:
        told = json.loads((place / LISTED).read_text(encoding="utf-8"))
        return told if all(isinstance(name, str) for name in told["files"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def link(source: Path, target: Path) -> None:
    """The same file under a further name; a copy where the disk knows no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
