"""This module scores the sheets of a reader study with its key. It does not import torch."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd21.files import irregular
from sd21.words import one_line, shown

from ..metrics.intervals import LEVEL, exact_binomial
from ..scans.errors import SheetError
from ..tables import markdown_head, markdown_line
from .names import KEY_COLUMNS, REAL, SHEET, SYNTHETIC

ALL = "all"
LONGEST = 1 << 24  # bytes of a sheet or a key; a thousand crops take some ten thousand
SHORT = {"r": REAL, "s": SYNTHETIC, "fake": SYNTHETIC, REAL: REAL, SYNTHETIC: SYNTHETIC}
MOST_TOLD = 5  # faults of one sheet that an error names


@dataclass(frozen=True)
class Score:
    """How many crops of a set a reader has called right, of `read` that the reader has answered and `crops` that there
    are; of all readers together, `crops` times the readers. low, high: the exact interval of the share at LEVEL
    (Clopper and Pearson 1934)."""

    reader: str
    set: str
    right: int
    read: int
    crops: int
    low: float
    high: float


def score(sheets: Sequence[str | Path], key: str | Path) -> list[Score]:
    """The scores by reader and set, of all sets together, and, where there are several readers, of all readers.

    A crop of the key without a line in a sheet counts as not read. Intervals of all readers take every answer for one
    of its own; readers of the same crops are not, so that these are too narrow where readers agree.
    Raises SheetError for lines without an answer, with an answer that is none, twice the same crop or one that is not
    in the key, for a sheet that is named twice, and for files that are no such tables.
    """
    sets = _key(Path(key))
    if twice := [path for path, times in Counter(Path(path).resolve() for path in sheets).items() if times > 1]:
        raise SheetError(f"the sheet {twice[0]} is there twice; name each one once")
    answers: dict[tuple[str, str], bool] = {}
    for number, path in enumerate(map(Path, sheets), start=1):
        faults: list[str] = []
        for line, row in _rows(path, SHEET[:3]):
            reader = row["reader"].strip() or f"reader {number}"
            crop, answer = row["crop"].strip(), SHORT.get(row["answer"].strip().lower())
            crop = crop if crop in sets else crop.zfill(4)  # a spreadsheet takes 0001 for a number
            if crop not in sets:
                faults.append(f"line {line}: no crop {shown(row['crop'], 40)} is in the key")
            elif not row["answer"].strip():
                faults.append(f"line {line}: crop {crop} has no answer")
            elif answer is None:
                faults.append(f"line {line}: {shown(row['answer'], 40)} is neither {REAL} nor {SYNTHETIC}")
            elif (reader, crop) in answers:
                faults.append(f"line {line}: {one_line(reader, 40)} has answered crop {crop} before")
            else:
                answers[reader, crop] = (answer == REAL) == (sets[crop] == REAL)
        if faults:
            more = f"; and {len(faults) - MOST_TOLD} more" if len(faults) > MOST_TOLD else ""
            raise SheetError(
                f"{path}: {'; '.join(faults[:MOST_TOLD])}{more}. Mend these lines; one that is to count as not read is "
                "removed"
            )
    if not answers:
        raise SheetError(f"{', '.join(map(str, sheets))}: there is no answer in it")
    return _scores(answers, sets)


def _scores(answers: dict[tuple[str, str], bool], sets: dict[str, str]) -> list[Score]:
    readers = list(dict.fromkeys(reader for reader, _ in answers))
    kinds = [ALL, *dict.fromkeys(sorted(sets.values(), key=lambda name: (name != REAL, name)))]
    together = f"{len(readers)} readers"
    groups = [(reader, [reader]) for reader in readers]
    groups += [(f"all {together}" if together in readers else together, readers)] if len(readers) > 1 else []
    found = []
    for name, who in groups:
        for kind in kinds:
            of = [right for (reader, crop), right in answers.items() if reader in who and kind in (ALL, sets[crop])]
            crops = len(who) * sum(kind in (ALL, one) for one in sets.values())
            if of:
                found.append(Score(name, kind, sum(of), len(of), crops, *exact_binomial(sum(of), len(of))))
    return found


def markdown(scores: Sequence[Score]) -> str:
    """The table of scores, in Markdown."""
    lines = markdown_head(["reader", "set", "right", "of", f"share [{LEVEL:.0%} interval]"])
    for one in scores:
        share = f"{one.right / one.read:.0%} [{one.low:.0%}, {one.high:.0%}]"
        reader = one_line(one.reader, 80).replace("|", "/")
        lines.append(markdown_line([reader, one.set, str(one.right), str(one.read), share]))
    some = [one for one in scores if one.set == ALL and one.read < one.crops]
    lines += ["", *(f"{one_line(one.reader, 80)} has answered {one.read} of {one.crops} crops." for one in some)]
    lines += [
        "50 % in all is what one who cannot tell them apart comes to; of a set of composites, the share is that",
    ]
    return "\n".join([*lines, "of those that were called synthetic."]) + "\n"


def _key(path: Path) -> dict[str, str]:
    """{crop: set} of a key."""
    sets: dict[str, str] = {}
    for line, row in _rows(path, KEY_COLUMNS[:2]):
        if row["crop"] in sets or not row["crop"] or not row["set"]:
            raise SheetError(f"{path}: line {line} names no crop, no set, or a crop twice; is it a key?")
        sets[row["crop"]] = row["set"]
    if not sets:
        raise SheetError(f"{path} names no crop; expected the key.csv that --reader-study has written")
    return sets


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file with their numbers, whose columns are known by the first line. Commas, semicolons and
    tabs may part them, as spreadsheets write what their language wants."""
    if what := irregular(path):
        raise SheetError(f"{path}: {what}")
    if path.stat().st_size > LONGEST:
        raise SheetError(f"{path} has more than {LONGEST} bytes; expected a sheet of a reader study, or its key")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SheetError(f"{path} is no text in UTF-8: {error}; save it as CSV in UTF-8") from None
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, restval="")
        names = [name.split("(")[0].strip().lower() for name in table.fieldnames or ()]  # as of HEADINGS
        if missing := [name for name in columns if names.count(name) != 1]:
            raise SheetError(
                f"{path} has not one column {' and one '.join(missing)}; expected a first line {', '.join(columns)}"
            )
        table.fieldnames = names
        rows = [(table.line_num, row) for row in table if any(row.get(name) for name in columns)]
    except csv.Error as error:
        raise SheetError(f"{path} is no CSV file: {one_line(str(error))}") from None
    return rows
