"""This module makes the table of `realism`, as Markdown and as CSV, and the sheet of crops. It measures nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..metrics.intervals import LEVEL
from ..tables import csv_text, markdown_head, markdown_line
from . import radiomics
from .choices import Choices
from .groups import REAL, Contest
from .mmd import PERMUTATIONS

# Heading, the name of the measure, what it is multiplied by and how it is written.
COLUMNS = (
    ("classifier, % right (50)", "accuracy", 100, ".0f"),
    ("classifier, AUC (0.5)", "auc", 1, ".2f"),
    ("greys inside, W1", "wasserstein inside", 1, ".1f"),
    ("greys on the rim, W1", "wasserstein rim", 1, ".1f"),
    ("radiomics inside, mean abs d", "difference inside", 1, ".2f"),
    ("radiomics on the rim, mean abs d", "difference rim", 1, ".2f"),
    ("MMD², 1e-3", "mmd", 1000, ".1f"),
    ("size alone, AUC (0.5)", "size", 1, ".2f"),
)
FEW = 10  # groups; below it, resampling them holds less than it says: some 86 % with five
SHOWN, CELL, GAP, TEXT = 10, 128, 4, 20  # crops in a row of the sheet, and pixels


def markdown(found: dict[str, dict], choices: Choices, left_out: dict[str, dict[str, int]]) -> str:
    """The table: a row for each set, a column for each measure; below it every feature, and notes.

    found: what run.py measured. left_out: how many were, by set and reason.
    """
    columns = [one for one in COLUMNS if any(one[1] in of["figures"] for of in found.values())]
    text = ["# Realism: tumours of each set against real ones", ""]
    text += markdown_head(["set", *(heading for heading, *_ in columns), "crops", "seconds"])
    for name, of in found.items():
        cells = [_cell(of["figures"].get(measure), times, form) for _, measure, times, form in columns]
        text.append(markdown_line([name, *cells, f"2 x {of['crops']}", f"{of['seconds']:.0f}"]))
    text += _floor_doubted(found[REAL])
    text += ["", "Standardised differences of the features (above 0: more than in real tumours):", ""]
    names = [f"{feature} {region}" for region in radiomics.REGIONS for feature in radiomics.FEATURES]
    text += markdown_head(["feature", *found])
    for name in names:
        text.append(markdown_line([name, *(_cell(of["figures"].get(name), 1, "+.2f") for of in found.values())]))
    return "\n".join([*text, "", *(f"- {note}" for note in _notes(found, choices, left_out))]) + "\n"


def _floor_doubted(floor: dict) -> list[str]:
    """A warning where the classifier tells real scans from real ones, or calls them wrong more often than chance."""
    low, high = (floor["figures"]["accuracy"][name] for name in ("low", "high"))
    if low <= 0.5 <= high:
        return []
    return [
        "",
        f"**Warning:** the floor's own interval, {100 * low:.0f} to {100 * high:.0f} % right, misses 50 %, though "
        f"there is nothing to tell apart. 2 x {floor['crops']} crops are too few for these intervals: give more scans, "
        "or more --seeds, before you read the classifier's columns.",
    ]


def _notes(found: dict[str, dict], choices: Choices, left_out: dict[str, dict[str, int]]) -> list[str]:
    level = f"{LEVEL:.0%}"
    notes = [
        f"In brackets: the {level} interval of a bootstrap that draws crops with a scan in common, be it the object's "
        "or the background, together; where objects and backgrounds cross, it draws both, and a crop counts as often "
        f"as the product says. Of MMD the p of {PERMUTATIONS} exchanges of composites with their real partners; pairs "
        "with a scan in common do not count.",
        f"The row '{REAL}' is the floor: other halves of the real scans for each of the {choices.seeds} seeds of the "
        f"classifier, and for the other measures the mean over 200 halves, with the ends between which {level} of them "
        "lie. What lies within them cannot be told from real.",
        f"Classifier: {choices.folds} parts of a cross-validation over groups, {choices.steps} steps, seeds "
        f"{choices.seed} to {choices.seed + choices.seeds - 1}. W1: 1-Wasserstein distance in grey levels of 255. d: "
        f"difference of means over the pooled standard deviation; its mean is over {len(radiomics.FEATURES)} features.",
        f"Crops: {choices.size} px, {choices.margin:g} of the tumour's longer side at each side of it; the rim is "
        f"{choices.rim} px to each side of the mask's edge. Real crops are taken so that their sizes match the set's. "
        "Of each object there is one composite, as far as there are objects enough.",
    ]
    notes += [_shared(name, of) for name, of in found.items() if min(of["objects"], of["backgrounds"]) < of["crops"]]
    if any(of["own_objects"] for of in found.values()):
        notes.append("The real tumours hold the composites' own objects, as too few others were there.")
    for name, reasons in left_out.items():
        if reasons:
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
            notes.append(f"Left out of {name}: {told}.")
    return notes


def _shared(name: str, of: dict) -> str:
    """What is to be known of a set whose crops are not all of different scans."""
    fewest = min(of["objects"], of["backgrounds"])
    told = (
        f"The {of['crops']} crops of {name} are of {of['objects']} objects in {of['backgrounds']} backgrounds, and the "
        "floor's are all of different scans. So its W1 and mean abs d may lie above the floor by chance alone: compare "
        "the lower ends of their intervals."
    )
    if fewest < FEW:
        told += f" Of fewer than {FEW} intervals are somewhat too narrow, and p is {2 / 2**fewest:.2g} or more."
    return told


def _cell(figure: dict | None, times: float, form: str) -> str:
    if figure is None:
        return "–"
    value = format(figure["value"] * times, form)
    if "p" in figure:
        return f"{value} (p {figure['p']:.3f})"
    return f"{value} [{figure['low'] * times:{form}}, {figure['high'] * times:{form}}]" if "low" in figure else value


def figures_csv(found: dict[str, dict]) -> str:
    """All figures, one a line: set, measure, value, low, high, p, and the crops of each kind."""
    rows = [
        {"set": name, "measure": measure, **figure, "crops": of["crops"]}
        for name, of in found.items()
        for measure, figure in of["figures"].items()
    ]
    return csv_text(("set", "measure", "value", "low", "high", "p", "crops"), rows)


def sheet(contests: Sequence[Contest]) -> Image.Image:
    """The first SHOWN crops of the real scans that the first set is compared with, and of each set, one set a row."""
    rows = [("real", contests[0].real), *((one.name, one.others) for one in contests)]
    rows = [(name, [one.crop.pixels for one in some[:SHOWN]]) for name, some in rows]
    width, height = SHOWN * (CELL + GAP) + GAP, len(rows) * (TEXT + CELL + GAP)
    image = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    for row, (name, crops) in enumerate(rows):
        y = row * (TEXT + CELL + GAP)
        draw.text((GAP, y + 2), name, fill=0, font=font)
        for column, pixels in enumerate(crops):
            cell = Image.fromarray(np.ascontiguousarray(pixels)).resize((CELL, CELL), Image.Resampling.BICUBIC)
            image.paste(cell, (GAP + column * (CELL + GAP), y + TEXT))
    return image
