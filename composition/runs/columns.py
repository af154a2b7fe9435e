"""This module makes the columns of metadata.jsonl: those that a row of the manifest carries along, and those that tell
of the mask.

Columns are computed from a row and its finished files. They do not decide what is composed, so a row whose columns
alone have changed is not composed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, fields

import numpy as np

from sd21.words import one_line, shown

from ..metrics.label_truth import LabelTruth
from ..placement import bounding_box
from ..scans.errors import RowError
from .record import FIELDS

SPLITS = ("train", "validation", "val", "test")  # the names of folders that Hugging Face's datasets takes for splits
MOST_COLUMNS = 64  # of a row's own
LONGEST_NAME, LONGEST_TEXT = 64, 1000  # characters
LONGEST_LIST = 100
BEYOND_64_BITS = 2**63  # readers of tables hold whole numbers in 64 bits
OURS = ("bbox", "area", "area_mm2", *(f"label_{field.name}" for field in fields(LabelTruth)))
# Hugging Face's datasets makes the columns `image` and `mask` of file_name and mask_file_name.
TAKEN = {*FIELDS, *OURS, "image", "mask"}
KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text"}


def check_class(name: object) -> str:
    """A class's name. Raises ValueError for what is no short text."""
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or one_line(name) != name:
        raise ValueError(
            f"the name of a class is a text in one line of 1 to {LONGEST_NAME} characters, got {shown(name)}"
        )
    return name


class Columns:
    """Checks the columns that the rows of one manifest carry along, in the manifest's order.

    A loader of tables gives a column one type, so that of its first value holds for all rows.
    """

    def __init__(self):
        self._seen: dict[str, tuple[str, int]] = {}  # the kind of a column, and the line that had it first

    def of(self, entry: dict, known: Iterable[str], line: int) -> dict[str, object]:
        """The columns of a manifest's row: all keys that are not in `known`. Raises RowError, naming the column."""
        own = {name: value for name, value in entry.items() if name not in known}
        if len(own) > MOST_COLUMNS:
            raise RowError(f"the row has {len(own)} columns of its own, expected {MOST_COLUMNS} at most")
        kinds = {name: kind for name, value in own.items() if (kind := _checked(name, value)) is not None}
        for name, kind in kinds.items():
            first, where = self._seen.get(name, (kind, line))
            if first != kind:
                raise RowError(
                    f"the column {name!r} holds {kind} here and {first} in line {where}; a column has one kind"
                )
        self._seen |= {name: (kind, line) for name, kind in kinds.items() if name not in self._seen}
        return own


def _checked(name: str, value: object) -> str | None:
    """The kind of a column's value, in words; None for null, which fits to every kind. Raises RowError."""
    told = f"the column {shown(name)}"
    if not name.strip() or len(name) > LONGEST_NAME or one_line(name) != name:
        raise RowError(f"{told}: its name is a text in one line of 1 to {LONGEST_NAME} characters; rename it")
    if name in TAKEN:
        raise RowError(f"{told} would take the place of a column that batch writes itself; rename it, as source_{name}")
    if name.endswith(("file_name", "file_names")):
        raise RowError(
            f"{told}: dataset libraries take columns whose names end in file_name for images of the data set; rename "
            f"it, as {name.rpartition('file_name')[0]}file"
        )
    if name == "class":
        try:
            check_class(value)
        except ValueError as error:
            raise RowError(str(error)) from None
    if name == "split" and value not in SPLITS:
        raise RowError(f"split is one of {', '.join(SPLITS)}, got {shown(value)}")
    if value is None:
        return None
    if not isinstance(value, list):
        return _kind_of(value, told)
    if len(value) > LONGEST_LIST:
        raise RowError(f"{told} is a list of {len(value)} values, expected {LONGEST_LIST} at most")
    kinds = {_kind_of(one, told) for one in value}
    if len(kinds) > 1:
        raise RowError(f"{told} is a list of {' and '.join(sorted(kinds))}; expected values of one kind")
    return f"a list, each {kinds.pop()}" if kinds else None


def _kind_of(value: object, told: str) -> str:
    kind = KINDS.get(type(value))
    if kind is None:
        raise RowError(
            f"{told}: expected a text, a number, true or false, null, or a list of such values, got {shown(value)}"
        )
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            raise RowError(f"{told} has {len(value)} characters, expected {LONGEST_TEXT} at most")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half a character, which JSON can spell
            raise RowError(f"{told} is no text: {error}; mend its encoding") from None
    elif not math.isfinite(value) if isinstance(value, float) else not -BEYOND_64_BITS <= value < BEYOND_64_BITS:
        raise RowError(f"{told}: expected a finite number within 64 bits, got {shown(value)}")
    return kind


def columns_of(own: dict[str, object], label_name: str, scan: dict, label: LabelTruth, mask: np.ndarray) -> dict:
    """The columns of a finished row.

    own: those of the manifest's row. label_name: the class's name where the row gives none. scan: the record's `scan`,
    with the background's spacing. label: the measures of the label; mask: bool (H, W), the label.
    Returns `class`, `bbox` (x, y, width, height in pixels), `area` in pixels, `area_mm2` (None where the spacing is
    unknown), the measures as `label_*`, and the row's own.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    area = int(np.count_nonzero(mask))
    spacing = scan["spacing"] if scan["measured"] else None
    return {
        "class": label_name,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "area_mm2": None if spacing is None else area * spacing[0] * spacing[1],
        **{f"label_{name}": value for name, value in asdict(label).items()},
        **own,
    }


def has_columns(entry: dict) -> bool:
    """Whether a record has what `columns_of` reads of it, beside the label's measures."""
    scan = entry.get("scan")
    if not isinstance(scan, dict) or "measured" not in scan or "spacing" not in scan:
        return False
    spacing = scan["spacing"]
    pair = isinstance(spacing, list) and len(spacing) == 2 and all(type(one) in (int, float) for one in spacing)
    return pair or not scan["measured"]
