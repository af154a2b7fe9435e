"""This module holds the options of `python -m composition benchmark`, and makes a BenchmarkRequest from them.

Importing it does not import torch: the functions import what needs torch when they are called. `BenchmarkRequest`
checks the names, whoever makes one.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from sd21.command import folder
from sd21.words import shown

from ..datasets import DATASETS
from ..metrics.networks import CLIP_SOURCE, Networks, find_networks
from ..scans.errors import DatasetError

if TYPE_CHECKING:
    from .run import BenchmarkRequest


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options except those of model and method, which all subcommands share."""
    from ..methods import METHODS
    from .variants import ABLATIONS

    _add_datasets(parser)
    parser.add_argument("--out", required=True, type=folder, help="folder for everything; it holds one benchmark")
    parser.add_argument(
        "--methods",
        type=_names,
        default=tuple(METHODS),
        metavar="NAME,NAME,...",
        help=f"some of {','.join(METHODS)} (default: all)",
    )
    parser.add_argument(
        "--ablations",
        nargs="*",
        choices=tuple(ABLATIONS),
        help="over T' (start), tau, or the steps beyond the paper (steps) too; over all where none is named. The plots "
        "of start and tau take the extra plots",
    )
    parser.add_argument(
        "--ablation-samples",
        type=int,
        metavar="N",
        help="compose what only an ablation shows on the first N samples of each dataset (default: on all)",
    )
    parser.add_argument(
        "--shown",
        type=_numbers,
        default=(0, 1, 2, 3),
        metavar="N,N,...",
        help="which samples of each dataset the grids show (default: 0,1,2,3)",
    )
    parser.add_argument(
        "--reproduce",
        action="store_true",
        help="in the grids show scans, and what is pasted of them, as the model's autoencoder gives them back, for "
        "scans that may not be published",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no messages")
    _add_networks(parser)


def _add_datasets(parser: argparse.ArgumentParser) -> None:
    """Add, for each entry of DATASETS, the options for its folder and its number of samples."""
    data = parser.add_argument_group("samples, from one or more of the datasets as published")
    for name, published in DATASETS.items():
        data.add_argument(f"--{name}", dest=name, type=Path, metavar="FOLDER", help=f"the folder of {published.title}")
        data.add_argument(
            f"--{name}-samples",
            dest=f"{name}-samples",
            type=int,
            default=published.samples,
            metavar="N",
            help="how many (default: %(default)s)",
        )
    data.add_argument("--seed", type=int, default=0, help="of the draw of the samples (default: %(default)s)")
    data.add_argument(
        "--target-scale",
        type=_fraction,
        default=Fraction(1),
        metavar="S",
        help="shrink the targets about their centres to S of their sides, as 1/3 or 0.5 (default: %(default)s)",
    )


def _add_networks(parser: argparse.ArgumentParser) -> None:
    metrics = parser.add_argument_group("weights of the metrics; a metric without them is left out of the tables")
    metrics.add_argument(
        "--lpips",
        nargs=2,
        type=Path,
        metavar=("ALEXNET", "LINEAR"),
        help="files of the published LPIPS: torchvision's alexnet-owt-7be5be79.pth and alex.pth of lpips 0.1 "
        "(default: ST-LPIPS, from the extra metrics)",
    )
    metrics.add_argument("--clip", help=f"folder or hub id (default: {CLIP_SOURCE})")


def request_of(options: argparse.Namespace) -> BenchmarkRequest:
    """The BenchmarkRequest that the options make. Raises ValueError (DatasetError) for what cannot be asked for."""
    from .run import BenchmarkRequest
    from .variants import ABLATIONS

    folders = {name: getattr(options, name) for name in DATASETS}
    parts = {
        name: (folder, getattr(options, f"{name}-samples")) for name, folder in folders.items() if folder is not None
    }
    if not parts:
        raise DatasetError(f"name the folder of a dataset: {' or '.join(f'--{name}' for name in DATASETS)}")
    ablations = () if options.ablations is None else tuple(options.ablations or ABLATIONS)
    return BenchmarkRequest(
        parts,
        options.seed,
        options.methods,
        ablations,
        options.shown,
        options.reproduce,
        options.ablation_samples,
        options.target_scale,
    )


def networks_of(options: argparse.Namespace) -> Networks:
    """The networks of the metrics. Raises WeightsError if weights that the options name are not there."""
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return find_networks(options.lpips, options.clip, device=device, local_files_only=options.local_files_only)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _fraction(text: str) -> Fraction:
    try:
        scale = Fraction(text[:40])
    except (ValueError, ZeroDivisionError):
        scale = None
    if scale is None or not Fraction(1, 1000) <= scale <= 1:
        raise argparse.ArgumentTypeError(f"expected a number or a fraction from 1/1000 to 1, as 1/3, got {shown(text)}")
    return scale


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers N,N,..., got {text!r}") from None
