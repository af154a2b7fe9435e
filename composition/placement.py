"""This module takes two scans and two masks, and places the object on the background.

It works in the background's own pixels, so that the result and its mask need no way back. It knows of no network: what
the network sees of a placed object is the matter of `canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from PIL import Image

from . import matching
from .matching import Match
from .scans.errors import PlacementError
from .scans.images import Scan, check_scan, described, stored_as
from .scans.slices import Meaning

# An object that has to fit inside an irregular mask may lose this share of itself there: a mask drawn by hand has a
# ragged edge, and one with a hole of a pixel would else halve the object.
SHARE_OUTSIDE = 0.01
# Its scale is looked for from the box's down, in such steps to this smallest one, and then between two of them.
SCALE_STEP, SMALLEST_SCALE, HALVINGS = 0.95, 0.1, 6
MOST_STRETCHED = 20  # times that pixels may be longer than wide; more is a slip in a file, and would fill the memory
ONE_UNIT = "one of the two scans has physical units, and the other has not: nobody knows how their greys compare"
SAME_ASPECT = 1e-3  # of the logarithm; files round their spacings
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)  # arrays have no plain equality
class Sample:
    """One composition's inputs. Masks are bool arrays (H, W): object_mask of obj's size, user_mask of background's.

    prompt: None stands for the exceptional prompt. Raises TypeError for what is no Scan, and for a prompt of another
    type.
    """

    background: Scan
    obj: Scan
    object_mask: np.ndarray
    user_mask: np.ndarray
    prompt: str | None

    def __post_init__(self):
        for name in ("background", "obj"):
            check_scan(name, getattr(self, name))
        if not isinstance(self.prompt, str | None):
            raise TypeError(
                f"the prompt is {described(self.prompt)}; expected a text, or None for the exceptional prompt"
            )

    def __iter__(self) -> Iterator:
        """The fields in their order, as `compose(model, *sample, settings)` takes them."""
        return (getattr(self, field.name) for field in fields(self))

    @property
    def grayscale(self) -> bool:
        """Whether the result is grayscale: it is if both scans are."""
        return self.background.grayscale and self.obj.grayscale


@dataclass(frozen=True, eq=False)
class Fit:
    """Where an object's mask comes to lie on a background of size (H, W), which its masks alone decide.

    scale, shift: the map; a point (x, y) of the object's scan, in pixels, goes to scale * (x, y) + shift.
    mask: bool (H, W), the moved mask inside the user mask. clipped: the share of the moved mask that lay outside the
    user mask and is cut away. true_size: whether the object is as large as it was, in millimetres.
    """

    scale: float
    shift: tuple[float, float]
    mask: np.ndarray
    clipped: float
    true_size: bool = False

    def part(self, rows: slice, columns: slice) -> Fit:
        """The same as seen from a part of the background."""
        shift = self.shift[0] - columns.start, self.shift[1] - rows.start
        return replace(self, shift=shift, mask=self.mask[rows, columns])


@dataclass(frozen=True)
class Placement:
    """An object on the background, all of the background's size (H, W).

    image: float32 (H, W, 3) in [-1, 1], the object's scan moved over the background, tissue and all, its grey values
    matched as `match` says.
    object_mask, user_mask: bool (H, W); object_mask is the moved mask inside user_mask, the label of the result.
    scale, shift: the map; a point (x, y) of the object's scan, in pixels, goes to scale * (x, y) + shift.
    clipped: share of the moved mask that lay outside user_mask and was cut away. match: how greys were matched.
    true_size: whether the object is as large as it was, in millimetres.
    """

    image: np.ndarray
    object_mask: np.ndarray
    user_mask: np.ndarray
    scale: float
    shift: tuple[float, float]
    clipped: float
    match: Match
    true_size: bool = False


def place(
    background: Scan,
    obj: Scan,
    object_mask: np.ndarray,
    user_mask: np.ndarray,
    *,
    fit: str | Fit = "box",
    size: str = "region",
    match: str = "none",
) -> Placement:
    """Scale and move the object into the user mask, aspect kept, and match its grey values to the tissue there.

    fit, size: as for `fit_object`, or what that returned. match: a name of matching.MATCHES. The scans are in common
    terms.

    The whole object scan moves with its mask, so that the tumour keeps the tissue around it; where that scan ends, the
    background goes on. (TF-ICON scales the whole object image to the box, and pads with black.) What would lie beyond
    the background is cropped. The moved mask is the area-weighted one, inside from one half on; it is cut to the user
    mask, which need not be a box, since Eq. 9 would put background there.
    A scan whose values have a physical scale is never matched, nor matched to, because its values mean something.

    Raises PlacementError for masks that are no bool arrays of their scan's size, or empty, or where nothing of the
    object is left inside the user mask.
    """
    check_masks(background, obj, object_mask, user_mask)
    if isinstance(fit, str):
        fit = fit_object(object_mask, user_mask, fit, true_scale(background, obj, size))
    image, values = background.values(), obj.values()
    if why := unmatched(background.meaning, obj.meaning):
        matched = Match("none", why=why if match != "none" else None)
    else:
        matched = matching.match(image, fit.mask, values, object_mask, match)
    _paste(image, matched.apply(values), fit.scale, fit.shift)
    return Placement(image, fit.mask, user_mask, fit.scale, fit.shift, fit.clipped, matched, fit.true_size)


def fit_object(object_mask: np.ndarray, user_mask: np.ndarray, how: str = "box", true: float | None = None) -> Fit:
    """Where the object's mask comes to lie: "box" fits its bounding box to the user mask's, centred; "inside" makes it
    smaller until all of it, but for SHARE_OUTSIDE, lies in the user mask, as near to the middle of its box as it can.
    Where the box's fit cuts no more off, both are the same. "placed" leaves it where it is on its own scan, which is of
    the background's size.

    true: the scale at which the object keeps its size in millimetres; it is not enlarged beyond. None: nobody knows it.
    Raises PlacementError where nothing of the object is left inside the user mask, and for "placed" where the sizes
    differ.
    """
    if how == "placed":
        if object_mask.shape != user_mask.shape:
            raise PlacementError(
                f"a placed object lies on pixels of the background; its scan has (height, width) {object_mask.shape}, "
                f"and the background {user_mask.shape}"
            )
        scale, shift, moved = 1.0, (0.0, 0.0), object_mask
    else:
        scale, shift = _box_fit(object_mask, user_mask, true)
        moved = _moved_mask(user_mask.shape, object_mask, scale, shift)
    if how == "inside" and (moved & ~user_mask).sum() > SHARE_OUTSIDE * moved.sum():
        inside = largest_smaller(lambda smaller: _shift_inside(object_mask, user_mask, smaller), scale)
        scale, shift = inside or (scale, shift)
        moved = _moved_mask(user_mask.shape, object_mask, scale, shift)
    inside = moved & user_mask
    if not inside.any():
        raise PlacementError(
            f"nothing of the object is left inside the user mask: scaled by {scale:.3g}, its mask covers {moved.sum()} "
            "pixels, none of them inside; use a larger user mask, or one that covers the middle of its bounding box"
            + (", or size region, which does not keep its millimetres" if scale == true else "")
        )
    return Fit(scale, shift, inside, 1 - float(inside.sum() / moved.sum()), true_size=scale == true)


def knows_millimetres(sample: Sample) -> bool:
    """Whether both scans know their size in millimetres."""
    return sample.background.meaning.measured and sample.obj.meaning.measured


def true_scale(background: Scan, obj: Scan, size: str = "auto") -> float | None:
    """The scale at which the object keeps its size in millimetres; None unless both scans know theirs, and unless
    `size`, as Settings has it, asks for it."""
    if size != "auto" or not (background.meaning.measured and obj.meaning.measured):
        return None
    return obj.meaning.spacing[1] / background.meaning.spacing[1]


def in_common_terms(sample: Sample) -> Sample:
    """The sample with the object's scan on pixels of the shape that the background's have (`same_aspect`), and, where
    both are in one physical unit, over the background's window: equal values are then equal greys."""
    sample = same_aspect(sample)
    meaning, own = sample.background.meaning, sample.obj.meaning
    if meaning.unit is None or meaning.unit != own.unit:
        return sample
    return replace(sample, obj=replace(sample.obj, levels=same_window(sample.background.window, meaning, own)))


def same_window(levels: tuple[float, float], meaning: Meaning, own: Meaning) -> tuple[float, float]:
    """The stored values of one scan that stand for what those of another stand for."""
    return tuple(own.stored_of(meaning.value_of(end)) for end in levels)


def unmatched(meaning: Meaning, own: Meaning) -> str | None:
    """Why the greys of an object, with the meaning `own`, are not matched to a background's; None where they are."""
    if meaning.unit is None and own.unit is None:
        return None
    return f"the values are in {meaning.unit}" if meaning.unit == own.unit else ONE_UNIT


def same_aspect(sample: Sample) -> Sample:
    """The sample with the object's scan and mask on pixels of the shape that the background's have, so that what is
    round stays round. One axis of them is drawn larger. The sample itself where the shapes are equal, and where one of
    the two scans does not say them."""
    spacings = sample.background.meaning.spacing, sample.obj.meaning.spacing
    if None in spacings:
        return sample
    (down, across), (own_down, own_across) = spacings
    ratio = (own_down / own_across) / (down / across)
    if abs(math.log(ratio)) < SAME_ASPECT:
        return sample
    if not 1 / MOST_STRETCHED <= ratio <= MOST_STRETCHED:
        raise PlacementError(
            f"the pixels of {sample.obj.name} are {own_down:g} by {own_across:g} and those of {sample.background.name} "
            f"{down:g} by {across:g}; expected shapes that differ {MOST_STRETCHED} times at most: see their spacings"
        )
    height, width = sample.obj.size
    size = (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))
    spacing = own_down * height / size[0], own_across * width / size[1]
    pixels = _resized(sample.obj.pixels, size)
    meaning = replace(sample.obj.meaning, spacing=spacing)
    obj = replace(sample.obj, pixels=pixels, levels=sample.obj.window, meaning=meaning)
    return replace(sample, obj=obj, object_mask=_resized(sample.object_mask.astype(np.float32), size) >= 0.5)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3) at another size, by linear interpolation; whole numbers stay whole."""
    channels = pixels if pixels.ndim == 3 else pixels[..., None]
    drawn = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR))
        for channel in np.moveaxis(channels, 2, 0)
    ]
    drawn = np.stack(drawn, axis=2).reshape(*size, *pixels.shape[2:])
    return stored_as(drawn, pixels.dtype)


def placed_object(sample: Sample, placement: Placement) -> np.ndarray:
    """The placed object with its tissue, as pixels of the background's kind: (H, W) or (H, W, 3)."""
    return sample.background.render(placement.image, grayscale=sample.grayscale)


def check_masks(background: Scan, obj: Scan, object_mask: np.ndarray, user_mask: np.ndarray) -> None:
    """Raises PlacementError for masks that are no bool arrays of their scan's size, or empty."""
    _check_mask("object mask", object_mask, obj)
    _check_mask("user mask", user_mask, background)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box x0, y0, x1, y1 of a mask's true pixels; x1 and y1 are one past the last."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _box_fit(
    object_mask: np.ndarray, user_mask: np.ndarray, most: float | None = None
) -> tuple[float, tuple[float, float]]:
    """The scale, at most `most`, and shift that fit the box of the object's mask to the user mask's, centred."""
    x0, y0, x1, y1 = bounding_box(object_mask)
    u0, v0, u1, v1 = bounding_box(user_mask)
    scale = min((u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0), math.inf if most is None else most)
    return scale, ((u0 + u1) / 2 - scale * (x0 + x1) / 2, (v0 + v1) / 2 - scale * (y0 + y1) / 2)


def largest_smaller(at: Callable[[float], Found | None], largest: float) -> tuple[float, Found] | None:
    """The largest scale below `largest` at which an object fits, and where it does; None where it fits at none.

    at: takes a scale to where the object fits, or to None where it does not.
    """
    for step in range(math.ceil(math.log(SMALLEST_SCALE, SCALE_STEP))):
        low = largest * SCALE_STEP ** (step + 1)
        if (found := at(low)) is not None:
            break
    else:
        return None
    high = low / SCALE_STEP
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if (place := at(middle)) is None:
            high = middle
        else:
            found, low = place, middle
    return low, found


def _shift_inside(object_mask: np.ndarray, user_mask: np.ndarray, scale: float) -> tuple[float, float] | None:
    """The shift by which the scaled object's mask lies in the user mask, but for SHARE_OUTSIDE, nearest to the middle
    of its box; or None."""
    x0, y0, x1, y1 = bounding_box(object_mask)
    u0, v0, u1, v1 = bounding_box(user_mask)
    size = math.ceil(scale * (y1 - y0)) + 1, math.ceil(scale * (x1 - x0)) + 1
    moved = _moved_mask(size, object_mask, scale, (-scale * x0, -scale * y0))
    if not moved.any():
        return None
    left, top, right, bottom = bounding_box(moved)
    moved, outside = moved[top:bottom, left:right], ~user_mask[v0:v1, u0:u1]
    rows, columns = outside.shape[0] - moved.shape[0] + 1, outside.shape[1] - moved.shape[1] + 1
    if rows < 1 or columns < 1:
        return None
    # How many pixels of the moved mask lie outside, for all places at once: a correlation, by the Fourier transform.
    spectra = np.fft.rfft2(outside) * np.fft.rfft2(moved, outside.shape).conj()
    fits = np.fft.irfft2(spectra, outside.shape)[:rows, :columns] < SHARE_OUTSIDE * moved.sum() + 0.5
    if not fits.any():
        return None
    down, across = np.nonzero(fits)
    nearest = ((down - (rows - 1) / 2) ** 2 + (across - (columns - 1) / 2) ** 2).argmin()
    return float(u0 + across[nearest] - left - scale * x0), float(v0 + down[nearest] - top - scale * y0)


def _moved_mask(size: tuple[int, int], object_mask: np.ndarray, scale: float, shift: tuple[float, float]) -> np.ndarray:
    """The object's mask moved onto a scan of size (H, W): inside is where it covers half of a pixel or more."""
    coverage = np.zeros((*size, 1), dtype=np.float32)
    _paste(coverage, object_mask[..., None].astype(np.float32), scale, shift)
    return coverage[..., 0] >= 0.5


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
        raise PlacementError(f"the {what} is {described(mask)}; expected a bool array (H, W), as read_mask returns")
    if mask.shape != scan.size:
        raise PlacementError(
            f"the {what} has (height, width) {mask.shape}, but its scan {scan.name} has {scan.size}; a mask has "
            "a value for every pixel of its scan"
        )
    if not mask.any():
        raise PlacementError(f"the {what} of {scan.name} is empty; it must be True somewhere")
