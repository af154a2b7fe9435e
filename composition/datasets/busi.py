"""This module reads BUSI, Dataset of Breast Ultrasound Images (Al-Dhabyani et al., Data in Brief 2020), from its
folders `{benign,malignant,normal}/`. Each dataset has a module of its own, because each labels its tumours in another
way.

`NAME_mask.png` is the mask of `NAME.png`; `NAME_mask_1.png` and so on are those of further lesions. A scan's mask is
their union.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ..scans.errors import ScanError, damage_named
from ..scans.images import read_mask
from .reading import Dataset, Labelled, LeftOut, files_of, scan_size

PROMPT = "An ultrasound image of a cancerous breast"
FOLDER = "Dataset_BUSI_with_GT"
MASK = re.compile(r"(.+)_mask(_\d+)?")


def read_busi(root: str | Path) -> Dataset:
    """Read BUSI as published. root: Dataset_BUSI_with_GT, or the folder that holds it.

    Scans in `benign/` and `malignant/` are objects, those in `normal/` backgrounds. Masks may be of any mode. What
    cannot be used is counted by reason in `left_out`. Raises DatasetError where a folder is not there.
    """
    root, left_out = Path(root), LeftOut()
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    objects, backgrounds = [], []
    for kind in ("benign", "malignant", "normal"):
        images, masks = {}, {}
        for path in files_of(root / kind, "BUSI"):
            if match := MASK.fullmatch(path.stem):
                masks.setdefault(match[1], []).append(path)
            elif path.stem in images:  # masks are found by the stem, so only one image can have them
                left_out.add("image named like an earlier one but for its suffix", path.name)
            else:
                images[path.stem] = path
        for name in sorted(masks.keys() - images.keys()):
            left_out.add("mask without image", masks[name][0].name)
        for name, path in images.items():
            size = scan_size(path, left_out)
            if size is None:
                continue
            mask = _union(masks.get(name, []), size, left_out)
            if kind == "normal":
                if mask is not None and mask.any():
                    left_out.add("tumour-free scan with a lesion in its mask", path.name)
                elif mask is not None or name not in masks:
                    backgrounds.append(path)
            elif name not in masks:
                left_out.add("image without mask", path.name)
            elif mask is not None and not mask.any():
                left_out.add("mask without lesion", path.name)
            elif mask is not None:
                objects.append(Labelled(path, mask))
    objects.sort(key=lambda labelled: labelled.path.name)
    return Dataset("busi", PROMPT, backgrounds, objects, left_out)


def _union(paths: list[Path], size: tuple[int, int], left_out: LeftOut) -> np.ndarray | None:
    """The union of the mask files, in the scan's size, or None and a count if one of them cannot be used."""
    union = np.zeros(size, dtype=bool)
    for path in paths:
        try:
            with damage_named(path.name, "an image"), Image.open(path) as image:
                image.load()
                black = image.convert("RGB").getbbox() is None
                mask = np.zeros(image.size[::-1], dtype=bool) if black else read_mask(image)
        except ScanError:
            left_out.add("mask cannot be read", path.name)
            return None
        if mask.shape != size:
            left_out.add("mask of another size than its image", path.name)
            return None
        union |= mask
    return union
