"""This module runs each command of `python -m composition` with the options that `cli` has parsed. Every function
returns the exit code, and imports what it needs when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial

from .options import made_of


def settings_of(options: argparse.Namespace):
    from .settings import Settings

    return made_of(options, Settings)


def model_loader(options: argparse.Namespace) -> Callable:
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


def run(options: argparse.Namespace) -> int:
    from .runs.request import FILES, Request
    from .runs.store import InversionStore

    files = {name: getattr(options, name) for name in FILES if getattr(options, name) is not None}
    request = Request(files, options.user_box, options.prompt, options.window, options.label)
    inversions = InversionStore(options.cache) if options.cache else None  # without, both scans are one batch
    return _compose_one(request, options, model_loader(options), inversions)


def demo(options: argparse.Namespace) -> int:
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
        settings_of(options),
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


def volume(options: argparse.Namespace) -> int:
    from .runs.cautions import volume_cautions
    from .runs.volume import VolumeRequest, run_volume

    told = run_volume(
        made_of(options, VolumeRequest),
        options.out,
        model_loader(options),
        settings_of(options),
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


def batch(options: argparse.Namespace) -> int:
    from .runs.batch import run_batch
    from .runs.layouts import Export
    from .runs.limits import Limits

    export = made_of(options, Export)
    summary = run_batch(
        options.manifest,
        options.out,
        model_loader(options),
        settings_of(options),
        method=options.method,
        cache=options.cache,
        limits=made_of(options, Limits),
        export=export,
        quiet=options.quiet,
    )
    if summary is None:  # another rank speaks
        return 0
    if not options.quiet:
        print(f"{summary}\nLoad it: {export.loads(options.out)}")
    if summary.bad:
        error = f"{summary.bad} of {summary.rows} rows failed or were refused, see {options.out / 'errors.jsonl'}"
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def pair(options: argparse.Namespace) -> int:
    from .datasets.rules import Rules
    from .runs.pair import run_pair
    from .runs.pair_options import request_of

    rules = made_of(options, Rules)
    drawn = run_pair(request_of(options), rules, quiet=options.quiet)
    if not options.quiet:
        print(drawn)
    return 0


def benchmark(options: argparse.Namespace) -> int:
    from .benchmark import command, run_benchmark

    settings, load_model, request = settings_of(options), model_loader(options), command.request_of(options)
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


def realism(options: argparse.Namespace) -> int:
    from .realism import command
    from .realism.choices import Choices

    return command.run(options, made_of(options, Choices))


def utility(options: argparse.Namespace) -> int:
    from .runs.log import line_of
    from .utility import command
    from .utility.training import Training

    return command.run(options, made_of(options, Training), line_of(options.arguments))


def inversions(options: argparse.Namespace) -> int:
    from .inversion_bench import command, run_inversions
    from .inversion_bench.choices import Choices
    from .runs.log import line_of

    request, load_model = command.request_of(options, made_of(options, Choices)), model_loader(options)
    done = run_inversions(request, options.out, load_model, line_of(options.arguments), quiet=options.quiet)
    if done is None:  # another rank speaks
        return 0
    text, errors = done
    if not options.quiet:
        print(text)
    if errors:
        print(f"error: {len(errors)} cells failed, see {options.out / 'errors.jsonl'}", file=sys.stderr)
        return 1
    return 0
