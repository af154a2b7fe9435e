"""This module sums up what a run of `batch` did and what came of it, for the caller and for the line that it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ..metrics.label_truth import MEANINGS

# Of a scan that the network sees at less than this share of its resolution, it does not see the fine texture.
LEAST_ZOOM = 1 / 2


@dataclass(frozen=True)
class Summary:
    """What a run of `batch` did. rows: read; written, kept: made now, or by an earlier run; bad: see errors.jsonl.

    refused: those of the bad whose label fell short of a limit; refused_by: how many fell short of which, by the names
        of Limits' fields, where any did. A row may fall short of several.
    reused: backgrounds and objects that had been inverted before; saved_rows: the rows through the UNet that this
        spared.
    composed: compositions made now, of the written and the refused; seconds: the time that all rows together took
        now, from when the model was loaded.
    columns: the rows' own, by name. notes: what else a user should know of the data set, a line each.
    The rest is of all rows in metadata.jsonl. labels: for every measure of LabelTruth its median, least and greatest
        value, and how many rows have none; no entry where no row has one.
    enlarged: rows whose window was enlarged; shrunk: rows that the network saw at less than half of their resolution.
    missed: inversions that came out above their tolerance; worst_error: the worst error of any, None where none was
        measured. A scan's inversion counts for every row that it is in.
    """

    rows: int
    written: int
    kept: int
    bad: int
    refused: int
    refused_by: dict[str, int]
    reused: int
    saved_rows: int
    composed: int
    seconds: float
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    labels: dict[str, dict[str, float]]
    enlarged: int
    shrunk: int
    missed: int
    worst_error: float | None

    def __str__(self) -> str:
        by = ", ".join(f"{count} by {name}" for name, count in self.refused_by.items())
        refused = f" ({self.refused} of them refused: {by})" if self.refused else ""
        text = f"{self.rows} rows: {self.written} written, {self.kept} there already, {self.bad} bad{refused}. "
        for name, of in self.labels.items():
            unknown = f", unknown for {of['unknown']}" if of["unknown"] else ""
            told = f"{name} ({MEANINGS[name]})" if name in MEANINGS else name
            text += f"\n  {told}: median {of['median']:.2f}, {of['least']:.2f} to {of['greatest']:.2f}{unknown}"
        text += "\n" if self.labels else ""
        if self.columns:
            text += f"Columns of the rows' own: {', '.join(self.columns)}. "
        if self.enlarged:
            text += f"Windows that were enlarged: {self.enlarged}. "
        if self.shrunk:
            text += f"Scans shrunk more than twice for the network (see --focus): {self.shrunk}. "
        if self.worst_error is not None:
            text += f"Inversions above their tolerance: {self.missed}; the worst error: {self.worst_error:.1%}. "
        text += (
            f"Inversions that had been made before were reused {self.reused} times: {self.saved_rows} rows through the "
            "network saved"
        )
        if self.composed:
            rate = f", {3600 * self.composed / self.seconds:.0f} an hour, start-up not counted" if self.seconds else ""
            text += f"\nNow: {self.composed} composites in {self.seconds:.0f} s{rate}"
        return "\n".join([text, *self.notes])


def can_be_summed_up(entry: dict) -> bool:
    """Whether a record has what `figures_of` reads of it."""
    try:
        Sums().add(entry)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


def figures_of(metadata: Path) -> dict:
    """The fields of Summary that tell what is in metadata.jsonl; line by line, as it may be long."""
    sums = Sums()
    with metadata.open(encoding="utf-8") as file:
        for entry in map(json.loads, file):
            sums.add(entry)
    return {
        "labels": {name: of for name, values in sums.labels.items() if (of := _spread(values))},
        "enlarged": sums.enlarged,
        "shrunk": sums.shrunk,
        "missed": sums.missed,
        "worst_error": max((error for error in sums.errors if error is not None), default=None),
    }


@dataclass
class Sums:
    """What is gathered from records, one after the other."""

    labels: dict[str, list[float | None]] = field(default_factory=dict)
    errors: list[float | None] = field(default_factory=list)
    missed: int = 0
    enlarged: int = 0
    shrunk: int = 0

    def add(self, entry: dict) -> None:
        """Raises KeyError, TypeError, ValueError or AttributeError for a record that lacks something."""
        for name, value in entry["label"].items():
            self.labels.setdefault(name, []).append(value if value is None else float(value + 0))
        window = entry["window"]
        sides = [stop - start for start, stop in (window["rows"], window["columns"])]
        self.enlarged += window["zoom"] > 1 and sides != entry["size"]
        self.shrunk += window["zoom"] < LEAST_ZOOM
        self.errors += [report["error"] and float(report["error"]) for report in entry["inversion"].values()]
        self.missed += sum(report["converged"] is False for report in entry["inversion"].values())


def _spread(values: list[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    if not known:
        return {}
    return {
        "median": median(known),
        "least": min(known),
        "greatest": max(known),
        "unknown": len(values) - len(known),
    }
