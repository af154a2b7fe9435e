"""This module reads Br35H, Brain Tumor Detection 2020 (Ahmed Hamada), from its folders `no/`, `yes/` and
`Br35H-Mask-RCNN/{TRAIN,VAL}`. Each dataset has a module of its own, because each labels its tumours in another way.

The tumour-free scans are in `no/`. VGG Image Annotator (VIA) JSON files outline the tumours and lie beside copies of
their scans; one file of all annotations may lie above the folders.
"""

from __future__ import annotations

import json
import math
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sd21.files import irregular

from .reading import Dataset, Labelled, LeftOut, files_of, scan_size

PROMPT = "An MRI scan of a cancerous brain"
OUTLINES = "Br35H-Mask-RCNN"

# Coordinates beyond this are damage, because no scan comes near it. Pillow fills polygons in 32-bit floats and
# integers. Up to here they resolve a sixteenth of a pixel; from 2^31 on they fail.
FARTHEST = 2**20


def read_br35h(root: str | Path) -> Dataset:
    """Read Br35H as published. What cannot be used is counted by reason in `left_out`.

    Annotation files are read in the order of their names, and all of them identify an image by its file name. An image
    takes its first annotation that can be used. A further annotation is counted as "annotated once more" if its regions
    differ, and ignored if they are the same. An image without annotation is counted if an annotation file lies in its
    folder or in the folder above.
    Raises DatasetError if `no/` or the folder of outlines is not there.
    """
    root, left_out = Path(root), LeftOut()
    backgrounds = [path for path in files_of(root / "no", "Br35H") if scan_size(path, left_out) is not None]
    files_of(root / OUTLINES, "Br35H")  # raises DatasetError if it is not there
    annotations: dict[str, list[tuple[Path, list]]] = {}  # by file name: the image's path, and its regions
    folders: dict[Path, None] = {}  # a set that keeps the order
    for file in sorted((root / OUTLINES).rglob("*.json"), key=lambda path: path.relative_to(root).as_posix()):
        covered = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
        folders |= dict.fromkeys(covered)
        for name, regions in _entries(file, left_out):
            annotations.setdefault(name, []).append((_image_of(name, [*covered, root / "yes"]), regions))
    objects = []
    for name in sorted(annotations):
        labelled = _first_usable(name, annotations[name], left_out)
        if labelled is not None:
            objects.append(labelled)
    annotated = {path for found in annotations.values() for path, _ in found}
    for path in [path for folder in folders for path in files_of(folder, "Br35H")]:
        if path.suffix != ".json" and path not in annotated:
            left_out.add("image without annotation", path.name)
    return Dataset("br35h", PROMPT, backgrounds, objects, left_out)


def via_mask(regions: list | dict, size: tuple[int, int]) -> np.ndarray:
    """The union of VIA regions as a bool mask (H, W) of size = (height, width).

    regions: a list, or in VIA 1 a dict of numbered regions. Shapes: polygon (its outline included), ellipse (cx, cy,
    rx, ry, and theta in radians, turning x towards y), circle (cx, cy, r). Ellipses and circles hold the pixels whose
    integer coordinates lie in them. Parts beyond the image are cut off.
    Raises ValueError for other shapes, for shapes that lack an attribute, and for coordinates that are no numbers or
    are beyond FARTHEST.
    """
    height, width = size
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    ellipses = np.zeros(size, dtype=bool)
    y, x = np.mgrid[:height, :width]
    for region in regions.values() if isinstance(regions, dict) else regions:
        try:
            shape = region["shape_attributes"]
            kind = shape["name"]
            if kind == "polygon":
                points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
                if len(points) < 3:
                    raise ValueError(f"a polygon of {len(points)} points has no area")
                _check_numbers(*shape["all_points_x"], *shape["all_points_y"])
                draw.polygon(points, fill=1)
            elif kind in ("ellipse", "circle"):
                rx, ry = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
                cx, cy, theta = shape["cx"], shape["cy"], shape.get("theta", 0)
                _check_numbers(cx, cy, rx, ry, theta)
                if not (rx > 0 and ry > 0):
                    raise ValueError(f"an ellipse with the half axes {rx} and {ry} has no area")
                u, v = x - cx, y - cy
                along = u * math.cos(theta) + v * math.sin(theta)
                across = v * math.cos(theta) - u * math.sin(theta)
                ellipses |= (along / rx) ** 2 + (across / ry) ** 2 <= 1
            else:
                raise ValueError(f"{kind!r} is not a polygon, an ellipse or a circle")
        except (KeyError, TypeError) as error:
            raise ValueError(f"a region that is no VIA shape: {region!r}") from error
    return np.asarray(image) | ellipses


def _check_numbers(*numbers) -> None:
    """Raise ValueError unless all are finite numbers from -FARTHEST to FARTHEST."""
    for number in numbers:
        if not (isinstance(number, Real) and abs(number) <= FARTHEST):
            raise ValueError(f"a coordinate of {number!r}; expected a number from -{FARTHEST} to {FARTHEST}")


def _entries(file: Path, left_out: LeftOut) -> list[tuple[str, list]]:
    """The (file name, regions) of the entries of a VIA file, which may be a whole VIA project."""
    try:
        if what := irregular(file):
            raise OSError(what)
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content.get("_via_img_metadata", content).values()
    except (OSError, ValueError, AttributeError, RecursionError):
        left_out.add("annotation file cannot be read", file.name)
        return []
    found = []
    for entry in entries:
        try:
            name, regions = entry["filename"], entry["regions"]
        except (KeyError, TypeError):
            name = regions = None
        if isinstance(name, str) and isinstance(regions, list | dict):
            found.append((name, list(regions.values()) if isinstance(regions, dict) else regions))
        else:
            left_out.add("annotation without file name or regions", file.name)
    return found


def _image_of(name: str, folders: list[Path]) -> Path:
    """The path of an entry's image in the first of the folders that has it, or else in the first folder."""
    places = [folder / name for folder in folders]
    return next((path for path in places if path.is_file()), places[0])


def _first_usable(name: str, annotations: list[tuple[Path, list]], left_out: LeftOut) -> Labelled | None:
    """An image with the first of its annotations (path, regions) that can be used, or None and a count for each reason.

    Further annotations are counted if their regions differ from those taken.
    """
    failures = LeftOut()
    for path, regions in annotations:
        labelled = _labelled(path, regions, failures)
        if labelled is not None:
            for _, other in annotations:
                if other != regions:
                    left_out.add("annotated once more", name)
            return labelled
    for reason in failures.names:
        left_out.add(reason, name)
    return None


def _labelled(path: Path, regions: list, left_out: LeftOut) -> Labelled | None:
    size = scan_size(path, left_out)
    if size is None:
        return None
    try:
        mask = via_mask(regions, size)
    except ValueError:
        left_out.add("outline cannot be drawn", path.name)
        return None
    if not mask.any():
        left_out.add("mask without lesion", path.name)
        return None
    return Labelled(path, mask)
