"""This module varies an object: its scan and its mask together, before they are placed. Labelled tumours are few, and a
segmenter learns more from one that is turned, bent or resized than from the same one in many places.

It is arithmetic in float64 on arrays, without a random generator of a library: what is drawn is the SHA-256 of words,
so that equal requests give equal pixels on every machine, to within the rounding of sines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from .fields import check_ranges, option, ranged
from .matching import ring
from .placement import bounding_box
from .scans.errors import ScanError
from .scans.images import Scan, stored_as

WAVES = 3  # of which the deformation consists, in each of the two directions
# Their cycles along the object's longer side. A wave shorter than the object bends its outline; one that is much longer
# only moves it.
CYCLES = (0.3, 0.7)
# The gradient of the displacement is 2 pi * CYCLES * deformation at most along each axis, so sqrt(2) times that in all:
# below 1 no two points meet, and nothing folds. 0.15 gives 0.93.
MOST_DEFORMED = 0.15
MARGIN = 1 / 4  # of the longer side: tissue around the varied mask, as wide as the ring that greys are matched by
SOFT = 1 / 20  # of the longer side: the width over which a change of contrast fades at the outline
ROWS = 256  # that are sampled at once, which bounds the memory
BITS = 53  # of a number that is drawn, as many as a float64 holds


@dataclass(frozen=True)
class Variation:
    """How an object differs from its own scan. The defaults change nothing.

    Numbers may be numpy's; they are kept as Python's. Raises ValueError, naming the field, for a value of another kind
    or outside its range.
    """

    flip: bool = option(False, "left and right are exchanged")
    rotation: float = ranged(0.0, "degrees, counter-clockwise, about the middle of the mask's box", -180.0, 180.0)
    deformation: float = ranged(
        0.0,
        "how far smooth waves move a point at most, in shares of the longer side of the mask's box",
        0.0,
        MOST_DEFORMED,
    )
    contrast: float = ranged(
        1.0, "by what the difference between the tumour and the tissue around it is multiplied", 0.25, 4.0
    )
    # The scan is not resampled for it. It says how large the object is: in millimetres where the scan knows them, and
    # by the target region else.
    size: float = ranged(1.0, "how many times as large the object is as in its own scan", 0.1, 10.0)
    seed: int = ranged(0, "what the waves of the deformation are drawn from", 0, 2**63 - 1)

    def __post_init__(self):
        check_ranges(self)

    @property
    def resamples(self) -> bool:
        """Whether pixels move by more than whole ones."""
        return bool(self.rotation or self.deformation)

    def changed(self) -> dict[str, object]:
        """The fields that differ from their defaults, by name: what a row of a manifest says."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}


def vary(scan: Scan, mask: np.ndarray, variation: Variation) -> tuple[Scan, np.ndarray]:
    """The object's scan and mask, varied. mask: bool (H, W) of the scan's size, True somewhere.

    The scan keeps its type of number and its window. It keeps its spacing too, but for `size`: a spacing in millimetres
    is multiplied by that. Scan and mask grow beyond their own border where the varied mask and some tissue around it
    need room, so that nothing of the mask is cut off; the scan goes on there as its mirror image. Pixels are sampled by
    Keys' cubic (a = -1/2), which keeps speckle sharper than a linear one, and stay between the least and the greatest
    value of the scan. The mask is sampled linearly, and is inside from one half on.
    Raises ScanError where `contrast` would change values that have a unit, and where nothing of a mask is left.
    """
    if variation.contrast != 1 and scan.unit is not None:
        raise ScanError(
            f"{scan.name}: its values are in {scan.unit}, which mean something, and a contrast of "
            f"{variation.contrast:g} would change them; leave the contrast out"
        )
    pixels, meaning, window = scan.pixels, scan.meaning, scan.window
    if variation.flip:
        pixels = pixels[:, ::-1]
    if variation.contrast != 1:
        pixels = _with_contrast(pixels, mask[:, ::-1] if variation.flip else mask, variation.contrast)
    varied = varied_mask(mask, variation, meaning.aspect)
    if variation.resamples:
        flipped = mask[:, ::-1] if variation.flip else mask
        pixels = _sampled_scan(pixels, _Map.of(flipped, variation, meaning.aspect))
    if variation.size != 1 and meaning.measured:
        meaning = replace(meaning, spacing=tuple(side * variation.size for side in meaning.spacing))
    pixels = np.ascontiguousarray(pixels)
    return replace(scan, pixels=pixels, levels=window, meaning=meaning), varied


def varied_mask(mask: np.ndarray, variation: Variation, aspect: float = 1.0) -> np.ndarray:
    """The mask that `vary` returns, without the scan. aspect: how much longer than wide a pixel is. Raises ScanError
    where nothing of it is left."""
    mask = np.ascontiguousarray(mask[:, ::-1]) if variation.flip else mask
    if not variation.resamples:
        return mask
    moved = _Map.of(mask, variation, aspect)
    varied = np.zeros(moved.size, dtype=bool)
    for rows, x, y in moved.blocks():
        varied[rows] = _linear(mask, x, y) >= 0.5
    if not varied.any():
        raise ScanError(f"nothing of a mask of {int(mask.sum())} pixels is left when it is turned or bent; it is tiny")
    return varied


def chance(*words: object) -> int:
    """A whole number from 0 to 2^BITS - 1, drawn by the SHA-256 of the words: the same on every machine."""
    digest = hashlib.sha256("/".join(str(word) for word in words).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - BITS)


def share(*words: object) -> float:
    """A number in [0, 1), drawn by `chance`."""
    return chance(*words) / 2**BITS


@dataclass(frozen=True)
class _Map:
    """Where each pixel of the varied object is taken from.

    size: (H, W) of the varied one. origin: x, y of its first pixel in the pixels of the object's own scan. middle: x, y
    of the mask's box. longer: its longer side, in pixel widths. aspect: how much longer than wide a pixel is.
    """

    size: tuple[int, int]
    origin: tuple[int, int]
    middle: tuple[int, int]
    longer: float
    aspect: float
    variation: Variation

    @classmethod
    def of(cls, mask: np.ndarray, variation: Variation, aspect: float) -> _Map:
        x0, y0, x1, y1 = bounding_box(mask)
        middle = (x0 + x1 - 1) // 2, (y0 + y1 - 1) // 2  # whole, so that a right angle moves pixels onto pixels
        half_width, half_height = (x1 - x0) / 2, (y1 - y0) / 2 * aspect
        longer = 2 * max(half_width, half_height)
        reach = variation.deformation * longer
        cosine, sine = (abs(turn) for turn in _turn(variation.rotation))
        across = (half_width + reach) * cosine + (half_height + reach) * sine + MARGIN * longer
        down = ((half_width + reach) * sine + (half_height + reach) * cosine + MARGIN * longer) / aspect
        height, width = mask.shape
        left, top = min(0, math.floor(middle[0] - across)), min(0, math.floor(middle[1] - down))
        right, bottom = max(width, math.ceil(middle[0] + across) + 1), max(height, math.ceil(middle[1] + down) + 1)
        return cls((bottom - top, right - left), (left, top), middle, longer, aspect, variation)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Blocks of rows, each with the x and y in the object's own scan that its pixels are taken from."""
        cosine, sine = _turn(self.variation.rotation)
        for first in range(0, self.size[0], ROWS):
            rows = slice(first, min(first + ROWS, self.size[0]))
            u = (np.arange(self.size[1]) + (self.origin[0] - self.middle[0]))[None, :]
            v = ((np.arange(rows.start, rows.stop) + (self.origin[1] - self.middle[1])) * self.aspect)[:, None]
            x, y = u * cosine - v * sine, u * sine + v * cosine  # rows run down, so this turns counter-clockwise
            if self.variation.deformation:
                x, y = x + self._waves("across", u, v), y + self._waves("down", u, v)
            yield rows, x + self.middle[0], y / self.aspect + self.middle[1]

    def _waves(self, axis: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The displacement along an axis: the mean of WAVES waves of drawn directions, lengths and phases."""
        total = 0.0
        for number in range(WAVES):
            words = self.variation.seed, axis, number
            turn, phase = (2 * math.pi * share(*words, what) for what in ("direction", "phase"))
            cycles = CYCLES[0] + (CYCLES[1] - CYCLES[0]) * share(*words, "cycles")
            angular = 2 * math.pi * cycles / self.longer
            total = total + np.sin(angular * (math.cos(turn) * u + math.sin(turn) * v) + phase)
        return total * (self.variation.deformation * self.longer / WAVES)


def _turn(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact at right angles."""
    if degrees % 90 == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(degrees // 90) % 4]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _sampled_scan(pixels: np.ndarray, moved: _Map) -> np.ndarray:
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    varied = np.empty((*moved.size, channels.shape[2]), dtype=pixels.dtype)
    finite = np.isfinite(channels).all(axis=2)
    if not finite.all():  # what is no number, as around a head, would spread by the width of the kernel
        channels = np.where(finite[..., None], channels, channels[finite].min())
    low, high = channels.min(axis=(0, 1)), channels.max(axis=(0, 1))
    for rows, x, y in moved.blocks():
        for channel in range(channels.shape[2]):
            drawn = np.clip(_cubic(channels[..., channel], x, y), float(low[channel]), float(high[channel]))
            varied[rows, :, channel] = stored_as(drawn, pixels.dtype)
        if not finite.all():
            near = (
                _mirrored(np.rint(y).astype(np.int64), len(finite)),
                _mirrored(np.rint(x).astype(np.int64), finite.shape[1]),
            )
            varied[rows][~finite[near]] = np.nan
    return varied if pixels.ndim == 3 else varied[..., 0]


def _cubic(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """An image (H, W) at places x, y by Keys' cubic convolution (1981), a = -1/2, in float64. It is mirrored beyond its
    border."""
    left, top = np.floor(x), np.floor(y)
    columns, rows = left.astype(np.int64), top.astype(np.int64)
    across, down = _keys(x - left), _keys(y - top)
    total = np.zeros(x.shape)
    for i, weight in enumerate(down):
        row = _mirrored(rows + (i - 1), image.shape[0])
        line = sum(w * image[row, _mirrored(columns + (j - 1), image.shape[1])] for j, w in enumerate(across))
        total += weight * line
    return total


def _keys(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """The weights of the four pixels around a place, which lies t in [0, 1) after the second."""
    return (
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


def _linear(mask: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A bool mask (H, W) at places x, y by linear interpolation; it is False beyond its border."""
    padded = np.pad(mask, 1).astype(np.float64)
    x, y = (np.clip(at + 1, 0, length - 1) for at, length in ((x, padded.shape[1]), (y, padded.shape[0])))
    columns, rows = (
        np.minimum(np.floor(at).astype(np.int64), n - 2) for at, n in ((x, padded.shape[1]), (y, padded.shape[0]))
    )
    s, t = x - columns, y - rows
    above = padded[rows, columns] * (1 - s) + padded[rows, columns + 1] * s
    below = padded[rows + 1, columns] * (1 - s) + padded[rows + 1, columns + 1] * s
    return above * (1 - t) + below * t


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices of an axis that goes on as its mirror image at both ends, the border pixel not repeated."""
    if length == 1:
        return np.zeros_like(index)
    index = index % (2 * length - 2)
    return np.minimum(index, 2 * length - 2 - index)


def _with_contrast(pixels: np.ndarray, mask: np.ndarray, factor: float) -> np.ndarray:
    """Pixels whose difference from the median of the ring around the mask is multiplied inside it, with a soft edge."""
    x0, y0, x1, y1 = bounding_box(mask)
    around = ring(mask)
    weight = _soft(mask, max(1, round(SOFT * max(x1 - x0, y1 - y0))))
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    varied = []
    for channel in np.moveaxis(channels, 2, 0):
        values = channel[around if around.any() else mask].astype(np.float64)
        values = values[np.isfinite(values)]
        middle = float(np.median(values)) if values.size else 0.0
        drawn = channel + weight * (factor - 1) * (channel.astype(np.float64) - middle)
        varied.append(np.where(weight > 0, stored_as(drawn, pixels.dtype), channel))
    return np.stack(varied, axis=2).reshape(pixels.shape)


def _soft(mask: np.ndarray, reach: int) -> np.ndarray:
    """The share of a mask in the square of 2 * reach + 1 pixels around each pixel, float64 (H, W) in [0, 1]."""
    height, width = mask.shape
    sums = np.zeros((height + 2 * reach + 1, width + 2 * reach + 1), dtype=np.int64)
    sums[1:, 1:] = np.pad(mask, reach).cumsum(axis=0).cumsum(axis=1)
    side = 2 * reach + 1
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
