"""This module is the command line, `python -m composition run | demo | batch | benchmark`, and nothing else.

The options follow from Settings, METHODS and the like, and reading those imports torch. So only the command that the
user asks for gets its options, and the module imports everything heavy where it first needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sd21.command import Parser, folder, guarded

from .options import add_fields, made_of

QUIET = "no progress bars, no messages; warnings and errors stay"
AGAIN = "the same command goes on where this one stopped, and what is whole stays"
RESULTS = ("composite.png", "mask.png", "figure.png", "record.json")
RESUMED = {"batch": AGAIN, "benchmark": AGAIN}  # what to know after Ctrl-C


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
    target.add_argument("--user-box", type=_box, metavar="X,Y,W,H", help="the same as a box, in pixels")
    inputs.add_argument("--prompt", required=True, help='as "An MRI scan of a cancerous brain"')
    _add_out(run, "folder for composite.png, mask.png, figure.png and record.json")
    _add_method(run)
    _add_model(run)
    _add_settings(run)


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
        help="JSON lines: background, object, object_mask, user_mask or user_box, prompt; optionally id and settings. "
        "Files are relative to the manifest",
    )
    _add_out(
        batch,
        "folder for metadata.jsonl, images/, masks/, records/ and, where rows failed or were refused, errors.jsonl",
    )
    _add_method(batch)
    _add_model(batch)
    _add_settings(batch)
    add_fields(batch, "which rows are refused, as their labels are not true; none turns a limit off", Limits)


def _add_benchmark(benchmark: argparse.ArgumentParser) -> None:
    from .benchmark import command

    benchmark.set_defaults(command=_benchmark)
    command.add_options(benchmark)
    _add_model(benchmark)
    _add_settings(benchmark)


def _add_out(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--out", required=True, type=folder, help=about)
    parser.add_argument("--cache", type=Path, help="folder to keep the inversions in, for reuse")
    parser.add_argument("-q", "--quiet", action="store_true", help=QUIET)


def _add_method(parser: argparse.ArgumentParser) -> None:
    from .methods import METHODS

    about = "ours, or a baseline with its own constants (default: %(default)s)"
    parser.add_argument("--method", choices=tuple(METHODS), default="ours", help=about)


def _add_model(parser: argparse.ArgumentParser) -> None:
    from sd21.config import PREDICTION_TYPES
    from sd21.model import DTYPES
    from sd21.sources import DEFAULT

    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default=DEFAULT,
        help="a folder in the diffusers layout, a .safetensors file, a hub id, or mini (default: %(default)s)",
    )
    group.add_argument("--revision", help="commit, tag or branch of a hub id")
    group.add_argument("--variant", help="fp16 for *.fp16.safetensors")
    group.add_argument("--prediction-type", choices=PREDICTION_TYPES, help="a single file does not say it")
    group.add_argument("--tokenizer", help="folder or hub id of the tokenizer; a single file has none")
    group.add_argument("--local-files-only", action="store_true", help="do not ask the hub")
    group.add_argument("--device", help="default: cuda, else mps, else cpu")
    group.add_argument(
        "--dtype",
        choices=[str(dtype).removeprefix("torch.") for dtype in DTYPES],
        help="default: bfloat16 on cuda, float32 elsewhere",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    from .settings import Settings

    add_fields(parser, "method", Settings)


def _settings(options: argparse.Namespace):
    from .settings import Settings

    return made_of(options, Settings)


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected four whole numbers X,Y,W,H, got {text!r}") from None
    return x, y, width, height


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
    request = Request(files, options.user_box, options.prompt)
    inversions = InversionStore(options.cache) if options.cache else None  # without, both scans are one batch
    return _compose_one(request, options, _model_loader(options), inversions)


def _demo(options: argparse.Namespace) -> int:
    import sd21

    from .mini.demo import demo_request

    return _compose_one(demo_request(), options, partial(sd21.load, "mini"), None)


def _compose_one(request, options: argparse.Namespace, load_model: Callable, inversions) -> int:
    from tqdm import tqdm

    from sd21.folders import owned

    from .methods import compose
    from .runs.cautions import cautions

    settings = _settings(options)
    sample = request.read(settings.fit)
    _check_results(request, options.out)
    with owned(options.out, cache=options.cache):
        begin = time.perf_counter()
        model = load_model()
        seconds = {"load": time.perf_counter() - begin}
        progress = None if options.quiet else partial(tqdm, leave=False)
        composition = compose(model, *sample, settings, method=options.method, inversions=inversions, progress=progress)
        _write_results(options.out, request, composition, model, settings, options.method, seconds)
    for text in cautions(composition):
        print(f"warning: {text}", file=sys.stderr)
    if not options.quiet:
        rows = sum(composition.rows.values())
        print(f"{options.out}: {', '.join(RESULTS)}; {rows} rows through the network")
    return 0


def _check_results(request, out: Path) -> None:
    """Raises FolderError where a result would take the place of an input, or of a file that no `run` has made: a run
    that ends well leaves its record, one that fails leaves nothing, and one that is killed its lock."""
    from sd21.folders import FolderError, left_locked

    from .runs.request import check_apart

    *pictures, entry = (out / name for name in RESULTS)
    check_apart(request.files.values(), [*pictures, entry])
    if not left_locked(out) and not entry.exists() and (taken := [path for path in pictures if path.exists()]):
        raise FolderError(f"{taken[0]} is there, and no run has made it; name another folder for the results")


def _write_results(out: Path, request, composition, model, settings, method: str, seconds: dict[str, float]) -> None:
    from sd21.files import atomic, write_json

    from .figures import before_after
    from .runs import record
    from .scans.images import write_image

    image, mask, figure, entry = (out / name for name in RESULTS)
    about = {
        **request.describe(),
        "method": method,
        **record.provenance(model, settings),
        **record.results(composition),
        "reused": composition.reused,
        **record.environment(model),
        "seconds": seconds | composition.seconds,
    }
    drawn = before_after(composition.sample, composition.image, composition.mask)
    entry.unlink(missing_ok=True)  # first, so that a run that ends on the way leaves no record beside others' pictures
    try:
        write_image(image, composition.image)
        write_image(mask, composition.mask)
        with atomic(figure) as temporary:
            drawn.save(temporary)
        write_json(entry, about)
    except OSError:
        for path in (image, mask, figure):
            path.unlink(missing_ok=True)
        raise


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
    "benchmark": (
        "the paper's comparison, ablations and figures on one's own copy of its datasets",
        "Compose the paper's benchmark by every method, measure it, and write tables and figures. The same command "
        "resumes a run that was killed; with more methods, or --ablations, it adds to one that is done. Tables show "
        "what the command names. Under torchrun, as for batch, several processes share the composites out.",
        _add_benchmark,
    ),
}
