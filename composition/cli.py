"""This module is the command line, `python -m composition run | demo | batch | volume | benchmark`, and nothing else.

The options follow from Settings, METHODS and the like, and reading those imports torch. So only the command that the
user asks for gets its options, and the module imports everything heavy where it first needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sd21.command import Parser, folder, guarded

from .options import QUIET, add_fields, add_meaning, add_method, add_model, add_out, made_of, numbers

AGAIN = "the same command goes on where this one stopped, and what is whole stays"
RESUMED = {"batch": AGAIN, "benchmark": AGAIN, "volume": AGAIN}  # what to know after Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code of `sd21.command.guarded`. argparse itself exits with 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interrupted = RESUMED.get(next(iter(arguments), ""), "no record was written, and the same command begins anew")
    return guarded(lambda: _command(arguments), interrupted, tell=_inversion_told)


def _command(arguments: list[str]) -> int:
    options = build_parser(*arguments[:1]).parse_args(arguments)
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
    run.set_defaults(command=_run)
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
    volume.set_defaults(command=_volume)
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
    add_method(volume)
    add_model(volume)
    _add_settings(volume)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.set_defaults(command=_demo, method="ours", cache=None)
    demo.add_argument("--out", type=folder, default=Path("demo"), help="folder for the results (default: %(default)s)")
    demo.add_argument("-q", "--quiet", action="store_true", help=QUIET)
    _add_settings(demo)


def _add_batch(batch: argparse.ArgumentParser) -> None:
    from .runs.limits import Limits

    batch.set_defaults(command=_batch)
    batch.add_argument(
        "manifest",
        type=Path,
        help="JSON lines: background, object, object_mask, user_mask or user_box, prompt; optionally window, label, "
        "id and settings. Files are relative to the manifest",
    )
    add_out(
        batch,
        "folder for metadata.jsonl, images/, masks/, records/, stored/ and labels/ of DICOM and NIfTI, and, where rows "
        "failed or were refused, errors.jsonl",
    )
    add_method(batch)
    add_model(batch)
    _add_settings(batch)
    add_fields(batch, "which rows are refused, as their labels are not true; none turns a limit off", Limits)


def _add_benchmark(benchmark: argparse.ArgumentParser) -> None:
    from .benchmark import command

    benchmark.set_defaults(command=_benchmark)
    command.add_options(benchmark)
    add_model(benchmark)
    _add_settings(benchmark)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from .settings import Settings

    add_fields(parser, "method", Settings)


def _settings(options: argparse.Namespace):
    from .settings import Settings

    return made_of(options, Settings)


def _model_loader(options: argparse.Namespace) -> Callable:
    """A function that loads the model the options name. Under torchrun every process takes a device of its own.

    Raises ValueError for a device that cannot be had.
    """
    import torch

    import sd21
    from sd21.model import find_device

    if torch.distributed.is_torchelastic_launched() and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return partial(
        sd21.load,
        options.model,
        device=find_device(options.device),  # whose error comes before any work
        dtype=options.dtype and getattr(torch, options.dtype),
        revision=options.revision,
        variant=options.variant,
        prediction_type=options.prediction_type,
        tokenizer=options.tokenizer,
        local_files_only=options.local_files_only,
    )


def _run(options: argparse.Namespace) -> int:
    from .runs.request import FILES, Request
    from .runs.store import InversionStore

    files = {name: getattr(options, name) for name in FILES if getattr(options, name) is not None}
    request = Request(files, options.user_box, options.prompt, options.window, options.label)
    inversions = InversionStore(options.cache) if options.cache else None  # without, both scans are one batch
    return _compose_one(request, options, _model_loader(options), inversions)


def _demo(options: argparse.Namespace) -> int:
    import sd21

    from .mini.demo import demo_request

    return _compose_one(demo_request(), options, partial(sd21.load, "mini"), None)


def _compose_one(request, options: argparse.Namespace, load_model: Callable, inversions) -> int:
    from .runs.cautions import cautions
    from .runs.single import run_single

    composition, files = run_single(
        request,
        options.out,
        load_model,
        _settings(options),
        method=options.method,
        inversions=inversions,
        cache=options.cache,
        quiet=options.quiet,
    )
    _warn(cautions(composition))
    if not options.quiet:
        rows = sum(composition.rows.values())
        print(f"{options.out}: {', '.join(path.name for path in files)}; {rows} rows through the network")
    return 0


def _volume(options: argparse.Namespace) -> int:
    from .runs.cautions import volume_cautions
    from .runs.volume import VolumeRequest, run_volume

    told = run_volume(
        made_of(options, VolumeRequest),
        options.out,
        _model_loader(options),
        _settings(options),
        method=options.method,
        quiet=options.quiet,
    )
    if told is None:  # another rank speaks
        return 0
    _warn(volume_cautions(told))
    if options.quiet:
        return 0
    steps = "" if told["steps"]["ratio"] is None else f", grey steps {told['steps']['ratio']:.2f} times the object's"
    print(f"{options.out}: {len(told['slices'])} slices, {told['millilitres']:.2f} ml{steps}; {told['rows']} rows")
    return 0


def _warn(cautions: list[str]) -> None:
    for text in cautions:
        print(f"warning: {text}", file=sys.stderr)


def _batch(options: argparse.Namespace) -> int:
    from .runs.batch import run_batch
    from .runs.limits import Limits

    summary = run_batch(
        options.manifest,
        options.out,
        _model_loader(options),
        _settings(options),
        method=options.method,
        cache=options.cache,
        limits=made_of(options, Limits),
        quiet=options.quiet,
    )
    if summary is None:  # another rank speaks
        return 0
    if not options.quiet:
        print(summary)
    if summary.bad:
        error = f"{summary.bad} of {summary.rows} rows failed or were refused, see {options.out / 'errors.jsonl'}"
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from .benchmark import command, run_benchmark

    settings, load_model, request = _settings(options), _model_loader(options), command.request_of(options)
    networks = command.networks_of(options)
    errors = run_benchmark(request, options.out, load_model, settings, networks, quiet=options.quiet)
    if errors is None:  # another rank speaks
        return 0
    if errors:
        print(f"error: {len(errors)} composites failed, see {options.out / 'errors.jsonl'}", file=sys.stderr)
        return 1
    if not options.quiet:
        print((options.out / "table.md").read_text(encoding="utf-8"))
    return 0


# Name: its line of help, its description, and what adds its options.
COMMANDS = {
    "run": ("one composition from files", "One composition from files.", _add_run),
    "demo": (
        "one composition with what ships with the package: no network, no files needed",
        "One composition with the checkpoint and the scans that ship with the package.",
        _add_demo,
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
}
