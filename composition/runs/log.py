"""This module keeps the list of the commands that made a folder's results, and the seconds that they took."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sd21.files import json_lines, read_json_lines, write_text
from sd21.words import shown

from ..scans.errors import DatasetError

NAME = "commands.jsonl"


def line_of(arguments: Sequence[str]) -> str:
    """A command of this package as a user types it in a shell."""
    return shlex.join(["python", "-m", "composition", *arguments])


def read(folder: Path) -> list[dict]:
    """The commands so far, each with the text "command" and the number "seconds"; none where there is no list.

    Raises DatasetError, naming the file, for one that is damaged.
    """
    path = folder / NAME
    try:
        found = read_json_lines(path) if path.exists() else []
        sound = all(isinstance(one["command"], str) and type(one["seconds"]) in (int, float) for one in found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({shown(error)}); mend it, or move it away") from None
    if not sound:
        raise DatasetError(
            f"{path} is damaged: a line has no text command or no number seconds; mend it, or move it away"
        )
    return found


def add(folder: Path, entry: dict) -> None:
    write_text(folder / NAME, json_lines([*read(folder), entry]))
