"""This module is the command line, `python -m composition run | demo | pair | batch | ...`, and nothing else.

The options follow from Settings, METHODS and the like, and reading those imports torch. So only the command that the
user asks for gets its options, and the module imports everything heavy where it first needs it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from sd21.command import Parser, folder, guarded

from . import commands
from .options import QUIET, add_fields, add_meaning, add_method, add_model, add_out, add_processes, numbers

RESUMED = ("batch", "benchmark", "inversions", "realism", "utility", "volume")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code of `sd21.command.guarded`. argparse itself exits with 2."""
    line = _line_of(arguments)
    arguments = sys.argv[1:] if arguments is None else arguments
    interrupted = "no record was written, and the same command begins anew"
    if next(iter(arguments), "") in RESUMED:
        interrupted = f"what is whole stays, and the same command goes on where this one stopped:\n{line}"
    return guarded(lambda: _command(arguments), interrupted, tell=_inversion_told)


def _line_of(arguments: list[str] | None) -> str:
    """The command line that started this process, or torchrun's where that did, to be repeated in a shell."""
    words = sys.orig_argv if arguments is None else ["python", "-m", "composition", *arguments]
    parent = Path(f"/proc/{os.getppid()}/cmdline")
    if "TORCHELASTIC_RUN_ID" in os.environ and parent.exists():
        words = os.fsdecode(parent.read_bytes()).rstrip("\0").split("\0")
    return shlex.join(words)


def _command(arguments: list[str]) -> int:
    options = build_parser(*arguments[:1]).parse_args(arguments, argparse.Namespace(arguments=arguments))
    if getattr(options, "processes", 1) > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        from .runs.ranks import launch

        return launch(arguments, options.processes)
    return options.command(options)


def _inversion_told(error: Exception) -> str | None:
    """The line for an inversion that missed its tolerance; None for any other error."""
    from solvers import InversionError

    if not isinstance(error, InversionError):
        return None
    advice = "Options: --max-sweeps, --tolerance, --start, --grid log_snr, --lower-order-final"
    return f"{error}. {advice}; --on-failure return takes the best that was found"


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, of which `command` alone has its options."""
    parser = Parser(prog="python -m composition", description="Compose tumours into tumour-free scans.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (about, description, add_options) in COMMANDS.items():
        one = commands.add_parser(name, help=about, description=description)
        if name == command:
            add_options(one)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.set_defaults(command=commands.run)
    inputs = run.add_argument_group("inputs: PNG, JPEG, TIFF, DICOM, NIfTI; a slice of a stack as FILE#NUMBER")
    inputs.add_argument("--background", required=True, type=Path, help="the scan without a tumour")
    inputs.add_argument("--object", required=True, type=Path, help="the scan with the tumour")
    inputs.add_argument("--object-mask", required=True, type=Path, help="the tumour in it; nonzero is inside")
    target = inputs.add_mutually_exclusive_group(required=True)
    target.add_argument("--user-mask", type=Path, help="where it goes in the background; nonzero is inside")
    target.add_argument("--user-box", type=numbers("X,Y,W,H"), metavar="X,Y,W,H", help="the same as a box, in pixels")
    add_meaning(inputs)
    add_out(run, "folder for composite.png, mask.png, figure.png and record.json, and the composite as DICOM or NIfTI")
    add_method(run)
    add_model(run)
    _add_settings(run)


def _add_volume(volume: argparse.ArgumentParser) -> None:
    volume.set_defaults(command=commands.volume)
    inputs = volume.add_argument_group("inputs: NIfTI files, or folders of DICOM slices")
    inputs.add_argument("--background", required=True, type=Path, help="the volume without a tumour")
    inputs.add_argument("--object", required=True, type=Path, help="the volume with the tumour")
    inputs.add_argument("--object-mask", required=True, type=Path, help="the tumour in it, on the same voxels")
    target = inputs.add_mutually_exclusive_group(required=True)
    target.add_argument("--user-mask", type=Path, help="where it goes, on the background's voxels; nonzero is inside")
    target.add_argument(
        "--user-box",
        type=numbers("X,Y,Z,W,H,D"),
        metavar="X,Y,Z,W,H,D",
        help="the same as a box: its first column, row and slice, and how many of each",
    )
    add_meaning(inputs)
    volume.add_argument("--out", required=True, type=folder, help="folder for the volume, its label, figure and record")
    volume.add_argument("-q", "--quiet", action="store_true", help=QUIET)
    add_processes(volume, "slices")
    add_method(volume)
    add_model(volume)
    _add_settings(volume)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.set_defaults(command=commands.demo, method="ours", cache=None)
    demo.add_argument("--out", type=folder, default=Path("demo"), help="folder for the results (default: %(default)s)")
    demo.add_argument("-q", "--quiet", action="store_true", help=QUIET)
    _add_settings(demo)


def _add_batch(batch: argparse.ArgumentParser) -> None:
    from .runs.layouts import Export
    from .runs.limits import Limits

    batch.set_defaults(command=commands.batch)
    batch.add_argument(
        "manifest",
        type=Path,
        help="JSON lines: background, object, object_mask, user_mask or user_box, prompt; optionally window, label, "
        "id, settings, class, split and columns of your own. Files are relative to the manifest",
    )
    add_out(
        batch,
        "folder for metadata.jsonl, images/, masks/, records/, stored/ and labels/ of DICOM and NIfTI, and, where rows "
        "failed or were refused, errors.jsonl",
    )
    add_processes(batch, "rows")
    add_method(batch)
    add_model(batch)
    _add_settings(batch)
    add_fields(batch, "how the data set is laid out", Export)
    add_fields(batch, "which rows are refused, as their labels are not true; none turns a limit off", Limits)


def _add_pair(pair: argparse.ArgumentParser) -> None:
    from .datasets.rules import Rules
    from .runs.pair_options import add_options

    pair.set_defaults(command=commands.pair)
    add_options(pair)
    add_fields(pair, "how pairs are drawn, and objects varied", Rules)


def _add_benchmark(benchmark: argparse.ArgumentParser) -> None:
    from .benchmark import command

    benchmark.set_defaults(command=commands.benchmark)
    command.add_options(benchmark)
    add_processes(benchmark, "composites")
    add_model(benchmark)
    _add_settings(benchmark)


def _add_realism(realism: argparse.ArgumentParser) -> None:
    from .realism import command
    from .realism.choices import Choices

    realism.set_defaults(command=commands.realism)
    command.add_options(realism)
    add_fields(realism, "crops and measures", Choices)


def _add_utility(utility: argparse.ArgumentParser) -> None:
    from .utility import command
    from .utility.training import Training

    utility.set_defaults(command=commands.utility)
    command.add_options(utility)
    add_fields(utility, "training", Training)


def _add_inversions(inversions: argparse.ArgumentParser) -> None:
    from .inversion_bench import command
    from .inversion_bench.choices import Choices

    inversions.set_defaults(command=commands.inversions)
    command.add_options(inversions)
    add_processes(inversions, "problems")
    add_model(inversions)
    add_fields(inversions, "the run that is inverted, and limits", Choices)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from .settings import Settings

    add_fields(parser, "method", Settings)


# Name: its line of help, its description, and what adds its options.
COMMANDS = {
    "run": ("one composition from files", "One composition from files.", _add_run),
    "demo": (
        "one composition with what ships with the package: no network, no files needed",
        "One composition with the checkpoint and the scans that ship with the package.",
        _add_demo,
    ),
    "pair": (
        "a manifest for batch, drawn from two folders: scans with a tumour and scans without",
        "Draw pairs of a tumour and a place in a tumour-free scan, as a manifest that batch reads. The same scans and "
        "the same seed give the same manifest.",
        _add_pair,
    ),
    "batch": (
        "many compositions from a manifest, as a data set; run it again to resume",
        "Many compositions, as a data set. The same command resumes a run that was killed. A row whose label falls "
        "short of a limit leaves no file, not even one that was there before. Several processes share the "
        "rows out: torchrun --nproc-per-node 8 -m -- composition batch ... (the bare -- keeps torchrun from taking "
        "--start for an option of its own).",
        _add_batch,
    ),
    "volume": (
        "a tumour in three dimensions, into a volume",
        "Place a tumour in a volume, in millimetres, and compose every slice that it meets. The same command resumes a "
        "run that was killed. Several processes share the slices out, as the rows of batch.",
        _add_volume,
    ),
    "benchmark": (
        "the paper's comparison, ablations and figures on one's own copy of its datasets",
        "Compose the paper's benchmark by every method, measure it, and write tables and figures. The same command "
        "resumes a run that was killed; with more methods, or --ablations, it adds to one that is done. Tables show "
        "what the command names. Under torchrun, as for batch, several processes share the composites out.",
        _add_benchmark,
    ),
    "realism": (
        "how real composed tumours look, beside real ones; a blinded reader study",
        "Compare crops around composed tumours with crops around real ones: by a classifier that tries to tell them "
        "apart, grey levels, radiomics and MMD, with real against real as the floor. Each set takes "
        "10 composites that can be used, and 40 or more for narrow intervals, and twice as many real scans. The same "
        "command resumes a run that was killed. --reader-study writes a study for human readers, and --score SHEET ... "
        "--key KEY scores it.",
        _add_realism,
    ),
    "utility": (
        "whether a segmenter learns more from composites",
        "Train a small segmenter on N real scans, with and without composites of their tumours, and score it on scans "
        "that it has not seen. The same command resumes a run that was killed. Under torchrun, as for batch, several "
        "processes share the trainings out.",
        _add_utility,
    ),
    "inversions": (
        "all inversions on one bench: error against rows, seconds and memory",
        "Invert scans by every method of solvers.INVERSIONS, measure all of them in the same way, and say which of "
        "them reaches a tolerance at the fewest rows through the network. Real scans and the model's own samples stay "
        "apart. The same command resumes a run that was killed; with more methods it adds to one that is done. Under "
        "torchrun, as for batch, several processes share the problems out.",
        _add_inversions,
    ),
}
