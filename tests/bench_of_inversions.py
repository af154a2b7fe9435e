"""This module holds what the tests of the inversion bench share: its fixtures, its command and its cells.

The model is the double of fake_model.py, whose data prediction is linear, and the run has four steps.
"""

import csv
import json
from pathlib import Path

import pytest
from composition_files import write_scans
from fake_model import FakeModel

import sd21
from composition import cli
from composition.datasets import LeftOut
from composition.inversion_bench import cost, plots
from composition.inversion_bench.choices import Choices
from composition.inversion_bench.problems import Maker, items_of
from composition.inversion_bench.scans import choose
from sd21.files import write_text

PARETO, STATES = plots.pareto, plots.states
METHODS = "joint,naive,frozen,belm"
FAST = ["--steps=4", "--starts=2,4", "--count=2", "--prompt=a brain", f"--methods={METHODS}", "-q"]


def fix(patch: pytest.MonkeyPatch) -> None:
    """The model's double; no clock and no memory, which no two runs have in common; and no plots, which take long."""
    patch.setattr(sd21, "load", lambda *_, **__: FakeModel(image_size=64))
    patch.setattr(cost, "clock", lambda: 0.0)
    patch.setattr(cost, "PROC", Path("nowhere"))
    for name in ("pareto", "states"):
        patch.setattr(plots, name, lambda cells, default, path: write_text(path, str(len(cells))))


def draw_scans(folder: Path) -> Path:
    """Two scans without a tumour, s0 and s1, and one with, s2."""
    write_scans(folder)
    (folder / "m.png").rename(folder / "s2_mask.png")
    return folder


def command(scans: Path | None, out: Path, *more: str) -> list[str]:
    return ["inversions", *([f"--scans={scans}"] if scans else []), f"--out={out}", *FAST, *more]


def run_whole(scans: Path, out: Path) -> Path:
    """OUT of a bench of all prompts, two scales, two real scans and two generated ones."""
    with pytest.MonkeyPatch.context() as patch:
        fix(patch)
        assert cli.main(command(scans, out, "--generated=2", "--scales=1,2.5", "--prompts=exceptional,null,text")) == 0
    return out


def rows_of(out: Path) -> list[dict]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def cell(out: Path, place: str, method: str, tolerance: str) -> dict:
    return json.loads((out / "cells" / place / f"{method}-tol{tolerance}.json").read_text())["figures"]


def maker_and_items(**changes):
    asked = {"chosen": [], "generated": 1, "prompts": ["exceptional"], "scales": [1.0], "starts": [2, 4]}
    items = items_of(**asked | {"text": "a brain", "swap": None} | changes)
    return Maker(FakeModel(image_size=64), Choices(steps=4)), items


def real_item(scans):
    return items_of(choose({"scans": scans}, 1, None, LeftOut()), 0, ["exceptional"], [1.0], [2], None, None)[0]
