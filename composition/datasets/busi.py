"""This module reads BUSI, Dataset of Breast Ultrasound Images (Al-Dhabyani et al., Data in Brief 2020), from its
folders `{benign,malignant,normal}/`. Each dataset has a module of its own, because each labels its tumours in another
way.

`NAME_mask.png` is the mask of `NAME.png`; `NAME_mask_1.png` and so on are those of further lesions. A scan's mask is
their union.
"""

from __future__ import annotations

from pathlib import Path

from .reading import Dataset, Labelled, LeftOut, files_of, mask_union, masks_beside, scan_size

PROMPT = "An ultrasound image of a cancerous breast"
FOLDER = "Dataset_BUSI_with_GT"


def read_busi(root: str | Path) -> Dataset:
    """Read BUSI as published. root: Dataset_BUSI_with_GT, or the folder that holds it.

    Scans in `benign/` and `malignant/` are objects, those in `normal/` backgrounds. Masks may be of any mode. What
    cannot be used is counted by reason in `left_out`. Raises DatasetError where a folder is not there.
    """
    root, left_out = Path(root), LeftOut()
    root = root / FOLDER if (root / FOLDER).is_dir() else root
    objects, backgrounds = [], []
    for kind in ("benign", "malignant", "normal"):
        for path, masks in masks_beside(files_of(root / kind, "BUSI"), left_out):
            size = scan_size(path, left_out)
            if size is None:
                continue
            mask = mask_union(masks or [], size, left_out)
            if kind == "normal":
                if mask is not None and mask.any():
                    left_out.add("tumour-free scan with a lesion in its mask", path.name)
                elif mask is not None:
                    backgrounds.append(path)
            elif masks is None:
                left_out.add("image without mask", path.name)
            elif mask is not None and not mask.any():
                left_out.add("mask without lesion", path.name)
            elif mask is not None:
                objects.append(Labelled(path, mask, kind))
    objects.sort(key=lambda labelled: labelled.path.name)
    return Dataset("busi", PROMPT, backgrounds, objects, left_out)
