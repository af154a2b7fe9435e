"""This module writes files so that they are either whole or absent, and computes their hashes. It stands apart because
every part of the project writes files, and none should do it in its own way.

The module needs nothing but Python's own library, so importing it costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

TEMPORARY = ".partial-"
# Whose temporaries a process writes: the id of a run (`sd21.folders`), or nobody's.
_owner: ContextVar[str] = ContextVar("owner", default="")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffixes, where the caller writes a file or a folder.

    On success it becomes `path`; on an error it is removed. A kill leaves at most the temporary behind, which
    `remove_partial` removes if it is a file: `path` itself is the old file or the whole new one. Several processes, on
    several machines, may write the same file; the last one wins. A folder does not replace another folder: that raises
    OSError (see `whole_folder`). The folder that `path` lies in is made. An OSError that is not another file's names
    `path`, also where the system does not say what is full.
    """
    path = Path(path)
    # The name does not come from tempfile: only the owner can read mkstemp's files, and the rename would keep that.
    temporary = path.with_name(_temporary_name() + "".join(path.suffixes))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(path)):
            raise
        if error.errno is None:  # one that a library made, of a text alone
            raise OSError(f"{path} was not written: {error}") from error
        raise OSError(error.errno, f"{error.strerror}; it was not written", str(path)) from error
    finally:
        _remove(temporary)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, where the caller writes. On success it takes the place of `path`,
    whatever folder was there; where the caller wrote nothing, `path` is gone.

    After an error `path` is the old folder. After a kill it is the old one, or the whole new one, or it is absent, and
    `remove_partial` removes the rest. Raises OSError.
    """
    path = Path(path)
    temporary, old = (path.with_name(_temporary_name()) for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync(temporary)
        if os.path.lexists(path):
            os.replace(path, old)  # because a folder replaces no other folder
        if any(temporary.iterdir()):
            os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(old):
            os.replace(old, path)
        raise
    finally:
        _remove(temporary)
        _remove(old)


@contextmanager
def temporaries_of(owner: str) -> Iterator[None]:
    """Within the block, the temporaries that this process writes bear the owner's name, by which `remove_partial` knows
    them. owner: letters and digits."""
    token = _owner.set(f"{owner}-")
    try:
        yield
    finally:
        _owner.reset(token)


def remove_partial(folder: Path, owner: str) -> None:
    """Remove the files, and the folders of `whole_folder`, that killed writers of this owner left anywhere under
    `folder`, and no others."""
    ours = re.compile(re.escape(f"{TEMPORARY}{owner}-") + r"[0-9a-f]{32}(\.[^/]*)?")
    for path in list(folder.rglob(f"{TEMPORARY}{owner}-*")):
        if (match := ours.fullmatch(path.name)) and (path.is_file() or (path.is_dir() and not match[1])):
            _remove(path)


def _temporary_name() -> str:
    return f"{TEMPORARY}{_owner.get()}{uuid.uuid4().hex}"


def _sync(path: Path) -> None:
    """Bring a file, or all files in a folder, to the disk: else a power cut can leave the new name on an empty file."""
    for file in (file for file in (path, *path.rglob("*")) if file.is_file()):
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON. Raises ValueError for inf and nan, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def json_lines(entries: Iterable[dict]) -> str:
    """Entries as JSON lines, each ended by a newline."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read_json_lines(path: Path) -> list[dict]:
    """The entries of a file of JSON lines. Lines end at newlines alone, as a text may hold U+2028 and its like."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def irregular(path: str | Path) -> str | None:
    """What is wrong with a path that is to be read, in words that a path follows; None for a regular file. To open a
    pipe or a device may wait for ever."""
    if os.path.isfile(path):
        return None
    return "this is no regular file" if os.path.exists(path) else "there is no such file"
