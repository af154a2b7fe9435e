"""These tests check that a batch loses nothing and hides nothing: its inputs, other people's files, finished rows that
are damaged, rows that fail, lines and names of every kind, and a full disk."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from composition_files import row, tree, write_manifest, write_scans
from fake_model import FakeModel
from full_disk import full_disk
from PIL import Image

from composition import Settings
from composition.mini import demo
from composition.runs.batch import run_batch
from composition.runs.manifest import read_manifest
from composition.scans.errors import RowError
from sd21.files import TEMPORARY, atomic
from sd21.folders import LOCK, FolderError, owned

QUICK = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive")


def run(folder, rows, **keywords):
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    return run_batch(manifest, folder / "out", lambda: FakeModel(64), QUICK, quiet=True, **keywords)


def errors(folder) -> list[dict]:
    path = folder / "out" / "errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_a_result_never_takes_the_place_of_an_input(scans, link):
    """Two rows, of which the first's composite would be the second's background, under its own or another name."""
    images = scans / "out" / "images"
    images.mkdir(parents=True)
    (scans / "out" / "records").mkdir()  # as an earlier batch leaves it
    (scans / "s1.png").rename(images / "case0.png")
    if link is not None:
        link(images / "case0.png", scans / "other.png")
    background = "out/images/case0.png" if link is None else "other.png"
    before = tree(scans / "out")
    with pytest.raises(FolderError, match=r"case0\.png would take the place of the input .*; name another folder"):
        run(scans, [row(0), row(1, background=background)])
    assert tree(scans / "out") == before


def test_the_tables_never_take_the_place_of_the_manifest(scans):
    (scans / "out").mkdir()
    manifest = write_manifest(scans / "out" / "metadata.jsonl", [row(0)])
    text = manifest.read_text().replace('"s', '"../s').replace('"m.png', '"../m.png')
    manifest.write_text(text)
    with pytest.raises(FolderError, match=r"metadata\.jsonl would take the place of the input"):
        run_batch(manifest, scans / "out", lambda: pytest.fail("the model was loaded"), QUICK, quiet=True)
    assert manifest.read_text() == text and os.listdir(scans / "out") == ["metadata.jsonl"]


@pytest.mark.parametrize("name", ["images/case0.png", "masks/case0.png", "metadata.jsonl", "errors.jsonl"])
@pytest.mark.parametrize("first", [row(0), row(0, object="none.png")])
def test_a_file_that_no_batch_has_made_stays(scans, name, first):
    """Whether the row that would take its place is good or bad."""
    path = scans / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("a user's")
    before = tree(scans / "out")
    with pytest.raises(FolderError, match=rf"{path.name} is there, and no batch has made it"):
        run(scans, [first, row(1)])
    assert tree(scans / "out") == before
    if "case0" in name:
        assert run(scans, [row(1)]).written == 1 and run(scans, [row(1)]).kept == 1
        assert path.read_text() == "a user's"


def test_what_a_killed_run_left_without_a_record_is_a_batchs(scans):
    run(scans, [row(0), row(1)])
    before = tree(scans / "out")
    (scans / "out" / "records" / "case0.json").unlink()
    with pytest.raises(FolderError, match=r"case0\.png is there"):
        run(scans, [row(0), row(1)])
    (scans / "out" / LOCK).touch()  # as a kill leaves it
    with pytest.raises(ValueError, match="the load failed"):  # this run leaves no lock, and nothing without a record

        def fails():
            raise ValueError("the load failed")

        run_batch(scans / "manifest.jsonl", scans / "out", fails, QUICK, quiet=True)
    assert not (scans / "out" / "images" / "case0.png").exists() and not (scans / "out" / LOCK).exists()
    assert run(scans, [row(0), row(1)]).written == 1 and tree(scans / "out") == before


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, object="none.png"), row(1, background="out/images/case0.png")],  # a bad row's results go
        [row(0, background="out/images/case1.png", object="none.png"), row(1)],  # a bad row's input stays
    ],
)
def test_bad_rows_take_no_input_and_lose_none(scans, rows):
    (scans / "out" / "images").mkdir(parents=True)
    (scans / "out" / "records").mkdir()
    for number in (0, 1):
        (scans / "out" / "records" / f"case{number}.json").write_text("{}")
        shutil.copy(scans / f"s{number}.png", scans / "out" / "images" / f"case{number}.png")
    before = tree(scans / "out")
    with pytest.raises(FolderError, match="would take the place of the input"):
        run(scans, rows)
    assert tree(scans / "out") == before


def test_what_others_call_partial_stays_and_a_killed_runs_own_goes(scans):
    cache = scans / "cache"
    run(scans, [row(0)], cache=cache)
    for folder in (scans / "out", scans / "out" / "images", cache):
        (folder / f"{TEMPORARY}notes").mkdir()
        (folder / f"{TEMPORARY}notes" / "a.txt").write_text("kept")
        (folder / f"{TEMPORARY}1.png").write_text("kept")
    left = []
    with owned(scans / "out"):  # two writers that die, one in the cache
        for folder in (scans / "out" / "images", cache):
            with pytest.raises(KeyboardInterrupt), atomic(folder / "half.png") as temporary:
                left.append(temporary)
                raise KeyboardInterrupt
    before = {**tree(scans / "out"), **tree(cache)}
    for path in left:
        path.write_text("half")
    run(scans, [row(0)], cache=cache)
    assert {**tree(scans / "out"), **tree(cache)} == before


def test_a_second_run_is_turned_away(scans):
    run(scans, [row(0)])
    with owned(scans / "out"), pytest.raises(FolderError, match="another run is at work on"):
        run(scans, [row(0)])
    assert run(scans, [row(0)]).kept == 1 and not (scans / "out" / LOCK).exists()


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("damage", ["cut", "changed", "folder", "link"])
def test_a_finished_row_whose_file_is_not_whole_is_made_again(scans, kind, damage):
    run(scans, [row(0), row(1)])
    before, path = tree(scans / "out"), scans / "out" / kind / "case0.png"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif damage == "link":
        path.symlink_to("nowhere.png")
    else:
        path.mkdir()
        summary = run(scans, [row(0), row(1)])
        assert summary.bad == 1 and "case0.png" in errors(scans)[0]["error"]
        path.rmdir()
    summary = run(scans, [row(0), row(1)])
    assert (summary.written, summary.kept) == (1, 1) and tree(scans / "out") == before


FAILURES = {
    "damaged": lambda folder: (folder / "s0.png").write_bytes(b"\x89PNG but no more"),
    "gone": lambda folder: (folder / "s0.png").unlink(),
    "blank": lambda folder: Image.new("L", (80, 60)).save(folder / "s0.png"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_row_that_fails_leaves_nothing_of_an_earlier_success(scans, name):
    run(scans, [row(0), row(1)])
    FAILURES[name](scans)
    summary = run(scans, [row(0), row(1)])
    assert (summary.kept, summary.bad) == (1, 1) and len(errors(scans)) == 1
    assert set(tree(scans / "out")) == {
        *(f"{kind}/case1.{end}" for kind, end in (("images", "png"), ("masks", "png"), ("records", "json"))),
        *("metadata.jsonl", "errors.jsonl"),
    }


def test_where_no_row_is_good_what_an_earlier_run_made_stays(scans):
    """All inputs of a batch are on a disk that is not there today."""
    run(scans, [row(0), row(2)])
    before = tree(scans / "out")
    (scans / "s0.png").rename(scans / "away.png")
    with pytest.raises(RowError, match=r"no row of .* can be composed \(line 1: .*s0\.png\).*; nothing was changed"):
        run(scans, [row(0), row(2)])
    assert tree(scans / "out") == before
    (scans / "away.png").rename(scans / "s0.png")
    assert run(scans, [row(0), row(2)]).kept == 2


def test_an_empty_manifest_is_no_request(scans):
    run(scans, [row(0)])
    before = tree(scans / "out")
    with pytest.raises(RowError, match=r"holds no row"):
        run(scans, ["", "  "])
    assert tree(scans / "out") == before


def test_a_table_never_tells_of_other_pictures(scans, monkeypatch):
    """A run that is killed when it has changed its first row."""
    run(scans, [row(0), row(1)])

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("composition.runs.batch.compose", killed)
    with pytest.raises(KeyboardInterrupt):
        run(scans, [row(0, prompt="another"), row(1)])
    assert not (scans / "out" / "metadata.jsonl").exists() and not (scans / "out" / "images" / "case0.png").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("window"),
        lambda entry: entry["label"].update(contrast="x"),
        lambda entry: entry["inversion"]["object"].pop("error"),
        lambda entry: entry.update(label=[]),
    ],
)
def test_a_record_that_lacks_something_is_made_again(scans, change):
    run(scans, [row(0), row(1)])
    before, path = tree(scans / "out"), scans / "out" / "records" / "case0.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))
    with pytest.warns(UserWarning, match="case0"):
        assert run(scans, [row(0), row(1)]).written == 1
    assert tree(scans / "out") == before


def test_a_pipe_in_a_records_place_is_not_opened(scans):
    run(scans, [row(0), row(1)])
    (scans / "out" / "records" / "case0.json").unlink()
    os.mkfifo(scans / "out" / "records" / "case0.json")
    with pytest.warns(UserWarning, match=r"case0\.json is damaged and will be made again: this is no regular file"):
        assert run(scans, [row(0), row(1)]).written == 1


def test_a_line_of_a_gigabyte_costs_one_row(scans):
    manifest = write_manifest(scans / "manifest.jsonl", [row(0)])
    with manifest.open("ab") as file:
        file.truncate(file.tell() + (1 << 30))  # zeros that take no room on the disk
        file.seek(0, 2)
        file.write(b"\n" + json.dumps(row(1)).encode())
    rows, bad = read_manifest(manifest, QUICK)
    assert [one.id for one in rows] == ["case0", "case1"] and list(bad) == [2]
    assert "the line is longer than 1048576 bytes" in bad[2].error


def test_lines_end_at_newlines_alone(scans):
    texts = ["a\u2028b", "a\u0085b", "a\x1cb\x0bc\x0cd", "plain"]
    lines = [json.dumps(row(0, id=None, prompt=text), ensure_ascii=False) for text in texts]
    manifest = scans / "manifest.jsonl"
    for mark, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        manifest.write_bytes(mark + end.join(line.encode() for line in lines) + end)
        rows, bad = read_manifest(manifest, QUICK)
        assert not bad and [(one.id, one.request.prompt) for one in rows] == [
            (f"{line:06d}", text) for line, text in enumerate(texts, start=1)
        ]


def test_a_shared_case_has_its_three_rows(tmp_path):
    case = Path(__file__).parents[2] / "shared" / "cases" / "u2028.jsonl"
    if not case.exists():
        pytest.skip("the shared cases are not beside this checkout")
    shutil.copytree(demo.EXAMPLES.parent, tmp_path, dirs_exist_ok=True)
    # The setting has another name by now.
    text = case.read_text(encoding="utf-8").replace("preserve_until", "preserve_background_until")
    (tmp_path / "manifest.jsonl").write_text(text, encoding="utf-8")
    rows, bad = read_manifest(tmp_path / "manifest.jsonl", QUICK)
    assert not bad and [(one.line, one.id) for one in rows] == [(1, "s0"), (2, "s1"), (3, "000003")]
    assert any("\u2028" in one.request.prompt for one in rows)


def bad_lines() -> list[tuple[bytes, str]]:
    def line(**changes) -> bytes:
        return json.dumps(row(1, id=None) | changes).encode()

    surrogate = line(background="x.png").replace(b"x.png", b"\\udcff.png")
    return [
        (b"\xff\xfe" + line(), "not UTF-8"),
        (line().replace(b"s1.png", b"s\xff1.png"), "not UTF-8"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not a JSON object"),
        (line(settings="D").replace(b'"D"', b"[" * 900 + b"]" * 900), "settings is an object"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "not a JSON object"),
        (line(user_box="B").replace(b'"B"', b"[1, 2, 3, 1" + b"0" * 400 + b"]"), "does not lie wholly on"),
        (line(settings={"tolerance": 10**400}), "tolerance is a number from"),
        (line(settings={"steps": 10**400}), "steps is a whole number from 1 to 1000"),
        (surrogate, "there is no such file"),
        (line(prompt="P").replace(b'"P"', b'"\\ud83d"'), "the prompt is no text"),
        (line(background="n" * 5000), "there is no such file"),
        (line(background="s\0.png"), "no such file"),
        (line(background="."), "no regular file"),
        (line(background="pipe"), "no regular file"),
        (line(background="/dev/zero"), "no regular file"),
        (line(user_box=None, user_mask=7), "user_mask is the name of a file, got 7"),
        (line(object_mask=None), "missing or not a text: object_mask"),
        (line(user_box=None, user_mask=None), "either as a user mask or as a user box"),
        (line(id="i" * 129), "129 characters"),
        (line().replace(b'"prompt"', b'"prompt": "a", "prompt"'), "'prompt' is there twice"),
        (line(variation={"k" * 10_000: 1}), "unknown variation: 'kkk"),
        (line(variation=[1]), "variation is an object"),
        (line(variation={"rotation": "left"}), "rotation is a number from -180.0 to 180.0, got 'left'"),
        (line(**{"k" * 10_000: 1}), "its name is a text in one line of 1 to 64 characters"),
    ]


def test_one_bad_line_costs_one_row(scans):
    os.mkfifo(scans / "pipe")
    cases = bad_lines()
    good = json.dumps(row(0)).encode()
    nulls = json.dumps(row(2) | {"user_mask": None, "settings": None}).encode()  # as in metadata.jsonl
    (scans / "manifest.jsonl").write_bytes(b"\n".join([good, *(line for line, _ in cases), nulls]))
    summary = run_batch(scans / "manifest.jsonl", scans / "out", lambda: FakeModel(64), QUICK, quiet=True)
    assert (summary.written, summary.bad) == (2, len(cases))
    for entry, (line, message) in zip(errors(scans), cases, strict=True):
        assert message in entry["error"], (line[:80], entry["error"])
        assert "\n" not in entry["error"] and len(entry["error"]) < 2000


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such name")
def test_a_file_name_that_is_no_text_is_a_name_like_any_other(scans):
    name = os.fsdecode(b"scan\xff.png")
    (scans / "s0.png").rename(scans / name)
    for background, summary in ((name, (1, 0)), (os.fsdecode(b"none\xff.png"), (0, 1))):
        (scans / "out").exists() and (scans / "manifest.jsonl").unlink()
        found = run(scans, [row(1), row(0, background=background)])
        assert (found.written + found.kept - 1, found.bad) == summary
    assert "none" in errors(scans)[0]["error"]


@pytest.mark.parametrize("manifest", ["none.jsonl", ".", "pipe"])
def test_a_manifest_that_is_no_file(scans, manifest):
    os.mkfifo(scans / "pipe")
    with pytest.raises(RowError, match="expected a manifest, JSON lines"):
        run_batch(scans / manifest, scans / "out", lambda: pytest.fail("the model was loaded"), QUICK, quiet=True)
    assert not (scans / "out").exists()


def test_a_full_disk_costs_its_row_and_with_space_again_the_run_finishes(scans):
    run(scans, [row(n) for n in range(3)], cache=scans / "cache")
    undisturbed = tree(scans / "out")
    sizes = {path.name: path.stat().st_size for path in (scans / "out" / "images").iterdir()}
    kept = [path.stat().st_size for path in (scans / "cache").iterdir()]
    assert min(kept) > max(sizes.values())  # so that a limit lies between the two
    for limit, cached, named in (
        (max(sizes.values()) - 1, False, max(sizes, key=sizes.get)),
        (min(kept) - 1, True, ".safetensors"),
    ):
        for name in ("out", "cache"):
            for path in (scans / name).rglob("*.*"):
                path.unlink()
        options = {"cache": scans / "cache"} if cached else {}
        with full_disk(limit):
            summary = run(scans, [row(n) for n in range(3)], **options)
        assert summary.bad > 0 and any(named in entry["error"] for entry in errors(scans))
        assert all("File too large" in entry["error"] for entry in errors(scans))
        assert not [name for name in (*tree(scans / "out"), *tree(scans / "cache")) if TEMPORARY in name]
        assert run(scans, [row(n) for n in range(3)], **options).bad == 0
        assert tree(scans / "out") == undisturbed


def test_a_failed_load_leaves_no_folder(scans):
    def fails():
        raise ValueError("there is no such model")

    manifest = write_manifest(scans / "manifest.jsonl", [row(0)])
    with pytest.raises(ValueError, match="no such model"):
        run_batch(manifest, scans / "new" / "out", fails, QUICK, quiet=True, cache=scans / "cache")
    assert not (scans / "new").exists() and not (scans / "cache").exists()


def test_a_network_that_overflows_costs_its_row_and_never_gives_a_black_picture(scans):
    model, calls = FakeModel(64), []
    sound = model.decode

    def decode(latent):
        calls.append(latent)
        return sound(latent) * (np.nan if len(calls) == 1 else 1)  # rows of one background come one after the other

    model.decode = decode
    manifest = write_manifest(scans / "manifest.jsonl", [row(0), row(1)])
    summary = run_batch(manifest, scans / "out", lambda: model, QUICK, quiet=True)
    assert (summary.written, summary.bad) == (1, 1)
    (error,) = errors(scans)
    assert error["line"] == 1 and "decode, the network in float32: the image that the autoencoder" in error["error"]
    assert [path.name for path in (scans / "out" / "images").iterdir()] == ["case1.png"]
