"""The benchmark from end to end: samples, composites, metrics, tables, grids, plots."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..batch import run_batch
from ..canvas import reproduce
from ..datasets import Benchmark, build_benchmark, read_br35h, read_busi
from ..files import atomic, remove_partial, write_json, write_text
from ..manifest import Row, read_manifest
from ..ranks import Ranks
from ..settings import Settings
from . import variants
from .grid import grid
from .measures import measure_all, write_csv
from .networks import Networks
from .plots import check_matplotlib, plot
from .table import markdown, tabulate
from .variants import Comparison, Variant

READERS = {"br35h": read_br35h, "busi": read_busi}
# The columns of the paper's Fig. 7; its Tab. 1 has another order.
GRID_ORDER = ("copy-paste", "sdedit", "blended", "tf-icon", "published", "ours")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    parts: {one of READERS: (its folder, samples)}; seed: of the draw; methods: some of baselines.METHODS, in the
    table's order; ablations: some of variants.ABLATIONS; shown: the samples of the grids, by number within each
    dataset; reproduce: show scans there, and what is pasted of them, as the model's autoencoder gives them back.
    """

    parts: dict[str, tuple[Path, int]]
    seed: int
    methods: tuple[str, ...]
    ablations: tuple[str, ...]
    shown: tuple[int, ...]
    reproduce: bool = False


def run_benchmark(
    request: Request, out: str | Path, load_model: Callable, settings: Settings, networks: Networks, *, quiet: bool
) -> list[dict] | None:
    """Do whatever of the benchmark is not done yet, and write OUT as the package's docstring has it.

    load_model: takes nothing, returns what sd21.load returns. Under torchrun the composites are shared out, to be
    made and then to be measured.
    Returns the failures, {"variant", "id", "error"}, on rank 0, None on others. Before the model is loaded, raises
    ValueError (DatasetError), OSError or ImportError for what cannot be done.
    """
    out = Path(out)
    comparisons = [variants.methods(request.methods, settings)]
    if request.ablations:
        check_matplotlib()
        comparisons += [variants.ABLATIONS[name](settings) for name in request.ablations]
    wanted = list({line.variant.name: line.variant for each in comparisons for line in each.lines}.values())
    parts = [(READERS[name](folder), count) for name, (folder, count) in request.parts.items()]
    benchmark = build_benchmark(out / "samples", parts, request.seed)
    rows, damaged = read_manifest(benchmark.manifest, settings)
    assert not damaged, damaged  # we have just written it

    load_model = functools.cache(load_model)
    errors = _compose(benchmark, rows, wanted, out, load_model, quiet)
    ranks = Ranks(f"measure {out}")
    if ranks.rank == 0:
        remove_partial(out)
    ranks.begin()
    measured = measure_all(rows, wanted, out / "runs", networks, ranks, quiet=quiet)
    if measured is None:
        return None
    entries, unmeasured = measured
    errors += unmeasured
    write_csv(out / "samples.csv", entries)
    if errors:
        write_text(out / "errors.jsonl", "".join(json.dumps(error) + "\n" for error in errors))
    else:
        (out / "errors.jsonl").unlink(missing_ok=True)
    reproduced = functools.partial(reproduce, load_model()) if request.reproduce else None
    for comparison in comparisons if entries else ():
        _report(comparison, request, benchmark, rows, entries, networks, out, reproduced)
    return errors


def _compose(
    benchmark: Benchmark, rows: list[Row], wanted: list[Variant], out: Path, load_model: Callable, quiet: bool
) -> list[dict]:
    """Run `batch` for each variant. Returns what failed, on rank 0; nothing on others."""
    errors, ids = [], {row.line: row.id for row in rows}
    for variant in wanted:
        folder = out / "runs" / variant.name
        summary = run_batch(
            benchmark.manifest,
            folder,
            load_model,
            variant.settings,
            method=variant.method,
            cache=out / "inversions",
            quiet=quiet,
        )
        if summary is not None and summary.bad:
            failed = map(json.loads, (folder / "errors.jsonl").read_text(encoding="utf-8").splitlines())
            errors += [{"variant": variant.name, "id": ids[entry["line"]], "error": entry["error"]} for entry in failed]
    return errors


def _report(
    comparison: Comparison,
    request: Request,
    benchmark: Benchmark,
    rows: list[Row],
    entries: list[dict],
    networks: Networks,
    out: Path,
    reproduced: Callable | None,
) -> None:
    counts = {name: count for name, (_, count) in request.parts.items()}
    table = tabulate(comparison, counts, entries, networks)
    table["benchmark"] = {
        "samples": counts,
        "seed": request.seed,
        "sha256": benchmark.sha256,
        "left_out": {name: rest.counts for name, rest in benchmark.left_out.items()},
    }
    table["settings"] = {line.variant.name: asdict(line.variant.settings) for line in comparison.lines}
    write_json(out / f"{comparison.name}.json", table)
    write_text(out / f"{comparison.name}.md", markdown(table))
    if comparison.varied is not None:
        plot(comparison, table, out / f"{comparison.name}.png")
    done = {(entry["id"], entry["variant"]) for entry in entries}
    known = {sample for sample, _ in done}
    shown = [row for row in rows if row.id in known and int(row.id.rsplit("-", 1)[1]) in request.shown]
    lines = sorted(comparison.lines, key=lambda line: GRID_ORDER.index(line.variant.method))
    name = "grid" if comparison.varied is None else f"{comparison.name}_grid"
    with atomic(out / f"{name}.png") as temporary:
        grid(shown, lines, out / "runs", done, reproduced).save(temporary)
