"""The tables: means over samples with bootstrap intervals, as JSON and, from that, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..metrics import COLUMNS
from .networks import Networks
from .variants import OURS, Comparison

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
HEADS = {
    "lpips_bg": "LPIPS bg",
    "lpips_fg": "LPIPS fg",
    "clip_text": "CLIP text",
    "clip_image": "CLIP image",
    "psnr_bg": "PSNR bg (dB)",
    "psnr_fg": "PSNR fg (dB)",
    "ssim_bg": "SSIM bg",
    "ssim_fg": "SSIM fg",
    "seam_object": "seam of object",
    "seam_user": "seam of user mask",
}
ALL_INFINITE, NONE_DEFINED = "∞", "–"


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap's interval of the mean of values (n,), at LEVEL (Efron 1979). The same every time."""
    chosen = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def summarise(values: Sequence[float]) -> dict:
    """Mean and interval of the finite values, None where there are none, and how many were infinite or undefined.

    An infinite PSNR (nothing changed) has no mean with others, nor has an SSIM whose window fits nowhere (nan).
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    mean, interval = (None, (None, None)) if finite.size == 0 else (float(finite.mean()), bootstrap_interval(finite))
    counts = {"finite": finite.size, "infinite": int(np.isinf(values).sum()), "undefined": int(np.isnan(values).sum())}
    return {"mean": mean, "low": interval[0], "high": interval[1], **counts}


def tabulate(comparison: Comparison, counts: dict[str, int], entries: list[dict], networks: Networks) -> dict:
    """The table of a comparison: one row per dataset and line, and where ours is among them, ours less each other.

    counts: each dataset's samples; entries: as measure_all returns them. A sample that failed for one line is missing
    from that line alone.
    """
    columns = [name for name in COLUMNS if any(name in entry for entry in entries)]
    rows = []
    for dataset, samples in counts.items():
        for line in comparison.lines:
            variant = line.variant
            found = _entries_of(variant.name, dataset, entries)
            rows.append(
                {
                    "dataset": dataset,
                    "line": line.label,
                    "variant": variant.name,
                    "samples": len(found),
                    "failed": samples - len(found),
                    "nfe": summarise([entry["nfe_inversion"] + entry["nfe_composition"] for entry in found]),
                    "metrics": {name: summarise([entry[name] for entry in found]) for name in columns},
                }
            )
    reference = next((line for line in comparison.lines if line.variant.name == OURS), None)
    others = [line for line in comparison.lines if reference and line.variant != reference.variant]
    about = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    return {
        "title": comparison.title,
        "networks": networks.names,
        "missing": networks.missing,
        "interval": about,
        "rows": rows,
        "reference": reference and reference.label,
        "differences": [
            {"dataset": dataset, "line": line.label, **paired(line.variant.name, dataset, entries, columns)}
            for dataset in counts
            for line in others
        ],
    }


def paired(other: str, dataset: str, entries: list[dict], columns: Sequence[str]) -> dict:
    """Ours less another variant on the samples that both have; a value without a finite difference is left out."""
    ours, theirs = ({entry["id"]: entry for entry in _entries_of(name, dataset, entries)} for name in (OURS, other))
    both = [(ours[sample], theirs[sample]) for sample in ours if sample in theirs]
    with np.errstate(invalid="ignore"):  # two infinite PSNRs
        differences = {name: np.array([a[name] for a, _ in both]) - [b[name] for _, b in both] for name in columns}
    metrics = {name: summarise(values[np.isfinite(values)]) for name, values in differences.items()}
    return {"samples": len(both), "metrics": metrics}


def _entries_of(variant: str, dataset: str, entries: list[dict]) -> list[dict]:
    return [entry for entry in entries if (entry["dataset"], entry["variant"]) == (dataset, variant)]


def markdown(table: dict) -> str:
    """The table as GitHub shows it, one block per dataset, with notes on whatever is not in a mean."""
    text = [f"# {table['title']}", ""]
    for dataset in dict.fromkeys(row["dataset"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["dataset"] == dataset]
        columns = list(rows[0]["metrics"])
        heads = ["", *(heading(name, table["networks"]) for name in columns)]
        text += [f"## {dataset}", "", *_head([*heads, "evaluations", "samples"])]
        for row in rows:
            cells = [_cell(row["metrics"][name]) for name in columns]
            evaluations = row["nfe"]["mean"]
            spent = NONE_DEFINED if evaluations is None else f"{evaluations:.4g}"
            text.append(_line([row["line"], *cells, spent, str(row["samples"])]))
        if differences := [row for row in table["differences"] if row["dataset"] == dataset]:
            text += ["", f"{table['reference']} less the others, on the samples of both:", ""]
            text += _head([*heads, "samples"])
        for row in differences:
            cells = [_cell(row["metrics"][name]) for name in columns]
            text.append(_line([row["line"], *cells, str(row["samples"])]))
        text.append("")
    return "\n".join([*text, *(f"- {note}" for note in _notes(table))]) + "\n"


def heading(name: str, networks: dict[str, str]) -> str:
    """A column's heading: what was measured, by which network, and which way is better."""
    head = HEADS[name].replace("LPIPS", networks.get("lpips", "LPIPS"))
    return f"{head} {'↑' if COLUMNS[name] else '↓'}"


def _cell(summary: dict) -> str:
    if summary["mean"] is None:
        return ALL_INFINITE if summary["infinite"] else NONE_DEFINED
    return f"{summary['mean']:.4g} [{summary['low']:.4g}, {summary['high']:.4g}]"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _notes(table: dict) -> list[str]:
    interval = table["interval"]
    notes = [
        f"Means over samples, with the {interval['level']:.0%} interval of {interval['resamples']} bootstrap resamples "
        f"(seed {interval['seed']}). Evaluations: rows of the network per sample, inversions at their full price."
    ]
    notes += [f"{kind.upper()}: {name}." for kind, name in table["networks"].items()]
    notes += [f"The columns of {kind.upper()} are left out: {reason}" for kind, reason in table["missing"].items()]
    for row in table["rows"]:
        where = f"{row['line']}, {row['dataset']}"
        if row["failed"]:
            notes.append(f"{where}: {row['failed']} of {row['samples'] + row['failed']} samples failed (errors.jsonl).")
        for name, summary in row["metrics"].items():
            for kind in ("infinite", "undefined"):
                if count := summary[kind]:
                    notes.append(f"{where}: {HEADS[name]} is {kind} for {count} of {row['samples']}, not averaged.")
    return notes
