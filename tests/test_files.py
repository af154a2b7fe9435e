"""These tests check that files and folders are whole or absent, and that packages import their names when they are
used."""

import hashlib
import os
import stat

import pytest
from full_disk import full_disk

import sd21
from sd21 import files
from sd21.files import (
    atomic,
    json_lines,
    read_json_lines,
    remove_partial,
    sha256,
    temporaries_of,
    write_json,
    write_text,
)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_written_takes_its_name_when_it_is_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt" and (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError, match="deliberate"), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError("deliberate")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.txt", {"value": float("nan")})
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "record.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "record.json").stat().st_mode) == 0o644


def test_json_lines_come_back_as_they_were(tmp_path):
    entries = [{"id": "a", "text": "two\nlines"}, {"id": "b"}]
    (tmp_path / "raw.jsonl").write_text('{"id": "\u2028"}\n{"id": "\u0085"}\n', encoding="utf-8")
    assert [entry["id"] for entry in read_json_lines(tmp_path / "raw.jsonl")] == ["\u2028", "\u0085"]
    write_text(tmp_path / "a.jsonl", json_lines(entries))
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 2 and read_json_lines(tmp_path / "a.jsonl") == entries


def write_folder(temporary):
    (temporary / "part").mkdir(parents=True)
    (temporary / "part" / "file").write_text("content")


def test_a_folder_appears_whole_or_not_at_all_and_never_over_another(tmp_path):
    with pytest.raises(RuntimeError, match="deliberate"), atomic(tmp_path / "model") as temporary:
        write_folder(temporary)
        raise RuntimeError("deliberate")
    assert names(tmp_path) == []
    with atomic(tmp_path / "model") as temporary:
        write_folder(temporary)
    assert names(tmp_path) == ["model", "model/part", "model/part/file"]
    with pytest.raises(OSError), atomic(tmp_path / "model") as temporary:
        write_folder(temporary)
    assert names(tmp_path) == ["model", "model/part", "model/part/file"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    ours, killed = "ab12", f"{files.TEMPORARY}ab12-{'0' * 32}"
    others = [f"{files.TEMPORARY}1.png", f"{files.TEMPORARY}cd34-{'0' * 32}.png", f"{killed}-notes.txt", "kept.png"]
    for folder in (tmp_path, tmp_path / "below"):
        write_folder(folder / f"{killed}.model")  # a user's folder, whatever it is called
        for name in (f"{killed}.png", killed, *others):
            (folder / name).write_text("half")
    remove_partial(tmp_path, ours)
    for folder in (tmp_path, tmp_path / "below"):
        assert {path.name for path in folder.iterdir()} - {"below"} == {*others, f"{killed}.model"}
        assert (folder / f"{killed}.model" / "part" / "file").exists()


def test_a_folder_takes_the_place_of_another_as_a_whole(tmp_path):
    path = tmp_path / "made" / "layout"
    for text in ("first", "second"):
        with files.whole_folder(path) as temporary:
            (temporary / text).write_text(text)
            assert names(path) == ([] if text == "first" else ["first"])
        assert names(path) == [text] and names(path.parent) == ["layout", f"layout/{text}"]
    with pytest.raises(RuntimeError, match="deliberate"), files.whole_folder(path) as temporary:
        (temporary / "third").write_text("half")
        raise RuntimeError("deliberate")
    assert names(path.parent) == ["layout", "layout/second"]
    with files.whole_folder(path):
        pass
    assert names(path.parent) == []


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("old")
    renamed, replace = [], os.replace

    def second_fails(source, target):
        renamed.append(target)
        if len(renamed) == 2:
            raise OSError("the disk is gone")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(OSError, match="the disk is gone"), files.whole_folder(tmp_path / "old") as temporary:
        (temporary / "file").write_text("new")
    assert names(tmp_path) == ["old", "old/file"] and (tmp_path / "old" / "file").read_text() == "old"


def test_the_folder_of_a_killed_writer_is_removed(tmp_path):
    with temporaries_of("ab12"), pytest.raises(FileNotFoundError), files.whole_folder(tmp_path / "a") as temporary:
        write_folder(temporary)
        remove_partial(tmp_path, "ab13")
        assert temporary.exists()
        remove_partial(tmp_path, "ab12")
        assert not temporary.exists()


def test_temporaries_bear_their_owner(tmp_path):
    with temporaries_of("ab12"), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        remove_partial(tmp_path, "ab13")
        assert temporary.exists()
        remove_partial(tmp_path, "ab12")
        assert not temporary.exists()
        temporary.write_text("whole")
    with atomic(tmp_path / "b.txt") as temporary:
        temporary.write_text("nobody's")
        assert "ab12" not in temporary.name


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with full_disk(1000), pytest.raises(OSError, match=r"File too large; it was not written: '.*a\.txt'"):
        write_text(tmp_path / "a.txt", "n" * 2000)
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]
    with pytest.raises(OSError, match="only a text"), atomic(tmp_path / "b.txt"):
        raise OSError("only a text")


def test_a_hash_is_of_the_whole_file(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_lazy_names_are_there_for_all_who_look(monkeypatch):
    assert {"load", "Site", "CheckpointError"} <= set(dir(sd21)) and "load" in sd21.__all__
    for name in sd21.__all__:
        assert getattr(sd21, name).__name__ == name
    load = sd21.load
    with monkeypatch.context() as patch:
        patch.setattr(sd21, "load", None)
        assert sd21.load is None
    assert sd21.load is load
    with pytest.raises(AttributeError, match="module 'sd21' has no attribute 'lode'"):
        _ = sd21.lode
