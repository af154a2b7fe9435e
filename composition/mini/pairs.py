"""This module shows compositions of held-out scans beside copy-paste, for the small checkpoint's model card.

The pairs are the first of the benchmark (datasets/drawing.py, seed 0), drawn from held-out scans alone, by index and
not by looks. Compositions are shown as the autoencoder reproduces them, unless all of their pixels came from it anyway:
the pictures then differ by the method and not by the autoencoder, and no scan is copied into the card.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from sd21.training import data

from ..canvas import reproduce
from ..datasets import Dataset, build_benchmark, read_br35h, read_busi
from ..figures import GAP, TUMOUR_COLOUR, eight_bit, outlined
from ..methods import Composition, compose
from ..metrics import Networks, Reference, measure
from ..model import Model
from ..placement import Sample
from ..runs.manifest import read_manifest
from ..scans.images import Scan, values_of
from ..settings import Settings

CELL, CAPTION_HEIGHT, SAMPLES_A_ROW = 192, 20, 2


def held_out_part(dataset: Dataset, held_out: set[str]) -> Dataset:
    """What of a dataset is held out; held_out: names of scans, "kind/file name"."""

    def kept(path: Path) -> bool:
        # The outlined scans of Br35H are copies of those in `yes`.
        kind = path.parent.name if path.parent.name in data.KINDS else "yes"
        return f"{kind}/{path.name}" in held_out

    backgrounds = [path for path in dataset.backgrounds if kept(path)]
    return replace(dataset, backgrounds=backgrounds, objects=[obj for obj in dataset.objects if kept(obj.path)])


def held_out_pairs(root: Path, count: int) -> dict[str, Sample]:
    """The first `count` pairs of each modality, by id. root: the folder that holds br35h/ and busi/."""
    held_out = data.held_out_names()
    datasets = (read_br35h(root / "br35h"), read_busi(root / "busi"))
    with TemporaryDirectory() as folder:
        built = build_benchmark(folder, [(held_out_part(dataset, held_out), count) for dataset in datasets])
        rows, _ = read_manifest(built.manifest, Settings())
        return {row.id: row.request.read() for row in rows}


def reproduced(model: Model, composition: Composition) -> Composition:
    """The composition encoded and decoded, so that nothing in it is of a scan itself."""
    if composition.decoded:
        return composition
    sample = composition.sample
    values = reproduce(model, values_of(composition.image, sample.background.window))
    return replace(composition, image=sample.background.render(values, grayscale=sample.grayscale), decoded=True)


def compare_with_paste(model: Model, pairs: dict[str, Sample], path: Path) -> dict:
    """Write the picture of all pairs, by the default settings; returns medians over them, of the measures that take no
    network: of the compositions, and of what the picture shows of them."""
    samples, settings = list(pairs.values()), Settings()
    results = {
        method: [compose(model, *sample, settings, method=method) for sample in samples]
        for method in ("copy-paste", "ours")
    }
    for method, composed in list(results.items()):
        results[f"{method}, reproduced"] = [reproduced(model, composition) for composition in composed]
    sheet(pairs, results["copy-paste, reproduced"], results["ours, reproduced"]).save(path)
    references = [Reference.of(sample, Networks(), fit=settings.fit, match=settings.match) for sample in samples]
    medians = {}
    for name, composed in results.items():
        of = [
            measure(reference.compare(Scan(composition.image)))
            for reference, composition in zip(references, composed, strict=True)
        ]
        medians[name] = {column: float(np.nanmedian([values[column] for values in of])) for column in of[0]}
    return medians


def sheet(pairs: dict[str, Sample], pasted: list[Composition], ours: list[Composition]) -> Image.Image:
    """For each pair copy-paste with the outline of the tumour's mask, copy-paste, ours; two pairs a row.

    It may be published. Raises ValueError for a composition that has pixels of a scan.
    """
    if not all(composition.decoded for composition in (*pasted, *ours)):
        raise ValueError("a composition has pixels of a scan, which may not be shown; reproduce it first")
    width, height = 3 * (CELL + GAP), CELL + CAPTION_HEIGHT + GAP
    rows = -(-len(pairs) // SAMPLES_A_ROW)
    picture = Image.new("RGB", (SAMPLES_A_ROW * width, rows * height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for number, ((name, sample), paste, our) in enumerate(zip(pairs.items(), pasted, ours, strict=True)):
        row, column = divmod(number, SAMPLES_A_ROW)
        window = sample.background.window
        before, after = (eight_bit(composition.image, window) for composition in (paste, our))
        cells = (
            (f"{name}: target", outlined(before, our.mask, TUMOUR_COLOUR)),
            ("copy-paste", before),
            ("ours", after),
        )
        for place, (caption, cell) in enumerate(cells):
            x, y = column * width + place * (CELL + GAP), row * height
            draw.text((x + CELL // 2, y + CAPTION_HEIGHT // 2), caption, fill="black", font=font, anchor="mm")
            picture.paste(ImageOps.pad(cell, (CELL, CELL), color="white"), (x, y + CAPTION_HEIGHT))
    return picture
