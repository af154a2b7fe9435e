"""This module reads the manifest of `batch`. Each line of it is a JSON object, a composition to make:

    {"background": "b.png", "object": "o.png", "object_mask": "m.png", "user_box": [40, 60, 50, 50], "prompt": "..."}

`user_mask`, a file, may stand in place of `user_box`. Optional are `id`, which names the outputs (default: the line
number), and `settings`, fields of Settings for this row alone. Files are relative to the manifest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..scans.errors import RowError
from ..settings import Settings
from .request import FILES, Request

REQUIRED = ("background", "object", "object_mask", "prompt")
OPTIONAL = ("user_mask", "user_box", "id", "settings")


@dataclass(frozen=True)
class Row:
    line: int  # in the manifest, from 1
    id: str
    request: Request
    settings: Settings


def read_manifest(path: str | Path, settings: Settings) -> tuple[list[Row], dict[int, str]]:
    """The rows, in the manifest's order, and what is wrong with the bad ones, by line number.

    settings: what holds for every row that does not say otherwise. Images are not opened yet. Raises OSError.
    """
    path, rows, errors, lines_of = Path(path), [], {}, {}
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = _parse(text, line, path.parent, settings)
            # Names that differ in case alone are one file on some systems.
            if (earlier := lines_of.setdefault(row.id.casefold(), line)) != line:
                raise RowError(f"the id {row.id!r} is taken by line {earlier}; give every row its own")
            rows.append(row)
        except (ValueError, TypeError) as error:
            errors[line] = str(error)
    return rows, errors


def _parse(text: str, line: int, folder: Path, settings: Settings) -> Row:
    try:
        entry = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError(f"not a JSON object: {error}") from error
    if not isinstance(entry, dict):
        raise RowError(f"expected a JSON object, got {type(entry).__name__}")
    missing = [name for name in REQUIRED if not isinstance(entry.get(name), str)]
    unknown = [name for name in entry if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        raise RowError(
            f"missing or not a text: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}; "
            f"a row has {', '.join(REQUIRED)}, one of user_mask and user_box, and may have id and settings"
        )
    identity = entry.get("id", f"{line:06d}")
    if not isinstance(identity, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", identity):
        raise RowError(f"the id names files: letters, digits, '.', '_' and '-' only, got {identity!r}")
    changes = entry.get("settings", {})
    known = [field.name for field in fields(Settings)]
    if not isinstance(changes, dict) or any(name not in known for name in changes):
        raise RowError(f"settings is an object with some of {', '.join(known)}; got {changes!r}")
    files = {name: folder / entry[name] for name in FILES if name in entry}
    request = Request(files, parse_box(entry["user_box"]) if "user_box" in entry else None, entry["prompt"])
    request.check_files()
    return Row(line, identity, request, replace(settings, **changes))


def parse_box(value: object) -> tuple[int, int, int, int]:
    """Four whole numbers: x, y, width, height."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(number) is int for number in value):
        raise RowError(f"user_box is four whole numbers x, y, width, height, got {value!r}")
    return tuple(value)
