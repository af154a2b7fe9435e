"""This module sums up what a run of `batch` did and what came of it, for the caller and for the line that it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Summary:
    """What a run of `batch` did. rows: read; written, kept: made now, or by an earlier run; bad: see errors.jsonl.

    refused: those of the bad whose label fell short of a limit; refused_by: how many fell short of which, by the names
        of Limits' fields, where any did. A row may fall short of several.
    reused: backgrounds and objects that had been inverted before; saved_rows: the rows through the UNet that this
        spared.
    The rest is of all rows in metadata.jsonl. contrast_median, contrast_least: LabelTruth.contrast, None where no row
        has one. missed: inversions that missed their tolerance; worst_error: the worst error of any, None where none
        was measured. A scan's inversion counts for every row that it is in.
    """

    rows: int
    written: int
    kept: int
    bad: int
    refused: int
    refused_by: dict[str, int]
    reused: int
    saved_rows: int
    contrast_median: float | None
    contrast_least: float | None
    missed: int
    worst_error: float | None

    def __str__(self) -> str:
        by = ", ".join(f"{count} by {name}" for name, count in self.refused_by.items())
        refused = f" ({self.refused} of them refused: {by})" if self.refused else ""
        text = f"{self.rows} rows: {self.written} written, {self.kept} there already, {self.bad} bad{refused}. "
        if self.contrast_median is not None:
            text += f"Contrast of the tumours: median {self.contrast_median:.2f}, least {self.contrast_least:.2f}. "
        if self.worst_error is not None:
            text += f"Inversions that missed their tolerance: {self.missed}; the worst error: {self.worst_error:.1%}. "
        return text + (
            f"Inversions that had been made before were reused {self.reused} times: {self.saved_rows} rows through the "
            "network saved"
        )


def figures_of(metadata: Path) -> dict:
    """The fields of Summary that tell what is in metadata.jsonl; line by line, as it may be long."""
    contrasts, errors, missed = [], [], 0
    with metadata.open(encoding="utf-8") as file:
        for entry in map(json.loads, file):
            contrasts.append(entry["label"]["contrast"])
            errors += [report["error"] for report in entry["inversion"].values()]
            missed += sum(report["converged"] is False for report in entry["inversion"].values())
    contrasts, errors = ([value for value in values if value is not None] for values in (contrasts, errors))
    return {
        "contrast_median": median(contrasts) if contrasts else None,
        "contrast_least": min(contrasts, default=None),
        "missed": missed,
        "worst_error": max(errors, default=None),
    }
