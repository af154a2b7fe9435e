"""This module holds the options of `python -m composition utility`, and makes a UtilityRequest from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sd21.command import folder, named_folder

if TYPE_CHECKING:
    from .run import UtilityRequest
    from .training import Training


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of the command but those of `Training`."""
    _add_scans(parser)
    _add_arms(parser)
    parser.add_argument("--out", required=True, type=folder, help="folder for everything; it holds one experiment")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no messages")


def _add_scans(parser: argparse.ArgumentParser) -> None:
    scans = parser.add_argument_group(
        "scans; labelled ones lie in a folder with their masks beside them (NAME.png, NAME_mask.png), or as batch "
        "writes them"
    )
    scans.add_argument("--real", required=True, type=Path, metavar="DIR", help="labelled scans, of which N are drawn")
    scans.add_argument("--tumour-free", type=Path, metavar="DIR", help="tumour-free scans: negatives, and backgrounds")
    scans.add_argument(
        "--composites",
        nargs="+",
        type=named_folder,
        default=[],
        metavar="NAME=DIR",
        help="folders that batch wrote, of objects of --real; copy-paste is the name of the reference",
    )
    scans.add_argument(
        "--test",
        nargs="+",
        required=True,
        type=_named_or("test"),
        metavar="[NAME=]DIR",
        help="labelled scans for the scores; several folders are told apart in the tables",
    )
    scans.add_argument(
        "--test-tumour-free",
        nargs="+",
        type=_named_or("test"),
        default=[],
        metavar="[NAME=]DIR",
        help="tumour-free scans for the false positives, under the names of --test",
    )


def _add_arms(parser: argparse.ArgumentParser) -> None:
    arms = parser.add_argument_group("arms")
    arms.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[16],
        metavar="N",
        help="how many real scans; all arms at the first of the sizes, and real, those of --compared and more real at "
        "the others (default: 16)",
    )
    arms.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[5],
        metavar="S",
        help="how many seeds each size has: one number for all, or one for each (default: 5)",
    )
    arms.add_argument(
        "--compared",
        nargs="*",
        metavar="NAME",
        help="the composites that the sizes after the first have (default: copy-paste and the first named)",
    )
    arms.add_argument(
        "--alone", nargs="*", metavar="NAME", help="composites that are learnt from alone too (default: the first)"
    )
    arms.add_argument(
        "--per-scan",
        type=int,
        default=4,
        metavar="K",
        help="composites for each real scan, and so many more real scans (default: %(default)s)",
    )
    arms.add_argument(
        "--draw-only",
        action="store_true",
        help="train nothing: copy the scans that the sizes and seeds draw, with masks, to OUT, for pair --objects. "
        "Take a folder for them alone, and not that of the trainings",
    )


def run(options: argparse.Namespace, training: Training, command: str) -> int:
    """Do what the options ask for, and print what came of it. Returns the exit code. command: as the user typed it."""
    from .drawn import write_drawn
    from .run import run_utility

    request = request_of(options, training)
    if options.draw_only:
        told = write_drawn(request, options.out)
    else:
        told = run_utility(request, options.out, command, quiet=options.quiet)
    if told is not None and not options.quiet:
        print(told)
    return 0


def request_of(options: argparse.Namespace, training: Training) -> UtilityRequest:
    """The UtilityRequest that the options make, with this training. Raises ValueError for what cannot be asked for."""
    from .run import UtilityRequest

    named = {name: _unique(name, getattr(options, name)) for name in ("composites", "test", "test_tumour_free")}
    names = list(named["composites"])
    compared = names[:1] + ["copy-paste"] * ("copy-paste" in names[1:])
    return UtilityRequest(
        real=options.real,
        tumour_free=options.tumour_free,
        composites=named["composites"],
        test=named["test"],
        test_tumour_free=named["test_tumour_free"],
        sizes=tuple(options.sizes),
        seeds=tuple(options.seeds * len(options.sizes) if len(options.seeds) == 1 else options.seeds),
        compared=tuple(compared if options.compared is None else options.compared),
        alone=tuple(names[:1] if options.alone is None else options.alone),
        per_scan=options.per_scan,
        training=training,
    )


def _named_or(default: str):
    def named(text: str) -> tuple[str, Path]:
        return named_folder(text if "=" in text else f"{default}={text}")

    return named


def _unique(option: str, pairs: list[tuple[str, Path]]) -> dict[str, Path]:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--{option.replace('_', '-')}: the name {doubled} is there twice; give each folder its own")
    return dict(pairs)
