"""This module makes the table: means, their spread over the seeds, and paired intervals of differences.

A difference of two arms is taken scan by scan, each scan's mean over the seeds, so that what is hard about a scan
cancels. Its interval is the percentile bootstrap over the test scans, drawn by whole groups of near-duplicates. A
second interval holds the spread over the seeds as well, each of which draws other real scans: the half width of the t
interval over the means of the seeds, and that of the scans, added up as squares. Two or three seeds say little of
others, so that it is wide. One seed has no such interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..datasets import LeftOut
from ..metrics.intervals import LEVEL, RESAMPLES, drawn_groups, ends, of_components
from ..tables import csv_text, markdown_head, markdown_line
from .arms import REAL

PASTED = "+ copy-paste"  # of composites whose name begins so, differences are told too
COLUMNS = (
    "arm",
    "size",
    "seed",
    "test",
    "file",
    "sha256",
    "group",
    "dice",
    "lesions",
    "found",
    "false_area",
    "false_any",
)


def csv_of(found: Sequence[dict]) -> str:
    """A line for every arm, size, seed and test scan."""
    rows = ({name: one[name] for name in ("arm", "size", "seed")} | row for one in found for row in one["scores"])
    return csv_text(COLUMNS, rows)


def intervals(differences: np.ndarray, groups: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """The two intervals of the mean difference at LEVEL: over the scans, and over scans and seeds.

    differences: (seeds, scans). groups: of the scans, which are drawn as wholes. The second interval is None for one
    seed, which says nothing of others.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(number, differences.mean(axis=0), len(names))
    weights = drawn_groups(len(names))
    resampled = (weights @ sums) / (weights @ np.bincount(number))
    count = len(differences)
    if count == 1:
        return ends(resampled), None
    of_seeds = float(differences.mean(axis=1).var(ddof=1)) / count
    parts = [(of_seeds, count - 1)] + [(float(resampled.var()), len(names) - 1)] * (len(names) > 1)
    return ends(resampled), of_components(float(differences.mean()), parts)


def tabulate(found: Sequence[dict], told: Sequence[dict], parts: Sequence[str]) -> dict:
    """The table: a block for each size and part of the test scans, with a line for each arm.

    found: what the trainings wrote. told: what `arms_of` tells of each draw. parts: of each test scan.
    """
    blocks = []
    for size in dict.fromkeys(one["size"] for one in found):
        for part in dict.fromkeys(parts):
            some = [one for one in found if one["size"] == size]
            arms = {
                name: sorted((one for one in some if one["arm"] == name), key=lambda one: one["seed"])
                for name in dict.fromkeys(one["arm"] for one in some)
            }
            blocks.append(_block(size, part, arms))
    cost = {name: sorted({one[name] for one in found}) for name in ("seconds", "threads")}
    return {"level": LEVEL, "resamples": RESAMPLES, "blocks": blocks, "draws": list(told), **cost}


def _block(size: int, part: str, arms: dict[str, list[dict]]) -> dict:
    rows = [row for row in next(iter(arms.values()))[0]["scores"] if row["test"] == part]
    tumours, free = [row for row in rows if "dice" in row], [row for row in rows if "dice" not in row]
    groups = [row["group"] for row in tumours]
    dice = {name: _matrix(trainings, part, "dice") for name, trainings in arms.items()}
    lines = []
    for name, trainings in arms.items():
        found, lesions = (_matrix(trainings, part, column) for column in ("found", "lesions"))
        line = {
            "arm": name,
            "seeds": [one["seed"] for one in trainings],
            "dice": float(dice[name].mean()),
            "dice_by_seed": dice[name].mean(axis=1).tolist(),
            "sensitivity": float(found.sum() / lesions.sum()),
            "false_area": float(_matrix(trainings, part, "false_area").mean()) if free else None,
            "false_any": float(_matrix(trainings, part, "false_any").mean()) if free else None,
            "less": {},
        }
        for reference in dice:
            if reference != name and (reference == REAL or reference.startswith(PASTED)):
                line["less"][reference] = _difference(dice[name], dice[reference], groups)
        lines.append(line)
    counts = {"scans": len(tumours), "groups": len(set(groups)), "tumour_free": len(free)}
    return {"size": size, "test": part, **counts, "lines": lines}


def _difference(one: np.ndarray, other: np.ndarray, groups: list[int]) -> dict:
    differences = one - other
    over_scans, over_both = intervals(differences, groups)
    return {
        "mean": float(differences.mean()),
        "interval": over_scans,
        "interval_with_seeds": over_both,
        "by_seed": differences.mean(axis=1).tolist(),
    }


def _matrix(trainings: list[dict], part: str, column: str) -> np.ndarray:
    """The scores (seeds, scans) of one part's scans that have this column."""
    rows = [[row[column] for row in one["scores"] if row["test"] == part and column in row] for one in trainings]
    return np.asarray(rows, dtype=np.float64)


def markdown(made: dict, training: dict, left_out: LeftOut, commands: list[dict]) -> str:
    """The table in GitHub's Markdown, with what a reader has to know of it."""
    text = ["# What labels are worth to a segmenter", ""]
    for block in made["blocks"]:
        draws = [draw for draw in made["draws"] if draw["size"] == block["size"]]
        text += [
            f"## N = {block['size']}, {block['test']}",
            "",
            f"{block['scans']} test scans with a tumour in {block['groups']} groups of near-duplicates, "
            f"{block['tumour_free']} without. Composites: {_range(draws, 'composites_used')}, "
            f"of {_range(draws, 'composed')} of the {block['size']} scans, as `pair` left the others out; "
            f"more real scans: {_range(draws, 'more_real')}.",
            "",
        ]
        references = [
            one["arm"] for one in block["lines"] if any(one["arm"] in line["less"] for line in block["lines"])
        ]
        heads = ["arm", "Dice", "by seed", *(f"minus {name.removeprefix('+ ')}" for name in references)]
        heads += ["lesions found", "false area", "scans with any false positive"]
        text += markdown_head(heads)
        for line in block["lines"]:
            differences = [_told(line["less"].get(name)) for name in references]
            seeds = ", ".join(f"{value:.3f}" for value in line["dice_by_seed"])
            share = [_percent(line[name]) for name in ("sensitivity", "false_area", "false_any")]
            text.append(markdown_line([line["arm"], f"{line['dice']:.3f}", seeds, *differences, *share]))
        text.append("")
    text += [f"- {note}" for note in _notes(made, training)]
    text += [f"- Left out: {line}" for line in str(left_out).splitlines()]
    text += ["", "The commands, and the seconds that they took:", ""]
    return "\n".join([*text, *(f"    {one['command']}    # {one['seconds']:.0f} s" for one in commands)]) + "\n"


def _notes(made: dict, training: dict) -> list[str]:
    batch, added, negatives = training["batch"], training["added"], training["negatives"]
    return [
        f"Dice is the mean over test scans and seeds. Differences are paired by scan and seed, with their "
        f"{made['level']:.0%} interval over seeds and scans, by Student's t over the means of the seeds, which a "
        f"single seed does not have. After it stands the interval over the scans alone, of {made['resamples']} "
        "bootstrap resamples over groups of near-duplicates: it says nothing of other draws of real scans.",
        f"Every arm: {training['steps']} steps of {batch} scans, {training['side']} x {training['side']} pixels. Where "
        f"an arm adds something, {batch - added} scans of each batch are real and {added} are added"
        + (f", of which {negatives} are tumour-free scans where composites are added" if negatives else "")
        + (
            f", in the first {training['until']:.0%} of the steps, and then all are real"
            if training["until"] < 1
            else ""
        )
        + "; more real scans are drawn like the first N. All arms of a seed have the same N scans and begin with the "
        "same weights.",
        f"A training took {made['seconds'][len(made['seconds']) // 2]:.0f} s in the median, on "
        f"{', '.join(map(str, made['threads']))} threads.",
        "A lesion is found if at least half of its pixels are predicted. False positives are those on tumour-free test "
        "scans: the share of their area, and of the scans with any false positive.",
    ]


def _told(difference: dict | None) -> str:
    if difference is None:
        return "–"
    over_both, over_scans = (
        "–" if two is None else f"[{two[0]:+.3f}, {two[1]:+.3f}]"
        for two in (difference["interval_with_seeds"], difference["interval"])
    )
    return f"{difference['mean']:+.3f} {over_both} (scans alone: {over_scans})"


def _range(draws: list[dict], name: str) -> str:
    values = [draw[name] for draw in draws]
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)} by seed"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
