"""This module holds the options of `python -m composition pair`, and reads the scans that they name. The options of the
rules by which pairs are drawn follow from the fields of Rules."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path

from sd21.words import one_line, shown

from ..datasets import DATASETS, Dataset
from ..datasets.folders import read_folder
from ..datasets.reading import telling
from ..scans.errors import DatasetError
from .columns import SPLITS
from .pair import SPLIT_BY, PairRequest, bar

NAME = "pair"  # the first part of the ids of a user's own scans


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options but those of the rules. There is one for each entry of DATASETS."""
    scans = parser.add_argument_group("scans: two folders, or one of the datasets as published")
    scans.add_argument("--backgrounds", type=Path, metavar="FOLDER", help="the scans without a tumour")
    scans.add_argument("--objects", type=Path, metavar="FOLDER", help="the scans with a tumour")
    scans.add_argument(
        "--object-masks",
        type=Path,
        metavar="FOLDER_OR_JSON",
        help="the tumours: a folder of masks named like the scans, or a VIA or COCO file (default: NAME_mask*.png "
        "beside NAME.png, or the masks of a data set that batch wrote)",
    )
    scans.add_argument("--label", type=int, metavar="N", help="the value of the tumour in masks of several labels")
    for name, published in DATASETS.items():
        scans.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"the folder of {published.title}")
    parser.add_argument("--count", required=True, type=int, metavar="N", help="how many pairs")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other pairs (default: %(default)s)")
    parser.add_argument("--prompt", help='as "An MRI scan of a cancerous brain"; the published datasets have their own')
    parser.add_argument("--out", required=True, type=_file, metavar="FILE", help="the manifest")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no messages")
    split = parser.add_argument_group("splits and patients")
    split.add_argument(
        "--split", type=_split, default=(), metavar="NAME=SHARE,...", help="as train=0.8,val=0.1,test=0.1"
    )
    split.add_argument(
        "--split-by",
        choices=SPLIT_BY,
        default=SPLIT_BY[0],
        help="what stands in one split only: a file, with all equal ones, or a patient (default: %(default)s)",
    )
    split.add_argument(
        "--patient",
        type=_pattern,
        metavar="REGEX",
        help="finds the patient in a file's name: its first group, or the whole match (default: DICOM's PatientID)",
    )


def request_of(options: argparse.Namespace) -> PairRequest:
    """Read the scans that the options name. Raises ValueError for options that do not go together, and DatasetError for
    folders that are not what they should be."""
    folders = {name: getattr(options, name) for name in ("backgrounds", "objects", "object_masks")}
    if options.split_by == "patient" and not options.split:
        raise ValueError("--split-by patient is there without --split; give the splits, as --split train=0.8,test=0.2")
    published = [name for name in DATASETS if getattr(options, name) is not None]
    own = [f"--{name.replace('_', '-')}" for name, value in folders.items() if value is not None]
    names = ", ".join(f"--{name}" for name in DATASETS)
    if len(published) + bool(own) != 1 or (own and None in (options.backgrounds, options.objects)):
        given = ", ".join([*own, *(f"--{name}" for name in published)]) or "none of them"
        raise ValueError(f"expected --backgrounds and --objects, or one of {names}; got {given}")
    if own and options.prompt is None:
        raise ValueError('--prompt is missing; say what the scans are, as --prompt "An MRI scan of a cancerous brain"')
    with bar("reading", options.quiet, unit=" scans") as read, telling(read.update):
        dataset, roots = _read(options, folders, published)
    wanted = ("count", "seed", "out", "prompt", "split", "split_by", "patient")
    return PairRequest(dataset, roots, **{name: getattr(options, name) for name in wanted})


def _read(
    options: argparse.Namespace, folders: dict[str, Path | None], published: list[str]
) -> tuple[Dataset, tuple[Path, ...]]:
    """The scans, and the folders and files that they lie in."""
    if published:
        root = getattr(options, published[0])
        if options.label is not None:
            raise ValueError(f"--label is for folders; the masks of --{published[0]} have one label")
        dataset, roots = DATASETS[published[0]].read(root), (root,)
    else:
        dataset = read_folder(
            options.objects,
            options.object_masks,
            options.backgrounds,
            name=NAME,
            prompt=options.prompt,
            label=options.label,
        )
        roots = tuple(path for path in folders.values() if path is not None)
        for path, some, what in (
            (options.objects, dataset.objects, "scan with a mask"),
            (options.backgrounds, dataset.backgrounds, "tumour-free scan"),
        ):
            if not some:
                why = f"; left out:\n{dataset.left_out}" if dataset.left_out.names else ""
                raise DatasetError(f"{path} holds no {what} that can be used{why}")
    return dataset, roots


def _file(text: str) -> Path:
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {shown(text)}")
    return Path(text)


def _split(text: str) -> tuple[tuple[str, Fraction], ...]:
    try:
        parts = [part.split("=") for part in text.split(",")]
        split = tuple((name, Fraction(share)) for name, share in parts)
    except (ValueError, ZeroDivisionError):
        split = ()
    names = [name for name, _ in split]
    sound = split and len(set(names)) == len(names) and set(names) <= set(SPLITS)
    if not sound or any(part <= 0 for _, part in split) or sum(part for _, part in split) != 1:
        raise argparse.ArgumentTypeError(
            f"expected names, of {', '.join(SPLITS)}, and shares above 0 that sum up to 1, as "
            f"train=0.8,val=0.1,test=0.1, got {shown(text)}"
        )
    return split


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"no regular expression: {one_line(str(error))}") from None
