"""These tests hold what `utility` measures: the draw, the arms, the scores, the intervals, and its errors. That it sees
whether composites help is tested in test_utility_command.py."""

import json
import re
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from composition_files import tree
from drawn_lesions import BRIGHT, DARK, write_composites, write_labelled, write_tumour_free
from PIL import Image

from composition import cli
from composition.datasets import LeftOut
from composition.runs.record import hold_to
from composition.scans.errors import DatasetError
from composition.utility.arms import Material, arms_of, composites_of, ranked
from composition.utility.data import Case, read_labelled
from composition.utility.run import TestScan as Scanned
from composition.utility.run import UtilityRequest, _is_whole, read_all
from composition.utility.scoring import lesions_of, score
from composition.utility.table import intervals, markdown, tabulate
from composition.utility.training import Training
from sd21.folders import FolderError

pytestmark = pytest.mark.skipif(find_spec("monai") is None, reason="the extra utility is not installed")
SIDE = 32


def case(name: str, *, of: str | None = None, mask: np.ndarray | None = None, image: int = 0) -> Case:
    mask = np.zeros((SIDE, SIDE), dtype=bool) if mask is None else mask
    return Case(name, f"hash of {name}", np.full((SIDE, SIDE), image, np.uint8), mask, of, None)


def pool(count: int) -> list[Case]:
    return [case(f"scan {number}") for number in range(count)]


def composites(of: list[Case], each: int, kind: str) -> list[Case]:
    return [case(f"{kind} {turn} {one.name}", of=one.sha256) for turn in range(each) for one in of]


def test_a_smaller_draw_is_the_beginning_of_a_larger_one_and_has_no_near_duplicates():
    cases, groups = pool(12), [0, 0, 0, *range(3, 12)]
    material = Material(cases, groups, [], {})
    drawn = ranked(material, seed=0)
    assert len(drawn) == 10 and sum(one in cases[:3] for one in drawn) == 1
    assert ranked(Material(cases[::-1], groups[::-1], [], {}), seed=0) == drawn  # whatever the order of the files is
    assert ranked(material, seed=1) != drawn
    small, large = (arms_of(material, size, 0, 1, (), ())[0][0].base for size in (3, 6))
    assert large[:3] == small == drawn[:3]


def test_every_arm_has_composites_of_the_same_scans_and_as_many_of_each():
    """Ours has none of the last scan and one of the second, so that no arm has more."""
    cases = pool(4)
    some = [
        one for number, each in enumerate((3, 1, 3, 0)) for one in composites(cases[number : number + 1], each, "o")
    ]
    made = {"ours": some, "copy-paste": composites(cases, 3, "pasted")}
    arms, told = arms_of(Material(cases, [0, 1, 2, 3], [], made), 4, 0, 3, [], ["ours", "copy-paste"])
    objects = [
        Counter(case.object_sha256 for case in arm.added) for arm in arms if arm.name in ("+ ours", "+ copy-paste")
    ]
    assert objects[0] == objects[1] == Counter({cases[0].sha256: 3, cases[1].sha256: 1, cases[2].sha256: 3})
    assert told["composed"] == 3 and told["composites_used"] == 7
    assert told["composites_of_them"] == {"ours": 7, "copy-paste": 12}


def test_every_arm_has_the_same_real_scans_and_as_many_composites_of_them_alone():
    cases, free = pool(10), [case("free")]
    made = {"ours": composites(cases, 4, "ours"), "copy-paste": composites(cases, 2, "pasted")}
    arms, told = arms_of(Material(cases, list(range(10)), free, made), 3, 0, 4, ["ours"], ["ours", "copy-paste"])
    by_name = {arm.name: arm for arm in arms}
    assert list(by_name) == ["real", "real + tumour-free", "+ ours", "+ copy-paste", "+ more real", "ours alone"]
    real = by_name["real"].base
    assert len(real) == 3 and all(
        by_name[name].base == real for name in ("real + tumour-free", "+ ours", "+ copy-paste")
    )
    # The poorest has 2 for each of the 3 scans, so all arms have 6; more real scans are all 10 but the 3 and so 6.
    assert told["composites_of_them"] == {"ours": 12, "copy-paste": 6} and told["composites_used"] == 6
    for name in ("ours", "copy-paste"):
        added = by_name[f"+ {name}"].added
        assert len(added) == 6 and all(sum(one.object_sha256 == scan.sha256 for one in added) == 2 for scan in real)
    assert by_name["ours alone"].base == by_name["+ ours"].added
    assert by_name["+ more real"].base[:3] == real and len({one.name for one in by_name["+ more real"].base}) == 9
    assert by_name["real + tumour-free"].added == free and by_name["+ ours"].negatives == free


def test_composites_are_taken_in_turn_from_every_scan():
    scans = pool(2)
    made = [case(f"{number}", of=scans[number // 3].sha256) for number in range(6)] + [case("x", of="another scan")]
    assert [one.name for one in composites_of(made, scans)] == ["0", "3", "1", "4", "2", "5"]


def test_too_few_composites_or_scans_are_told_with_their_counts():
    material = Material(pool(6), list(range(6)), [], {"ours": composites(pool(6), 1, "ours")})
    with pytest.raises(
        DatasetError,
        match=r"ours has 4 composites of the 4 scans .*, of which all have 4 in common, and 12",
    ):
        arms_of(material, 4, 0, 3, (), ["ours"])
    with pytest.raises(DatasetError, match="7 real scans are to be drawn, and there are 6"):
        arms_of(material, 7, 0, 1, (), ())


def test_scores_are_those_counted_by_hand():
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[2:6, 2:6] = True  # 16 pixels, and another lesion of 4 that touches it by a corner alone: one piece
    mask[6:8, 6:8] = True
    mask[20:24, 20:24] = True
    predicted = np.zeros_like(mask)
    predicted[20:24, 20:22] = True  # half of the second piece: found
    predicted[2:6, 2:4] = True  # 8 of the first piece's 20 pixels: not found
    predicted[30, 30] = True
    assert [int(one.sum()) for one in lesions_of(mask)] == [20, 16]
    assert score(predicted, case("a", mask=mask)) == {"dice": 2 * 16 / (36 + 17), "lesions": 2, "found": 1}
    assert score(mask & False, case("a", mask=mask)) == {"dice": 0.0, "lesions": 2, "found": 0}
    assert score(predicted, case("free")) == {"false_area": 17 / SIDE**2, "false_any": 1}
    assert score(predicted & False, case("free")) == {"false_area": 0.0, "false_any": 0}


def test_the_interval_is_the_bootstraps_and_counts_near_duplicates_once():
    draw = np.random.default_rng(1)
    differences = draw.normal(0.1, 0.2, (1, 400))
    low, high = intervals(differences, range(400))[0]
    # Normal theory says 1.96 * 0.2 / sqrt(400) = 0.0196 to each side; the sample's own deviation and 10 000 resamples
    # move an end by a tenth of that.
    assert (high - low) / 2 == pytest.approx(1.96 * differences.std() / 20, rel=0.1)
    assert (high + low) / 2 == pytest.approx(differences.mean(), abs=0.002)
    fourfold, groups = np.repeat(differences, 4, axis=1), np.repeat(np.arange(400), 4)
    assert intervals(fourfold, groups)[0] == pytest.approx((low, high), abs=1e-12)
    assert intervals(np.full((3, 7), 0.25), range(7)) == (pytest.approx((0.25, 0.25)),) * 2


def test_the_second_interval_holds_the_spread_of_the_seeds():
    differences = np.repeat([[0.0], [0.2], [0.4]], 50, axis=1)  # the scans agree, and the seeds do not
    over_scans, over_both = intervals(differences, range(50))
    assert over_scans == pytest.approx((0.2, 0.2))
    half = 4.3027 * 0.2 / np.sqrt(3)  # Student's t of two degrees, as tables have it to these digits
    assert over_both == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("scans", [0.0, 0.2])
def test_the_second_interval_holds_the_truth_as_often_as_it_says(seeds, scans, monkeypatch):
    """Draws of seeds, of what is hard about 40 scans (0.2: much more than of the seeds) and of what both are to each
    other. The true difference is 0."""
    monkeypatch.setattr("composition.metrics.intervals.RESAMPLES", 200)  # the deviation is known to 5 % by them
    draw, trials = np.random.default_rng(0), 400
    held = 0
    for _ in range(trials):
        differences = draw.normal(0, 0.03, (seeds, 1)) + draw.normal(0, scans, 40) + draw.normal(0, 0.05, (seeds, 40))
        low, high = intervals(differences, range(40))[1]
        held += low <= 0 <= high
    # Three standard errors of a share of 0.95 in 400 trials are 0.033. The interval may hold more: it is the wider the
    # more alike the two parts are. The bootstrap over seeds held 0.79 with three seeds and 0.90 with five.
    assert held / trials > 0.95 - 0.033


def test_one_seed_says_nothing_of_others():
    found = [training("real", 0, [0.2, 0.6]), training("+ copy-paste", 0, [0.3, 0.6])]
    made = tabulate(found, [], ["t", "t", "t"])
    less = made["blocks"][0]["lines"][1]["less"]["real"]
    assert intervals(np.ones((1, 3)), range(3))[1] is None and less["interval_with_seeds"] is None
    draw = {"size": 4, "composites_used": 0, "composed": 0, "more_real": 0}
    text = markdown({**made, "draws": [draw]}, asdict(Training()), LeftOut(), [])
    assert "| +0.050 – (scans alone: [+0.000, +0.100]) |" in text and "| scans with any false positive |" in text


def training(arm: str, seed: int, dice: list[float]) -> dict:
    rows = [
        {"test": "t", "file": f"{n}", "sha256": "", "group": n, "dice": value, "lesions": 1, "found": value > 0.5}
        for n, value in enumerate(dice)
    ]
    rows.append({"test": "t", "file": "free", "sha256": "", "group": 9, "false_area": 0.5, "false_any": 1})
    return {"arm": arm, "size": 4, "seed": seed, "scores": rows, "seconds": 1.0, "threads": 1}


def test_differences_are_paired_by_scan_and_seed():
    found = [training("real", 0, [0.2, 0.6]), training("real", 1, [0.4, 0.8])]
    found += [training("+ copy-paste", 1, [0.5, 0.8]), training("+ copy-paste", 0, [0.3, 0.6])]
    (block,) = tabulate(found, [], ["t", "t", "t"])["blocks"]
    real, pasted = block["lines"]
    assert (block["scans"], block["tumour_free"]) == (2, 1)
    assert real["dice"] == pytest.approx(0.5) and real["dice_by_seed"] == pytest.approx([0.4, 0.6])
    assert pasted["less"]["real"]["mean"] == pytest.approx(0.05)
    assert pasted["less"]["real"]["by_seed"] == pytest.approx([0.05, 0.05])
    assert real["less"]["+ copy-paste"]["mean"] == pytest.approx(-0.05)
    assert real["less"]["+ copy-paste"]["interval_with_seeds"] is not None
    assert pasted["sensitivity"] == pytest.approx(0.5) and pasted["false_area"] == pytest.approx(0.5)


def test_one_seed_has_no_interval_over_seeds():
    found = [training("real", 0, [0.1, 0.3]), training("+ copy-paste", 0, [0.2, 0.5])]
    draws = [{"size": 4, "seed": 0, "composites_used": 1, "composed": 1, "more_real": 0}]
    made = tabulate(found, draws, ["t"])
    assert made["blocks"][0]["lines"][1]["less"]["real"]["interval_with_seeds"] is None
    text = markdown(made, asdict(Training()), LeftOut(), [])
    assert re.search(r" – \(scans alone: \[[^]]*\]\) \|", text) and "| minus real | minus copy-paste |" in text


def request(folder: Path, **changes) -> UtilityRequest:
    given = {
        "real": folder / "real",
        "tumour_free": folder / "free",
        "composites": {"true": folder / "true"},
        "test": {"test": folder / "test"},
        "test_tumour_free": {},
        "sizes": (2,),
        "seeds": (1,),
        "compared": (),
        "alone": (),
        "per_scan": 1,
        "training": Training(side=SIDE),
    }
    return UtilityRequest(**given | changes)


@pytest.fixture
def folder(tmp_path):
    write_labelled(tmp_path / "real", range(4), (BRIGHT,))
    write_labelled(tmp_path / "test", range(10, 15), (DARK,))
    write_tumour_free(tmp_path / "free", range(100, 103))
    write_composites(tmp_path / "true", tmp_path / "real", tmp_path / "free", 1, wrong=False)
    return tmp_path


def test_no_scan_stands_on_both_sides(folder):
    mirrored = Image.open(folder / "real" / "s1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for place in ("test", "twins"):
        (folder / place).mkdir(exist_ok=True)
        mirrored.save(folder / place / "m.png")
        Image.fromarray(np.ones(mirrored.size, dtype=bool)).save(folder / place / "m_mask.png")
    left_out = LeftOut()
    material, tests = read_all(request(folder), left_out)
    assert left_out.names["test scan that is a near-duplicate of one to learn from"] == ["m.png"]
    assert sorted(test.case.name for test in tests) == [f"s{seed}.png" for seed in range(10, 15)]
    assert len(material.pool) == 4 and len(material.composites["true"]) == 4
    with pytest.raises(DatasetError, match="no labelled scan of the test scans twins is left"):
        read_all(request(folder, test={"twins": folder / "twins"}), LeftOut())


def test_a_tumour_free_scan_is_no_copy_of_a_labelled_one(folder):
    """Neither to learn from nor in the tests; of two labels of one picture, one would be wrong."""
    write_tumour_free(folder / "test-free", range(300, 303))
    shutil.copy(folder / "real" / "s1.png", folder / "free" / "copy.png")
    shutil.copy(folder / "test" / "s11.png", folder / "test-free" / "copied.png")
    left_out = LeftOut()
    parts = {"test": folder / "test-free"}
    material, tests = read_all(request(folder, test_tumour_free=parts), left_out)
    assert left_out.names == {"tumour-free scan that is a near-duplicate of a labelled one": ["copy.png", "copied.png"]}
    assert len(material.pool) == 4 and len(material.tumour_free) == 3 and len(tests) == 5 + 3
    (folder / "copies").mkdir()
    shutil.copy(folder / "real" / "s1.png", folder / "copies" / "copy.png")
    with pytest.raises(DatasetError, match="copies: every scan is a near-duplicate of a labelled one of"):
        read_all(request(folder, tumour_free=folder / "copies", composites={}), LeftOut())


def test_a_part_without_test_scans_is_told_why(folder):
    parts = {"a": folder / "test", "b": folder / "test"}
    with pytest.raises(DatasetError, match=r"test scans b is left: 5 x test scan of an earlier part$"):
        read_all(request(folder, test=parts), LeftOut())


def test_composites_say_of_which_scans_they_are(folder):
    table = folder / "true" / "metadata.jsonl"
    first, *others = (json.loads(line) for line in table.read_text().splitlines())
    first["inputs"]["object"]["sha256"] = [1]
    table.write_text("".join(json.dumps(one) + "\n" for one in (first, *others)))
    with pytest.raises(DatasetError, match=r"is not as `batch` writes it .*a sha256 is no text"):
        read_all(request(folder), LeftOut())


def test_another_request_in_the_same_folder_is_refused(folder, capsys):
    """Before any training; what is there stays."""
    (folder / "out").mkdir()
    for name, text, message in (
        (
            "asked.json",
            '{"steps": 499}',
            "holds another experiment, see asked.json in it: steps was 499 and is 500 now",
        ),
        ("asked.json", '{"scans": {"real": [9, "0"]}}', "scans: real was [9, '0'] and is [4, "),
        ("commands.jsonl", "{", "commands.jsonl is damaged (JSONDecodeError"),
        ("commands.jsonl", '{"command": "a", "seconds": "b"}', "commands.jsonl is damaged: a line has no text command"),
    ):
        (folder / "out" / name).write_text(text)
        command = ["utility", "--real", folder / "real", "--test", folder / "test", "--out", folder / "out"]
        assert cli.main([*map(str, command), "--sizes", "2"]) == 2
        assert message in capsys.readouterr().err
        assert [path.read_text() for path in (folder / "out").iterdir()] == [text]
        (folder / "out" / name).unlink()


def test_sizes_and_composites_may_be_added_to_a_folder(tmp_path):
    path = tmp_path / "asked.json"
    for names in ("a", "b", "ab"):
        hold_to(path, {"steps": 5, "composites": {name: [1, name] for name in names}})
    assert json.loads(path.read_text()) == {"steps": 5, "composites": {"a": [1, "a"], "b": [1, "b"]}}
    with pytest.raises(FolderError, match=r"composites: a was \[1, 'a'\] and is \[2, 'a'\] now; name another folder"):
        hold_to(path, {"steps": 5, "composites": {"a": [2, "a"]}})


def test_a_kept_training_that_lacks_something_is_none():
    some = Training(steps=20)
    tests = [Scanned(case("a", mask=np.ones((SIDE, SIDE), dtype=bool)), "t", 0), Scanned(case("b"), "t", 1)]
    rows = [
        {"test": "t", "file": "a", "sha256": "", "group": 0, "dice": 0.5, "lesions": 1, "found": 1},
        {"test": "t", "file": "b", "sha256": "", "group": 1, "false_area": 0.0, "false_any": 0},
    ]
    curve = [{"step": step, "loss": 1.0, "dice": 0.5} for step in range(2, 21, 2)]
    whole = {"seconds": 1.0, "threads": 1, "curve": curve, "scores": rows}
    assert _is_whole(whole, some, tests)
    less = [{name: value for name, value in whole.items() if name != one} for one in whole]
    less += [
        whole | {"scores": value} for value in ([], None, rows[:1], rows[::-1], [rows[0] | {"dice": "a"}, rows[1]])
    ]
    less += [whole | {"scores": [rows[0] | {"more": 1}, rows[1]]}]
    less += [whole | {"curve": value} for value in ([], curve[:-1], [1], [{**curve[0], "loss": None}, *curve[1:]])]
    assert not any(_is_whole(one, some, tests) for one in less)


def test_a_composite_in_a_test_scan_is_an_error_and_one_in_another_scan_is_left_out(folder):
    write_tumour_free(folder / "other", range(200, 202))
    with pytest.raises(DatasetError, match="lies in a test scan; compose in other backgrounds"):
        others = {"tumour_free": folder / "other", "test_tumour_free": {"test": folder / "free"}}
        read_all(request(folder, **others), LeftOut())
    with pytest.raises(ValueError, match="--composites takes --tumour-free too"):
        request(folder, tumour_free=None)
    left_out = LeftOut()
    material, _ = read_all(request(folder, tumour_free=folder / "other"), left_out)
    assert material.composites["true"] == []
    assert left_out.counts["true: composite in a scan that is none of --tumour-free"] == 4


def test_a_tumour_smaller_than_a_pixel_is_not_lost(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (320, 320), dtype=np.uint8)
    mask = np.zeros((320, 320), dtype=bool)
    mask[100:103, 50:53] = True  # 9 of the 100 pixels that become one
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    (read,) = read_labelled(tmp_path, SIDE, LeftOut())
    assert read.mask.sum() == 1 and read.mask[10, 5]


def test_the_draw_depends_on_the_real_scans_alone(folder):
    """A test scan that two real ones are near-duplicates of joins them in one group, and not in the draw."""
    draw = np.random.default_rng(0)
    # Correlations: 40^2 / (40^2 + 12^2) = 0.92 of the two, and sqrt(0.96) = 0.98 of each with what is between them.
    shared, first, second = (np.kron(draw.normal(0, std, (12, 12)), np.ones((4, 4))) for std in (40, 12, 12))
    for name, grain in (("real/a", first), ("real/b", second), ("test/between", (first + second) / 2)):
        Image.fromarray((120 + shared + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
        Image.fromarray(np.ones(grain.shape, dtype=bool)).save(folder / f"{name}_mask.png")
    material, tests = read_all(request(folder), LeftOut())
    names = [one.name for one in material.pool]
    assert material.groups[names.index("a.png")] != material.groups[names.index("b.png")]
    assert "between.png" not in [test.case.name for test in tests]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--real", "nowhere"], "nowhere"),
        (["--composites", "ours=nowhere"], "--composites takes --tumour-free too"),
        (["--composites", "ours=nowhere", "--tumour-free", "{folder}/free"], "nowhere/metadata.jsonl is not there"),
        (["--composites", "a/b=nowhere"], "the name 'a/b' names an arm and a folder"),
        (["--composites", "a=x", "a=y"], "--composites: the name a is there twice"),
        (["--composites", "tumour-free=x"], "the name 'tumour-free' is taken by an arm that is there anyway"),
        (["--alone", "mine"], "--alone names mine, which is none of --composites"),
        (["--sizes", "4", "4"], "every size has its number of seeds, and stands once"),
        (["--sizes", "0"], "--sizes: expected whole numbers from 1 up"),
        (["--sizes", "5"], "5 real scans are to be drawn, and there are 4"),
        (["--out", "{folder}/real/out"], "would lie among the scans of"),
        (["--out", "{folder}/real", "--draw-only"], "would lie among the scans of"),
        (["--steps", "0"], "steps is a whole number from 1 to 1000000, got 0"),
        (["--side", "40"], "side is a multiple of 16, as the U-Net halves it"),
        (["--until", "0"], "until is a number from 0.01 to 1.0, got 0.0"),
        (["--added", "8"], "added is at least 1 and below batch 8"),
        (["--rate", "nan"], "rate is a number from 1e-08 to 1.0, got nan"),
        (["--test-tumour-free", "b=nowhere"], "--test-tumour-free names b, which is none of --test"),
    ],
)
def test_what_cannot_be_met_is_told_before_any_training(folder, capsys, more, message):
    command = ["utility", "--real", str(folder / "real"), "--test", str(folder / "test"), "--out", str(folder / "out")]
    assert cli.main([*command, "--sizes", "2", *(one.format(folder=folder) for one in more)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_draw_goes_to_a_folder_of_its_own(folder, capsys):
    """A user's files stay, and a former larger draw is not taken for this one."""
    command = ["utility", "--real", str(folder / "real"), "--test", str(folder / "test"), "--draw-only", "-q"]

    def drawn(out: Path, sizes: str) -> str:
        code = cli.main([*command, "--out", str(out), "--sizes", sizes, "--seeds", "1"])
        told = capsys.readouterr().err
        assert code == (2 if told else 0)
        return told

    larger = tree(folder / "out") if drawn(folder / "out", "4") == "" else {}
    assert len(larger) == 8 and drawn(folder / "out", "4") == "" and tree(folder / "out") == larger
    assert "is none of the files that are drawn now; name an empty folder" in drawn(folder / "out", "2")
    assert tree(folder / "out") == larger
    for name in ("s0.png", "s0_mask.png", "notes.txt"):
        (folder / name).mkdir()
        (folder / name / name).write_text("mine")
        assert f"{name} is none of the files" in drawn(folder / name, "4")
        assert [path.read_text() for path in (folder / name).iterdir()] == ["mine"]


def test_without_the_extra_its_name_is_told(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    command = ["utility", "--real", str(folder / "real"), "--test", str(folder / "test"), "--out", str(folder / "out")]
    assert cli.main([*command, "--sizes", "2"]) == 2
    assert 'install the extra: pip install "tumour-composition[utility]"' in capsys.readouterr().err
