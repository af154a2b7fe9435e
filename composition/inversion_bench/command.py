"""This module holds the options of `python -m composition inversions` but those of Choices and of the model, and makes
an InversionRequest from them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sd21.command import folder
from sd21.words import shown

from ..datasets import DATASETS

if TYPE_CHECKING:
    from .choices import Choices
    from .run import InversionRequest


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of the command but those of `Choices` and of the model."""
    from solvers import INVERSIONS

    from .problems import PROMPTS

    scans = parser.add_argument_group("scans; of published datasets, those that no training has seen")
    about = "a folder of scans; those with masks NAME_mask*.png beside them have a tumour, the others have none"
    scans.add_argument("--scans", type=Path, metavar="DIR", help=about)
    for name, published in DATASETS.items():
        scans.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"the folder of {published.title}")
    about = "how many scans in all, half of them with a tumour as far as there are so many (default: %(default)s)"
    scans.add_argument("--count", type=int, default=32, metavar="N", help=about)
    about = "samples of the model itself at the same prompt and scale, whose true states are known (default: none)"
    scans.add_argument("--generated", type=int, default=0, metavar="N", help=about)

    asked = parser.add_argument_group("what is compared; each with commas between")
    known = ",".join(INVERSIONS)
    asked.add_argument("--methods", type=_names, default=tuple(INVERSIONS), help=f"some of {known} (default: all)")
    about = "guidance scales; 1 is no guidance (default: 1)"
    asked.add_argument("--scales", type=_numbers(float), default=(1.0,), metavar="S,S,...", help=about)
    about = "the states that scans are inverted to, counted from the clean end (default: 6)"
    asked.add_argument("--starts", type=_numbers(int), default=(6,), metavar="N,N,...", help=about)
    about = "relative round-trip errors at which a method may stop (default: 0.05,0.001)"
    asked.add_argument(
        "--tolerance", dest="tolerances", type=_numbers(float), default=(5e-2, 1e-3), metavar="E,E,...", help=about
    )
    about = f"some of {','.join(PROMPTS)}; guidance is towards it and away from the null prompt (default: exceptional)"
    asked.add_argument("--prompts", type=_names, default=("exceptional",), help=about)
    parser.add_argument("--prompt", dest="text", metavar="TEXT", help="the text prompt (default: that of the dataset)")
    about = "the prompt that replaces the one of the inversion on the way back (default: the text prompt)"
    parser.add_argument("--swap-prompt", dest="swap", metavar="TEXT", help=about)
    parser.add_argument("--out", required=True, type=folder, help="folder for everything; it holds one bench")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no messages")


def request_of(options: argparse.Namespace, choices: Choices) -> InversionRequest:
    """The InversionRequest that the options make. Raises ValueError for what cannot be asked for."""
    from .run import InversionRequest
    from .scans import FOLDER

    named = {FOLDER: options.scans, **{name: getattr(options, name) for name in DATASETS}}
    return InversionRequest(
        folders={name: path for name, path in named.items() if path is not None},
        **{name: getattr(options, name) for name in ("count", "generated", "methods", "scales", "starts")},
        **{name: getattr(options, name) for name in ("tolerances", "prompts", "text", "swap")},
        choices=choices,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _numbers(kind: type) -> Callable[[str], tuple]:
    def read(text: str) -> tuple:
        try:
            return tuple(dict.fromkeys(kind(number) for number in text.split(",")))
        except ValueError:
            whole = "whole numbers" if kind is int else "numbers"
            raise argparse.ArgumentTypeError(f"expected {whole} with commas between, got {shown(text)}") from None

    return read
