"""These tests add a new method, a new metric and a new dataset, each as one entry, and run the benchmark on them."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from benchmark_files import draw, read_csv, run, table_of
from drawn_datasets import draw_br35h
from PIL import Image

from composition import cli
from composition.benchmark import BenchmarkRequest
from composition.benchmark import command as benchmark_command
from composition.benchmark.grid import CELL, TEXT_HEIGHT, _left
from composition.benchmark.measures import IDENTITY
from composition.benchmark.variants import ORDER
from composition.datasets import DATASETS, Dataset, Published, read_br35h
from composition.methods import METHODS
from composition.metrics import METRICS, Metric
from composition.scans.errors import DatasetError

EVIDENCE = Path(benchmark_command.__file__).parent / "evidence"


def read_phantoms(root) -> Dataset:
    """A dataset in the layout of Br35H under another name, with another prompt."""
    heads = read_br35h(root)
    return Dataset("test-phantoms", "A drawn head", heads.backgrounds, heads.objects, heads.left_out)


@pytest.fixture
def entries(monkeypatch):
    """One entry of each kind. The method pastes; the metric is the mean of the composite."""
    monkeypatch.setitem(DATASETS, "test-phantoms", Published("drawn heads", read_phantoms, samples=2))
    monkeypatch.setitem(METHODS, "paste-again", METHODS["copy-paste"])
    monkeypatch.setitem(METRICS, "brightness", Metric("brightness", True, lambda c: c.composite.mean()))


def test_the_benchmark_runs_on_a_new_method_metric_and_dataset(tmp_path, entries):
    folder = draw_br35h(tmp_path / "phantoms", 2)
    assert run({"test-phantoms": (folder, 2)}, tmp_path / "out", "paste-again", "sdedit", ablations=["tau"]) == []
    found = {(entry["id"], entry["variant"]): float(entry["brightness"]) for entry in read_csv(tmp_path / "out")}
    assert {of for of in found if of[1] in ("paste-again", "sdedit")} == {
        (f"test-phantoms-00{n}", method) for n in range(2) for method in ("paste-again", "sdedit")
    }
    line = table_of(tmp_path / "out")["lines"][0]
    values = [found[f"test-phantoms-00{n}", "paste-again"] for n in range(2)]
    assert (line["dataset"], line["line"], line["failed"]) == ("test-phantoms", "paste-again", 0)
    assert line["metrics"]["brightness"]["mean"] == pytest.approx(sum(values) / 2)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## test-phantoms" in text and "| brightness ↑ |" in text
    assert "A drawn head" in (tmp_path / "out" / "samples" / "manifest.jsonl").read_text()
    for name in ("grid.png", "ablation_tau.png", "ablation_tau_grid.png"):
        Image.open(tmp_path / "out" / name).verify()


def test_a_new_method_stands_behind_the_paper_s_in_the_grid(tmp_path, entries, monkeypatch):
    """It stands there whatever the order of the table is."""
    captions = []
    monkeypatch.setattr("PIL.ImageDraw.ImageDraw.text", lambda self, place, text, **_: captions.append(text))
    parts = draw(tmp_path)
    assert run({"busi": parts["busi"]}, tmp_path / "out", "paste-again", "sdedit", "copy-paste", shown=(0,)) == []
    assert captions[:5] == ["background", "object", "copy-paste", "sdedit", "paste-again"]
    assert set(METHODS) - set(ORDER) == {"paste-again"}


def test_scans_that_may_not_be_published_are_not_shown_by_a_new_method_either(tmp_path, entries):
    parts = draw(tmp_path)
    methods = ("copy-paste", "sdedit", "paste-again")
    assert run({"busi": parts["busi"]}, tmp_path / "out", *methods, shown=(0,), reproduce=True) == []
    picture = Image.open(tmp_path / "out" / "grid.png")

    def cell(column):
        return picture.crop((_left(column), 2 * TEXT_HEIGHT, _left(column) + CELL, 2 * TEXT_HEIGHT + CELL)).tobytes()

    assert cell(2) == cell(4) != cell(3)  # copy-paste and its twin, both through the autoencoder
    assert run({"busi": parts["busi"]}, tmp_path / "out", *methods, shown=(0,)) == []
    reproduced, picture = cell(2), Image.open(tmp_path / "out" / "grid.png")
    assert cell(2) == cell(4) != reproduced


def test_a_new_dataset_has_its_options(entries):
    parser = cli.build_parser("benchmark")
    options = parser.parse_args(["benchmark", "--out", "out", "--test-phantoms", "here"])
    assert benchmark_command.request_of(options).parts == {"test-phantoms": (Path("here"), 2)}
    options = parser.parse_args(
        ["benchmark", "--out", "out", "--test-phantoms", "here", "--test-phantoms-samples", "7"]
    )
    assert benchmark_command.request_of(options).parts == {"test-phantoms": (Path("here"), 7)}


def request(**changes) -> BenchmarkRequest:
    sound = {"parts": {"busi": (Path("busi"), 1)}, "seed": 0, "methods": ("ours",), "ablations": (), "shown": (0,)}
    return BenchmarkRequest(**sound | changes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"parts": {"mnist": (Path("m"), 1)}}, ValueError, "mnist: not among the datasets br35h, busi"),
        ({"parts": {}}, DatasetError, "no dataset is named; expected the folder of one or more of br35h, busi"),
        ({"parts": {"busi": (Path("b"), 0)}}, DatasetError, "samples of busi are a whole number from 1 up, got 0"),
        ({"methods": ("ours", "dream")}, ValueError, "dream: not among the methods copy-paste, "),
        ({"methods": ()}, ValueError, "no method is named; expected one or more of copy-paste, "),
        ({"ablations": ("stages",)}, ValueError, "stages: not among the ablations start, tau, steps"),
        ({"ablation_samples": 0}, ValueError, "an ablation has a whole number of samples from 1 up, got 0"),
    ],
)
def test_what_cannot_be_asked_for_is_told_when_it_is_asked(change, error, message):
    request()
    with pytest.raises(error, match=message):
        request(**change)


@pytest.mark.parametrize("file", sorted(EVIDENCE.glob("*.csv")), ids=lambda file: file.stem)
def test_the_evidence_has_the_columns_that_the_benchmark_writes(file):
    with file.open(newline="") as opened:
        columns = next(csv.reader(opened))
    assert tuple(columns[:5]) == IDENTITY
    assert columns[5:] == [name for name in METRICS if name in columns[5:]]


def test_a_metric_that_fails_costs_the_others_nothing(tmp_path, monkeypatch):
    def fails_on_copy_paste(c):
        if torch.equal(c.composite[c.reference.object_mask.expand(-1, 3, -1, -1)],
                       c.reference.placed[c.reference.object_mask.expand(-1, 3, -1, -1)]):  # fmt: skip
            raise RuntimeError("no figure")
        return 1.0

    parts, out = draw(tmp_path), tmp_path / "out"
    assert run({"busi": parts["busi"]}, out, "copy-paste", "sdedit") == []
    before = read_csv(out)
    monkeypatch.setitem(METRICS, "fragile", Metric("fragile", True, fails_on_copy_paste))
    errors = run({"busi": parts["busi"]}, out, "copy-paste", "sdedit")
    assert len(errors) == 2 and all(error["variant"] == "copy-paste" for error in errors)
    assert all(error["error"].startswith("fragile: RuntimeError: no figure") for error in errors)
    after = read_csv(out)
    assert [{**entry, "fragile": None} for entry in before] == [{**entry, "fragile": None} for entry in after]
    assert {(entry["variant"], entry["fragile"]) for entry in after} == {("copy-paste", ""), ("sdedit", "1.0")}
    lines = {line["line"]: line["metrics"]["fragile"]["finite"] for line in table_of(out)["lines"]}
    assert lines == {"copy-paste": 0, "sdedit": 2}


@pytest.mark.parametrize("name", ["../up", "/abs", ".", "", "a|b"])
def test_a_method_whose_name_is_no_folder_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setitem(METHODS, name, METHODS["copy-paste"])
    with pytest.raises(ValueError, match="names a folder and a line"):
        BenchmarkRequest({"busi": (tmp_path, 2)}, 0, (name,), (), ())


def test_two_variants_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "ours_preserve_background_until_1", METHODS["copy-paste"])
    with pytest.raises(ValueError, match="'ours_preserve_background_until_1' has the name of a variant of an ablation"):
        run(draw(tmp_path), tmp_path / "out", "ours_preserve_background_until_1", "ours", ablations=["tau"])
    monkeypatch.setitem(METRICS, "dataset", Metric("dataset", True, lambda c: 0.0))
    with pytest.raises(ValueError, match="the metric dataset has the name of another column"):
        BenchmarkRequest({"busi": (tmp_path, 2)}, 0, ("ours",), (), ())


def test_a_record_that_does_not_say_is_taken_to_show_a_scan(tmp_path):
    """So is one of an earlier version, and the benchmark goes on with it."""
    parts, out = draw(tmp_path), tmp_path / "out"
    assert run({"busi": parts["busi"]}, out, "sdedit", shown=(0,), reproduce=True) == []
    before = (out / "grid.png").read_bytes()
    for path in (out / "runs" / "sdedit" / "records").iterdir():
        record = json.loads(path.read_text())
        assert record.pop("decoded") is True
        path.write_text(json.dumps(record))
    assert run({"busi": parts["busi"]}, out, "sdedit", shown=(0,), reproduce=True) == []
    assert (out / "grid.png").read_bytes() != before


def test_tables_and_grids_of_an_earlier_run_do_not_outlive_its_composites(tmp_path, monkeypatch):
    parts, out = draw(tmp_path), tmp_path / "out"
    assert run({"busi": parts["busi"]}, out, "sdedit") == []
    shutil.rmtree(out / "runs")

    def fails(frame):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(METHODS, "sdedit", fails)
    assert len(run({"busi": parts["busi"]}, out, "sdedit")) == 2
    assert not [name for name in ("table.md", "table.json", "grid.png") if (out / name).exists()]
