"""These tests run `python -m composition utility` from end to end, on drawn scans where it is known whether composites
help."""

import csv
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from composition_files import tree
from drawn_lesions import BRIGHT, DARK, SIDE, write_composites, write_labelled, write_tumour_free

from composition import cli
from composition.utility.arms import Arm
from composition.utility.data import Case
from composition.utility.run import _file_of
from composition.utility.training import Training, _batches, train

pytestmark = [
    pytest.mark.slow,  # importing MONAI takes seconds
    pytest.mark.skipif(find_spec("monai") is None, reason="the extra utility is not installed"),
]

SMALL = ["--steps", "40", "--batch", "4", "--added", "2", "--side", str(SIDE), "--width", "4", "--rate", "0.01"]


def command(data: Path, out: Path, *more: str) -> list[str]:
    made = [f"{name}={data / name}" for name in ("true", "wrong")]
    command = ["utility", "--real", data / "real", "--tumour-free", data / "free", "--test", data / "test"]
    command += ["--test-tumour-free", data / "test-free", "--composites", *made, "--per-scan", "3", "--alone"]
    return [*map(str, command), "--sizes", "8", "--seeds", "1", *SMALL, "--out", str(out), "-q", *more]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder of drawn scans, and what the command made of it in "out"."""
    data = tmp_path_factory.mktemp("utility")
    write_labelled(data / "real", range(30), (BRIGHT,), left=True)
    write_labelled(data / "test", range(2000, 2024), (BRIGHT, DARK))
    write_tumour_free(data / "free", range(1000, 1020))
    write_tumour_free(data / "test-free", range(3000, 3006))
    for name in ("true", "wrong"):
        write_composites(data / name, data / "real", data / "free", 3, wrong=name == "wrong")
    assert cli.main(command(data, data / "out")) == 0
    return data


def lines(out: Path) -> dict[str, dict]:
    (block,) = json.loads((out / "table.json").read_text())["blocks"]
    return {line["arm"]: line for line in block["lines"]}


def test_composites_that_must_help_are_seen_to_help_and_others_are_not(ran):
    """The real scans are bright on the left; the test scans are bright and dark, anywhere. True composites show that;
    the labels of wrong ones lie where nothing is."""
    found = lines(ran / "out")
    helped, misled = (found[f"+ {name}"]["less"]["real"] for name in ("true", "wrong"))
    # Dark discs are half of the test scans, and a segmenter of bright ones finds none of them: 0.5 is the room. A tenth
    # of it, at the lower end of the interval, is more than chance would leave.
    assert helped["interval"][0] > 0.05, helped
    assert misled["interval"][0] <= 0, misled


def test_everything_is_written(ran):
    out = ran / "out"
    rows = list(csv.DictReader((out / "results.csv").open()))
    arms = ["real", "real + tumour-free", "+ true", "+ wrong", "+ more real"]
    assert len(rows) == len(arms) * (24 + 6) and list(dict.fromkeys(row["arm"] for row in rows)) == arms
    assert all((row["dice"] == "") == (row["false_area"] != "") for row in rows)
    text = (out / "table.md").read_text()
    assert all(f"| {arm} |" in text for arm in arms) and "24 test scans with a tumour in 24 groups" in text
    assert "2 scans of each batch are real and 2 are added" in text
    assert "    python -m composition utility --real" in text
    for name in ("bars.png", "curves.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"
    (draw,) = json.loads((out / "drawn.json").read_text())["draws"]
    assert len(draw["real"]) == 8 and draw["composites_used"] == 24 and draw["more_real"] == 22


def test_the_same_command_trains_nothing_again_and_what_is_lost_comes_back_the_same(ran, capsys):
    out = ran / "out"
    results, before = (out / "results.csv").read_bytes(), tree(out / "runs")
    lost = out / "runs" / "8" / "with-true" / "0.json"
    old = json.loads(lost.read_text())
    lost.write_text(lost.read_text()[:100])
    assert cli.main([one for one in command(ran, out) if one not in ("-q", "--quiet")]) == 0
    said = capsys.readouterr().err
    assert "0.json is damaged and will be made again" in said and re.search(r"\d+ trainings of \d+ steps each; ", said)
    again = json.loads(lost.read_text())
    assert old | {"seconds": 0} == again | {"seconds": 0}  # to the same bits, on one thread
    assert (out / "results.csv").read_bytes() == results
    changed = {name for name, digest in tree(out / "runs").items() if before[name] != digest}
    assert changed <= {"8/with-true/0.json"}
    assert len((out / "commands.jsonl").read_text().splitlines()) == 2


def test_the_draw_alone_copies_the_scans_that_are_drawn(ran, tmp_path):
    assert cli.main(command(ran, tmp_path / "drawn", "--draw-only")) == 0
    (draw,) = json.loads((ran / "out" / "drawn.json").read_text())["draws"]
    names = {one["file"] for one in draw["real"]}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == names | {
        name.replace(".png", "_mask.png") for name in names
    }
    for name in names:
        assert (tmp_path / "drawn" / name).read_bytes() == (ran / "real" / name).read_bytes()


def cases(count: int, inside: bool) -> list[Case]:
    draw = np.random.default_rng(int(inside))
    images = draw.integers(0, 255, (count, SIDE, SIDE), dtype=np.uint8)
    return [Case(str(n), str(n), image, np.full((SIDE, SIDE), inside)) for n, image in enumerate(images)]


@pytest.mark.parametrize(("added", "negatives", "full"), [(0, 0, 0), (3, 0, 3), (3, 1, 2)])
def test_a_batch_holds_what_is_said_of_it(added, negatives, full):
    """Masks of added cases are full, and those of the others empty, which the augmentation leaves as they are."""
    empty = cases(3, False)
    arm = Arm("arm", empty, cases(4, True) if added else [], empty if negatives else [])
    training = Training(steps=5, batch=8, added=3, negatives=negatives, side=SIDE)
    batches = list(_batches(arm, training, seed=0))
    assert len(batches) == 5
    for images, masks in batches:
        assert images.shape == masks.shape == (8, 1, SIDE, SIDE)
        # Turned and moved masks lose a corner, of which half of the scan is always left.
        assert int((masks.mean(dim=(1, 2, 3)) > 0.5).sum()) == full
        assert int((masks.amax(dim=(1, 2, 3)) == 0).sum()) == 8 - full


def test_added_scans_leave_the_batches_when_told():
    """In the last three of ten steps all eight scans are real, whose masks are empty here."""
    arm = Arm("arm", cases(3, False), cases(4, True), [])
    training = Training(steps=10, batch=8, added=3, until=0.7, side=SIDE)
    full = [int((masks.mean(dim=(1, 2, 3)) > 0.5).sum()) for _, masks in _batches(arm, training, seed=0)]
    assert full == [3] * 7 + [0] * 3


def test_a_loss_that_is_no_number_ends_the_training():
    image = np.full((SIDE, SIDE), np.nan, np.float32)
    arm = Arm("arm", [Case("a", "a", image, np.ones((SIDE, SIDE), dtype=bool))], [], [])
    with pytest.raises(FloatingPointError, match="the loss of arm is no number at step 1; lower --rate"):
        train(arm, Training(steps=2, batch=2, added=1, side=SIDE, width=4), 0, lambda *_: None)


def test_every_seed_of_all_arms_begins_alike_and_other_seeds_do_not():
    def first_loss(seed: int) -> float:
        losses = []
        one = Training(steps=1, batch=2, added=1, side=SIDE, width=4)
        train(Arm("arm", cases(2, True), [], []), one, seed, lambda step, loss, predict: losses.append(loss))
        return losses[0]

    assert first_loss(0) == first_loss(0) != first_loss(1)


def test_the_name_of_a_training_is_a_files():
    arms = [Arm(name, [], [], []) for name in ("real", "real + tumour-free", "+ a.b", "+ more real", "a.b alone")]
    names = [_file_of(Path(), 8, arm, 0).parent.name for arm in arms]
    assert len(set(names)) == len(arms) and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
