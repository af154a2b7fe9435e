"""This module writes tables as text: lines of Markdown, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence


def markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown_head(cells: Sequence[str]) -> list[str]:
    """The line of headings, and the one below it that makes them headings."""
    return [markdown_line(cells), markdown_line(["---"] * len(cells))]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence | dict]) -> str:
    """The columns' names and a line for each row, which has a value for each of them, or is a dict of those it has."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([row.get(name, "") for name in columns] if isinstance(row, dict) else row)
    return text.getvalue()
