"""Where the object goes: from two scans and two masks to a placed object, and from scans to the network's canvas.

Placement happens in the background's own pixels, so that the result and its mask need no way back. Only then is
everything brought to the canvas: the network's image, of the background's aspect as nearly as the network allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .images import Scan


class PlacementError(ValueError):
    """An object that cannot be placed where it was asked to be."""


@dataclass(frozen=True)
class Placement:
    """An object on the background, all of the background's size (H, W).

    image: float32 (H, W, 3) in [-1, 1], the object's scan moved over the background, tissue and all.
    object_mask, user_mask: bool (H, W); object_mask is the moved mask inside user_mask, the label of the result.
    scale, shift: the map; a point (x, y) of the object's scan, in pixels, goes to scale * (x, y) + shift.
    clipped: share of the moved mask that lay outside user_mask, or off the scan, and was cut away.
    """

    image: np.ndarray
    object_mask: np.ndarray
    user_mask: np.ndarray
    scale: float
    shift: tuple[float, float]
    clipped: float


def place(background: Scan, obj: Scan, object_mask: np.ndarray, user_mask: np.ndarray) -> Placement:
    """Scale and move the object so that its mask's bounding box fits the user mask's, aspect kept, centred.

    The whole object scan moves with its mask, so that the tumour keeps the tissue around it; where that scan ends, the
    background goes on. (TF-ICON scales the whole object image to the box, and pads with black.) What would lie beyond
    the background is cropped. The moved mask is the area-weighted one, inside from one half on; it is cut to the user
    mask, which need not be a box, since Eq. 9 would put background there.

    Raises PlacementError for masks that are no bool arrays of their scan's size, or empty, or where nothing of the
    object is left inside the user mask.
    """
    _check_mask("object mask", object_mask, obj)
    _check_mask("user mask", user_mask, background)
    x0, y0, x1, y1 = bounding_box(object_mask)
    u0, v0, u1, v1 = bounding_box(user_mask)
    scale = min((u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0))
    shift = ((u0 + u1) / 2 - scale * (x0 + x1) / 2, (v0 + v1) / 2 - scale * (y0 + y1) / 2)

    image = background.values()
    _paste(image, obj.values(), scale, shift)
    coverage = np.zeros((*background.size, 1), dtype=np.float32)
    _paste(coverage, object_mask[..., None].astype(np.float32), scale, shift)
    moved = coverage[..., 0] >= 0.5
    inside = moved & user_mask
    if not inside.any():
        raise PlacementError(
            f"nothing of the object is left inside the user mask: scaled by {scale:.3g}, its mask covers {moved.sum()} "
            "pixels, none of them inside; use a larger user mask, or one that covers the middle of its bounding box"
        )
    return Placement(image, inside, user_mask, scale, shift, 1 - float(inside.sum() / moved.sum()))


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box x0, y0, x1, y1 of a mask's true pixels; x1 and y1 are one past the last."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def canvas_size(size: tuple[int, int], image_size: int, factor: int) -> tuple[int, int]:
    """The (height, width) at which the network sees a scan of size (height, width).

    About as many pixels as the square of image_size it was trained on, in the scan's aspect, each side a multiple of
    `factor`, the pixels per latent; the rounding is undone on the way back. TF-ICON stretches every scan to the square.
    """
    height, width = size
    aspect = math.sqrt(height / width)
    return tuple(max(1, round(image_size * side / factor)) * factor for side in (aspect, 1 / aspect))


def to_canvas(values: np.ndarray, canvas: tuple[int, int]) -> torch.Tensor:
    """Values (H, W, 3) in [-1, 1] as an image (3, height, width) of the canvas."""
    return _resize(torch.from_numpy(values).permute(2, 0, 1), canvas).clamp(-1, 1)


def from_canvas(image: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """An image (3, h, w) of the canvas as values (H, W, 3) of the scan's own size."""
    return _resize(image.float().cpu(), size).permute(1, 2, 0).numpy()


def to_latent_mask(mask: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """A bool mask (H, W) on the latent grid, float32 (1, h, w) of zeros and ones.

    A cell is inside if at least half of its area is, which keeps a mask inside another one there as well.
    """
    area = _area_matrix(mask.shape[0], grid[0]) @ mask.astype(np.float64) @ _area_matrix(mask.shape[1], grid[1]).T
    return torch.from_numpy(area >= 0.5 - 1e-9).float()[None]  # the margin: sums of fractions round


def _area_matrix(source: int, target: int) -> np.ndarray:
    """(target, source): row i holds the shares of cell i's length that each of the source pixels covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * (target / source)


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]


def _paste(target: np.ndarray, source: np.ndarray, scale: float, shift: tuple[float, float]) -> None:
    """Draw source, moved by x -> scale * x + shift, into target, in place; both (H, W, channels) float32."""
    # The whole target pixels that the moved source covers; 1e-6 forgives the rounding of `shift`.
    spans = []
    for offset, length, limit in zip(shift, source.shape[1::-1], target.shape[1::-1], strict=True):
        first = max(0, math.ceil(offset - 1e-6))
        last = min(limit, math.floor(offset + scale * length + 1e-6))
        if first >= last:
            return
        back = [min(max((edge - offset) / scale, 0), length) for edge in (first, last)]
        spans.append((first, last, *back))
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    for channel in range(source.shape[2]):
        # Pillow's resize takes a box of fractions, and averages over the source's pixels where it shrinks.
        moved = Image.fromarray(np.ascontiguousarray(source[..., channel])).resize(
            (x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
        )
        target[y0:y1, x0:x1, channel] = np.asarray(moved)


def _check_mask(what: str, mask: np.ndarray, scan: Scan) -> None:
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise PlacementError(f"the {what} is {got}; expected a bool array (H, W), as read_mask returns")
    if mask.shape != scan.size:
        raise PlacementError(f"the {what} has (height, width) {mask.shape}, but its scan {scan.name} has {scan.size}")
    if not mask.any():
        raise PlacementError(f"the {what} of {scan.name} is empty")
