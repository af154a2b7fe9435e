"""This module cuts the crops that are compared: squares around tumours, all made in one way.

Nothing of how a crop is made may tell which set it is from. So a scan is brought to 8-bit greys first. The square has
the tumour's box in its middle, with the margin at each side; one that leaves its scan is left out, since a composite's
tumour lies in tissue and a padded or shifted crop would show where it is from. Every crop is shrunk to one size by one
filter; one that would have to be enlarged is left out, as its blur would tell its size. Several lesions of one scan
are one tumour, as they are one object to `batch`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from ..datasets.reading import Labelled, LeftOut
from ..figures import eight_bit
from ..placement import bounding_box
from ..scans.errors import BlankError, ScanError
from ..scans.images import read_scan
from .choices import Choices

THUMBNAIL = 64  # pixels; twins are told by it
FEWEST_PIXELS = 16  # of a tumour in its crop; a histogram of fewer says nothing


@dataclass(frozen=True, eq=False)
class Crop:
    """A tumour and some tissue around it.

    path: the scan's file. pixels: uint8 (size, size); mask: bool, the tumour; rim: bool, the band along its edge. box:
    the square x, y, side in the scan's own pixels. thumbnail: uint8 (THUMBNAIL, THUMBNAIL), the whole scan. sources: of
    a composite, the SHA-256 of the files that it was made of, by "object" and "background"; those that are known.
    """

    path: Path
    pixels: np.ndarray
    mask: np.ndarray
    rim: np.ndarray
    box: tuple[int, int, int]
    thumbnail: np.ndarray
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def side(self) -> int:
        return self.box[2]

    @property
    def digest(self) -> str:
        """A hash of what is seen, by which crops are ordered: no order of files has a say in a result."""
        seen = (self.pixels, np.packbits(self.mask), self.thumbnail)
        return hashlib.sha256(b"".join(part.tobytes() for part in seen)).hexdigest()


def cut(entries: Iterable[Labelled], choices: Choices, left_out: LeftOut) -> list[Crop]:
    """The crops of labelled scans, in the order of their digests; of equal ones one. What has none is counted."""
    found: dict[str, Crop] = {}
    for entry in entries:
        crop = _crop(entry, choices, left_out)
        if crop is not None and found.setdefault(crop.digest, crop) is not crop:
            left_out.add("crop equal to an earlier one", crop.name)
    return [found[digest] for digest in sorted(found)]


def grey_view(path: Path) -> Image.Image:
    """A scan in 8-bit greys. Raises ScanError, ImportError or OSError for one that cannot be read."""
    scan = read_scan(path)
    return eight_bit(scan.pixels, scan.window).convert("L")


def square_around(mask: np.ndarray, margin: float) -> tuple[int, int, int]:
    """The square x, y, side around a mask's box, whose longer side it exceeds by `margin` of it at each side. x and y
    may be negative."""
    x0, y0, x1, y1 = bounding_box(mask)
    side = math.ceil(max(x1 - x0, y1 - y0) * (1 + 2 * margin))
    return (x0 + x1 - side) // 2, (y0 + y1 - side) // 2, side


def _crop(entry: Labelled, choices: Choices, left_out: LeftOut) -> Crop | None:
    if not entry.mask.any():
        left_out.add("mask without lesion", entry.path.name)
        return None
    x, y, side = square_around(entry.mask, choices.margin)
    height, width = entry.mask.shape
    if x < 0 or y < 0 or x + side > width or y + side > height:
        left_out.add("crop leaves its scan", entry.path.name)
        return None
    if side < choices.size:
        left_out.add("crop would have to be enlarged", entry.path.name)
        return None
    try:
        view = grey_view(entry.path)
    except (ScanError, ImportError, OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = "image is blank" if isinstance(error, BlankError) else "image cannot be read"
        left_out.add(reason, entry.path.name)
        return None
    if view.size != (width, height):
        left_out.add("mask of another size than its image", entry.path.name)
        return None
    box = x, y, side
    mask = np.asarray(at_size(Image.fromarray(entry.mask.astype(np.uint8) * 255), box, choices.size)) >= 128
    rim = rim_of(mask, choices.rim)
    if min(mask.sum(), rim.sum()) < FEWEST_PIXELS:
        left_out.add(f"tumour or rim has fewer than {FEWEST_PIXELS} pixels in the crop", entry.path.name)
        return None
    pixels = np.array(at_size(view, box, choices.size))
    small = np.array(view.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))
    return Crop(entry.path, pixels, mask, rim, box, small, entry.sources)


def at_size(image: Image.Image, box: tuple[int, int, int], size: int) -> Image.Image:
    """A square x, y, side of an image at size x size pixels. Every crop, and every mask, goes through this filter."""
    x, y, side = box
    return image.crop((x, y, x + side, y + side)).resize((size, size), Image.Resampling.LANCZOS)


def rim_of(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels within `width` of a mask's edge, to both sides of it (in whole rows and columns), bool."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    grown, shrunk = (image.filter(kind(2 * width + 1)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    return (np.asarray(grown) > 0) & (np.asarray(shrunk) == 0)
