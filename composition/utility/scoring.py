"""This module scores predicted masks, in the pixels that the segmenter sees.

Dice, of a scan with a tumour: twice the pixels in both masks over the sum of the pixels of each. Sensitivity, per
lesion: a lesion is a piece of the label that hangs together (by its sides or corners), and is found if at least half
of its pixels are predicted. False positives, of a tumour-free scan: the share of its area that is predicted, and
whether there is any.
"""

from __future__ import annotations

import numpy as np

from .data import Case

FOUND = 0.5  # the share of a lesion's pixels from which it counts as found


def score(predicted: np.ndarray, case: Case) -> dict[str, float | int]:
    """The scores of one scan. predicted: bool (side, side). A scan with a tumour has "dice", "lesions" and "found"; one
    without has "false_area", the share of the area, and "false_any", 0 or 1."""
    if not case.mask.any():
        return {"false_area": float(predicted.mean()), "false_any": int(predicted.any())}
    both = int((predicted & case.mask).sum())
    found = [bool((predicted & lesion).sum() >= FOUND * lesion.sum()) for lesion in lesions_of(case.mask)]
    dice = 2 * both / (int(predicted.sum()) + int(case.mask.sum()))
    return {"dice": dice, "lesions": len(found), "found": sum(found)}


def lesions_of(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a bool mask, each a bool mask."""
    from scipy.ndimage import label

    pieces, count = label(mask, structure=np.ones((3, 3)))
    return [pieces == number for number in range(1, count + 1)]
