"""These tests hold the reader study: its key is true, nothing but pixels tells what a crop is, and its scores are
right."""

import csv
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
from composition_files import tree
from drawn_tumours import draw_composites, draw_real, realism_command
from PIL import Image

from composition import cli
from composition.metrics import intervals
from composition.metrics.intervals import exact_binomial
from composition.realism import run, study
from composition.realism.choices import Choices
from composition.realism.groups import Contest
from composition.realism.names import KEY, STUDY
from composition.realism.scoring import score
from composition.scans.errors import DatasetError, SheetError

EACH = 5


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    draw_real(folder / "real", 50)
    draw_composites(folder / "same", 12, 1000)
    draw_composites(folder / "pasted", 12, 2000, pasted=True)
    return folder


def command(sets, out, *more) -> list[str]:
    fast = ["--steps=1", "--folds=2", "--seeds=1", "-q", f"--reader-crops={EACH}"]
    return realism_command(sets, out, *fast, *more)


@pytest.fixture(scope="module")
def written(sets, tmp_path_factory):
    """The folder of a study; the measures beside it are not what these tests are about."""
    out = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SPLITS", 2)
        patch.setattr(intervals, "RESAMPLES", 10)
        assert cli.main(command(sets, out, "--reader-study")) == 0
    return out


def rows(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_key_is_true(sets, written):
    key = rows(written / KEY / "key.csv")
    assert [row["set"] for row in key].count("real") == 2 * EACH
    assert [row["set"] for row in key].count("same") == [row["set"] for row in key].count("pasted") == EACH
    for row in key:
        folder = sets / "real" if row["set"] == "real" else sets / row["set"] / "images"
        with Image.open(folder / row["file"]) as scan, Image.open(written / STUDY / f"crops/{row['crop']}.png") as crop:
            mask_name = row["file"].replace(".png", "_mask.png") if row["set"] == "real" else f"../masks/{row['file']}"
            with Image.open(folder / mask_name) as mask:
                x0, y0, x1, y1 = mask.getbbox()
            # The crop's middle is that of the tumour's box in its scan; both are averages over 8 of the scan's pixels.
            y, x = (y0 + y1) // 2, (x0 + x1) // 2
            there = np.asarray(scan).astype(float)[y - 4 : y + 4, x - 4 : x + 4].mean()
            side = int(np.ceil(max(x1 - x0, y1 - y0) * 1.5))
            half = round(4 * study.SIDE / side)
            here = np.asarray(crop).astype(float)[128 - half : 128 + half, 128 - half : 128 + half].mean()
            assert here == pytest.approx(there, abs=3)  # of 255: a pixel's rounding of the place


def test_what_to_do_with_a_study_is_told(sets, written, tmp_path, capsys):
    assert cli.main([one for one in command(sets, written, "--reader-study") if one != "-q"]) == 0
    *_, told = capsys.readouterr().out.splitlines()
    assert f"give readers the folder {written / STUDY} alone" in told
    line = told.split("Score what they send back: python -m composition ")[1]
    sheet = tmp_path / "sheet.csv"
    blank = (written / STUDY / "sheet.csv").read_text()
    assert blank.startswith("reader,crop,answer (real or synthetic),confidence (1 to 5)\n")
    sheet.write_text(blank.replace(",,\n", ",real,3\n"))
    assert cli.main(line.replace("sheet.csv", str(sheet)).split()) == 0
    assert f"| reader 1 | real | {2 * EACH} | {2 * EACH} | 100%" in capsys.readouterr().out


def test_nothing_but_the_pixels_tells_what_a_crop_is(written):
    crops = sorted((written / STUDY / "crops").iterdir())
    assert [path.name for path in crops] == [f"{number:04d}.png" for number in range(1, 4 * EACH + 1)]
    assert len({path.stat().st_size for path in crops}) == 1  # uncompressed
    files = [path for path in (written / STUDY).rglob("*") if path.is_file()]
    assert len({path.stat().st_mtime for path in files}) == 1 and len({path.stat().st_mode for path in files}) == 1
    for path in crops:
        chunks = re.findall(rb"IHDR|IDAT|IEND|tEXt|zTXt|iTXt|tIME|pHYs|eXIf|gAMA|iCCP", path.read_bytes()[:60])
        with Image.open(path) as image:
            assert (image.size, image.mode, image.info) == ((study.SIDE, study.SIDE), "L", {})
        assert chunks == [b"IHDR", b"IDAT"]
    for path in files:  # the names of sets, files and hashes are in the key alone
        if path.suffix != ".png":
            text = path.read_text()
            assert not re.search(r"pasted|same=|scan \d|[0-9a-f]{16}", text), path
    assert {path.name for path in (written / STUDY).iterdir()} == {"crops", "index.html", "sheet.csv"}
    # Two kinds of ten in a shuffled order: this many changes or fewer has a chance below 1 in 1000.
    kinds = [row["set"] == "real" for row in rows(written / KEY / "key.csv")]
    assert sum(a != b for a, b in pairwise(kinds)) > 4


def test_the_page_needs_nothing_from_elsewhere(written):
    text = (written / STUDY / "index.html").read_text()
    names = [row["crop"] for row in rows(written / KEY / "key.csv")]
    assert json.loads(re.search(r"const names = (\[.*?\]);", text)[1].replace("'", '"')) == names
    assert not re.search(r"https?:|src=\"|import |@import|url\(", text)


def test_a_study_is_the_same_every_time_and_another_seed_makes_another(sets, tmp_path):
    real, composites = placed(sets)
    contests = [Contest(name, [], some) for name, some in composites.items()]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        study.write(tmp_path / name, contests, real, Choices(seed=seed, reader_crops=EACH))
    trees = [tree(tmp_path / name) for name in ("a", "b", "c")]
    assert trees[0] == trees[1] != trees[2]


def placed(sets):
    request = run.RealismRequest((("folder", sets / "real"),), {name: sets / name for name in ("same", "pasted")})
    return run._placed(request, Choices(), {name: run.LeftOut() for name in ("real", "same", "pasted")})


def test_no_two_crops_have_a_scan_in_common(tmp_path):
    """Two sets of composites of the same backgrounds, as two methods make them: each background is shown once."""
    draw_real(tmp_path / "real", 50)
    for name in ("same", "pasted"):
        draw_composites(tmp_path / name, 12, 1000, objects=tmp_path / "real")
    for path in (tmp_path / "pasted").glob("images/*.png"):  # the other method changed a little
        pixels = np.asarray(Image.open(path)).copy()
        pixels[60, 60] ^= 8
        Image.fromarray(pixels).save(path)
    real, composites = placed(tmp_path)
    chosen = study.choose(
        [Contest(name, [], some) for name, some in composites.items()], real, Choices(reader_crops=20)
    )
    tokens = [token for _, one in chosen for token in one.tokens]
    assert len(tokens) == len(set(tokens)) and len(chosen) == 24  # of twelve samples each method shows six
    with pytest.raises(DatasetError, match="too few scans"):
        few = [Contest(name, [], [some[0]]) for name, some in composites.items()]
        study.choose([few[0], Contest("again", [], few[0].others)], real, Choices())


def test_a_study_that_is_filled_in_stays(sets, written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "SPLITS", 2)
    monkeypatch.setattr(intervals, "RESAMPLES", 10)
    out = shutil.copytree(written, tmp_path / "out")
    sheet = out / STUDY / "sheet.csv"
    sheet.write_text("filled in")
    assert cli.main(command(sets, out, "--reader-study")) == 0
    assert sheet.read_text() == "filled in"
    assert cli.main(command(sets, out, "--reader-study", "--seed=1")) == 2
    assert "another reader study" in capsys.readouterr().err and sheet.read_text() == "filled in"


def fill(written, path, answer, reader="A") -> list[list[str]]:
    """A sheet with the answers that a function of the set gives."""
    lines = [[reader, row["crop"], answer(row["set"]), "3"] for row in rows(written / KEY / "key.csv")]
    write(path, lines)
    return lines


def write(path, lines, delimiter=",") -> None:
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows([["reader", "crop", "answer", "confidence"], *lines])


def test_scores_are_right_by_set_and_by_reader(written, tmp_path, capsys):
    """A sees what is pasted and takes the rest for real; B calls all synthetic."""
    fill(written, tmp_path / "a.csv", lambda name: "synthetic" if name == "pasted" else "Real ")
    fill(written, tmp_path / "b.csv", lambda name: "s", reader="B")
    sheets = [tmp_path / "a.csv", tmp_path / "b.csv"]
    found = {(one.reader, one.set): (one.right, one.read) for one in score(sheets, written / KEY / "key.csv")}
    assert found["A", "all"] == (15, 20) and found["B", "all"] == (10, 20) and found["2 readers", "all"] == (25, 40)
    assert found["A", "real"] == (10, 10) and found["A", "same"] == (0, 5) and found["A", "pasted"] == (5, 5)
    assert found["B", "real"] == (0, 10) and found["B", "same"] == (5, 5)
    assert cli.main(["realism", "--score", *map(str, sheets), "--key", str(written / KEY / "key.csv")]) == 0
    assert "| A | all | 15 | 20 | 75% [51%, 91%] |" in capsys.readouterr().out


def test_the_interval_is_the_exact_one():
    """Clopper and Pearson's own relations, and scipy's figures."""
    assert exact_binomial(0, 10) == pytest.approx((0, 1 - 0.025**0.1)) and exact_binomial(10, 10)[0] == 0.025**0.1
    stats = pytest.importorskip("scipy.stats")
    for right, count in ((1, 7), (15, 20), (50, 100), (333, 1000)):
        low, high = stats.binomtest(right, count).proportion_ci(0.95, "exact")
        assert exact_binomial(right, count) == pytest.approx((low, high), abs=1e-9)  # both solve to 1e-12 or so


def test_sheets_as_spreadsheets_write_them_are_read(written, tmp_path):
    lines = fill(written, tmp_path / "a.csv", lambda name: "real")
    expected = score([tmp_path / "a.csv"], written / KEY / "key.csv")
    write(tmp_path / "b.csv", [[who, str(int(crop)), *rest] for who, crop, *rest in lines], delimiter=";")
    assert score([tmp_path / "b.csv"], written / KEY / "key.csv") == expected
    write(tmp_path / "c.csv", lines[:7])  # what has no line is not read
    assert score([tmp_path / "c.csv"], written / KEY / "key.csv")[0].read == 7


def test_a_reader_may_be_called_anything_and_what_is_not_read_is_told(written, tmp_path, capsys):
    """A reader "2 readers" is one of two; three answers of twenty are no whole study; one sheet is no two readers."""
    key = written / KEY / "key.csv"
    fill(written, tmp_path / "a.csv", lambda name: "real", reader="2 readers")
    lines = fill(written, tmp_path / "b.csv", lambda name: "real" if name == "real" else "synthetic", reader="")
    write(tmp_path / "b.csv", lines[:3])
    sheets = [tmp_path / "a.csv", tmp_path / "b.csv"]
    found = {(one.reader, one.set): (one.right, one.read, one.crops) for one in score(sheets, key)}
    assert found["2 readers", "all"] == (10, 20, 20) and found["reader 2", "all"] == (3, 3, 20)
    assert found["all 2 readers", "all"] == (13, 23, 40)
    assert cli.main(["realism", "--score", *map(str, sheets), "--key", str(key)]) == 0
    told = capsys.readouterr().out
    assert "\nreader 2 has answered 3 of 20 crops.\nall 2 readers has answered 23 of 40 crops.\n" in told
    assert "\n2 readers has answered" not in told
    assert cli.main(["realism", "--score", str(sheets[1]), str(sheets[1]), "--key", str(key)]) == 2
    assert "b.csv is there twice; name each one once" in capsys.readouterr().err


def test_bad_sheets_are_one_line(written, tmp_path, capsys):
    key = written / KEY / "key.csv"
    lines = fill(written, tmp_path / "sheet.csv", lambda name: "real")
    bad = {
        "line 4: crop 0003 has no answer": [*lines[:2], ["A", "0003", " ", ""]],
        "line 3: A has answered crop 0001 before": [lines[0], lines[0]],
        "line 2: no crop '0999' is in the key": [["A", "0999", "real", ""]],
        "line 2: 'maybe' is neither real nor synthetic": [["A", "0001", "maybe", ""]],
        "; and 15 more": [["A", row[1], "", ""] for row in lines],
        "there is no answer in it": [],
    }
    for told, some in bad.items():
        write(tmp_path / "bad.csv", some)
        with pytest.raises(SheetError, match=re.escape(told)):
            score([tmp_path / "bad.csv"], key)
    contents = {
        "has not one column crop": b"reader,answer\nA,real\n",
        "no text in UTF-8": b"\xff\xfe\x00",
        "is no CSV file": b'reader,crop,answer\n"A,0001,real\n',
        "has not one column reader": b"",
    }
    for told, content in contents.items():
        (tmp_path / "bad.csv").write_bytes(content)
        assert cli.main(["realism", "--score", str(tmp_path / "bad.csv"), "--key", str(key)]) == 2
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1
    both = ["--score", str(tmp_path / "sheet.csv"), "--key", str(key)]
    for arguments in (["--score", "a.csv"], ["--key", str(key)], [*both, "--out", str(tmp_path / "out")]):
        assert cli.main(["realism", *arguments]) == 2
    assert cli.main(["realism", "--score", str(tmp_path), "--key", str(key)]) == 2
    assert cli.main(["realism", "--score", str(tmp_path / "sheet.csv"), "--key", str(tmp_path / "sheet.csv")]) == 2
    assert "has not one column" in capsys.readouterr().err
