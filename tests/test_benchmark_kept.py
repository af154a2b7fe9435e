"""A benchmark keeps measures from one run to the next, each value by itself, with the network it came from. These tests
check which of them it keeps."""

import json
import shutil
from pathlib import Path

import pytest
from benchmark_files import draw, read_csv, run, table_of
from composition_files import tree
from fake_model import FakeModel

from composition.benchmark import measures
from composition.metrics import METRICS, Metric, Networks

METHODS = ("copy-paste", "sdedit")
SAMPLES = ("br35h-000", "br35h-001", "busi-000", "busi-001")
MEASURED = [name for name, metric in METRICS.items() if metric.network is None]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A benchmark measured without networks. Tests read it."""
    out = tmp_path_factory.mktemp("out") / "bench"
    assert run(parts, out, *METHODS) == []
    return out


@pytest.fixture
def again(whole, tmp_path):
    """A copy of `whole` that a test may change."""
    return shutil.copytree(whole, tmp_path / "again")


@pytest.fixture
def measured(monkeypatch):
    """The names of the metrics that were measured, one list for each composite that was measured at all."""
    asked, sound = [], measures._measured
    monkeypatch.setattr(
        measures, "_measured", lambda comparison, names: asked.append(names) or sound(comparison, names)
    )
    return asked


def kept_in(out: Path, variant: str = "sdedit", sample: str = SAMPLES[0]) -> Path:
    return out / "runs" / variant / "measures" / f"{sample}.json"


def changed(path: Path, change) -> None:
    """The kept measures after `change`, a function that edits them."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def value_of(out: Path, name: str, variant: str = "sdedit", sample: str = SAMPLES[0]) -> float:
    (entry,) = (entry for entry in read_csv(out) if (entry["variant"], entry["id"]) == (variant, sample))
    return float(entry[name])


def without(name):
    return lambda found: found["values"].pop(name)


def spoilt(name, entry):
    return lambda found: found["values"].update({name: entry})


@pytest.mark.parametrize(
    "change",
    [
        without("ssim_fg"),
        spoilt("ssim_fg", 0.5),  # a number alone does not say where it came from
        spoilt("ssim_fg", {"value": "half", "network": None}),
        spoilt("ssim_fg", {"value": 0.5, "network": "another's"}),
    ],
    ids=["absent", "a bare number", "no number", "of another network"],
)
def test_a_value_that_is_lacking_is_measured_and_the_others_stay(parts, whole, again, measured, change):
    changed(kept_in(again), change)
    changed(kept_in(again), spoilt("psnr_fg", {"value": -1.0, "network": None}))
    assert run(parts, again, *METHODS) == []
    assert measured == [["ssim_fg"]]
    assert value_of(again, "ssim_fg") == value_of(whole, "ssim_fg") and value_of(again, "psnr_fg") == -1
    changed(kept_in(again), without("psnr_fg"))
    assert run(parts, again, *METHODS) == []
    assert tree(again) == tree(whole)  # as if nothing had ever been lacking, down to the order of the values


def test_a_new_metric_is_measured_alone(parts, whole, again, measured, monkeypatch):
    before = tree(again / "runs" / "sdedit" / "images")
    monkeypatch.setitem(METRICS, "brightness", Metric("brightness", True, lambda c: c.composite.mean()))
    model = FakeModel()
    assert run(parts, again, *METHODS, model=model) == []
    assert model.rows == 0 and tree(again / "runs" / "sdedit" / "images") == before
    assert measured == [["brightness"]] * (len(METHODS) * len(SAMPLES))
    assert list(table_of(again)["lines"][0]["metrics"]) == [*MEASURED, "brightness"]
    assert "grey shift (0 is right) | brightness ↑ |" in (again / "table.md").read_text()
    assert value_of(again, "psnr_fg") == value_of(whole, "psnr_fg")


class Difference:
    """A stand-in for LPIPS: `factor` times the mean difference."""

    def __init__(self, factor: float):
        self.factor, self.name = factor, f"difference x {factor}"

    def features(self, image):
        return image

    def distance(self, a, b):
        return self.factor * (a - b).abs().mean(dim=(1, 2, 3))


def test_values_of_another_network_are_measured_anew_and_those_of_an_absent_one_wait(parts, whole, again, measured):
    def with_network(factor: float) -> float:
        measured.clear()
        assert run(parts, again, *METHODS, networks=Networks(Difference(factor))) == []
        return value_of(again, "lpips_fg")

    every = len(METHODS) * len(SAMPLES)
    first = with_network(1)
    assert measured == [["lpips_bg", "lpips_fg"]] * every
    assert with_network(2) == pytest.approx(2 * first) and len(measured) == every
    measured.clear()
    assert run(parts, again, *METHODS) == [] and measured == []
    assert "lpips_fg" not in read_csv(again)[0]  # the network is absent now: its values are kept, but not shown
    assert with_network(2) == pytest.approx(2 * first) and measured == []


@pytest.mark.parametrize("about", ["inputs", "prompt", "composite", "fit", "match"])
def test_measures_of_anything_else_are_not_kept(parts, whole, again, measured, about):
    changed(kept_in(again), lambda found: found.pop(about))
    changed(kept_in(again), spoilt("psnr_fg", {"value": -1.0, "network": None}))
    assert run(parts, again, *METHODS) == []
    assert measured == [MEASURED] and tree(again) == tree(whole)


def test_measures_in_an_older_form_are_made_again(parts, whole, again, measured):
    changed(kept_in(again), lambda found: found.update(networks={}, values={"psnr_fg": 1.0, "ssim_fg": "nan"}))
    changed(kept_in(again, "copy-paste"), lambda found: found.update(values=[1, 2]))
    assert run(parts, again, *METHODS) == []
    assert measured == [MEASURED] * 2
    assert value_of(again, "psnr_fg") == value_of(whole, "psnr_fg")
