"""This module draws a data folder of pictures that is laid out as Br35H and BUSI are. The tests of the training use it
in place of real scans."""

from pathlib import Path

import numpy as np
from PIL import Image

from sd21.training import data


def draw_scans(root: Path, each: int, size: int = 64) -> None:
    """`each` pictures a class: a bright ellipse, with a darker spot in the classes that have a tumour."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    for kind, folder in data.FOLDERS.items():
        (root / folder).mkdir(parents=True)
        for number in range(each):
            a, b, u, v = rng.uniform([0.6, 0.6, -0.3, -0.3], [0.9, 0.9, 0.3, 0.3])
            picture = 200.0 * ((x / a) ** 2 + (y / b) ** 2 < 1)
            if kind not in ("no", "normal"):
                picture[(x - u) ** 2 + (y - v) ** 2 < 0.04] = 90
            picture += rng.normal(0, 3, picture.shape)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / folder / f"{kind} ({number}).png")
        Image.new("L", (size, size)).save(root / folder / f"{kind} (0)_mask.png")
