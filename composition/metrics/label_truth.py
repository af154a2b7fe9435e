"""This module measures whether a label is true: whether the tumour that the mask claims is in the composite still.

A grey is the mean of a pixel's channels in grey levels of 255, black at 0 and white at 255, whatever the bit depth: the
two ends of a scan's window are black and white. All functions take an image as its pixels (H, W) or (H, W, 3) with the
pair of values that are black and white; for values in [-1, 1] that pair is VALUES.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..matching import BLACK, ring
from ..placement import Sample, bounding_box

VALUES = (-1, 1)
# A quotient by less says nothing: the medians of two parts of one tissue differ by some levels, and in 8 bits the four
# medians' rounding alone is up to two. Of 100 tumours of Br35H and 100 of BUSI one and two have less.
LEAST_OWN_CONTRAST = 5.0
# Greys up to BLACK are air and no tissue. The half level keeps rounding away from the comparison.
AIR = 255 * BLACK + 0.5
# What the numbers of LabelTruth are, for those that are not plain shares.
MEANINGS = {
    "contrast": "1 is right",
    "contrast_composite": "grey levels of 255",
    "contrast_own": "grey levels of 255",
    "grey_shift": "grey levels of 255",
    "cells": "latent cells",
}


@dataclass(frozen=True)
class LabelTruth:
    """How true the label of a composite is. Every number is Python's own and finite, or None where it is undefined.

    contrast: contrast_composite / contrast_own; 1 is right, 0 a tumour that is gone, and a negative one has turned
        round. None where either is None, or contrast_own is less than LEAST_OWN_CONTRAST.
    contrast_composite, contrast_own: the median grey of the tumour less that of the ring around it, in the composite
        and in the tumour's own scan. None where no pixel of the ring lies on the scan.
    correlation: Pearson's, of composite and placed object inside the mask. None where one of them is constant there.
    grey_shift: the mean of composite less placed object inside the mask, in grey levels; 0 is right.
    cells: the latent cells of the object's mask, on which the network saw it.
    cells_iou: the intersection of those cells with the mask over their union, in pixels of what the network saw; 1 is a
        mask that the cells show as it is.
    clipped: the share of the placed object that lay outside the user mask and was cut.
    """

    contrast: float | None
    contrast_composite: float | None
    contrast_own: float | None
    correlation: float | None
    grey_shift: float
    cells: int
    cells_iou: float
    clipped: float


def measure_label(
    sample: Sample,
    composite: np.ndarray,
    placed: np.ndarray,
    mask: np.ndarray,
    seen: tuple[slice, slice],
    cells: np.ndarray,
    clipped: float,
) -> LabelTruth:
    """Measure the label of a composite of a sample.

    composite, placed: the composite and the placed object, as pixels of the whole background's size and kind. mask:
    bool (H, W), the label. seen: the rows and columns of the background that the network saw; cells: (h, w), nonzero
    where the object is on their latent grid. clipped: as LabelTruth has it.
    """
    window = sample.background.window
    own = contrast_of(sample.obj.pixels, sample.object_mask, sample.obj.window)
    here = contrast_of(composite, mask, window)
    inside = greys_in(composite, mask, window), greys_in(placed, mask, window)
    return LabelTruth(
        contrast=contrast_kept(here, own),
        contrast_composite=here,
        contrast_own=own,
        correlation=correlation(*inside),
        grey_shift=grey_shift(*inside),
        cells=int(np.count_nonzero(cells)),
        cells_iou=cells_iou(cells != 0, mask[seen]),
        clipped=float(clipped),
    )


def contrast_of(pixels: np.ndarray, mask: np.ndarray, window: tuple[float, float]) -> float | None:
    """The median grey of the tumour less that of the tissue around it, `matching.ring`; None where there is no ring.

    Medians, because a ring crosses vessels, bone and air, and a tumour has bright calcifications and dark cysts. Air in
    the ring does not count, unless there is nothing else.
    """
    # Only the box around mask and ring is looked at: a mammogram has 12 million pixels. A ring is a quarter of the
    # tumour's size wide.
    x0, y0, x1, y1 = bounding_box(mask)
    reach = max(x1 - x0, y1 - y0) + 8
    near = slice(max(y0 - reach, 0), y1 + reach), slice(max(x0 - reach, 0), x1 + reach)
    around = greys_in(pixels[near], ring(mask[near]), window)
    if around.size == 0:
        return None
    tissue = around[around > AIR]
    return float(np.median(greys_in(pixels, mask, window)) - np.median(tissue if tissue.size else around))


def contrast_kept(composite: float | None, own: float | None) -> float | None:
    """A composite's contrast over the tumour's own, as LabelTruth has it."""
    if composite is None or own is None or abs(own) < LEAST_OWN_CONTRAST:
        return None
    return composite / own


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Pearson's correlation of two lists of greys (n,); None where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1, 1))


def grey_shift(composite: np.ndarray, placed: np.ndarray) -> float:
    """The mean of composite less placed object, of two lists of greys (n,)."""
    return float((composite - placed).mean())


def cells_iou(cells: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of bool cells (h, w), enlarged to the mask's pixels, with the mask (H, W).

    A pixel belongs to the cell that its middle lies in.
    """
    rows, columns = (
        ((2 * np.arange(pixels) + 1) * count) // (2 * pixels)
        for pixels, count in zip(mask.shape, cells.shape, strict=True)
    )
    enlarged = cells[np.ix_(rows, columns)]
    return float(np.count_nonzero(enlarged & mask) / np.count_nonzero(enlarged | mask))


def greys_in(pixels: np.ndarray, mask: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """The greys (n,) of the pixels inside a mask, float64, in [0, 255]. window: the values that are black and white."""
    inside = pixels[mask].astype(np.float64)
    if inside.ndim == 2:
        inside = inside.sum(axis=1) / inside.shape[1]  # exact for three equal channels
    greys = (inside - window[0]) * (255 / (window[1] - window[0]))
    return np.nan_to_num(np.clip(greys, 0, 255, out=greys), copy=False)
