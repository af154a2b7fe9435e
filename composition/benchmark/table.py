"""This module makes the tables: means over samples with bootstrap intervals, medians and worst cases, as JSON and, from
that, as Markdown. It computes from entries alone and touches no file.

A table has lines, one per dataset and variant. (Its `rows` are rows through the UNet, the unit of cost.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..metrics import METRICS, Networks
from ..metrics.intervals import LEVEL, RESAMPLES, SEED, bootstrap_interval
from ..tables import markdown_head, markdown_line
from .variants import OURS, Lineup

QUANTILES = {"least": 0, "q05": 0.05, "median": 0.5, "q95": 0.95, "greatest": 1}
ALL_INFINITE, NONE_DEFINED = "∞", "–"


def summarise(values: Sequence[float]) -> dict:
    """Mean, interval and QUANTILES of the finite values, None if there are none, and how many were finite, infinite or
    undefined.

    An infinite PSNR (nothing changed) cannot be averaged with others, nor can an SSIM whose window fits nowhere (nan).
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    mean, interval, quantiles = None, (None, None), dict.fromkeys(QUANTILES)
    if finite.size > 0:
        mean, interval = float(finite.mean()), bootstrap_interval(finite)
        quantiles = dict(zip(QUANTILES, np.quantile(finite, list(QUANTILES.values())).tolist(), strict=True))
    counts = {"finite": finite.size, "infinite": int(np.isinf(values).sum()), "undefined": int(np.isnan(values).sum())}
    return {"mean": mean, "low": interval[0], "high": interval[1], **quantiles, **counts}


def tabulate(lineup: Lineup, counts: dict[str, int], entries: list[dict], networks: Networks) -> dict:
    """The table of a lineup: one line per dataset and variant and, if ours is among them, ours minus each other.

    counts: each dataset's samples; entries: as measure_all returns them. A sample that failed for one line is missing
    from that line alone.
    """
    columns = [name for name in METRICS if any(name in entry for entry in entries)]
    lines = []
    for dataset, samples in counts.items():
        for line in lineup.lines:
            variant = line.variant
            found = _entries_of(variant.name, dataset, entries)
            lines.append(
                {
                    "dataset": dataset,
                    "line": line.label,
                    "variant": variant.name,
                    "samples": len(found),
                    "failed": samples - len(found),
                    "rows": summarise([entry["rows_inversion"] + entry["rows_composition"] for entry in found]),
                    "metrics": {name: summarise([entry[name] for entry in found if name in entry]) for name in columns},
                }
            )
    reference = next((line for line in lineup.lines if line.variant.name == OURS), None)
    others = [line for line in lineup.lines if reference and line.variant != reference.variant]
    about = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    return {
        "title": lineup.title,
        "notes": list(lineup.notes),
        "networks": networks.names,
        "missing": networks.missing,
        "interval": about,
        "lines": lines,
        "reference": reference and reference.label,
        "differences": [
            {"dataset": dataset, "line": line.label, **paired(line.variant.name, dataset, entries, columns)}
            for dataset in counts
            for line in others
        ],
    }


def paired(other: str, dataset: str, entries: list[dict], columns: Sequence[str]) -> dict:
    """Ours minus another variant on the samples that both have. Values without a finite difference are left out."""
    ours, theirs = ({entry["id"]: entry for entry in _entries_of(name, dataset, entries)} for name in (OURS, other))
    both = [(ours[sample], theirs[sample]) for sample in ours if sample in theirs]
    with np.errstate(invalid="ignore"):  # inf - inf, of two infinite PSNRs
        pairs = {name: [(a[name], b[name]) for a, b in both if name in a and name in b] for name in columns}
        differences = {name: np.array([a - b for a, b in found]) for name, found in pairs.items()}
    metrics = {name: summarise(values[np.isfinite(values)]) for name, values in differences.items()}
    return {"samples": len(both), "metrics": metrics}


def _entries_of(variant: str, dataset: str, entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if (entry["dataset"], entry["variant"]) == (dataset, variant)]


def markdown(table: dict) -> str:
    """The table in GitHub's Markdown, one block per dataset, with notes on whatever is not in a mean."""
    text = [f"# {table['title']}", ""]
    for dataset in dict.fromkeys(line["dataset"] for line in table["lines"]):
        lines = [line for line in table["lines"] if line["dataset"] == dataset]
        columns = list(lines[0]["metrics"])
        heads = ["", *(heading(name, table["networks"]) for name in columns)]
        text += [f"## {dataset}", "", *markdown_head([*heads, "rows", "samples"])]
        for line in lines:
            cells = [_cell(line["metrics"][name]) for name in columns]
            rows = line["rows"]["mean"]
            spent = NONE_DEFINED if rows is None else f"{rows:.4g}"
            text.append(markdown_line([line["line"], *cells, spent, str(line["samples"])]))
        if differences := [line for line in table["differences"] if line["dataset"] == dataset]:
            text += ["", f"{table['reference']} less the others, on the samples of both:", ""]
            text += markdown_head([*heads, "samples"])
        for line in differences:
            cells = [_cell(line["metrics"][name]) for name in columns]
            text.append(markdown_line([line["line"], *cells, str(line["samples"])]))
        text += [
            "",
            "Medians [5 %, 95 %]; of rows the median / 95 % / the greatest:",
            "",
            *markdown_head([*heads, "rows"]),
        ]
        for line in lines:
            cells = [_median(line["metrics"][name]) for name in columns]
            text.append(markdown_line([line["line"], *cells, _worst(line["rows"])]))
        text.append("")
    return "\n".join([*text, *(f"- {note}" for note in _notes(table))]) + "\n"


def heading(name: str, networks: dict[str, str]) -> str:
    """A column's heading: what was measured, by which network, and which way is better."""
    metric = METRICS[name]
    arrows = {True: " ↑", False: " ↓", None: ""}
    return metric.title(networks) + arrows[metric.more_is_better]


def _cell(summary: dict, middle: str = "mean", low: str = "low", high: str = "high") -> str:
    if summary[middle] is None:
        return ALL_INFINITE if summary["infinite"] else NONE_DEFINED
    return f"{summary[middle]:.4g} [{summary[low]:.4g}, {summary[high]:.4g}]"


def _median(summary: dict) -> str:
    return _cell(summary, "median", "q05", "q95")


def _worst(summary: dict) -> str:
    found = [summary[name] for name in ("median", "q95", "greatest")]
    return NONE_DEFINED if found[0] is None else " / ".join(f"{value:.4g}" for value in found)


def _notes(table: dict) -> list[str]:
    interval = table["interval"]
    notes = [
        f"Means over samples, with the {interval['level']:.0%} interval of {interval['resamples']} bootstrap resamples "
        f"(seed {interval['seed']}). Rows: rows through the network per sample, inversions at their full price.",
        *table["notes"],
    ]
    notes += [f"{kind.upper()}: {name}." for kind, name in table["networks"].items()]
    notes += [f"The columns of {kind.upper()} are left out: {reason}" for kind, reason in table["missing"].items()]
    for line in table["lines"]:
        where, samples = f"{line['line']}, {line['dataset']}", line["samples"]
        if failed := line["failed"]:
            notes.append(f"{where}: {failed} of {samples + failed} samples failed (errors.jsonl).")
        for name, summary in line["metrics"].items():
            title = METRICS[name].title(table["networks"])
            for kind in ("infinite", "undefined"):
                if count := summary[kind]:
                    notes.append(f"{where}: {title} is {kind} for {count} of {samples}, not averaged.")
    return notes
