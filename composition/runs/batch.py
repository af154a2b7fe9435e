"""This module makes many compositions and writes them as a data set. A killed run resumes, and processes share rows.

    OUT/metadata.jsonl      one record per line, in the manifest's order; written last
    OUT/images/ID.png       the composites            (metadata column file_name)
    OUT/masks/ID.png        their tumour masks        (mask_file_name)
    OUT/records/ID.json     the same records, one each; a row is done when its record is there
    OUT/errors.jsonl        the rows that failed, if any did

This is the layout of Hugging Face's "imagefolder", where every column `*_file_name` is one of images.

Whatever order rows are made in, by however many processes, and wherever those are killed, the files come out the same
(on the same software and the same number of threads). So every row is composed by itself, stored inversions do not
depend on what else was made, and records hold no times. One run at a time may work on a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from sd21.files import json_lines, remove_partial, write_json, write_text

from ..methods import METHODS, compose
from ..model import Model
from ..scans.images import write_image
from ..settings import Settings
from . import record
from .manifest import Row, read_manifest
from .ranks import Ranks
from .store import InversionStore


@dataclass(frozen=True)
class Summary:
    """What a run of `batch` did. rows: read; written, kept: made now, or by an earlier run; bad: see errors.jsonl.

    reused: backgrounds and objects that had been inverted before; saved_rows: the rows through the UNet that this
    spared.
    """

    rows: int
    written: int
    kept: int
    bad: int
    reused: int
    saved_rows: int


def run_batch(
    manifest: str | Path,
    out: str | Path,
    load_model: Callable,
    settings: Settings,
    *,
    method: str = "ours",
    cache: str | Path | None = None,
    quiet: bool = False,
) -> Summary | None:
    """Compose every row of the manifest that is not done yet. Under torchrun the rows are shared out as ranks get free.

    load_model: takes nothing, returns what sd21.load returns; called after the manifest was read, if any row is good.
    method: a name of methods.METHODS.
    cache: a folder for the inversions, shared by ranks and by runs; without it each rank keeps its last ones in memory.
        Rows are taken by background, so that those that share one come together.
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
            store.set(f"error {row.line}", _attempt(row, out, model, method, inversions, store))
    ranks.finish()
    if ranks.rank > 0:
        return None
    for row in rows:
        if message := store.get(f"error {row.line}").decode():
            errors[row.line] = message
    _write_tables(out, [row for row in rows if row.line not in errors], errors)
    counts = {name: store.add(name, 0) for name in ("written", "kept", "reused", "saved_rows")}
    return Summary(rows=total, bad=len(errors), **counts)


def _attempt(row: Row, out: Path, model: Model, method: str, inversions: InversionStore, store: dist.Store) -> str:
    """Compose one row unless it is done. Returns what went wrong, or an empty text."""
    try:
        asked = {
            "id": row.id,
            "file_name": f"images/{row.id}.png",
            "mask_file_name": f"masks/{row.id}.png",
            **row.request.describe(),
            "method": method,
            **record.provenance(model, row.settings),
        }
        path = out / "records" / f"{row.id}.json"
        if _is_done(out, path, asked):
            store.add("kept", 1)
            return ""
        sample = row.request.read()
        path.unlink(missing_ok=True)
        composition = compose(model, *sample, row.settings, method=method, inversions=inversions)
        write_image(out / asked["file_name"], composition.image)
        write_image(out / asked["mask_file_name"], composition.mask)
        write_json(path, {**asked, **record.results(composition), **record.environment(model)})
    except Exception as error:  # whatever is wrong with one row, the others go on
        return record.told(error)
    store.add("written", 1)
    for name, report in composition.inversion.items():  # of methods that invert
        if composition.reused[name]:
            store.add("reused", 1)
            store.add("saved_rows", report.rows)
    return ""


def _is_done(out: Path, path: Path, asked: dict) -> bool:
    """Whether an earlier run made this very row: same inputs, settings and model."""
    files_there = all((out / asked[name]).exists() for name in ("file_name", "mask_file_name"))
    return files_there and record.read_kept(path, asked) is not None


def _write_tables(out: Path, good: list[Row], errors: dict[int, str]) -> None:
    records = (json.loads((out / "records" / f"{row.id}.json").read_text(encoding="utf-8")) for row in good)
    write_text(out / "metadata.jsonl", json_lines(records))
    record.write_errors(out / "errors.jsonl", [{"line": line, "error": errors[line]} for line in sorted(errors)])
