"""The metrics of composites on disk, kept beside them, and all of them together as one CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from ..canvas import Sample, placed_object
from ..files import sha256, write_json, write_text
from ..images import Scan, read_scan, values_of
from ..manifest import Row
from ..metrics import COLUMNS, measure
from ..placement import place
from .networks import Networks
from .variants import Variant

IDENTITY = ("id", "dataset", "variant", "nfe_inversion", "nfe_composition")


def composed(folder: Path) -> dict[str, dict]:
    """The records of a variant's composites, by sample."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


def measure_all(
    rows: Sequence[Row], variants: Sequence[Variant], runs: Path, networks: Networks, *, quiet: bool
) -> tuple[list[dict], list[dict]]:
    """Measure every composite that has not been measured with these networks.

    Returns an entry for each composite, of IDENTITY and the COLUMNS that could be measured (inf and nan included), and
    the errors: {"variant", "id", "error"}.
    """
    records = {variant.name: composed(runs / variant.name) for variant in variants}
    entries, errors = [], []
    for row in tqdm(rows, desc="measuring", disable=quiet):
        sample = None  # read once for all variants, and only where one is to be measured
        for variant in variants:
            record = records[variant.name].get(row.id)
            if record is None:
                continue
            try:
                folder = runs / variant.name
                asked = {"composite": sha256(folder / record["file_name"]), "networks": networks.names}
                path = folder / "measures" / f"{row.id}.json"
                values = _kept(path, asked)
                if values is None:
                    sample = sample or row.request.read()
                    values = measure_composite(sample, read_scan(folder / record["file_name"]), networks)
                    path.parent.mkdir(exist_ok=True)
                    written = {name: v if math.isfinite(v) else str(v) for name, v in values.items()}  # for JSON
                    write_json(path, {**asked, "values": written})
            except Exception as error:  # as in batch: whatever is wrong with one, the others go on
                errors.append({"variant": variant.name, "id": row.id, "error": f"{type(error).__name__}: {error}"})
                continue
            nfe = record["nfe"]
            identity = (row.id, dataset_of(row.id), variant.name, nfe["inversion"], nfe["composition"])
            entries.append(dict(zip(IDENTITY, identity, strict=True)) | values)
    return entries, errors


def dataset_of(sample: str) -> str:
    """The dataset in a sample's id, as datasets/benchmark.py gives them: DATASET-NUMBER."""
    return sample.rsplit("-", 1)[0]


def measure_composite(sample: Sample, composite: Scan, networks: Networks) -> dict[str, float]:
    """The metrics of one composite, given as the pixels that were stored."""
    background = sample.background
    placement = place(background, sample.obj, sample.object_mask, sample.user_mask)
    # In the background's bit depth and window, as all methods write, so that a pixel that was kept is equal.
    images = (composite.pixels, background.pixels, placed_object(sample, placement))
    masks = (placement.object_mask, sample.user_mask)
    return measure(
        *(torch.from_numpy(values_of(pixels, background.window)).permute(2, 0, 1)[None] for pixels in images),
        *(torch.from_numpy(mask)[None, None] for mask in masks),
        sample.prompt,
        lpips=networks.lpips,
        clip=networks.clip,
    )


def _kept(path: Path, asked: dict) -> dict[str, float] | None:
    """The measures of an earlier run, if they are of this very composite by these networks."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if any(found[name] != value for name, value in asked.items()):
        return None
    return {name: float(value) for name, value in found["values"].items()}


def write_csv(path: Path, entries: list[dict]) -> None:
    """One row per entry; columns that were not measured are left out."""
    columns = [name for name in COLUMNS if any(name in entry for entry in entries)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*IDENTITY, *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    write_text(path, text.getvalue())
