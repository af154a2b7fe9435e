"""This module reads the manifest of `batch`. Each line of it is a JSON object, a composition to make:

    {"background": "b.png", "object": "o.png", "object_mask": "m.png", "user_box": [40, 60, 50, 50], "prompt": "..."}

`user_mask`, a file, may stand in place of `user_box`. Optional, and null where they are not meant, are `window`, the
centre and width of the grey window of both scans, in their own values; `label`, the value of the tumour in a mask of
several labels; `id`, which names the outputs (default: the line number); `settings`, fields of Settings for this row
alone; and `variation`, fields of Variation, by which the object differs from its own scan. Files are relative to the
manifest, which is UTF-8; its lines end at newlines alone.

Any other key is a column of the row's own, which metadata.jsonl takes over (`columns.py` says what it may hold). Two of
them mean something: `class`, the name of what the mask shows, and `split`, the part of the data set.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from sd21.files import irregular
from sd21.words import one_line, shown

from ..scans.errors import RowError
from ..settings import Settings
from ..variation import Variation
from .columns import Columns
from .request import FILES, Request

REQUIRED = ("background", "object", "object_mask", "prompt")
OPTIONAL = ("user_mask", "user_box", "window", "label", "id", "settings", "variation")
COLUMNS = ("class", "split")  # of the columns, those that mean something; null is as good as none
LONGEST_LINE = 1 << 20  # bytes; a row has some hundreds
LONGEST_ID = 128  # with a suffix it still is a file name everywhere
CLOSE = 0.82  # difflib's ratio: "widnow" is 0.83 of "window"; "pid", which may be a column, 0.8 of "id"


@dataclass(frozen=True)
class Row:
    line: int  # in the manifest, from 1
    id: str
    request: Request
    settings: Settings
    columns: dict[str, object] = field(default_factory=dict)  # what the row carries along to metadata.jsonl


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be composed. id: the row's, if it is valid and no earlier line has taken it; else None. files:
    those that it names, as far as they can be read from it."""

    id: str | None
    error: str
    files: tuple[Path, ...] = ()


def read_manifest(path: str | Path, settings: Settings) -> tuple[list[Row], dict[int, BadRow]]:
    """The rows, in the manifest's order, and the bad ones, by line number.

    settings: what holds for every row that does not say otherwise. Images are not opened yet. Raises RowError for a
    manifest that is no regular file, or is not there, and for one that has not one JSON object.
    """
    path, rows, bad, lines_of, columns, objects = Path(path), [], {}, {}, Columns(), 0
    if what := irregular(path):
        raise RowError(f"{what}: {path}; expected a manifest, JSON lines")
    for line, raw in enumerate(_lines_of(path), start=1):
        identity, entry = None, None
        try:
            if len(raw) > LONGEST_LINE:
                raise RowError(f"the line is longer than {LONGEST_LINE} bytes")
            entry = _entry_of(raw, first=line == 1)
            if entry is None:
                continue
            asked = _id_of(entry, line)
            # Names that differ in case alone are one file on some systems.
            if (earlier := lines_of.setdefault(asked.casefold(), line)) != line:
                raise RowError(f"the id {asked!r} is taken by line {earlier}; give every row its own")
            identity = asked
            row = _row_of(entry, identity, line, path.parent, settings)
            rows.append(replace(row, columns=columns.of(entry, (*REQUIRED, *OPTIONAL), line)))
        except (ValueError, OSError) as error:  # OSError: a name that is too long for the system
            named = [value for name in FILES if isinstance(value := (entry or {}).get(name), str)]
            bad[line] = BadRow(identity, one_line(str(error)), tuple(path.parent / name for name in named))
        objects += entry is not None
    if bad and not objects:
        raise RowError(f"{path} is no manifest, JSON lines: line {min(bad)}: {bad[min(bad)].error}")
    return rows, bad


def misspelled(rows: list[Row]) -> Iterator[str]:
    """What to tell of columns whose names are nearly those of keys that mean something, once for each name."""
    known = (*OPTIONAL, *COLUMNS)
    first = {name: row.line for row in reversed(rows) for name in row.columns if name not in known}
    for name, line in sorted(first.items(), key=lambda one: one[1]):
        if meant := difflib.get_close_matches(name.casefold(), known, 1, CLOSE):
            yield f"row {line}: the key {name!r} is taken as a column of its own; did you mean {meant[0]!r}?"


def _lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, which end at newlines alone; of one that is too long, its beginning."""
    with path.open("rb") as file:
        while raw := file.readline(LONGEST_LINE + 1):
            rest = raw
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE + 1)
            yield raw


def _entry_of(raw: bytes, *, first: bool) -> dict | None:
    """The JSON object of a line; None for an empty one. Raises RowError for anything else."""
    try:
        # Editors of Windows begin a file with a byte order mark.
        text = raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: {error}; save the manifest as UTF-8") from None
    if not text.strip():
        return None
    try:
        entry = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # ValueError: JSON's own, and that of numbers of thousands of digits
        raise RowError(f"not a JSON object: {error}") from None
    if not isinstance(entry, dict):
        raise RowError(f"expected a JSON object, got {type(entry).__name__}")
    return {name: value for name, value in entry.items() if value is not None or name not in (*OPTIONAL, *COLUMNS)}


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    entry = dict(pairs)
    if len(entry) < len(pairs):
        doubled = next(name for name in entry if [each for each, _ in pairs].count(name) > 1)
        raise RowError(f"{shown(doubled)} is there twice")
    return entry


def _id_of(entry: dict, line: int) -> str:
    identity = entry.get("id", f"{line:06d}")
    if not isinstance(identity, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", identity):
        raise RowError(f"the id names files: letters, digits, '.', '_' and '-' only, got {shown(identity)}")
    if len(identity) > LONGEST_ID:
        raise RowError(f"the id has {len(identity)} characters, expected {LONGEST_ID} at most: {shown(identity)}")
    return identity


def _row_of(entry: dict, identity: str, line: int, folder: Path, settings: Settings) -> Row:
    """Raises RowError, ScanError or ValueError (of Settings) for what cannot be composed."""
    missing = [name for name in REQUIRED if not isinstance(entry.get(name), str)]
    if missing:
        others = [one_line(name, 80) for name in entry if name not in (*REQUIRED, *OPTIONAL)]
        raise RowError(
            f"missing or not a text: {', '.join(missing)}; columns of its own: {', '.join(others[:9]) or 'none'}; "
            f"a row has {', '.join(REQUIRED)}, one of user_mask and user_box, and may have {', '.join(OPTIONAL[2:])} "
            "and columns of its own"
        )
    if not isinstance(entry.get("user_mask", ""), str):
        raise RowError(f"user_mask is the name of a file, got {shown(entry['user_mask'])}")
    changes = _fields_of(entry, "settings", Settings)
    variation = Variation(**_fields_of(entry, "variation", Variation))
    files = {name: folder / entry[name] for name in FILES if name in entry}
    box = parse_box(entry["user_box"]) if "user_box" in entry else None
    window, label = entry.get("window"), entry.get("label")
    if window is not None and not (
        isinstance(window, list)
        and len(window) == 2
        and all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in window)
    ):
        raise RowError(f"window is two finite numbers, centre and width, got {shown(window)}")
    if label is not None and type(label) is not int:
        raise RowError(f"label is a whole number, got {shown(label)}")
    request = Request(files, box, entry["prompt"], window and tuple(window), label, variation)
    request.check_files()
    return Row(line, identity, request, replace(settings, **changes))


def _fields_of(entry: dict, name: str, kind: type) -> dict:
    """The object of a row that holds fields of a dataclass. Raises RowError for anything else."""
    changes, known = entry.get(name, {}), [field.name for field in fields(kind)]
    if not isinstance(changes, dict):
        raise RowError(f"{name} is an object, got {shown(changes)}")
    if strange := [one for one in changes if one not in known]:
        raise RowError(f"unknown {name}: {shown(', '.join(strange))}; expected some of {', '.join(known)}")
    return changes


def parse_box(value: object) -> tuple[int, int, int, int]:
    """Four whole numbers: x, y, width, height."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(number) is int for number in value):
        raise RowError(f"user_box is four whole numbers x, y, width, height, got {shown(value)}")
    return tuple(value)
