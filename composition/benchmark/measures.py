"""This module measures the composites on disk, keeps their metrics beside them, and writes all metrics together as one
CSV. It stands between the composites and the tables, and is the only module that knows how measures are kept.

It keeps each value by itself, with the network it came from. So a run with a further metric, or with another network,
measures what is lacking and leaves the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

from sd21.files import read_json_lines, sha256, write_json, write_text

from ..datasets.folders import TABLE
from ..metrics import METRICS, Comparison, Networks, Reference, measurable, measure
from ..placement import knows_millimetres
from ..runs.manifest import Row
from ..runs.ranks import Ranks
from ..runs.record import read_kept, told
from ..scans.images import read_scan
from ..tables import csv_text
from .variants import Variant

IDENTITY = ("id", "dataset", "variant", "rows_inversion", "rows_composition")
PLACED = ("fit", "size", "match")  # the settings that decide which object a method is given


def composed(folder: Path) -> dict[str, dict]:
    """The records of a variant's composites, by sample."""
    return {record["id"]: record for record in read_json_lines(folder / TABLE)}


def measure_all(
    rows: Sequence[Row], variants: Sequence[Variant], runs: Path, networks: Networks, ranks: Ranks, *, quiet: bool
) -> tuple[list[dict], list[dict]] | None:
    """Measure what these networks have not yet measured of the composites. The ranks share the samples among them.

    Rank 0 returns an entry for each composite, with IDENTITY and the metrics that could be measured
    (inf and nan included), and the errors, {"variant", "id", "error"}. The other ranks return None.
    """
    records = {variant.name: composed(runs / variant.name) for variant in variants}
    for row in ranks.share(rows, title="measuring", quiet=quiet):
        _measure_sample(row, records, runs, networks)
    ranks.finish()
    if ranks.rank > 0:
        return None
    entries, errors = [], []
    for row in rows:
        # By now every value is kept except those that failed. They fail again here, and are reported.
        values, failed = _measure_sample(row, records, runs, networks)
        errors += failed
        for variant in values:
            spent = records[variant][row.id]["rows"]
            identity = (row.id, parts_of(row.id)[0], variant, spent["inversion"], spent["composition"])
            entries.append(dict(zip(IDENTITY, identity, strict=True)) | values[variant])
    return entries, errors


def parts_of(sample: str) -> tuple[str, int]:
    """The dataset and the number in a sample's id, as datasets/drawing.py gives them: DATASET-NUMBER."""
    dataset, number = sample.rsplit("-", 1)
    return dataset, int(number)


def write_csv(path: Path, entries: list[dict]) -> None:
    """One row per entry; columns that were not measured are left out."""
    columns = [name for name in METRICS if any(name in entry for entry in entries)]
    write_text(path, csv_text([*IDENTITY, *columns], entries))


def _measure_sample(
    row: Row, records: dict[str, dict[str, dict]], runs: Path, networks: Networks
) -> tuple[dict[str, dict[str, float]], list[dict]]:
    """The metrics of one sample's composites, by variant, and the errors. It measures what is lacking, and keeps it.

    A composite is compared with the object that it was given, placed and matched as its own settings say.
    """
    values, errors = {}, []
    read = functools.cache(row.request.read)
    reference = functools.cache(
        lambda *placed: Reference.of(read(), networks, **dict(zip(PLACED, placed, strict=True)))
    )
    asked_for = {name: networks.names.get(METRICS[name].network) for name in measurable(networks)}
    for variant in (name for name, of in records.items() if row.id in of):
        try:
            record = records[variant][row.id]
            file = runs / variant / record["file_name"]
            path = runs / variant / "measures" / f"{row.id}.json"
            # The inputs count as well: a method may make the same composite from other inputs.
            placed = {name: record["settings"][name] for name in PLACED}
            asked = {"composite": sha256(file), "inputs": record["inputs"], "prompt": record["prompt"], **placed}
            kept = _kept(path, asked)
            lacking = [name for name, network in asked_for.items() if name not in kept or kept[name][1] != network]
            failed = {}
            if lacking:
                given = placed if knows_millimetres(read()) else {**placed, "size": "region"}  # size says nothing then
                comparison = reference(*given.values()).compare(read_scan(file))
                measured, failed = _measured(comparison, lacking)
                kept |= {name: (value, asked_for[name]) for name, value in measured.items()}
                _keep(path, asked, kept)
            values[variant] = {name: kept[name][0] for name in asked_for if name not in failed}
            errors += [{"variant": variant, "id": row.id, "error": f"{name}: {why}"} for name, why in failed.items()]
        except Exception as error:  # as in batch: the others go on, whatever is wrong with one
            errors.append({"variant": variant, "id": row.id, "error": told(error)})
    return values, errors


def _measured(comparison: Comparison, names: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics of these names, and what went wrong with those that failed, which costs the others nothing."""
    values, failed = {}, {}
    for name in names:
        try:
            values |= measure(comparison, [name])
        except Exception as error:
            failed[name] = told(error)
    return values, failed


def _kept(path: Path, asked: dict) -> dict[str, tuple[float, str | None]]:
    """The values of an earlier run and the network of each, if they are of this very composite and its inputs.

    Anything else counts as absent.
    """
    values = (read_kept(path, asked) or {}).get("values")
    kept = {}
    for name, entry in values.items() if isinstance(values, dict) else ():
        try:
            kept[name] = float(entry["value"]), entry["network"]
        except (KeyError, TypeError, ValueError):
            continue
    return kept


def _keep(path: Path, asked: dict, kept: dict[str, tuple[float, str | None]]) -> None:
    """Write values in the order of METRICS, so that the file does not tell when each was measured."""
    names = [*(name for name in METRICS if name in kept), *(name for name in kept if name not in METRICS)]
    values = {name: {"value": _for_json(kept[name][0]), "network": kept[name][1]} for name in names}
    path.parent.mkdir(exist_ok=True)
    write_json(path, {**asked, "values": values})


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
