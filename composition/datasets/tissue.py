"""This module finds where a scan shows tissue. One rule serves all datasets, heads on black as well as ultrasound that
fades with depth, so that boxes are drawn alike in all of them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..scans.images import Scan

# The rule looks at the scan shrunk to this many pixels along its longer side, which is fine enough to place a box.
SIDE = 96


def tissue_mask(scan: Scan) -> np.ndarray:
    """The bool mask (H, W) of a scan's tissue; all False if the shrunk scan has one value.

    The rule takes the pixels of the shrunk scan above half of Otsu's threshold, and of these the largest connected
    piece. It adds all pixels that have some of that piece to their left and right, above and below
    (ventricles, vessels, shadows between echoes). It computes in whole numbers for images, so that the mask is the
    same on every machine.
    """
    low, high = scan.window
    if scan.pixels.dtype.kind == "u" and isinstance(low, int) and isinstance(high, int) and low < high:
        pixels = scan.pixels.astype(np.int64)
        gray = pixels if pixels.ndim == 2 else pixels.sum(axis=2) // 3
        gray = np.clip((gray - low) * 255 // (high - low), 0, 255).astype(np.uint8)
    else:  # DICOM and NIfTI of other types
        gray = np.floor((scan.values().mean(axis=2, dtype=np.float64) + 1) * 127.5).astype(np.uint8)
    height, width = gray.shape
    longer = max(height, width, SIDE)
    small = (max(1, width * SIDE // longer), max(1, height * SIDE // longer))
    shrunk = np.asarray(Image.fromarray(gray).resize(small, Image.Resampling.BOX))
    if shrunk.min() == shrunk.max():  # a few faint pixels in all, averaged away
        return np.zeros((height, width), dtype=bool)
    inside = enclosed(largest_piece(2 * shrunk.astype(int) > otsu_threshold(shrunk)))
    return np.asarray(Image.fromarray(inside).resize((width, height), Image.Resampling.NEAREST))


def otsu_threshold(gray: np.ndarray) -> int:
    """The grey level t of uint8 pixels that best separates those up to t from those above (Otsu 1979).

    It maximises the variance between the two classes, (sum of all * count below - count of all * sum below)^2 over the
    product of the two counts. Of several such t it is the least. Raises ValueError for pixels of one value.
    """
    histogram = np.bincount(gray.ravel(), minlength=256)
    count, total = np.cumsum(histogram).tolist(), np.cumsum(histogram * np.arange(256)).tolist()
    levels = [level for level in range(256) if 0 < count[level] < count[-1]]
    if not levels:
        raise ValueError("the pixels have one value: there is no threshold between them")

    def between(level: int) -> float:
        spread = total[-1] * count[level] - count[-1] * total[level]
        return spread**2 / (count[level] * (count[-1] - count[level]))

    return max(levels, key=between)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected piece of a bool mask; of equal ones the last in reading order."""
    # Every pixel starts with a label of its own. The greatest label of a piece floods it, whole rows and columns at
    # once.
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = labels
        for axis in (0, 1):
            labels = _flood(labels, axis)
            labels = np.flip(_flood(np.flip(labels, axis), axis), axis)
        if np.array_equal(labels, before):
            break
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return mask & (labels == len(counts) - 1 - counts[::-1].argmax())


def enclosed(mask: np.ndarray) -> np.ndarray:
    """The pixels of the mask, and those that have some of it on all four sides, in their row and in their column."""
    seen = np.logical_or.accumulate
    return seen(mask) & seen(mask[::-1])[::-1] & seen(mask, axis=1) & seen(mask[:, ::-1], axis=1)[:, ::-1]


def _flood(labels: np.ndarray, axis: int) -> np.ndarray:
    """The greatest label so far along the axis, starting afresh after every zero."""
    fresh = np.cumsum(labels == 0, axis=axis) * (labels.size + 1)
    return np.maximum.accumulate(labels + fresh, axis=axis) - fresh
