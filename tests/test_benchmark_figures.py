"""These tests check what the benchmark's tables, plots and grids are made of: paired differences, panels, shown
samples, and measures."""

import math
import shutil
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from benchmark_files import SAMPLES, SETTINGS, WITHOUT, draw, pass_off, read_csv, run, table_of
from PIL import Image

from composition.benchmark.table import heading
from composition.metrics import Networks, Reference, measure, seam
from composition.metrics.intervals import bootstrap_interval
from composition.placement import place, placed_object
from composition.runs.manifest import read_manifest
from composition.scans.images import read_scan, values_of

METHODS = ("copy-paste", "sdedit", "ours")
FIRST = "br35h-000"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A benchmark with the ablation over tau, and its plot before it was saved. Tests read it."""
    out, figures, save = tmp_path_factory.mktemp("out") / "bench", [], matplotlib.figure.Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            matplotlib.figure.Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k)
        )
        assert run(parts, out, *METHODS, ablations=["tau"]) == []
    (figure,) = figures
    return out, figure


@pytest.fixture
def again(whole, tmp_path):
    """A copy of `whole` that a test may change."""
    return shutil.copytree(whole[0], tmp_path / "again")


def entries_of(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    return {(entry["id"], entry["variant"]): entry for entry in read_csv(out)}


def test_differences_are_ours_less_another_sample_by_sample(whole):
    entries, table = entries_of(whole[0]), table_of(whole[0])
    assert table["reference"] == "ours"
    rows = [row for row in table["differences"] if row["dataset"] == "busi"]
    assert [row["line"] for row in rows] == ["copy-paste", "sdedit"] and all(row["samples"] == SAMPLES for row in rows)
    values = [
        float(entries[f"busi-00{n}", "ours"]["psnr_fg"]) - float(entries[f"busi-00{n}", "sdedit"]["psnr_fg"])
        for n in range(SAMPLES)
    ]
    found = rows[1]["metrics"]["psnr_fg"]
    assert found["mean"] == pytest.approx(sum(values) / SAMPLES, rel=1e-12)  # order of summation
    assert (found["low"], found["high"]) == bootstrap_interval(np.array(values))
    assert f"| sdedit | {rows[1]['metrics']['psnr_bg']['mean']:.4g} [" in (whole[0] / "table.md").read_text()
    # Copy-paste leaves the background as it is: from infinite decibels there is no difference to average.
    assert rows[0]["metrics"]["psnr_bg"]["mean"] is None


def test_differences_are_told_where_ours_is_and_of_other_variants_alone(parts, whole, again):
    tau = table_of(whole[0], "ablation_tau")
    assert tau["reference"] == "tau = 3 (Eq. 9)"
    others = [f"tau = {n} ({reading})" for reading in ("Eq. 9", "Fig. 9, mirrored") for n in (1, 5)]
    assert [row["line"] for row in tau["differences"] if row["dataset"] == "busi"] == [*others, "published"]
    # A sample that one of the two lacks counts for neither.
    pass_off(again, "sdedit", "busi-001", b"")
    assert len(run(parts, again, *METHODS)) == 1
    (row,) = (row for row in table_of(again)["differences"] if (row["dataset"], row["line"]) == ("busi", "sdedit"))
    assert row["samples"] == SAMPLES - 1
    assert run(parts, again, "copy-paste", "sdedit") != []
    assert table_of(again)["reference"] is None and "less the others" not in (again / "table.md").read_text()


def test_the_plot_shows_the_tables_means_and_intervals(whole):
    out, figure = whole
    table = table_of(out, "ablation_tau")
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert list(panels) == [heading(name, {}) for name in table["lines"][0]["metrics"]]
    panel = panels["PSNR fg (dB) ↑"]
    assert panel.get_xlabel() == "tau" and list(panel.get_xticks()) == [1, 3, 5]
    curves = {container.get_label(): container for container in panel.containers}
    assert set(curves) == {
        f"{dataset} {reading}" for dataset in ("br35h", "busi") for reading in ("Eq. 9", "Fig. 9, mirrored")
    }
    for label, curve in curves.items():
        dataset, reading = label.split(" ", 1)
        expected = [
            row["metrics"]["psnr_fg"]
            for tau in (1, 3, 5)
            for row in table["lines"]
            if (row["dataset"], row["line"]) == (dataset, f"tau = {tau} ({reading})")
        ]
        line, _, (bars,) = curve.lines
        assert line.get_xydata().tolist() == [[tau, of["mean"]] for tau, of in zip((1, 3, 5), expected, strict=True)]
        ends = [[y for _, y in segment] for segment in bars.get_segments()]
        assert ends == [pytest.approx([of["low"], of["high"]]) for of in expected]  # mean - (mean - low)


def test_the_grid_shows_the_samples_that_are_asked_for(parts, again):
    assert Image.open(again / "grid.png").height == 24 + 2 * (24 + SAMPLES * 200)
    assert run(parts, again, *METHODS, shown=(1,)) == []
    assert Image.open(again / "grid.png").height == 24 + 2 * (24 + 200)


def test_seams_are_taken_along_their_own_masks(whole):
    rows, _ = read_manifest(whole[0] / "samples" / "manifest.jsonl", SETTINGS)
    sample = rows[0].request.read()
    composite = read_scan(whole[0] / "runs" / "copy-paste" / "images" / f"{rows[0].id}.png")
    values = measure(Reference.of(sample, WITHOUT).compare(composite))
    placement = place(sample.background, sample.obj, sample.object_mask, sample.user_mask)
    pixels = (composite.pixels, sample.background.pixels, placed_object(sample, placement))
    images = [torch.from_numpy(values_of(of, sample.background.window)).permute(2, 0, 1)[None] for of in pixels]
    for name, mask in (("seam_object", placement.object_mask), ("seam_user", sample.user_mask)):
        assert values[name] == float(seam(*images, torch.from_numpy(mask)[None, None]))
    assert values["seam_object"] > values["seam_user"] + 1


def measures_of(out: Path) -> Path:
    return out / "runs" / "sdedit" / "measures" / f"{FIRST}.json"


def test_damaged_measures_and_records_are_made_again(parts, whole, again):
    for path in (measures_of(again), again / "runs" / "sdedit" / "records" / f"{FIRST}.json"):
        path.write_text(path.read_text()[:20])
    with pytest.warns(UserWarning, match=r"000\.json is damaged and will be made again"):
        assert run(parts, again, *METHODS, ablations=["tau"]) == []
    assert entries_of(again) == entries_of(whole[0])


class CLIPDouble:
    """A stand-in for CLIP that tells what it was asked: a prompt by its length, two images by what differs."""

    name = "double"

    def text_similarity(self, images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts]) + 0 * images.mean((1, 2, 3))

    def image_similarity(self, a, b):
        assert a.shape == b.shape == (1, 3, 224, 224)
        return 100 - (a - b).abs().mean((1, 2, 3))


def test_clip_has_its_columns(parts, again):
    assert run(parts, again, *METHODS, networks=Networks(None, CLIPDouble(), {"lpips": "none"})) == []
    prompts = {row.id: row.request.prompt for row in read_manifest(again / "samples" / "manifest.jsonl", SETTINGS)[0]}
    entries = entries_of(again)
    for (sample, _), entry in entries.items():
        assert float(entry["clip_text"]) == len(prompts[sample]) and 0 < float(entry["clip_image"]) <= 100
    assert math.isclose(table_of(again)["lines"][0]["metrics"]["clip_text"]["mean"], len(prompts[FIRST]))
    # The pasted object's crop equals the object, except outside the mask.
    assert float(entries[FIRST, "copy-paste"]["clip_image"]) > float(entries[FIRST, "sdedit"]["clip_image"])
    assert "- CLIP: double." in (again / "table.md").read_text()
