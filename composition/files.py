"""Files that are either whole or absent: temporary names, renames and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".partial-"


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, of its suffix; on success it becomes `path`, on an error it is removed.

    A kill leaves at most the temporary file (see `remove_partial`): `path` itself is the old file or the whole new one.
    Several processes, on several machines, may write the same path; the last one wins.
    """
    path = Path(path)
    # A plain open, not tempfile: mkstemp's files can be read by their owner alone, and the rename would keep that.
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed writers left anywhere under `folder`. Nobody else may be writing there."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_kept(path: Path, asked: dict) -> dict | None:
    """The object that an earlier run left in a JSON file, if all of `asked` is in it; else None.

    None, too, where there is no file, or a damaged one, which is warned of.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path} is damaged and will be made again: {error}", stacklevel=2)
        return None
    same = isinstance(found, dict) and all(name in found and found[name] == value for name, value in asked.items())
    return found if same else None


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
