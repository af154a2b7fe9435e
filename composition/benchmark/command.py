"""`python -m composition benchmark`: its options, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..baselines import METHODS
from ..datasets import DatasetError
from ..metrics.clip import SOURCE
from .networks import Networks, find_networks
from .run import Request
from .variants import ABLATIONS

DATASETS = {"br35h": 300, "busi": 100}  # and the paper's samples of each (section 5.1)


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand, but for the options of model and method that all subcommands share."""
    parser = commands.add_parser(
        "benchmark",
        help="the paper's comparison, ablations and figures on one's own copy of its datasets",
        description="Compose the paper's benchmark by every method, measure it, and write tables and figures. The same "
        "command resumes a run that was killed; with more methods, or --ablations, it adds to one that is done. Tables "
        "show what the command names. Under torchrun, as for batch, several processes share the composites out.",
    )
    data = parser.add_argument_group("samples, from one or both of the datasets as published")
    for name, count in DATASETS.items():
        data.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"the folder of {name}")
        data.add_argument(
            f"--{name}-samples", type=int, default=count, metavar="N", help="how many (default: %(default)s)"
        )
    data.add_argument("--seed", type=int, default=0, help="of the draw of the samples (default: %(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="folder for everything; it holds one benchmark")
    parser.add_argument(
        "--methods", type=_methods, default=tuple(METHODS), help=f"some of {','.join(METHODS)} (default: all)"
    )
    parser.add_argument(
        "--ablations",
        nargs="*",
        choices=tuple(ABLATIONS),
        help="over T' (start) or tau too; over both where neither is named. With plots, which take the extra plots",
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
    metrics = parser.add_argument_group("weights of the metrics; a metric without them is left out of the tables")
    metrics.add_argument(
        "--lpips",
        nargs=2,
        type=Path,
        metavar=("ALEXNET", "LINEAR"),
        help="files of the published LPIPS: torchvision's alexnet-owt-7be5be79.pth and alex.pth of lpips 0.1 "
        "(default: ST-LPIPS, from the extra metrics)",
    )
    metrics.add_argument("--clip", help=f"folder or hub id (default: {SOURCE})")
    return parser


def request_of(options: argparse.Namespace) -> Request:
    """Raises DatasetError where no dataset is named, or none of its samples."""
    parts = {}
    for name in DATASETS:
        folder, count = getattr(options, name), getattr(options, f"{name}_samples")
        if folder is None:
            continue
        if count < 1:
            raise DatasetError(
                f"--{name}-samples is a whole number from 1 up, got {count}; leave --{name} out for none"
            )
        parts[name] = (folder, count)
    if not parts:
        raise DatasetError(f"name the folder of a dataset: {' or '.join(f'--{name}' for name in DATASETS)}")
    ablations = () if options.ablations is None else tuple(options.ablations or ABLATIONS)
    return Request(parts, options.seed, options.methods, ablations, options.shown, options.reproduce)


def networks_of(options: argparse.Namespace) -> Networks:
    """Raises WeightsError where weights that were named are not there."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return find_networks(options.lpips, options.clip, device=device, local_files_only=options.local_files_only)


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(METHODS)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers N,N,..., got {text!r}") from None
