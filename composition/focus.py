"""This module chooses the window, the part of the background that the network sees, and puts its result back.

It knows of no network but the sizes that it works at. Everything inside the window is then a scan of its own to the
method, so that no other module knows where the window lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .blending import blend_pixels
from .canvas import canvas_size
from .placement import Sample, bounding_box
from .scans.images import Scan

# A target whose shorter side spans fewer latent cells of the whole scan than this is too small to be drawn there. At a
# third of their size (2.5 cells in the median) the objects of 24 pairs lie 23 and 28 dB from the placed ones on the
# whole scan, one loses its contrast, and they lie 35 dB off in a window; at their own size both do, and the window's
# sharper edge shows more (benchmark/evidence/focus.md).
FEW_CELLS = 4.0
# A window is at least this share of the network's own size, which enlarges a scan's pixels four times at most, unless
# the scan itself is smaller.
LEAST_WINDOW = 1 / 4


@dataclass(frozen=True)
class Window:
    """A part of a scan, in its pixels. rows, columns: from the first to one past the last.

    cells: how many latent cells the target's shorter side spans where the network sees the window.
    zoom: pixels of the canvas for a pixel of the scan, along the longer side; above 1 the canvas enlarges the scan.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    cells: float
    zoom: float

    @property
    def part(self) -> tuple[slice, slice]:
        return slice(*self.rows), slice(*self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def covers(self, scan: Scan) -> bool:
        """Whether the window is the whole scan."""
        return self.size == scan.size

    def of(self, sample: Sample) -> Sample:
        """The sample whose background is this part of it."""
        if self.covers(sample.background):
            return sample
        background = sample.background.part(*self.part)
        return Sample(background, sample.obj, sample.object_mask, sample.user_mask[self.part], sample.prompt)

    def put_back(self, background: Scan, image: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The whole scan with the window's pixels in it, (H, W) or (H, W, 3); outside the window it is the scan's own.

        image: pixels of the window. target: bool (H, W), as for `choose_window`. The window's edge is blended into the
        scan on half of the way from it to the target, so that no step is left there.
        """
        if self.covers(background):
            return image
        whole = background.pixels
        whole = np.repeat(whole[..., None], 3, axis=2) if whole.ndim < image.ndim else whole.copy()
        whole[self.part] = blend_pixels(image, whole[self.part], self._edge_weight(target), background.window)
        return whole

    def _edge_weight(self, target: np.ndarray) -> np.ndarray:
        """float64 (h, w): 1 but at those edges of the window that are not the scan's own, where it falls to 0."""
        x0, y0, x1, y1 = bounding_box(target)
        depths, margins = [], []
        for (start, stop), (first, last), length in zip(
            (self.rows, self.columns), ((y0, y1), (x0, x1)), target.shape, strict=True
        ):
            depth = np.full(stop - start, np.inf)
            if start > 0:
                depth = np.minimum(depth, np.arange(1, stop - start + 1))
                margins.append(first - start)
            if stop < length:
                depth = np.minimum(depth, np.arange(stop - start, 0, -1))
                margins.append(stop - last)
            depths.append(depth)
        return np.minimum(np.minimum.outer(*depths) / (min(margins) // 2 + 1), 1.0)


def choose_window(
    target: np.ndarray, image_size: int, factor: int, *, focus: str = "scan", focus_context: float = 4.0
) -> Window:
    """The part of a scan that the network sees.

    target: bool (H, W), the object's mask where it is to lie. image_size, factor: the network's size in pixels, and its
        pixels per latent.
    focus: "scan" for the whole scan; "window" for a square around the target's bounding box, `focus_context` times its
        longer side and at least LEAST_WINDOW of the network's size; "auto" for the window where the target's shorter
        side spans fewer than FEW_CELLS latent cells of the whole scan.
    A window that would reach beyond the scan is moved back onto it, and one that is wider or taller than the scan ends
    where the scan does.
    """
    height, width = target.shape
    x0, y0, x1, y1 = bounding_box(target)
    shorter, longer = sorted((x1 - x0, y1 - y0))

    def window(rows: tuple[int, int], columns: tuple[int, int]) -> Window:
        size = rows[1] - rows[0], columns[1] - columns[0]
        canvas = canvas_size(size, image_size, factor)
        zoom = max(canvas) / max(size)
        return Window(rows, columns, shorter * zoom / factor, zoom)

    whole = window((0, height), (0, width))
    if focus == "scan" or (focus == "auto" and whole.cells >= FEW_CELLS):
        return whole
    side = round(max(focus_context * longer, LEAST_WINDOW * image_size))
    return window(_around(y0, y1, side, height), _around(x0, x1, side, width))


def _around(first: int, last: int, side: int, length: int) -> tuple[int, int]:
    """`side` pixels around first..last, moved onto a scan of this length; all of it where it is shorter."""
    side = min(side, length)
    start = min(max((first + last - side) // 2, 0), length - side)
    return start, start + side
