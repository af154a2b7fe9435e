"""This module draws the qualitative grids. Their rows are chosen samples; their columns are the background, the object
and the lines that a lineup shows. It alone knows how a composite is shown, and which pixels may not be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..figures import GAP, TUMOUR_COLOUR, USER_COLOUR, eight_bit, outlined
from ..runs.manifest import Row
from ..scans.images import read_scan, values_of
from .measures import parts_of
from .variants import Line

CELL, TEXT_HEIGHT = 192, 24  # pixels


def grid(
    rows: Sequence[Row],
    lines: Sequence[Line],
    runs: Path,
    done: set[tuple[str, str]],
    reproduce: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Image.Image:
    """The grid as an RGB image: captions, then for each dataset its prompt and, below, its samples.

    Columns stand in the order of `lines`. The background shows the outline of the user mask, and the object that of its
    own mask. done: the sound composites, as (id, variant); the cell of any other says "failed". reproduce: a function
    of values (H, W, 3) in [-1, 1] that makes what is shown in place of every image that has a scan's own pixels.
    """
    captions = ["background", "object", *(line.label for line in lines)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(parts_of(row.id)[0], []).append(row)
    width = GAP + len(captions) * (CELL + GAP)
    height = TEXT_HEIGHT + len(groups) * TEXT_HEIGHT + len(rows) * (CELL + GAP)
    figure = Image.new("RGB", (width, height), "white")
    draw, font, y = ImageDraw.Draw(figure), ImageFont.load_default(size=13), 0

    def write(text: str, x: int, y: int) -> None:
        draw.text((x, y), text, fill="black", font=font, anchor="mm")

    for column, caption in enumerate(captions):
        write(caption, _left(column) + CELL // 2, y + TEXT_HEIGHT // 2)
    y += TEXT_HEIGHT
    for group in groups.values():
        write(f"{group[0].request.prompt} ({', '.join(row.id for row in group)})", width // 2, y + TEXT_HEIGHT // 2)
        y += TEXT_HEIGHT
        for row in group:
            for column, cell in enumerate(_cells(row, lines, runs, done, reproduce)):
                if cell is None:
                    write("failed", _left(column) + CELL // 2, y + CELL // 2)
                else:
                    figure.paste(ImageOps.pad(cell, (CELL, CELL), color="white"), (_left(column), y))
            y += CELL + GAP
    return figure


def _cells(
    row: Row, lines: Sequence[Line], runs: Path, done: set, reproduce: Callable | None
) -> list[Image.Image | None]:
    sample = row.request.read()
    window = sample.background.window

    def shown(pixels: np.ndarray, window: tuple[int, int], of_scan: bool = True) -> Image.Image:
        values = values_of(pixels, window)
        return eight_bit(reproduce(values) if reproduce and of_scan else values, (-1, 1))

    cells: list[Image.Image | None] = [
        outlined(shown(sample.background.pixels, window), sample.user_mask, USER_COLOUR),
        outlined(shown(sample.obj.pixels, sample.obj.window), sample.object_mask, TUMOUR_COLOUR),
    ]
    for line in lines:
        if (row.id, line.variant.name) not in done:
            cells.append(None)
            continue
        folder = runs / line.variant.name
        record = json.loads((folder / "records" / f"{row.id}.json").read_text(encoding="utf-8"))
        composite = read_scan(folder / record["file_name"])
        # A record that does not say so may be of scan pixels.
        cells.append(shown(composite.pixels, window, of_scan=not record.get("decoded", False)))
    return cells


def _left(column: int) -> int:
    return GAP + column * (CELL + GAP)
