"""Br35H and BUSI are drawn here in small: scans in the published layouts, for a benchmark without the real ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 120)  # height, width


def draw_br35h(root: Path, each: int) -> Path:
    """`each` heads without and `each` with a tumour, whose outline is a VIA circle."""
    outlines = root / "Br35H-Mask-RCNN" / "TRAIN"
    for folder in (root / "no", outlines):
        folder.mkdir(parents=True)
    annotations = {}
    for number in range(each):
        _save(_head(number), root / "no" / f"no{number}.png")
        x, y, r = 50 + 4 * number, 40 + 3 * number, 9 + number
        _save(_head(100 + number, spot=(x, y, r)), outlines / f"y{number}.png")
        shape = {"name": "circle", "cx": x, "cy": y, "r": r}
        annotations[f"y{number}"] = {"filename": f"y{number}.png", "regions": [{"shape_attributes": shape}]}
    (outlines / "annotations_train.json").write_text(json.dumps(annotations))
    return root


def draw_busi(root: Path, each: int) -> Path:
    """`each` normal scans, `each` benign ones with a mask, and no malignant ones."""
    for kind in ("normal", "benign", "malignant"):
        (root / kind).mkdir(parents=True)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for number in range(each):
        _save(_head(200 + number), root / "normal" / f"normal ({number}).png")
        Image.new("L", SIZE[::-1]).save(root / "normal" / f"normal ({number})_mask.png")
        spot = (60, 45 + 3 * number, 10 + number)
        _save(_head(300 + number, spot), root / "benign" / f"benign ({number}).png")
        mask = (x - spot[0]) ** 2 + (y - spot[1]) ** 2 <= spot[2] ** 2
        Image.fromarray(mask).save(root / "benign" / f"benign ({number})_mask.png")
    return root


def _head(seed: int, spot: tuple[int, int, int] | None = None) -> np.ndarray:
    """A textured bright ellipse on black, with a brighter spot x, y, radius."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.random.default_rng(seed).normal(120, 8, SIZE) + 20 * np.sin(x / (5 + seed % 7))
    if spot is not None:
        pixels[(x - spot[0]) ** 2 + (y - spot[1]) ** 2 <= spot[2] ** 2] += 90
    pixels[((x - 60) / 55) ** 2 + ((y - 48) / 44) ** 2 > 1] = 0
    return pixels


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
