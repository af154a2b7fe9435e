"""This module runs the benchmark from end to end: samples, composites, metrics, tables, grids and plots. The other
modules of the package each do one of these steps, and only this one knows their order."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from sd21.files import atomic, read_json_lines, write_json, write_text
from sd21.folders import check_untaken, left_locked

from ..canvas import reproduce
from ..datasets import DATASETS, Benchmark, build_benchmark
from ..methods import METHODS
from ..metrics import METRICS, Networks
from ..plotting import check_matplotlib
from ..runs.batch import run_batch
from ..runs.limits import Limits
from ..runs.manifest import Row, read_manifest
from ..runs.ranks import Ranks
from ..runs.record import write_errors
from ..scans.errors import DatasetError
from ..settings import Settings
from . import variants
from .grid import grid
from .measures import IDENTITY, measure_all, parts_of, write_csv
from .plots import plot
from .table import markdown, tabulate
from .variants import ABLATIONS, Lineup, Variant


@dataclass(frozen=True)
class BenchmarkRequest:
    """What is asked for.

    parts: {a name in DATASETS: (its folder, samples)}; seed: the seed of the draw; methods: names in METHODS, in the
    table's order; ablations: some of variants.ABLATIONS; shown: the samples of the grids, by number in each dataset;
    reproduce: whether they show scans, and what is pasted of them, as the model's autoencoder gives them back;
    ablation_samples: how many samples of each dataset, the first, an ablation has, None for all; target_scale: what the
    targets are shrunk to, as build_benchmark takes it.
    Raises ValueError (DatasetError) for what cannot be asked for.
    """

    parts: dict[str, tuple[Path, int]]
    seed: int
    methods: tuple[str, ...]
    ablations: tuple[str, ...]
    shown: tuple[int, ...]
    reproduce: bool = False
    ablation_samples: int | None = None
    target_scale: Fraction = Fraction(1)

    def __post_init__(self):
        _check_names("dataset", self.parts, DATASETS)
        _check_names("method", self.methods, METHODS)
        _check_names("ablation", self.ablations, ABLATIONS)
        if not self.parts:
            raise DatasetError(f"no dataset is named; expected the folder of one or more of {', '.join(DATASETS)}")
        for name, (_, count) in self.parts.items():
            if count < 1:
                raise DatasetError(
                    f"the samples of {name} are a whole number from 1 up, got {count}; leave {name} out for none"
                )
        if self.ablation_samples is not None and self.ablation_samples < 1:
            raise ValueError(f"an ablation has a whole number of samples from 1 up, got {self.ablation_samples}")
        if not self.methods:
            raise ValueError(f"no method is named; expected one or more of {', '.join(METHODS)}")
        for name in self.methods:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                raise ValueError(f"the method {name!r} names a folder and a line: letters, digits, '_' and '-' only")
        if taken := [name for name in METRICS if name in IDENTITY]:
            raise ValueError(f"the metric {', '.join(taken)} has the name of another column; give it another name")


@dataclass(frozen=True)
class Part:
    """Samples of a benchmark: their manifest, and its rows."""

    manifest: Path
    rows: list[Row]

    @property
    def counts(self) -> dict[str, int]:
        """How many samples there are of each dataset."""
        return dict(Counter(parts_of(row.id)[0] for row in self.rows))

    def first(self, count: int | None) -> Part:
        """The first `count` samples of each dataset, whose manifest is written beside this one; None: all."""
        rows = [row for row in self.rows if count is None or parts_of(row.id)[1] < count]
        if len(rows) == len(self.rows):
            return self
        lines = self.manifest.read_text(encoding="utf-8").split("\n")
        manifest = self.manifest.with_name(f"first_{count}.jsonl")
        write_text(manifest, "".join(f"{lines[row.line - 1]}\n" for row in rows))
        return Part(manifest, [replace(row, line=line) for line, row in enumerate(rows, start=1)])


def run_benchmark(
    request: BenchmarkRequest,
    out: str | Path,
    load_model: Callable,
    settings: Settings,
    networks: Networks,
    *,
    quiet: bool,
) -> list[dict] | None:
    """Do what is not done yet of the benchmark, and write OUT as the package's docstring describes it.

    load_model: takes nothing, returns what sd21.load returns. Under torchrun the processes share the composites among
    them, first to make and then to measure them.
    Rank 0 returns the failures, {"variant", "id", "error"}; the other ranks return None. Raises ValueError
    (DatasetError), OSError or ImportError, before the model is loaded, for what cannot be done.
    """
    out, methods = Path(out), variants.methods(request.methods, settings)
    lineups = [methods, *(ABLATIONS[name](settings) for name in request.ablations)]
    if any(lineup.varied for lineup in lineups):
        check_matplotlib("the plots of the ablations")
    for folder, _ in request.parts.values():
        if folder.resolve().is_relative_to(out.resolve()):
            raise DatasetError(f"{folder} lies in {out}, where results go; name another folder for them")
    ours = left_locked(out) or (out / "samples" / "manifest.jsonl").exists()
    tables = [out / f"{lineup.name}{suffix}" for lineup in lineups for suffix in (".md", ".json", ".png")]
    written = [*tables, *(out / name for name in ("samples.csv", "errors.jsonl", "grid.png"))]
    if not ours:
        check_untaken(written, "benchmark")
    with Ranks(f"benchmark {out}").owning(out):
        return _run(request, out, load_model, settings, networks, methods, lineups, quiet)


def _run(
    request: BenchmarkRequest,
    out: Path,
    load_model: Callable,
    settings: Settings,
    networks: Networks,
    methods: Lineup,
    lineups: list[Lineup],
    quiet: bool,
) -> list[dict] | None:
    """The benchmark, on a folder of its own: what `run_benchmark` returns."""
    wanted = variants.all_of(lineups)
    read = {name: replace(DATASETS[name].read(folder), name=name) for name, (folder, _) in request.parts.items()}
    parts = [(read[name], count) for name, (_, count) in request.parts.items()]
    benchmark = build_benchmark(out / "samples", parts, request.seed, request.target_scale)
    rows, damaged = read_manifest(benchmark.manifest, settings)
    if damaged:
        raise DatasetError(f"{benchmark.manifest} has rows that cannot be composed: {damaged}")
    every = Part(benchmark.manifest, rows)
    first = every.first(request.ablation_samples)
    part_of = {lineup.name: every if lineup is methods else first for lineup in lineups}

    load_model, on_every = functools.cache(load_model), variants.all_of([methods])
    errors = _compose(every, on_every, out, load_model, quiet)
    errors += _compose(first, [variant for variant in wanted if variant not in on_every], out, load_model, quiet)
    ranks = Ranks(f"measure {out}")
    ranks.begin()  # the others wait until rank 0 has written what they are to measure
    measured = measure_all(rows, wanted, out / "runs", networks, ranks, quiet=quiet)
    if measured is None:
        return None
    entries, unmeasured = measured
    errors += unmeasured
    write_csv(out / "samples.csv", entries)
    write_errors(out / "errors.jsonl", errors)
    reproduced = functools.partial(reproduce, load_model()) if request.reproduce else None
    for lineup in lineups:
        _write(lineup, part_of[lineup.name], request, benchmark, entries, networks, out, reproduced)
    return errors


def _check_names(kind: str, names, known) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: not among the {kind}s {', '.join(known)}")


def _compose(part: Part, wanted: list[Variant], out: Path, load_model: Callable, quiet: bool) -> list[dict]:
    """Run `batch` for each variant. Rank 0 returns what failed; the other ranks return an empty list."""
    errors, ids = [], {row.line: row.id for row in part.rows}
    for variant in wanted:
        folder = out / "runs" / variant.name
        summary = run_batch(
            part.manifest,
            folder,
            load_model,
            variant.settings,
            method=variant.method,
            cache=out / "inversions",
            limits=Limits.off(),  # the evidence measures everything
            quiet=quiet,
        )
        if summary is not None and summary.bad:
            failed = read_json_lines(folder / "errors.jsonl")
            errors += [{"variant": variant.name, "id": ids[entry["line"]], "error": entry["error"]} for entry in failed]
    return errors


def _write(
    lineup: Lineup,
    part: Part,
    request: BenchmarkRequest,
    benchmark: Benchmark,
    entries: list[dict],
    networks: Networks,
    out: Path,
    reproduced: Callable | None,
) -> None:
    """Write a lineup's files, of the entries of its part alone. Where there are none, it has no files."""
    ids = {row.id for row in part.rows}
    entries = [entry for entry in entries if entry["id"] in ids]
    if entries:
        _write_table(lineup, part, request, benchmark, entries, networks, out)
        _write_grid(lineup, request.shown, part.rows, entries, out, reproduced)
        return
    # An earlier run's tables would speak of composites that are not there.
    for name in (*(f"{lineup.name}{suffix}" for suffix in (".json", ".md", ".png")), _grid_name(lineup)):
        (out / name).unlink(missing_ok=True)


def _write_table(
    lineup: Lineup,
    part: Part,
    request: BenchmarkRequest,
    benchmark: Benchmark,
    entries: list[dict],
    networks: Networks,
    out: Path,
) -> None:
    """Write a lineup's table, as JSON and as Markdown, and its plot if it has one."""
    table = tabulate(lineup, part.counts, entries, networks)
    table["benchmark"] = {
        "samples": part.counts,
        "seed": request.seed,
        "target_scale": str(request.target_scale),
        "sha256": benchmark.sha256,
        "left_out": {name: rest.counts for name, rest in benchmark.left_out.items()},
    }
    table["settings"] = {line.variant.name: asdict(line.variant.settings) for line in lineup.lines}
    write_json(out / f"{lineup.name}.json", table)
    write_text(out / f"{lineup.name}.md", markdown(table))
    if lineup.varied is not None:
        plot(lineup, table, out / f"{lineup.name}.png")


def _write_grid(
    lineup: Lineup,
    shown: tuple[int, ...],
    rows: list[Row],
    entries: list[dict],
    out: Path,
    reproduced: Callable | None,
) -> None:
    """Write a lineup's grid of the samples with the numbers `shown`, as far as any line has them."""
    done = {(entry["id"], entry["variant"]) for entry in entries}
    known = {sample for sample, _ in done}
    shown_rows = [row for row in rows if row.id in known and parts_of(row.id)[1] in shown]
    picture = grid(shown_rows, lineup.columns, out / "runs", done, reproduced)
    with atomic(out / _grid_name(lineup)) as temporary:
        picture.save(temporary)


def _grid_name(lineup: Lineup) -> str:
    return "grid.png" if lineup.name == variants.TABLE else f"{lineup.name}_grid.png"
