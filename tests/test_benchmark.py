"""These tests run the benchmark from drawn datasets to its files. They recompute its figures from the CSV, resume it,
and make samples fail."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_files import SAMPLES, SETTINGS, WITHOUT, draw, pass_off, read_csv, run, table_of
from composition_files import tree
from fake_model import FakeModel
from PIL import Image

from composition.benchmark import measures
from composition.benchmark.measures import measure_all
from composition.benchmark.variants import ABLATIONS, methods
from composition.methods import METHODS
from composition.metrics import METRICS, Networks, Reference, measure
from composition.placement import place
from composition.runs.manifest import read_manifest
from composition.runs.ranks import Ranks
from composition.scans.images import Scan, read_scan

ON_DOUBLE = ("copy-paste", "blended", "sdedit", "published", "ours")
UNMEASURED = [name for name in METRICS if name.startswith(("lpips", "clip"))]
MEASURED = [name for name in METRICS if name not in UNMEASURED]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A whole benchmark with ablations, and the model that made it. Tests read it."""
    out, model = tmp_path_factory.mktemp("out") / "bench", FakeModel()
    assert run(parts, out, *ON_DOUBLE, model=model, ablations=ABLATIONS) == []
    return out, model


@pytest.fixture
def again(whole, tmp_path):
    """A copy of `whole` that a test may change."""
    return shutil.copytree(whole[0], tmp_path / "again")


def test_everything_is_written(whole):
    out, _ = whole
    files = {path.name for path in out.iterdir() if path.is_file()}
    tables = {
        f"{name}.{kind}" for name in ("table", *(f"ablation_{of}" for of in ABLATIONS)) for kind in ("md", "json")
    }
    pictures = {"grid.png", "ablation_start.png", "ablation_tau.png", *(f"ablation_{of}_grid.png" for of in ABLATIONS)}
    assert files == tables | pictures | {"samples.csv"}
    for name in pictures:
        Image.open(out / name).verify()
    # Background, object and five methods; two groups of a line of text and two samples each, under the captions.
    assert Image.open(out / "grid.png").size == (8 + 7 * 200, 24 + 2 * 24 + 4 * 200)


def test_the_tables_figures_from_the_csv(whole):
    entries, table = read_csv(whole[0]), table_of(whole[0])
    assert [(row["dataset"], row["line"]) for row in table["lines"]] == [
        (dataset, method) for dataset in ("br35h", "busi") for method in ON_DOUBLE
    ]
    text = (whole[0] / "table.md").read_text()
    for row in table["lines"]:
        mine = [e for e in entries if (e["dataset"], e["variant"]) == (row["dataset"], row["variant"])]
        assert len(mine) == row["samples"] == SAMPLES and row["failed"] == 0
        spent = [int(entry["rows_inversion"]) + int(entry["rows_composition"]) for entry in mine]
        assert row["rows"]["mean"] == sum(spent) / SAMPLES
        assert list(row["metrics"]) == MEASURED
        for name, summary in row["metrics"].items():
            finite = [float(entry[name]) for entry in mine if math.isfinite(float(entry[name]))]
            assert summary["finite"] == len(finite)
            if finite:
                assert summary["mean"] == pytest.approx(sum(finite) / len(finite), rel=1e-12)  # order of summation
                # Of two values, a quarter of the resamples takes the lesser twice, and a quarter the greater twice.
                assert (summary["low"], summary["high"]) == (min(finite), max(finite))
                assert f"{summary['mean']:.4g} [{summary['low']:.4g}, {summary['high']:.4g}]" in text


def test_rows_and_shared_inversions(whole):
    """Naive inversion to k takes k rows, and k more to measure it; guidance doubles those of the composition."""
    out, model = whole
    entries = read_csv(out)
    spent = {entry["variant"]: (int(entry["rows_inversion"]), int(entry["rows_composition"])) for entry in entries}
    assert spent == {
        "copy-paste": (0, 0),
        "blended": (0, 2 * 15),
        "sdedit": (0, 2 * 10),
        "published": (2 * 40, 2 * 20 + 2 * 6),
        "ours": (2 * 12, 2 * 6),
        "ours_preserve_background_until_1": (2 * 12, 2 * 6),
        "ours_preserve_background_until_5": (2 * 12, 2 * 6),
        "ours_start_18": (2 * 36, 2 * 18),
        "ours_start_12": (2 * 24, 2 * 12),
    }
    total = sum(int(entry["rows_inversion"]) + int(entry["rows_composition"]) for entry in entries)
    shared = 2 * (2 * 12) * 2 * SAMPLES  # both windows of tau use the inversions of "ours"
    assert model.rows == total - shared


def test_psnr_of_an_untouched_background_is_told_and_not_averaged(whole):
    rows = {(row["dataset"], row["line"]): row["metrics"]["psnr_bg"] for row in table_of(whole[0])["lines"]}
    assert rows["busi", "copy-paste"] == {
        **dict.fromkeys(("mean", "low", "high", "least", "q05", "median", "q95", "greatest")),
        "finite": 0,
        "infinite": SAMPLES,
        "undefined": 0,
    }
    text = (whole[0] / "table.md").read_text()
    assert "copy-paste, busi: PSNR bg (dB) is infinite for 2 of 2, not averaged." in text
    assert "∞" in next(line for line in text.splitlines() if line.startswith("| copy-paste"))


def test_a_missing_metric_is_a_note_and_no_column(whole):
    for name in ("table", "ablation_start", "ablation_tau"):
        text = (whole[0] / f"{name}.md").read_text()
        for kind in ("LPIPS", "CLIP"):
            assert f"- The columns of {kind} are left out: no {kind} weights\n" in text
            assert not any(kind in line for line in text.splitlines() if line.startswith("|"))
    assert not set(UNMEASURED) & set(read_csv(whole[0])[0])


def test_tau_has_both_readings(whole):
    rows = [row for row in table_of(whole[0], "ablation_tau")["lines"] if row["dataset"] == "busi"]
    settings = table_of(whole[0], "ablation_tau")["settings"]
    kept_from = {row["line"]: settings[row["variant"]]["preserve_background_until"] for row in rows}
    assert kept_from == {
        "published": 3,  # the paper's own method stands in every table
        "tau = 1 (Eq. 9)": 1,
        "tau = 3 (Eq. 9)": 3,
        "tau = 5 (Eq. 9)": 5,
        "tau = 1 (Fig. 9, mirrored)": 5,
        "tau = 3 (Fig. 9, mirrored)": 3,
        "tau = 5 (Fig. 9, mirrored)": 1,
    }
    found = {row["line"]: row["metrics"] for row in rows}
    assert found["tau = 1 (Eq. 9)"] == found["tau = 5 (Fig. 9, mirrored)"] != found["tau = 5 (Eq. 9)"]


def test_composites_are_measured_as_stored(whole):
    """Figures agree with the placement by hand. A kept pixel is equal, although composites passed through floats."""
    rows, _ = read_manifest(whole[0] / "samples" / "manifest.jsonl", SETTINGS)
    row = rows[0]
    sample = row.request.read()
    composite = read_scan(whole[0] / "runs" / "ours" / "images" / f"{row.id}.png")
    reference = Reference.of(sample, WITHOUT)
    values = measure(reference.compare(composite))
    background = sample.background
    outside = ~sample.user_mask
    squared = ((composite.pixels.astype(float) - background.pixels)[outside] ** 2).mean()
    assert values["psnr_bg"] == pytest.approx(10 * math.log10(255**2 / squared), rel=1e-6)  # float32 images
    placed = place(background, sample.obj, sample.object_mask, sample.user_mask).image
    perfect = Scan(background.render(placed, grayscale=True))
    assert measure(reference.compare(perfect))["psnr_fg"] == math.inf


def test_a_second_run_changes_nothing_and_runs_nothing(parts, whole, again, monkeypatch):
    before = tree(again)
    monkeypatch.setattr(measures, "measure", lambda *_: pytest.fail("measured again"))
    model = FakeModel()
    assert run(parts, again, *ON_DOUBLE, model=model, ablations=ABLATIONS) == []
    assert model.rows == 0
    assert tree(again) == before


class OddRows(Ranks):
    """A rank that takes every second item, beside one that has not begun."""

    def __init__(self):
        super().__init__("odd rows")
        self.rank = 1

    def share(self, items, **_):
        yield from items[1::2]


def test_a_rank_measures_its_share_and_rank_0_finds_it(parts, whole, again, monkeypatch):
    shutil.rmtree(again / "runs" / "ours" / "measures")
    rows, _ = read_manifest(again / "samples" / "manifest.jsonl", SETTINGS)
    (line,) = methods(["ours"], SETTINGS).lines
    assert measure_all(rows, [line.variant], again / "runs", WITHOUT, OddRows(), quiet=True) is None
    measured = {path.stem for path in (again / "runs" / "ours" / "measures").iterdir()}
    assert measured == {row.id for row in rows[1::2]}
    asked, sound = [], measures._measured
    monkeypatch.setattr(measures, "_measured", lambda *given: asked.append(given) or sound(*given))
    assert run(parts, again, *ON_DOUBLE, ablations=ABLATIONS) == []
    assert len(asked) == len(rows) - len(measured) and tree(again) == tree(whole[0])


class MeanDifference(torch.nn.Module):
    """A stand-in for LPIPS."""

    name = "mean difference"

    def features(self, image):
        return image

    def distance(self, a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))


def test_a_metric_is_added_without_composing_again(parts, again):
    model, old = FakeModel(), read_csv(again)
    networks = Networks(MeanDifference(), None, {"clip": "no CLIP weights"})
    assert run(parts, again, *ON_DOUBLE, model=model, networks=networks) == []
    assert model.rows == 0
    new = read_csv(again)
    assert all(float(entry["lpips_bg"]) >= 0 and float(entry["lpips_fg"]) > 0 for entry in new)
    assert new[0]["psnr_fg"] == old[0]["psnr_fg"]
    text = (again / "table.md").read_text()
    # The paper's columns come first, under the name of the network that measured them.
    assert "|  | mean difference bg ↓ | mean difference fg ↓ | PSNR bg (dB) ↑ |" in text
    assert "columns of LPIPS" not in text and "- LPIPS: mean difference.\n" in text


def test_a_changed_composite_is_measured_again_and_a_damaged_one_told(parts, again):
    images = {name: again / "runs" / name / "images" for name in ("copy-paste", "blended")}
    pass_off(again, "sdedit", "busi-001", (images["copy-paste"] / "busi-001.png").read_bytes())
    pass_off(again, "blended", "br35h-000", (images["blended"] / "br35h-000.png").read_bytes()[:60])
    (error,) = run(parts, again, *ON_DOUBLE)
    assert (error["variant"], error["id"]) == ("blended", "br35h-000") and "cannot be read" in error["error"]
    found = {(entry["id"], entry["variant"]): entry for entry in read_csv(again)}
    assert found["busi-001", "sdedit"]["psnr_fg"] == found["busi-001", "copy-paste"]["psnr_fg"]
    assert ("br35h-000", "blended") not in found


def test_a_composite_that_is_not_the_one_that_was_made_is_made_again(parts, again):
    assert run(parts, again, *ON_DOUBLE) == []
    before, image = read_csv(again), again / "runs" / "sdedit" / "images" / "busi-001.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    assert run(parts, again, *ON_DOUBLE) == [] and image.read_bytes() == whole and read_csv(again) == before


def test_a_grid_without_a_pixel_of_a_scan(parts, again, monkeypatch):
    def columns() -> list[np.ndarray]:
        """The grid's pictures by column: background, object and the methods, without the text."""
        with Image.open(again / "grid.png") as picture:
            grid = np.asarray(picture.convert("RGB"))
        groups = np.concatenate([grid[48:448], grid[472:]])  # captions 24; the prompt 24 and two samples of 200, twice
        return np.split(groups[:, 8:], 7, axis=1)

    before, black = columns(), []
    monkeypatch.setattr(
        "composition.benchmark.run.reproduce", lambda _, values: black.append(values) or np.full_like(values, -1)
    )
    assert run(parts, again, *ON_DOUBLE, reproduce=True) == []
    after = columns()
    assert len(black) == 3 * 2 * SAMPLES and all(np.abs(values).max() <= 1 for values in black)
    for column, (old, new) in enumerate(zip(before, after, strict=True)):
        if column < 3:  # background, object, copy-paste: black in white frames, with coloured outlines
            grey = new[(new == new[..., :1]).all(axis=-1)]
            assert set(grey[:, 0]) <= {0, 255} and (old != new).any()
        else:
            assert (old == new).all()


def test_a_failing_sample_is_counted_and_the_rest_goes_on(parts, tmp_path, monkeypatch):
    out, sound = tmp_path / "out", METHODS["sdedit"]

    def fails_on_one(frame):
        if Path(frame.sample.background.name).name == "normal (0).png":
            raise RuntimeError("deliberate")
        return sound(frame)

    monkeypatch.setitem(METHODS, "sdedit", fails_on_one)
    errors = run(parts, out, "copy-paste", "sdedit")
    ((variant, error),) = [(error["variant"], error["error"]) for error in errors]
    assert variant == "sdedit" and error.startswith("RuntimeError: deliberate (fails_on_one in ")
    assert [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()] == errors
    done = {(entry["id"], entry["variant"]) for entry in read_csv(out)}
    assert len(done) == 2 * 2 * SAMPLES - 1 and (errors[0]["id"], "sdedit") not in done
    counts = {(row["dataset"], row["line"]): (row["samples"], row["failed"]) for row in table_of(out)["lines"]}
    assert counts.pop(("busi", "sdedit")) == (SAMPLES - 1, 1) and set(counts.values()) == {(SAMPLES, 0)}
    assert "- sdedit, busi: 1 of 2 samples failed (errors.jsonl)." in (out / "table.md").read_text()

    monkeypatch.setitem(METHODS, "sdedit", sound)
    assert run(parts, out, "copy-paste", "sdedit") == []
    assert not (out / "errors.jsonl").exists() and len(read_csv(out)) == 2 * 2 * SAMPLES


def test_where_everything_fails_there_is_no_table(parts, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setitem(METHODS, "sdedit", fails)
    assert len(run(parts, tmp_path / "out", "sdedit")) == 2 * SAMPLES
    assert not (tmp_path / "out" / "table.md").exists()
    assert read_csv(tmp_path / "out") == []
