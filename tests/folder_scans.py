"""This module draws a user's own folders: scans of heads with and without a tumour, as images, and the masks of the
tumours in every form that `pair` reads."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (90, 110)  # height, width


def head(number: int, spot: tuple[int, int, int] | None = None, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A textured bright ellipse on black, uint8, with a brighter spot x, y, radius. Each number gives another."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    pixels = 110 + 12 * np.sin(x / (4 + number % 5) + number) + 12 * np.cos(y / (5 + number % 3)) + number % 17
    if spot is not None:
        pixels[disc(spot, size)] += 80
    pixels[((x - width / 2) / (0.46 * width)) ** 2 + ((y - height / 2) / (0.46 * height)) ** 2 > 1] = 0
    return pixels.clip(0, 255).astype(np.uint8)


def disc(spot: tuple[int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    return (x - spot[0]) ** 2 + (y - spot[1]) ** 2 <= spot[2] ** 2


def spot_of(number: int) -> tuple[int, int, int]:
    return 40 + 3 * (number % 9), 38 + 2 * (number % 7), 8 + number % 5


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def draw_folders(root: Path, objects: int = 4, backgrounds: int = 4, order=None) -> Path:
    """root/free/bN.png and root/tumour/oN.png with oN_mask.png. order: of the creation of the files."""
    for number in order or range(max(objects, backgrounds)):
        if number < backgrounds:
            save(head(number), root / "free" / f"b{number}.png")
        if number < objects:
            save(head(100 + number, spot_of(number)), root / "tumour" / f"o{number}.png")
            save(disc(spot_of(number)), root / "tumour" / f"o{number}_mask.png")
    return root


def via_file(path: Path, spots: dict[str, tuple[int, int, int]], kind: str = "glioma") -> Path:
    """A VIA file of circles."""
    regions = {
        name: [
            {
                "shape_attributes": {"name": "circle", "cx": x, "cy": y, "r": r},
                "region_attributes": {"kind": kind},
            }
        ]
        for name, (x, y, r) in spots.items()
    }
    path.write_text(json.dumps({name: {"filename": name, "regions": one} for name, one in regions.items()}))
    return path


def coco_file(path: Path, shapes: dict[str, list], kinds: dict[str, str] | None = None) -> Path:
    """A COCO file: of each image's name its segmentations, an annotation each."""
    names = sorted(set((kinds or {}).values()))
    content = {"images": [], "annotations": [], "categories": [{"id": n, "name": one} for n, one in enumerate(names)]}
    for number, (name, segmentations) in enumerate(shapes.items()):
        content["images"].append({"id": number, "file_name": name, "width": SIZE[1], "height": SIZE[0]})
        for one in segmentations:
            entry = {"id": len(content["annotations"]), "image_id": number, "segmentation": one}
            if kinds:
                entry["category_id"] = names.index(kinds[name])
            content["annotations"].append(entry)
    path.write_text(json.dumps(content))
    return path


def runs_of(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE of a bool mask."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
    counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts}
