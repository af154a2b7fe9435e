"""This module matches the object's greys to the tissue it goes into, since MRI and ultrasound have no absolute scale:
the tissue around the tumour in its own scan comes to the grey of the tissue around it in the background.

It is arithmetic on arrays alone. A grey is the mean of a pixel's channels, with black at 0 and white at 1. The figures
are of 100 samples of Br35H and 100 of BUSI; `benchmark/evidence/matching.md` has them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# The ring's width as a share of the tumour's size. One contrast of 197 falls below 0.4 with it, two with 1/8, which
# takes in the tumour's own rim, and eight with 1/2, which takes in other tissue.
WIDTH = 1 / 4
GAP = 2  # pixels between mask and ring, as in the prototype, for outlines that run a little inside the tumour
BLACK = 8 / 255  # greys up to here are air: JPEG leaves such noise in it. It fills up to 37 % of a ring in a head
# The median of a quarter of a ring lies 7 grey levels (Br35H) or 13 (BUSI) from the whole ring's, and the rings of two
# scans lie 47 or 29 apart: with that much of a ring, a match is still better than none.
LEAST_PART = 1 / 4
LEAST_PIXELS = 64  # the median of 64 pixels lies 3 or 4 grey levels from the whole ring's, and one in twenty 15
TAIL = 0.02  # the share of the tumour's pixels, text and speckle, that may leave the range
# An offset alone turns a black cyst grey in brighter tissue. A gain keeps it black, but makes speckle harder too.
MOST_GAIN = 1.5
# A label needs a contrast of 0.4; the rest is room for what the network does. Black or white then fill 5 % more of
# eight tumours in 200 than before, of four with 0.4.
LEAST_GAIN = 0.5


@dataclass(frozen=True)
class Match:
    """The map of an object's greys: grey -> gain * grey + offset.

    how: the estimator, a name of MATCHES. background_ring, object_ring: the median greys of the rings, None
    if nothing was estimated. why: why nothing was, where it was asked for; or None.
    """

    how: str
    gain: float = 1.0
    offset: float = 0.0
    background_ring: float | None = None
    object_ring: float | None = None
    why: str | None = None

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values of any shape in [-1, 1], matched and clipped to [-1, 1], in their own dtype."""
        matched = values * self.gain
        matched += self.gain - 1 + 2 * self.offset  # black is -1 here, and white 2 above it
        return np.clip(matched, -1, 1, out=matched)


def keep_contrast(background: np.ndarray, obj: np.ndarray, tumour: np.ndarray) -> tuple[float, float]:
    """Bring ring to ring by an offset, and keep the tumour's contrast as far as black and white leave it room.

    The gain is the ratio of the rings from 1 to MOST_GAIN. It is lowered, not below LEAST_GAIN, to what takes the
    tumour's far end to white or black: its brightest grey if it is brighter than its ring, or else its darkest, but for
    TAIL. Tumours keep 0.99 (Br35H) and 1.00 (BUSI) of their contrast in the median, and 0.48 and 0.50 at least.
    """
    target, own = np.median(background), np.median(obj)
    gain = np.clip(target / own, 1, MOST_GAIN)
    if np.median(tumour) > own:
        room, reach = 1 - target, np.quantile(tumour, 1 - TAIL) - own
    else:
        room, reach = target, own - np.quantile(tumour, TAIL)
    if gain * reach > room:
        gain = max(room / reach, LEAST_GAIN)
    return float(gain), float(target - gain * own)


# An estimator takes the greys (n,) of the background's ring, the object's ring and the tumour, to gain and offset.
MATCHES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, float]]] = {
    "contrast": keep_contrast,
    "none": lambda background, obj, tumour: (1.0, 0.0),
}


def match(
    background: np.ndarray, placed_mask: np.ndarray, obj: np.ndarray, object_mask: np.ndarray, how: str = "contrast"
) -> Match:
    """The match of an object to the background it is placed on.

    background, obj: the two scans, float32 (H, W, 3) in [-1, 1]. placed_mask, object_mask: bool (H, W), the object's
    mask where it was moved to on the background, and in its own scan. how: a name of MATCHES. Nothing is
    matched where `ring_greys` finds either ring not usable. Raises ValueError for another `how`, and for an empty mask.
    """
    if how not in MATCHES:
        raise ValueError(f"a match is one of {', '.join(MATCHES)}; got {how!r}")
    if how == "none":  # no ring is looked at
        return Match(how)
    target, why = ring_greys(background, placed_mask, "the object's place on the background")
    own, why_own = ring_greys(obj, object_mask, "the object in its own scan")
    if why or why_own:
        return Match(how, why=why or why_own)
    gain, offset = MATCHES[how](target, own, _greys(obj, object_mask))
    return Match(how, gain, offset, float(np.median(target)), float(np.median(own)))


def ring_greys(values: np.ndarray, mask: np.ndarray, what: str, width: float = WIDTH) -> tuple[np.ndarray, str | None]:
    """The greys (n,) above BLACK in the ring around a mask, called `what`, and why they are not usable, or None.

    They are not if less than LEAST_PART of the ring lies on the scan, if less than that part of the rest is brighter
    than BLACK, or if fewer than LEAST_PIXELS are left.
    """
    box, part, whole = _ring(mask, width)
    greys = _greys(values[box], part)
    bright, why = greys[greys > BLACK], None
    if greys.size < LEAST_PART * whole:
        why = f"the border cuts off {1 - greys.size / whole:.0%} of the ring around {what}"
    elif bright.size < LEAST_PART * greys.size:
        why = f"the ring around {what} is black: {1 - bright.size / greys.size:.0%} of it"
    elif bright.size < LEAST_PIXELS:
        why = f"the ring around {what} is tiny: {bright.size} pixels, fewer than {LEAST_PIXELS}"
    return bright, why


def ring(mask: np.ndarray, width: float = WIDTH) -> np.ndarray:
    """The bool ring (H, W) around a mask's true pixels, GAP pixels off them in chessboard distance. It is `width` times
    the side of a square of the mask's area wide, and GAP at least. Raises ValueError for an empty mask."""
    box, part, _ = _ring(mask, width)
    found = np.zeros_like(mask)
    found[box] = part
    return found


def _ring(mask: np.ndarray, width: float) -> tuple[tuple[slice, slice], np.ndarray, int]:
    """The box of the scan that holds the ring, the bool ring in this box, and how many pixels it has beyond the border
    too. Only the box is looked at: a mammogram has 12 million pixels."""
    if not mask.any():
        raise ValueError("the mask is empty; there is no ring around it")
    reach = GAP + max(GAP, round(width * math.sqrt(mask.sum())))
    spans = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + (0, 1) for axis in (1, 0)]
    padded = np.pad(mask[tuple(slice(*span) for span in spans)], reach)
    whole = grown(padded, reach) & ~grown(padded, GAP)
    box = tuple(slice(max(0, start - reach), stop + reach) for start, stop in spans)
    beyond = [max(0, reach - start) for start, _ in spans]  # what the border cuts off above and on the left
    shape = mask[box].shape
    return box, whole[beyond[0] :, beyond[1] :][: shape[0], : shape[1]], int(whole.sum())


def grown(mask: np.ndarray, reach: int) -> np.ndarray:
    """A bool mask (H, W) and all pixels of the array within a chessboard distance of `reach`."""
    for _ in ("rows", "columns"):
        done = 0
        while done < reach:  # a step of what is done and one leaves no hole, even at a border
            step = min(done + 1, reach - done)
            wider = mask.copy()
            wider[step:] |= mask[:-step]
            wider[:-step] |= mask[step:]
            mask, done = wider, done + step
        mask = mask.T
    return mask


def _greys(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The greys (n,) of the pixels inside, of values (H, W, 3)."""
    return (sum(values[..., channel][inside] for channel in range(3)) / 3 + 1) / 2
