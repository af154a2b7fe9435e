"""This module writes the splits of a batch as Hugging Face's image folder, which `datasets` loads as a whole.

`datasets` finds the type of a column in the lines of a split alone, and refuses a data set whose splits differ in it. A
column that holds nothing but null in one split has no type there. So a column whose type differs between splits is left
out of the splits' tables (OUT/metadata.jsonl has it still), and whole numbers become floating ones where another split
has those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from sd21.files import json_lines

DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?Z?)?"  # texts that pyarrow takes for dates

# The type of a column: "bool", "int", "float", "date" or "text", ["list", type], {name: type}, or None for null alone.
Kind = str | list | dict | None


def write(
    table: Iterable[dict], out: Path, folder: Path, split_of: Callable[[dict], str], link: Callable[[Path, Path], None]
) -> list[str]:
    """Write folder/SPLIT/metadata.jsonl and the files that it names, for every split of the records. Returns the names
    of the columns that are left out.

    table: the records; it is read several times. out: the batch's folder. link: puts a file under a further name.
    """
    kinds: dict[str, Kind] = {}
    for record in table:
        kinds[split_of(record)] = joined(kinds.get(split_of(record)), kind_of(record))
    first, *others = kinds.values()
    columns = [name for name in first if all(_widened(first[name]) == _widened(other.get(name)) for other in others)]
    floats = {name for name in columns if any(kind.get(name) == "float" for kind in kinds.values())}
    for split in kinds:
        (folder / split).mkdir()
        with (folder / split / "metadata.jsonl").open("w", encoding="utf-8") as file:
            for record in (record for record in table if split_of(record) == split):
                for name in (record["file_name"], record["mask_file_name"], *record["stored"]):
                    link(out / name, folder / split / name)
                told = {name: record[name] for name in columns}
                told |= {name: float(told[name]) for name in floats if told[name] is not None}
                file.write(json_lines([told]))
    return [name for name in dict.fromkeys(name for kind in kinds.values() for name in kind) if name not in columns]


def kind_of(value: object) -> Kind:
    """The type that a loader finds for one JSON value."""
    if isinstance(value, dict):
        return {name: kind_of(one) for name, one in value.items()}
    if isinstance(value, list):
        kind = None
        for one in value:
            kind = joined(kind, kind_of(one))
        return ["list", kind]
    if isinstance(value, str):
        return "date" if re.fullmatch(DATE, value) else "text"
    return None if value is None else type(value).__name__


def joined(a: Kind, b: Kind) -> Kind:
    """The type of a column that holds values of both types."""
    if a is None or b is None or a == b:
        return b if a is None else a
    if isinstance(a, dict) and isinstance(b, dict):
        return {name: joined(a.get(name), b.get(name)) for name in {**a, **b}}
    if isinstance(a, list) and isinstance(b, list):
        return ["list", joined(a[1], b[1])]
    return "float" if {a, b} == {"int", "float"} else "text"


def _widened(kind: Kind) -> Kind:
    return "float" if kind == "int" else kind
