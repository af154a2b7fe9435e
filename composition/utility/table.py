"""This module makes the table: means, their spread over the seeds, and paired intervals of differences.

A difference of two arms is taken scan by scan, each scan's mean over the seeds, so that what is hard about a scan
cancels. Its interval is the percentile bootstrap over the test scans, drawn by whole groups of near-duplicates. A
second interval draws the seeds as well, and is what another five draws of real scans might give.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from ..datasets import LeftOut
from .arms import REAL

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
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
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for one in found:
        for row in one["scores"]:
            writer.writerow({"arm": one["arm"], "size": one["size"], "seed": one["seed"], **row})
    return text.getvalue()


def interval(differences: np.ndarray, groups: Sequence[int], *, seeds: bool) -> tuple[float, float]:
    """The interval of the mean difference at LEVEL; the same every time.

    differences: (seeds, scans). groups: of the scans; they are drawn with replacement as wholes. seeds: whether the
    seeds are drawn too.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.stack([np.bincount(number, row, len(names)) for row in differences])  # (seeds, groups)
    counts = np.bincount(number, minlength=len(names))
    draw = np.random.default_rng(SEED)
    weights = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    if seeds:
        of_seeds = draw.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES) / len(sums)
        totals = np.einsum("rs,sg,rg->r", of_seeds, sums, weights, optimize=True)
    else:
        totals = weights @ sums.mean(axis=0)
    low, high = np.quantile(totals / (weights @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
    return {
        "mean": float(differences.mean()),
        "interval": interval(differences, groups, seeds=False),
        "interval_with_seeds": interval(differences, groups, seeds=True) if len(differences) > 1 else None,
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
        heads = ["arm", "Dice", "by seed", *(f"less {name.removeprefix('+ ')}" for name in references)]
        heads += ["lesions found", "false area", "scans with any"]
        text += [_line(heads), _line(["---"] * len(heads))]
        for line in block["lines"]:
            differences = [_told(line["less"].get(name)) for name in references]
            seeds = ", ".join(f"{value:.3f}" for value in line["dice_by_seed"])
            share = [_percent(line[name]) for name in ("sensitivity", "false_area", "false_any")]
            text.append(_line([line["arm"], f"{line['dice']:.3f}", seeds, *differences, *share]))
        text.append("")
    text += [f"- {note}" for note in _notes(made, training)]
    text += [f"- Left out: {line}" for line in str(left_out).splitlines()]
    text += ["", "The commands, and the seconds that they took:", ""]
    return "\n".join([*text, *(f"    {one['command']}    # {one['seconds']:.0f} s" for one in commands)]) + "\n"


def _notes(made: dict, training: dict) -> list[str]:
    batch, added, negatives = training["batch"], training["added"], training["negatives"]
    return [
        f"Dice is the mean over test scans and seeds. Differences are paired by scan and seed, with their "
        f"{made['level']:.0%} interval of {made['resamples']} bootstrap resamples over groups of near-duplicate test "
        "scans; in brackets after it the interval over seeds too, which one seed has not.",
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
        "scans: the share of their area, and of the scans with any.",
    ]


def _told(difference: dict | None) -> str:
    if difference is None:
        return "–"
    both = (difference["interval"], difference["interval_with_seeds"])
    first, second = ("–" if one is None else f"[{one[0]:+.3f}, {one[1]:+.3f}]" for one in both)
    return f"{difference['mean']:+.3f} {first} ({second})"


def _range(draws: list[dict], name: str) -> str:
    values = [draw[name] for draw in draws]
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)} by seed"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
