"""This module holds the options of `python -m composition realism` but those of Choices, and runs what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd21.command import folder, named_folder

from ..datasets import DATASETS
from ..scans.errors import DatasetError, SheetError
from . import scoring
from .choices import Choices


def add_options(parser: argparse.ArgumentParser) -> None:
    real = parser.add_argument_group("real labelled scans, one folder or more")
    real.add_argument(
        "--real",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of scans with masks NAME_mask*.png beside them, or one that batch wrote",
    )
    for name, published in DATASETS.items():
        real.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"the folder of {published.title}")
    parser.add_argument(
        "--composites",
        type=named_folder,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=DIR",
        help="sets of composites, folders that batch wrote; NAME is what the table calls it",
    )
    parser.add_argument("--out", type=folder, help="folder for realism.md, realism.csv, crops.png and the parts")
    parser.add_argument("--reader-study", action="store_true", help="write a blinded study for readers, and its key")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no messages")
    scored = parser.add_argument_group("scoring of a reader study, in place of all that")
    scored.add_argument("--score", type=Path, nargs="+", metavar="SHEET", help="sheets that readers have filled in")
    scored.add_argument("--key", type=Path, metavar="FILE", help="the study's key.csv")


def run(options: argparse.Namespace, choices: Choices) -> int:
    """Do what the options ask for; returns the exit code 0.

    Raises ValueError (DatasetError, SheetError, FolderError) for what cannot be asked for or read.
    """
    if options.score is not None or options.key is not None:
        return _score(options)
    from .run import RealismRequest, run_realism

    if options.out is None:
        raise DatasetError("name a folder for the results: --out")
    kinds = [("folder", path) for path in options.real]
    kinds += [(name, path) for name in DATASETS if (path := getattr(options, name)) is not None]
    composites = dict(options.composites)
    if len(composites) < len(options.composites):
        raise DatasetError(f"two sets bear one name; got {', '.join(name for name, _ in options.composites)}")
    request = RealismRequest(tuple(kinds), composites)
    text = run_realism(request, options.out, choices, reader_study=options.reader_study, quiet=options.quiet)
    if not options.quiet:
        print(text)
        if options.reader_study:
            from .study import told

            print(told(options.out))
    return 0


def _score(options: argparse.Namespace) -> int:
    if options.score is None or options.key is None:
        raise SheetError("scoring takes both the sheets and their key: --score SHEET ... --key KEY")
    if options.out is not None or options.real or options.composites:
        raise SheetError("scoring takes --score and --key alone, and prints the scores; leave out the other options")
    print(scoring.markdown(scoring.score(options.score, options.key)), end="")
    return 0
