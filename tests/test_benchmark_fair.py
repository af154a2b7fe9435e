"""These tests check that the benchmark compares fairly, by the default settings: what the lines of its tables are,
which object each composite is measured against, and how the steps beyond the paper are added and taken away."""

import shutil
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction

import numpy as np
import pytest
from benchmark_files import SAMPLES, WITHOUT, draw, read_csv, run, table_of
from composition_files import tree
from fake_model import FakeModel
from PIL import Image

from composition import compose
from composition.benchmark.variants import ABLATIONS, all_of, methods, steps_ablation
from composition.methods import METHODS
from composition.metrics import Reference, measure
from composition.runs.manifest import read_manifest
from composition.scans.images import read_scan
from composition.settings import PAPER, Settings

DEFAULTS = Settings(inversion="naive")
SHOWN = ("copy-paste", "blended", "ours")
STEPS = ("background held", "object held", "detail", "match", "focus")
OF_OBJECT = ("psnr_fg", "ssim_fg")  # these compare with the placed object


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return {"busi": draw(tmp_path_factory.mktemp("data"))["busi"]}


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """A benchmark by the default settings, whose ablation of steps has one sample. Tests read it."""
    out = tmp_path_factory.mktemp("out") / "bench"
    assert run(parts, out, *SHOWN, settings=DEFAULTS, ablations=["steps"], ablation_samples=1) == []
    return out


@pytest.fixture
def again(whole, tmp_path):
    """A copy of `whole` that a test may change."""
    return shutil.copytree(whole, tmp_path / "again")


def differing(a: Settings, b: Settings) -> set[str]:
    return {name for name, value in asdict(a).items() if value != asdict(b)[name]}


def test_baselines_stand_as_published_and_with_the_object_that_ours_is_given():
    settings = Settings(steps=30, guidance_scale=4.0, start=7)
    lineup = methods(tuple(METHODS), settings)
    assert [(line.label, line.variant.name, line.variant.method) for line in lineup.lines] == [
        ("copy-paste", "copy-paste", "copy-paste"),
        ("copy-paste, matched", "copy-paste_matched", "copy-paste"),
        ("blended", "blended", "blended"),  # it does not look at the object
        ("sdedit", "sdedit", "sdedit"),
        ("sdedit, matched", "sdedit_matched", "sdedit"),
        ("tf-icon", "tf-icon", "tf-icon"),
        ("tf-icon, matched", "tf-icon_matched", "tf-icon"),
        ("published", "published", "published"),
        ("published, matched", "published_matched", "published"),
        ("ours, Settings.paper()", "paper", "ours"),
        ("ours", "ours", "ours"),
    ]
    given = {line.variant.name: line.variant.settings for line in lineup.lines}
    papers = Settings.paper(steps=30, guidance_scale=4.0, start=7)  # the user's numbers hold for all
    assert given["ours"] == settings
    for name in ("copy-paste", "blended", "sdedit", "tf-icon", "published", "paper"):
        assert given[name] == papers
        if f"{name}_matched" in given:
            assert differing(given[f"{name}_matched"], papers) == {"fit", "match"}
            assert given[f"{name}_matched"] == replace(papers, fit=settings.fit, match=settings.match)
    assert any("blended does not look at the object" in note for note in lineup.notes)


def test_the_grid_shows_the_papers_columns_and_then_ours_by_its_settings():
    columns = [line.label for line in methods(tuple(METHODS), Settings()).columns]
    assert columns == ["copy-paste", "sdedit", "blended", "tf-icon", "published", "ours", "ours, Settings.paper()"]


def test_lines_that_would_be_of_the_same_composites_are_left_out():
    lineup = methods(tuple(METHODS), Settings.paper())
    assert [line.label for line in lineup.lines] == list(METHODS) and lineup.notes == ()


def test_steps_are_added_alone_and_taken_away_alone():
    ours, paper = Settings(), Settings.paper()
    lines = {line.label: line.variant for line in steps_ablation(ours).lines}
    added, taken = [f"paper + {step}" for step in STEPS], [f"ours - {step}" for step in STEPS]
    assert list(lines) == ["published", "paper", *added, "ours", *taken]
    assert (lines["published"].method, lines["published"].settings) == ("published", paper)
    assert (lines["paper"].name, lines["paper"].settings) == ("paper", paper)
    assert (lines["ours"].name, lines["ours"].settings) == ("ours", ours)
    fields = ("preserve_background_until", "preserve_object_until", "detail", "match", "focus")
    for field, with_it, without_it in zip(fields, added, taken, strict=True):
        assert differing(lines[with_it].settings, paper) == {field} == differing(lines[without_it].settings, ours)
        assert getattr(lines[with_it].settings, field) == getattr(ours, field)
        assert getattr(lines[without_it].settings, field) == PAPER[field]
        assert lines[with_it].method == lines[without_it].method == "ours"
    assert len(all_of([steps_ablation(ours), methods(tuple(METHODS), ours)])) == len(lines) + len(METHODS) - 2 + 4


def test_a_step_that_the_user_turned_off_runs_no_composite_twice():
    lines = {line.label: line.variant.name for line in steps_ablation(Settings(match="none")).lines}
    assert lines["paper + match"] == "paper" and lines["ours - match"] == "ours"


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_papers_own_method_stands_in_every_table(name):
    found = {line.variant.name: line.variant for line in ABLATIONS[name](Settings()).lines}
    assert found["published"].method == "published" and found["published"].settings == Settings.paper()
    assert found["paper"].method == "ours" and found["paper"].settings == Settings.paper()


def test_every_method_is_measured_against_the_object_it_was_given(whole):
    rows, _ = read_manifest(whole / "samples" / "manifest.jsonl", DEFAULTS)
    entries = {(entry["id"], entry["variant"]): entry for entry in read_csv(whole)}
    off, on = {"fit": "box", "match": "none"}, {"fit": DEFAULTS.fit, "match": DEFAULTS.match}
    for row in rows:
        sample = row.request.read()
        for variant, own, other in (("copy-paste", off, on), ("copy-paste_matched", on, off), ("ours", on, off)):
            composite = read_scan(whole / "runs" / variant / "images" / f"{row.id}.png")
            expected, wrong = (
                measure(Reference.of(sample, WITHOUT, **placed).compare(composite)) for placed in (own, other)
            )
            assert {name: float(entries[row.id, variant][name]) for name in expected} == pytest.approx(
                expected, rel=0, abs=0, nan_ok=True
            )
            assert all(wrong[name] != expected[name] for name in OF_OBJECT)
        # Both pastes are the object they were given, to the bit.
        for variant, placed in (("copy-paste", off), ("copy-paste_matched", on)):
            reference = Reference.of(sample, WITHOUT, **placed)
            comparison = reference.compare(read_scan(whole / "runs" / variant / "images" / f"{row.id}.png"))
            inside = reference.object_mask.expand(-1, 3, -1, -1)
            assert (comparison.composite[inside] == reference.placed[inside]).all()


def test_composites_that_were_given_one_object_share_its_reference(parts, again, monkeypatch):
    for folder in (again / "runs").iterdir():
        shutil.rmtree(folder / "measures")
    made, sound = [], Reference.of
    monkeypatch.setattr(
        Reference,
        "of",
        lambda sample, networks, **placed: made.append((sample, placed)) or sound(sample, networks, **placed),
    )
    assert run(parts, again, *SHOWN, settings=DEFAULTS) == []
    # Two samples, each with the object as it is, and matched.
    assert len(made) == 2 * SAMPLES and len({id(sample) for sample, _ in made}) == SAMPLES
    assert Counter(str(placed) for _, placed in made).most_common(1)[0][1] == SAMPLES


@pytest.mark.parametrize("focus", ["scan", "window"])
def test_the_reference_has_the_object_that_the_network_was_shown(whole, focus):
    """Whatever part of the background it saw, in the background's own pixels."""
    (row, *_), _ = read_manifest(whole / "samples" / "manifest.jsonl", DEFAULTS)
    sample, settings = row.request.read(), replace(DEFAULTS, focus=focus)
    composition = compose(FakeModel(), *sample, settings, method="copy-paste")
    reference = Reference.of(sample, WITHOUT, fit=settings.fit, match=settings.match)
    assert np.array_equal(reference.object_mask[0, 0].numpy(), composition.mask)
    placed = (reference.placed[0, 0].numpy() + 1) * 127.5
    # A window moves the fractions at which the object is resampled, by float32's rounding: a grey level at most.
    assert np.abs(placed - composition.placed)[composition.mask].max() <= 1


def test_ablations_take_the_first_samples_and_the_methods_all(whole):
    every = {f"busi-{number:03d}" for number in range(SAMPLES)}
    made: dict[str, set[str]] = {}
    for entry in read_csv(whole):
        made.setdefault(entry["variant"], set()).add(entry["id"])
    shared = {line.variant.name for line in methods(SHOWN, DEFAULTS).lines}
    alone = {line.variant.name for line in steps_ablation(DEFAULTS).lines} - shared
    assert "published" in alone  # it was not among the methods
    assert made == {name: every if name in shared else {min(every)} for name in shared | alone}
    table, ablation = table_of(whole), table_of(whole, "ablation_steps")
    assert table["benchmark"]["samples"] == {"busi": SAMPLES} and ablation["benchmark"]["samples"] == {"busi": 1}
    assert {(line["samples"], line["failed"]) for line in table["lines"]} == {(SAMPLES, 0)}
    assert {(line["samples"], line["failed"]) for line in ablation["lines"]} == {(1, 0)}
    ours = {line["line"]: line["metrics"]["psnr_fg"] for line in ablation["lines"]}["ours"]
    of_first = [entry for entry in read_csv(whole) if (entry["id"], entry["variant"]) == ("busi-000", "ours")]
    assert ours["mean"] == float(of_first[0]["psnr_fg"])
    assert ablation["reference"] == "ours" and len(ablation["differences"]) == len(ablation["lines"]) - 1
    with Image.open(whole / "ablation_steps_grid.png") as grid:
        assert grid.size == (8 + (2 + len(ablation["lines"])) * 200, 24 + 24 + 200)
    with Image.open(whole / "grid.png") as grid:  # three methods and Settings.paper(), not the matched lines
        assert grid.size == (8 + (2 + 4) * 200, 24 + 24 + SAMPLES * 200)


def test_fewer_samples_resume_and_become_more(parts, whole, again):
    model = FakeModel()
    options = {"settings": DEFAULTS, "ablations": ["steps"]}
    assert run(parts, again, *SHOWN, model=model, ablation_samples=1, **options) == []
    assert model.rows == 0 and tree(again) == tree(whole)
    assert run(parts, again, *SHOWN, model=model, **options) == []
    assert model.rows > 0
    assert {line["samples"] for line in table_of(again, "ablation_steps")["lines"]} == {SAMPLES}
    more = model.rows
    assert run(parts, again, *SHOWN, model=model, ablation_samples=1, **options) == []
    assert model.rows == more and read_csv(again) == read_csv(whole)


def test_a_sample_of_an_ablation_that_fails_is_told_by_its_id(tmp_path, monkeypatch):
    """The second dataset's first sample is the ablation's second, and the benchmark's third."""

    def fails(frame):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(METHODS, "published", fails)
    errors = run(draw(tmp_path), tmp_path / "out", "copy-paste", ablations=["tau"], ablation_samples=1)
    assert [(error["variant"], error["id"]) for error in errors] == [
        ("published", "br35h-000"),
        ("published", "busi-000"),
    ]


def test_shrunk_targets_are_told_in_the_tables(parts, tmp_path):
    assert run(parts, tmp_path / "out", "copy-paste", settings=DEFAULTS, target_scale=Fraction(1, 2)) == []
    assert table_of(tmp_path / "out")["benchmark"]["target_scale"] == "1/2"
