"""These tests hold `realism`: every measure sees a difference that is there, and none where there is none; no scan
stands on both sides of the classifier; bad input is one line; and a killed run goes on."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from drawn_crops import drawn_crop
from drawn_tumours import draw_composites, draw_real, draw_tumour, realism_command
from kill_at_every_moment import run as run_killed
from PIL import Image

from composition import cli
from composition.datasets import Labelled
from composition.datasets.reading import LeftOut
from composition.metrics import intervals
from composition.metrics.lpips import shift_tolerant_lpips
from composition.realism import classifier, groups, mmd, radiomics, run
from composition.realism.choices import Choices
from composition.realism.crops import cut, rim_of, square_around
from composition.realism.groups import REAL
from composition.realism.sets import read_set
from composition.scans.errors import DatasetError, WeightsError

FAST = ["--steps=1", "--folds=2", "--seeds=1", "-q"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """60 real scans, 20 composites from their distribution and 20 that look pasted."""
    folder = tmp_path_factory.mktemp("sets")
    draw_real(folder / "real", 60)
    draw_composites(folder / "same", 20, 1000)
    draw_composites(folder / "pasted", 20, 2000, pasted=True)
    return folder


def figures(out) -> dict[tuple[str, str], dict[str, float]]:
    numbers = ("value", "low", "high", "p")
    with open(out / "realism.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["set"], row["measure"]): {name: float(row[name]) for name in numbers if row[name]} for row in rows}


@pytest.fixture(scope="module")
def measured(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    assert cli.main(realism_command(sets, out, "--steps=60", "--folds=2", "--seeds=1", "-q")) == 0
    return out


@pytest.mark.slow
def test_equal_distributions_are_near_the_floor_and_others_are_seen(measured):
    found = figures(measured)
    for name in ("accuracy", "auc"):
        for one in ("same", REAL):
            # 40 independent crops: the standard deviation of a share is 0.08. The AUC's is 0.09.
            assert abs(found[one, name]["value"] - 0.5) < 3 * 0.09
            assert found[one, name]["low"] <= 0.5 <= found[one, name]["high"]
        assert found["pasted", name]["low"] > 0.5 and found["pasted", name]["value"] > 0.5 + 3 * 0.09
    for name in ("wasserstein inside", "wasserstein rim", "difference inside", "difference rim"):
        # The floor holds 95 of 100 draws of the same distribution; half as much again holds all of them.
        assert found["same", name]["value"] < 1.5 * found[REAL, name]["high"]
        assert found["pasted", name]["low"] > found[REAL, name]["high"]
    for name in ("same", "pasted"):  # both are matched to within a pixel or two, of 66 to 87
        assert abs(found[name, "size"]["value"] - 0.5) < 0.1
    assert found["pasted", "sd inside"]["value"] > 1 > abs(found["same", "sd inside"]["value"])


@pytest.mark.slow
def test_mmd_tells_what_differs(measured):
    try:
        shift_tolerant_lpips()
    except WeightsError:
        pytest.skip("the extra `metrics` (stlpips-pytorch) is not installed")
    found = figures(measured)
    assert found["pasted", "mmd"]["p"] < 0.01 < found["same", "mmd"]["p"]
    assert found["pasted", "mmd"]["value"] > found[REAL, "mmd"]["high"]
    assert found[REAL, "mmd"]["low"] < 0 < found[REAL, "mmd"]["high"]  # the estimate is unbiased


@pytest.mark.slow
def test_the_table_has_a_row_for_each_set_and_the_sheet_is_a_picture(measured):
    text = (measured / "realism.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| same", "| pasted", f"| {REAL}"))]
    assert len(rows) == 3 and all(row.count("|") == rows[0].count("|") for row in rows)
    assert "2 x 20" in rows[0]
    with Image.open(measured / "crops.png") as sheet:
        assert sheet.mode == "L" and sheet.info == {}
    assert not list(measured.glob(".*"))


def placed(sets, *names, choices=Choices()):  # noqa: B008 (it is frozen)
    left_out = {name: LeftOut() for name in ("real", *names)}
    request = run.RealismRequest((("folder", sets / "real"),), {name: sets / name for name in names})
    return run._placed(request, choices, left_out)


def test_no_scan_stands_on_both_sides_of_the_classifier(tmp_path):
    """Composites of the real scans' own tumours, which share backgrounds, and real scans that are twins."""
    draw_real(tmp_path / "real", 40)
    for number in range(8):  # another contrast, and mirrored
        with (
            Image.open(tmp_path / "real" / f"scan {number}.png") as scan,
            Image.open(tmp_path / "real" / f"scan {number}_mask.png") as mask,
        ):
            twin = np.asarray(scan).astype(float)[:, ::-1] * 0.8 + 10
            Image.fromarray(twin.astype(np.uint8)).save(tmp_path / "real" / f"twin {number}.png")
            Image.fromarray(np.asarray(mask)[:, ::-1]).save(tmp_path / "real" / f"twin {number}_mask.png")
    draw_composites(tmp_path / "ours", 20, 3000, objects=tmp_path / "real")
    table = tmp_path / "ours" / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["inputs"]["background"]["sha256"] = f"background {number // 2}"  # of two composites each
        if number >= 10:  # and each tumour goes into two backgrounds
            row["inputs"]["object"] = rows[number - 10]["inputs"]["object"]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    real, composites = placed(tmp_path, "ours")
    assert len(real) == 40  # of twins one stays
    objects = {one.group for one in composites["ours"]}
    (chosen,) = groups.contests(real, composites, 0)  # 30 other scans are enough for 10 crops, and 10 for the floor
    assert not chosen.own_objects and not objects & {one.group for one in chosen.real}
    few = sorted(real, key=lambda one: one.group not in objects)[:29]
    (chosen,) = groups.contests(few, composites, 0)
    assert chosen.own_objects and {one.group for one in chosen.others} == objects
    # A contest of all composites, in which objects and backgrounds come again.
    contest = groups.Contest("ours", groups.matched(real, composites["ours"], 0), composites["ours"])
    parts = groups.folds(contest, 4, 0)
    tested = sorted(index for _, test in parts for index in test)
    assert tested == list(range(40))
    for training, test in parts:
        assert len(training) >= 10  # the rule leaves something to learn from

        def seen(which):
            crops = [contest.crops[index] for index in which]
            scans = {one.crop.sources.get("object") for one in crops} | {one.group for one in crops}
            return (scans | {one.crop.sources.get("background") for one in crops}) - {None}

        assert not seen(training) & seen(test)


def test_the_floor_parts_scans_and_sets_are_as_large_as_each_other(sets):
    real, composites = placed(sets, "same", "pasted")
    for contest in (*groups.contests(real, composites, 0), groups.floor(real, 20, 0), groups.floor(real, 20, 1)):
        assert len(contest.real) == len(contest.others) == 20
        assert not {one.group for one in contest.real} & {one.group for one in contest.others}
        sides = [sorted(one.crop.side for one in some) for some in (contest.real, contest.others)]
        assert np.abs(np.subtract(*sides)).mean() < 3  # of 66 to 87 pixels, from a pool of twice as many


def test_results_do_not_depend_on_the_order_or_the_names_of_files(tmp_path, sets):
    shutil.copytree(sets / "same", tmp_path / "same")
    (tmp_path / "real").mkdir()
    for number in range(60):
        for end in (".png", "_mask.png"):
            shutil.copy(sets / "real" / f"scan {number}{end}", tmp_path / "real" / f"{99 - number}{end}")
    contests = [groups.contests(*placed(folder, "same"), 0)[0] for folder in (sets, tmp_path)]
    digests = [[one.crop.digest for one in contest.crops] for contest in contests]
    assert digests[0] == digests[1]
    parts = [groups.folds(contest, 3, 5) for contest in contests]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(*parts, strict=True))


def test_crops_are_made_in_one_way_and_what_has_none_is_counted(tmp_path):
    pixels, mask = draw_tumour(7)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)

    def reasons(mask, choices=Choices()):  # noqa: B008 (it is frozen)
        left_out = LeftOut()
        found = cut([Labelled(path, mask)], choices, left_out)
        assert len(found) + sum(left_out.counts.values()) == 1
        return next(iter(left_out.names), "used")

    square = np.zeros((120, 120), dtype=bool)
    square[40:80, 30:90] = True
    assert square_around(square, 0.25) == (15, 15, 90) and square_around(square, 0) == (30, 30, 60)
    assert reasons(mask) == "used"
    assert reasons(np.roll(mask, 40, axis=0)) == "crop leaves its scan"
    assert reasons(mask & (np.arange(120) < 60)[:, None], Choices(size=120)) == "crop would have to be enlarged"
    assert reasons(np.zeros_like(mask)) == "mask without lesion"
    assert reasons(mask[:, :-1]) == "mask of another size than its image"
    dots = np.zeros_like(mask)
    dots[60, [30, 89]] = True
    assert reasons(dots).startswith("tumour or rim has fewer")
    everything = np.ones((64, 64), dtype=bool)
    assert not rim_of(everything, 3).any()
    path.write_bytes(b"no image")
    assert reasons(mask) == "image cannot be read"


def test_co_occurrences_are_those_of_scikit_image():
    """Its documentation's example: four levels, the neighbour to the right; and by hand in a mask."""
    pixels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]])
    right = np.array([[2, 2, 1, 0], [0, 2, 0, 0], [0, 0, 3, 1], [0, 0, 0, 1]])
    down = np.array([[3, 0, 2, 0], [0, 2, 2, 0], [0, 0, 1, 2], [0, 0, 0, 0]])
    diagonal = np.array([[1, 1, 3, 0], [0, 1, 1, 0], [0, 0, 0, 2], [0, 0, 0, 0]])  # to the lower right
    other = np.array([[2, 0, 0, 0], [1, 1, 2, 0], [0, 0, 2, 1], [0, 0, 0, 0]])  # to the lower left
    counts = right + down + diagonal + other
    share = radiomics.co_occurrences(pixels, np.ones((4, 4), dtype=bool), 4)
    assert share == pytest.approx((counts + counts.T) / (2 * counts.sum()))
    # Two pixels, 1 beside 3: the difference is 2 wherever it counts.
    mask = np.zeros((4, 4), dtype=bool)
    mask[1, 1:3] = True
    values = np.array([[0, 0, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert radiomics.texture(values, mask, 4) == pytest.approx([4, 1 / 5, np.sqrt(1 / 2), -1])
    flat = radiomics.features_of(np.full((8, 8), 77, np.uint8), np.ones((8, 8), dtype=bool))
    assert flat == pytest.approx([77, 0, 0, 0, 0, 0, 1, 1, 1])


def test_first_order_features_are_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).gamma(2, 20, 500).clip(0, 255).astype(np.uint8)
    share = np.bincount(values // 16, minlength=16) / 500
    expected = [values.mean(), values.std(), stats.skew(values), stats.kurtosis(values), stats.entropy(share, base=2)]
    assert radiomics.first_order(values) == pytest.approx(expected)  # the same float64 formulas


def test_distances_are_known_where_sets_are_shifted():
    """Grey levels 20 higher: the Wasserstein distance is 20, and only the mean differs among the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(0, 1, (200, 2, 9))
    features[100:] = features[:100]
    features[100:, :, 0] += 2 * features[:100, :, 0].std(axis=0)
    cumulative = np.zeros((200, 2, 256))
    cumulative[:100, :, 50:], cumulative[100:, :, 70:] = 1, 1
    found = radiomics.distances(radiomics.Measured(features, cumulative), np.repeat([0, 1], 100), np.ones(200))
    assert found[:, 0] == pytest.approx(20) and found[:, 2] == pytest.approx(2)
    assert found[:, 1] == pytest.approx(2 / 9) and found[:, 3:] == pytest.approx(0, abs=1e-12)


def test_mmd_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    values = [mmd.mmd(mmd.kernel(rng.normal(size=(40, 5))), labels) for _ in range(300)]
    # Four standard errors of a mean over 300 draws.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    shifted = np.concatenate([rng.normal(size=(20, 5)), rng.normal(size=(20, 5)) + 3])
    # The kernel's own expectation, estimated by the other, biased, formula on disjoint pairs.
    k = mmd.kernel(shifted)
    linear = np.mean([k[i, i + 1] + k[20 + i, 21 + i] - k[i, 21 + i] - k[i + 1, 20 + i] for i in range(0, 20, 2)])
    assert mmd.mmd(k, labels) == pytest.approx(linear, abs=0.25)  # the linear estimate's own deviation is 0.1 at n = 20


def test_accuracy_weighs_both_kinds_alike_and_auc_counts_ties_half():
    labels = np.array([0, 0, 0, 1])
    found = classifier.accuracy_and_auc(
        [{"logit": [-1.0, -2.0, 3.0, 3.0], "fold": [0, 0, 0, 0]}], [labels], [[drawn_crop(name) for name in "abcd"]]
    )
    assert found["accuracy"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["auc"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_intervals_of_distances_take_the_noise_of_resampling_away():
    rng = np.random.default_rng(0)
    low, high = intervals.basic(1.0, np.abs(rng.normal(1.5, 0.2, 1000)))
    assert low < 1 and high < 1.2  # the resamples lie half above the value, the interval below it
    assert intervals.basic(0.1, np.full(10, 0.5))[0] == 0


def test_a_classifier_that_has_something_to_see_sees_it_and_is_the_same_every_time():
    images = torch.randn(20, 1, 64, 64, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.arange(20) % 2
    images += labels.view(-1, 1, 1, 1) * 0.5
    first, second = (classifier.train(images, labels, 30, 3)(images) for _ in range(2))
    assert torch.equal(first, second)
    assert ((first > 0) == labels.bool()).all()


def errors(capsys, *arguments) -> str:
    try:
        code = cli.main(["realism", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2 and told.startswith("error: ") and told.count("\n") == 1, told
    return told


def test_bad_input_is_one_line_and_leaves_nothing(sets, tmp_path, capsys):
    real, same, out = sets / "real", f"same={sets / 'same'}", tmp_path / "out"
    few = draw_composites(tmp_path / "few", 3, 5000)
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(sets / "same", tmp_path / "broken")
    (broken / "metadata.jsonl").write_text('{"file_name": 3}\n')
    cases = {
        "name real scans": ("--composites", same, "--out", out),
        "and one set or more": ("--real", real, "--out", out),
        "--out": ("--real", real, "--composites", same),
        "expected NAME=DIR": ("--real", real, "--composites", sets / "same", "--out", out),
        "two sets bear one name": ("--real", real, "--composites", same, same, "--out", out),
        "none is 'real'": ("--real", real, "--composites", f"Real={sets / 'same'}", "--out", out),
        "the name of a set has": ("--real", real, "--composites", f"a/b={sets / 'same'}", "--out", out),
        "is no folder": ("--real", tmp_path / "none", "--composites", same, "--out", out),
        "holds no labelled scan": ("--real", tmp_path / "empty", "--composites", same, "--out", out),
        "few: 3 crops can be used, expected 10": ("--real", real, "--composites", f"few={few}", "--out", out),
        "1 x line without file_name and mask_file_name": (
            "--real",
            real,
            "--composites",
            f"broken={broken}",
            "--out",
            out,
        ),
        "margin is a number from 0 to 4": ("--real", real, "--composites", same, "--out", out, "--margin=nan"),
        "folds is a whole number": ("--real", real, "--composites", same, "--out", out, "--folds=1"),
        "too few for 50 parts": ("--real", real, "--composites", same, "--out", out, "--folds=50", "--steps=1"),
        "crop would have to be enlarged": ("--real", real, "--composites", same, "--out", out, "--size=500"),
        "lie among the scans of": ("--real", real, "--composites", same, "--out", real / "out"),
        f"lie among the scans of {sets / 'same'}": ("--real", real, "--composites", same, "--out", sets / "same"),
        "is a file": ("--real", real, "--composites", same, "--out", broken / "metadata.jsonl"),
    }
    for told, arguments in cases.items():
        assert told in errors(capsys, *arguments, "-q"), told
        assert not out.exists()


def test_files_that_realism_has_not_made_stay(sets, tmp_path, capsys):
    (tmp_path / "realism.md").write_text("mine")
    assert "no realism has made it" in errors(capsys, *realism_command(sets, tmp_path, *FAST)[1:])
    assert (tmp_path / "realism.md").read_text() == "mine"


def test_what_cannot_be_used_is_counted(tmp_path, sets):
    folder = shutil.copytree(sets / "real", tmp_path / "real")
    (folder / "scan 0_mask.png").unlink()
    (folder / "scan 1.png").unlink()
    (folder / "scan 2_mask.png").write_bytes(b"damaged")
    shutil.copy(folder / "scan 3_mask.png", folder / "scan 3_mask_1.png")
    left_out = LeftOut()
    assert len(read_set(folder, left_out)) == 57
    assert left_out.counts == {"image without mask": 1, "mask cannot be read": 1, "mask without image": 1}
    with pytest.raises(DatasetError, match="metadata"):
        os.mkdir(tmp_path / "odd")
        os.mkdir(tmp_path / "odd" / "metadata.jsonl")
        read_set(tmp_path / "odd", LeftOut())


@pytest.mark.slow
def test_a_killed_run_goes_on_and_comes_to_the_same(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SPLITS", 3)  # what is quick to measure takes a second else, and there are many runs
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr(mmd, "PERMUTATIONS", 9)
    whole = tmp_path / "whole"
    assert cli.main(realism_command(sets, whole, *FAST)) == 0
    for moment in (1, 4, 11, 13):  # before the list of what is left out, a part, the figures and the table
        out = tmp_path / str(moment)
        status = run_killed(realism_command(sets, out, *FAST), moment)
        assert os.WIFSIGNALED(status)
        kept = {path.name: path.read_bytes() for path in (out / "parts").glob("[!.]*.json")}
        assert len(kept) == min(max(moment - 2, 0), 9)
        assert os.waitstatus_to_exitcode(run_killed(realism_command(sets, out, *FAST), None)) == 0
        assert {name: (out / "parts" / name).read_bytes() for name in kept} == kept  # not measured twice
        for name in ("realism.csv", "crops.png", "left_out.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        assert not list(out.glob(".*"))


@pytest.mark.slow
def test_parts_of_another_request_or_damaged_ones_are_made_again(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SPLITS", 3)
    out = tmp_path / "out"
    assert cli.main(realism_command(sets, out, *FAST)) == 0
    first = {path.name: path.read_bytes() for path in (out / "parts").iterdir()}
    damaged = out / "parts" / "classifier_same_0.json"
    damaged.write_text("{")
    with pytest.warns(UserWarning, match="made again"):
        run.run_realism(
            run.RealismRequest((("folder", sets / "real"),), {name: sets / name for name in ("same", "pasted")}),
            out,
            Choices(steps=1, folds=2, seeds=1),
            quiet=True,
        )
    assert json.loads(damaged.read_text())["figures"] == json.loads(first[damaged.name])["figures"]
    assert cli.main(realism_command(sets, out, *FAST, "--margin=0.2")) == 0
    assert all((out / "parts" / name).read_bytes() != content for name, content in first.items())
