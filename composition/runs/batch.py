"""This module makes many compositions and writes them as a data set. A killed run resumes, and processes share rows.

    OUT/metadata.jsonl      one record per line, in the manifest's order; written last
    OUT/images/ID.png       the composites            (metadata column file_name)
    OUT/masks/ID.png        their tumour masks        (mask_file_name)
    OUT/records/ID.json     the same records, one each; a row is done when its record is there
    OUT/errors.jsonl        the rows that failed or were refused, if any were

This is the layout of Hugging Face's "imagefolder", where every column `*_file_name` is one of images.

Whatever order rows are made in, by however many processes, and wherever those are killed, the files come out the same
(on the same software and the same number of threads). So every row is composed by itself, stored inversions do not
depend on what else was made, and records hold no times. One run at a time may work on a folder.

A row whose label falls short of the Limits is refused, and leaves nothing but its line in errors.jsonl. So a further
run composes it again, and keeps it if the limits have become looser. The record of a row that is done has the measures
of its label, by which stricter limits refuse it without composing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch.distributed as dist

from sd21.files import json_lines, remove_partial, write_json, write_text

from ..methods import METHODS, Composition, compose
from ..metrics.label_truth import LabelTruth
from ..model import Model
from ..scans.images import write_image
from ..settings import Settings
from . import record
from .limits import Limits
from .manifest import Row, read_manifest
from .ranks import Ranks
from .store import InversionStore
from .summary import Summary, figures_of


def run_batch(
    manifest: str | Path,
    out: str | Path,
    load_model: Callable,
    settings: Settings,
    *,
    method: str = "ours",
    cache: str | Path | None = None,
    limits: Limits = Limits(),  # noqa: B008 (it is frozen)
    quiet: bool = False,
) -> Summary | None:
    """Compose every row of the manifest that is not done yet. Under torchrun the rows are shared out as ranks get free.

    load_model: takes nothing, returns what sd21.load returns; called after the manifest was read, if any row is good.
    method: a name of methods.METHODS.
    cache: a folder for the inversions, shared by ranks and by runs; without it each rank keeps its last ones in memory.
        Rows are taken by background, so that those that share one come together.
    limits: what a label has to keep, or its row is refused.
    Returns the summary on rank 0, None on others. Raises ValueError for a method that does not exist, OSError for a
    manifest or folder that cannot be used.
    """
    if method not in METHODS:
        raise ValueError(f"method is a name, one of {', '.join(METHODS)}, for records to hold; got {method!r}")
    ranks, out = Ranks(f"batch {out}"), Path(out)
    store = ranks.store
    rows, errors = read_manifest(manifest, settings)
    total = len(rows) + len(errors)
    if ranks.rank == 0:
        for name in ("images", "masks", "records"):
            (out / name).mkdir(parents=True, exist_ok=True)
        remove_partial(out)
    ranks.begin()

    if rows:
        model, inversions = load_model(), InversionStore(cache)
        queue = sorted(rows, key=lambda row: str(row.request.files["background"]))
        for row in ranks.share(queue, title=out.name, quiet=quiet):
            store.set(f"error {row.line}", _attempt(row, out, model, method, inversions, limits, store))
    ranks.finish()
    if ranks.rank > 0:
        return None
    for row in rows:
        if message := store.get(f"error {row.line}").decode():
            errors[row.line] = message
    _write_tables(out, [row for row in rows if row.line not in errors], errors)
    counts = {name: store.add(name, 0) for name in ("written", "kept", "refused", "reused", "saved_rows")}
    refused_by = {one.name: store.add(one.name, 0) for one in fields(Limits)}
    refused_by = {name: count for name, count in refused_by.items() if count}
    return Summary(rows=total, bad=len(errors), refused_by=refused_by, **counts, **figures_of(out / "metadata.jsonl"))


def _attempt(
    row: Row,
    out: Path,
    model: Model,
    method: str,
    inversions: InversionStore,
    limits: Limits,
    store: dist.Store,
) -> str:
    """Compose one row unless it is done. Returns what went wrong, or why it was refused, or an empty text."""
    try:
        asked = {
            "id": row.id,
            "file_name": f"images/{row.id}.png",
            "mask_file_name": f"masks/{row.id}.png",
            **row.request.describe(),
            "method": method,
            **record.provenance(model, row.settings),
        }
        label = _kept_label(out, asked)
        composition = None
        if label is None:
            sample = row.request.read(row.settings.fit)
            _remove(out, asked)  # what an earlier run made of other inputs
            composition = compose(model, *sample, row.settings, method=method, inversions=inversions)
            _count_reused(composition, store)
            label = composition.label
        if broken := limits.broken(label):
            _remove(out, asked)
            for name in ("refused", *broken):
                store.add(name, 1)
            return f"refused: {'; '.join(limits.faults(label))}"
        if composition is not None:
            write_image(out / asked["file_name"], composition.image)
            write_image(out / asked["mask_file_name"], composition.mask)
            entry = {**asked, **record.results(composition), **record.environment(model)}
            write_json(_record_of(out, asked), entry)
    except Exception as error:  # whatever is wrong with one row, the others go on
        return record.told(error)
    store.add("kept" if composition is None else "written", 1)
    return ""


def _count_reused(composition: Composition, store: dist.Store) -> None:
    for name, report in composition.inversion.items():  # of methods that invert
        if composition.reused[name]:
            store.add("reused", 1)
            store.add("saved_rows", report.rows)


def _record_of(out: Path, asked: dict) -> Path:
    return out / "records" / f"{asked['id']}.json"


def _kept_label(out: Path, asked: dict) -> LabelTruth | None:
    """The measures of the label if an earlier run made this very row: same inputs, settings and model. Else None."""
    if not all((out / asked[name]).exists() for name in ("file_name", "mask_file_name")):
        return None
    found = record.read_kept(_record_of(out, asked), asked)
    return None if found is None else record.label_of(found)


def _remove(out: Path, asked: dict) -> None:
    """Remove a row's files: its record first, so that a kill leaves no record of what is gone."""
    for path in (_record_of(out, asked), out / asked["file_name"], out / asked["mask_file_name"]):
        path.unlink(missing_ok=True)


def _write_tables(out: Path, good: list[Row], errors: dict[int, str]) -> None:
    records = (json.loads((out / "records" / f"{row.id}.json").read_text(encoding="utf-8")) for row in good)
    write_text(out / "metadata.jsonl", json_lines(records))
    record.write_errors(out / "errors.jsonl", [{"line": line, "error": errors[line]} for line in sorted(errors)])
