"""This module reads outlines of tumours from annotation files, and draws them as masks: those of VGG Image Annotator
(VIA), 1 and 2, and those of COCO.

Any reader may need them, and a polygon means the same in all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sd21.files import irregular

from ..scans.errors import extra_needed
from .reading import LeftOut

# Coordinates beyond this are damage, because no scan comes near it. Pillow fills polygons in 32-bit floats and
# integers. Up to here they resolve a sixteenth of a pixel; from 2^31 on they fail.
FARTHEST = 2**20


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


def read_json(file: Path) -> object:
    """What a JSON file holds; None where it cannot be read."""
    try:
        if what := irregular(file):
            raise OSError(what)
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def via_entries(content: object, file: str, left_out: LeftOut) -> list[tuple[str, list]]:
    """The (file name, regions) of the entries of a VIA file, which may be a whole VIA project. content: as `read_json`
    returns it. file: its name, for the count of what cannot be used."""
    try:
        entries = content.get("_via_img_metadata", content).values()
    except AttributeError:
        left_out.add("annotation file cannot be read", file)
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
            left_out.add("annotation without file name or regions", file)
    return found


def via_class(regions: list) -> str | None:
    """The class of VIA regions: the one text among their attributes; None where there is none, or more than one."""
    found = set()
    for region in regions:
        attributes = region.get("region_attributes") if isinstance(region, dict) else None
        if isinstance(attributes, dict):
            found |= {value for value in attributes.values() if isinstance(value, str) and value}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file. name: of its file. shapes: the segmentations of all its annotations. kind: the names of
    their categories, in the order of the alphabet, with "+" between; None where there are none."""

    name: str
    shapes: list
    kind: str | None


def is_coco(content: object) -> bool:
    """Whether JSON is a COCO file: an object with the lists `images` and `annotations`."""
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in ("images", "annotations"))


def coco_images(content: dict, file: str, left_out: LeftOut) -> list[CocoImage]:
    """The images of a COCO file in its order. content: as `read_json` returns it. file: its name, for the count of
    entries that cannot be used."""
    categories = content.get("categories")
    categories = categories if isinstance(categories, list) else []
    kinds = {one["id"]: one.get("name") for one in categories if _has_id(one, "id")}
    shapes: dict[object, list] = {}
    names: dict[object, set[str]] = {}
    for one in content["annotations"]:
        if not (_has_id(one, "image_id") and one.get("segmentation")):
            left_out.add("annotation without image or segmentation", file)
            continue
        shapes.setdefault(one["image_id"], []).append(one["segmentation"])
        kind = kinds.get(one["category_id"]) if _has_id(one, "category_id") else None
        names.setdefault(one["image_id"], set()).update([kind] if isinstance(kind, str) and kind else [])
    images = []
    for one in content["images"]:
        if _has_id(one, "id") and isinstance(one.get("file_name"), str):
            found = names.get(one["id"], ())
            images.append(CocoImage(one["file_name"], shapes.get(one["id"], []), "+".join(sorted(found)) or None))
        else:
            left_out.add("annotation without file name or regions", file)
    return images


def _has_id(entry: object, name: str) -> bool:
    """Whether an entry is an object whose field is a number or a text, by which others refer to it."""
    return isinstance(entry, dict) and isinstance(entry.get(name), int | str)


def coco_mask(shapes: Iterable[object], size: tuple[int, int]) -> np.ndarray:
    """The union of COCO segmentations as a bool mask (H, W) of size = (height, width).

    shapes: polygons, each a list of lists x, y, x, y, ..., or RLE, an object of `size` and `counts`. A pixel is inside
    a polygon if its middle is: COCO counts x from the left edge of the first pixel, and VIA from its middle.
    Raises ValueError for what is neither, and ImportError for compressed counts if pycocotools is not installed.
    """
    mask = np.zeros(size, dtype=bool)
    for shape in shapes:
        if isinstance(shape, dict):
            mask |= _rle_mask(shape, size)
        elif isinstance(shape, list) and shape and all(isinstance(one, list) for one in shape):
            for numbers in shape:
                mask |= _polygon_mask(numbers, size)
        else:
            raise ValueError("a segmentation that is neither polygons nor RLE")
    return mask


def _polygon_mask(numbers: list, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose middle an odd number of the polygon's turns encloses."""
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"a polygon of {len(numbers)} coordinates; expected pairs, three or more")
    _check_numbers(*numbers)
    mask = np.zeros(size, dtype=bool)
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    corners = list(zip(numbers[::2], numbers[1::2], strict=True))
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        rows = np.flatnonzero(
            (y0 > y) != (y1 > y)
        )  # whose middles the edge crosses; what lies right of it changes sides
        if rows.size:
            crossing = x0 + (y[rows] - y0) * ((x1 - x0) / (y1 - y0))
            mask[rows] ^= x >= crossing[:, None]
    return mask


def _rle_mask(shape: dict, size: tuple[int, int]) -> np.ndarray:
    """A run-length encoded mask; runs go down the columns, of zeros first. Compressed ones are pycocotools' matter."""
    counts, stated = shape.get("counts"), shape.get("size")
    if not (isinstance(stated, list) and stated == list(size)):
        raise ValueError("RLE of another size than its image")
    if isinstance(counts, str):
        with extra_needed("pycocotools", "the compressed RLE of a COCO file", "coco"):
            from pycocotools import mask as coco
        try:
            counts = coco.decode({"size": list(size), "counts": counts.encode("ascii")})
        except Exception as error:  # its C code raises several types for damage
            raise ValueError(f"RLE that cannot be decoded: {error}") from error
        return counts.astype(bool)
    whole = isinstance(counts, list) and all(type(one) is int and 0 <= one <= size[0] * size[1] for one in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise ValueError("RLE whose counts are not those of its size")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(size[::-1]).T
