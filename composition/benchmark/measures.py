"""The metrics of composites on disk, kept beside them, and all of them together as one CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..canvas import Sample, placed_object
from ..files import read_kept, sha256, write_json, write_text
from ..images import Scan, read_scan, values_of
from ..manifest import Row
from ..metrics import COLUMNS, measure
from ..placement import place
from ..ranks import Ranks
from .networks import Networks
from .variants import Variant

IDENTITY = ("id", "dataset", "variant", "nfe_inversion", "nfe_composition")


def composed(folder: Path) -> dict[str, dict]:
    """The records of a variant's composites, by sample."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def measure_all(
    rows: Sequence[Row], variants: Sequence[Variant], runs: Path, networks: Networks, ranks: Ranks, *, quiet: bool
) -> tuple[list[dict], list[dict]] | None:
    """Measure every composite that has not been measured with these networks. The ranks share the samples out.

    Returns, on rank 0, an entry for each composite, of IDENTITY and the COLUMNS that could be measured (inf and nan
    included), and the errors: {"variant", "id", "error"}; None on others.
    """
    records = {variant.name: composed(runs / variant.name) for variant in variants}
    for row in ranks.share(rows, title="measuring", quiet=quiet):
        _measure_sample(row, records, runs, networks)
    ranks.finish()
    if ranks.rank > 0:
        return None
    entries, errors = [], []
    for row in rows:
        # All is kept by now but for what failed, which fails again and is told.
        values, failed = _measure_sample(row, records, runs, networks)
        errors += failed
        for variant in values:
            nfe = records[variant][row.id]["nfe"]
            identity = (row.id, dataset_of(row.id), variant, nfe["inversion"], nfe["composition"])
            entries.append(dict(zip(IDENTITY, identity, strict=True)) | values[variant])
    return entries, errors


def _measure_sample(
    row: Row, records: dict[str, dict[str, dict]], runs: Path, networks: Networks
) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """The metrics of one sample's composites, by variant, and the errors. Those not at hand are measured together."""
    values, missing, errors = {}, {}, []
    for variant in (name for name, of in records.items() if row.id in of):
        try:
            record = records[variant][row.id]
            file = runs / variant / record["file_name"]
            # What is compared with counts as well: a method may make the same composite of other inputs.
            inputs = {name: record[name] for name in ("inputs", "prompt")}
            asked = {"composite": sha256(file), **inputs, "networks": networks.names}
            kept = _kept(_path(runs, variant, row), asked)
            if kept is None:
                missing[variant] = asked, read_scan(file)
            else:
                values[variant] = kept
        except Exception as error:  # as in batch: whatever is wrong with one, the others go on
            errors.append(_failure(variant, row, error))
    if missing:
        try:
            measured = measure_composites(
                row.request.read(), [composite for _, composite in missing.values()], networks
            )
            for (variant, (asked, _)), figures in zip(missing.items(), measured, strict=True):
                path = _path(runs, variant, row)
                path.parent.mkdir(exist_ok=True)
                written = {name: v if math.isfinite(v) else str(v) for name, v in figures.items()}  # for JSON
                write_json(path, {**asked, "values": written})
                values[variant] = figures
        except Exception as error:
            errors += [_failure(variant, row, error) for variant in missing]
    return values, errors


def _path(runs: Path, variant: str, row: Row) -> Path:
    return runs / variant / "measures" / f"{row.id}.json"


def _failure(variant: str, row: Row, error: Exception) -> dict[str, str]:
    return {"variant": variant, "id": row.id, "error": f"{type(error).__name__}: {error}"}


def dataset_of(sample: str) -> str:
    """The dataset in a sample's id, as datasets/benchmark.py gives them: DATASET-NUMBER."""
    return sample.rsplit("-", 1)[0]


def measure_composites(sample: Sample, composites: Sequence[Scan], networks: Networks) -> list[dict[str, float]]:
    """The metrics of composites of one sample, given as the pixels that were stored."""
    background = sample.background
    placement = place(background, sample.obj, sample.object_mask, sample.user_mask)

    def image(pixels: np.ndarray) -> torch.Tensor:
        # In the background's bit depth and window, as all methods write, so that a pixel that was kept is equal.
        return torch.from_numpy(values_of(pixels, background.window)).permute(2, 0, 1)

    return measure(
        torch.stack([image(composite.pixels) for composite in composites]),
        image(background.pixels)[None],
        image(placed_object(sample, placement))[None],
        *(torch.from_numpy(mask)[None, None] for mask in (placement.object_mask, sample.user_mask)),
        sample.prompt,
        lpips=networks.lpips,
        clip=networks.clip,
    )


def _kept(path: Path, asked: dict) -> dict[str, float] | None:
    """The measures of an earlier run, if they are of this very composite and its inputs, by these networks."""
    found = read_kept(path, asked)
    return found and {name: float(value) for name, value in found["values"].items()}


def write_csv(path: Path, entries: list[dict]) -> None:
    """One row per entry; columns that were not measured are left out."""
    columns = [name for name in COLUMNS if any(name in entry for entry in entries)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*IDENTITY, *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    write_text(path, text.getvalue())
