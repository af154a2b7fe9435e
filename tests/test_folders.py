"""These tests check that a run has its folder for itself, that a killed one keeps nobody away, and that what it left
goes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sd21.files import TEMPORARY, atomic, write_text
from sd21.folders import LOCK, FolderError, owned

ROOT = Path(__file__).parent.parent


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start_owner(folder: Path, *options: str) -> subprocess.Popen:
    """A process that owns the folder, and has half of a file in it, until it is killed."""
    program = f"""
from pathlib import Path
from sd21.files import atomic
from sd21.folders import owned
with owned({str(folder)!r}, {", ".join(options)}), atomic(Path({str(folder)!r}) / "a.txt") as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("options", [(), ("rank=3",)])
def test_a_folder_has_one_run_at_a_time_and_a_killed_one_keeps_nobody_away(tmp_path, options):
    process = start_owner(tmp_path / "out", *options)
    try:
        with (
            pytest.raises(FolderError, match=rf"another run is at work on {tmp_path / 'out'}"),
            owned(tmp_path / "out"),
        ):
            pytest.fail("two runs had one folder")
        assert any(name.startswith(TEMPORARY) for name in names(tmp_path / "out"))  # the other's, which lives
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert any(name.startswith(LOCK) for name in names(tmp_path / "out"))
    users = {f"{TEMPORARY}mine.txt", ".lock", f"{LOCK}5-notes"}
    for name in users:
        (tmp_path / "out" / name).write_text("a user's")
    with owned(tmp_path / "out"):
        assert set(names(tmp_path / "out")) == {LOCK, *users}
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == dict.fromkeys(users, "a user's")


def test_ranks_of_one_run_share_its_folder(tmp_path):
    with owned(tmp_path), owned(tmp_path, rank=1), owned(tmp_path, rank=2):
        assert names(tmp_path) == [LOCK, f"{LOCK}1", f"{LOCK}2"]
        with pytest.raises(FolderError), owned(tmp_path, rank=2):
            pytest.fail("two processes had one rank")
    assert names(tmp_path) == []


def test_only_this_folders_temporaries_go_from_a_shared_cache(tmp_path):
    cache = tmp_path / "cache"
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        with pytest.raises(KeyboardInterrupt), owned(tmp_path / name), atomic(cache / f"{name}.txt") as temporary:
            left = cache / temporary.name
            raise KeyboardInterrupt
        left.write_text("half")  # as a kill leaves it
    assert len(names(cache)) == 2
    with owned(tmp_path / "mine", cache=cache):
        assert names(cache) == [left.name]  # the other's
    with owned(tmp_path / "other", cache=cache):
        assert names(cache) == []


def test_a_folder_that_a_failure_leaves_empty_is_gone_again(tmp_path):
    with pytest.raises(ValueError, match="load"), owned(tmp_path / "a" / "b"):
        raise ValueError("the load failed")
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="later"), owned(tmp_path / "a" / "b"):
        write_text(tmp_path / "a" / "b" / "made.txt", "")
        raise ValueError("later")
    assert names(tmp_path / "a" / "b") == ["made.txt"]
    with owned(tmp_path / "c"):
        pass
    assert names(tmp_path / "c") == []  # it did not fail


def test_a_file_is_no_folder(tmp_path):
    write_text(tmp_path / "file", "kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FolderError, match="is a file, or lies under one"), owned(path):
            pytest.fail("it was owned")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_is_told_from_a_copy_of_it(tmp_path):
    """A copy of a folder that is in use must not take the temporaries of its original from a shared cache."""
    with owned(tmp_path / "a"), atomic(tmp_path / "cache" / "a.txt") as temporary:
        temporary.write_text("half")
        with owned(tmp_path / "b", cache=tmp_path / "cache"):
            assert temporary.exists()
    assert os.listdir(tmp_path / "cache") == ["a.txt"]
