"""These tests check that files and folders are whole or absent, and that packages import their names when they are
used."""

import hashlib
import os
import stat

import pytest

import sd21
from sd21 import files
from sd21.files import atomic, json_lines, read_json_lines, remove_partial, sha256, write_json, write_text


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


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for folder in (tmp_path, tmp_path / "below"):
        write_folder(folder / f"{files.TEMPORARY}1")
        (folder / f"{files.TEMPORARY}2.png").write_text("half")
        (folder / "kept.png").write_text("whole")
    remove_partial(tmp_path)
    assert names(tmp_path) == ["below", "below/kept.png", "kept.png"]


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
