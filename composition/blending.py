"""This module holds Eq. 8 and Eq. 9 of the paper, and the blends of the result once it is an image: with what the
autoencoder loses, and with the scan's own pixels.

Both equations are one operation on different states, `blend`, so it is written once. Masks are one inside and zero
outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .matching import grown
from .placement import bounding_box
from .scans.images import Scan, stored_as

# The width, in pixels of the canvas, over which the lost detail of the object gives way to that of the background.
# Measured on 20 pairs: between 3 and 6 the seam is the same to 0.02 grey levels, and the object 1 dB better with 3.
DETAIL_SIGMA = 3.0
# A Gaussian is cut off where it has fallen to a few thousandths of its peak.
CUT_OFF = 3.5


def blend(inside: torch.Tensor, outside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`inside` where the mask is one and `outside` where it is zero: (B, C, h, w) both, mask (B or 1, 1, h, w)."""
    return inside * mask + outside * (1 - mask)


def compose_states(x_obj: torch.Tensor, x_bg: torch.Tensor, m_obj: torch.Tensor) -> torch.Tensor:
    """Eq. 8: the object's state inside M_obj and the background's outside, (B, C, h, w) both; and so for anything else
    that the two trajectories have at one index, their data predictions above all."""
    return blend(x_obj, x_bg, m_obj)


def preserve_states(
    x_bg: Sequence[torch.Tensor],
    x_obj: Sequence[torch.Tensor],
    m_user: torch.Tensor,
    m_held: torch.Tensor,
    start: int,
    background_until: int | None,
    object_until: int | None,
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Eq. 9 as an `edit(i, x)` of the solver, for the background and, beyond the paper, for the object.

    For i in [background_until, start], both included, the state x[i] becomes the background's own x_bg[i] outside
    M_user. Then, for i in [object_until, start], it becomes the object's own x_obj[i] inside M_obj. None stands for no
    i. x_bg, x_obj: x[0..start] or more, each like x.
    m_held: M_obj with soft edges, in [0, 1]. Where the tumour touches the edge of the user mask they reach one cell
    beyond it, so that tissue blends into tissue there. The hard mask holds the rim of the tumour by whole cells:
    measured on 14 pairs, its object is 5 to 7 dB further from the placed one.
    """

    def held(i: int, until: int | None) -> bool:
        return until is not None and until <= i <= start

    def edit(i: int, x: torch.Tensor) -> torch.Tensor:
        if held(i, background_until):
            x = blend(x, x_bg[i], m_user)
        return blend(x_obj[i], x, m_held) if held(i, object_until) else x

    return edit


def soft_mask(mask: np.ndarray, sigma: float) -> np.ndarray:
    """A bool mask (H, W) blurred by a Gaussian of sigma pixels: float32 (H, W) in [0, 1].

    What lies beyond the border counts as the nearest pixel does.
    """
    soft = torch.from_numpy(mask).float()[None, None]
    for length in mask.shape:  # each pass blurs down, and turns the image over
        reach = min(math.ceil(CUT_OFF * sigma), length - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        padded = F.pad(soft, (0, 0, reach, reach), mode="replicate")
        soft = F.conv2d(padded, (kernel / kernel.sum()).view(1, 1, -1, 1)).transpose(2, 3)
    return soft[0, 0].clamp(0, 1).numpy()


def give_back(
    background_lost: np.ndarray, object_lost: np.ndarray | None, mask: np.ndarray, sigma: float
) -> np.ndarray:
    """Eq. 8 on what the autoencoder loses of background and placed object, r(image) = image - decode(encode(image)):

        r(placed) * S + r(background) * (1 - S)

    All are values (H, W, 3). S is the bool mask (H, W) grown and then blurred by sigma pixels, so that the tumour's own
    rim comes with it. object_lost: None for a result that has no object's detail; S is then the mask, not grown.
    """
    soft = soft_mask(mask if object_lost is None else grown(mask, round(sigma)), sigma)[..., None]
    outside = background_lost * (1 - soft)
    return outside if object_lost is None else object_lost * soft + outside


def preserve_pixels(background: Scan, rendered: np.ndarray, mask: np.ndarray, feather: int) -> np.ndarray:
    """`rendered` inside the mask, and outside it the scan's own pixels, to the bit.

    rendered: pixels (H, W) or (H, W, 3) of the scan's dtype. feather: the pixels over which they are blended, from the
    mask's edge inwards, in equal steps; the scan's border needs none, because nothing lies beyond it.
    """
    return blend_pixels(rendered, background.pixels, feather_weight(mask, feather), background.window)


def blend_pixels(
    inside: np.ndarray, outside: np.ndarray, weight: np.ndarray, window: tuple[float, float]
) -> np.ndarray:
    """Pixels (H, W) or (H, W, 3): `inside` where the weight (H, W) is one, `outside` where it is zero, to the bit.

    Between the two, they are mixed as the window shows them: what lies beyond its black or white is as dark or as
    bright as these, and where both look the same, it is `outside`. Grayscale pixels outside take as many channels as
    those inside have.
    """
    if outside.ndim < inside.ndim:
        outside = np.repeat(outside[..., None], 3, axis=2)
    weight = weight.reshape(weight.shape + (1,) * (inside.ndim - 2))
    seen, behind = (np.clip(pixels.astype(np.float64), *sorted(window)) for pixels in (inside, outside))
    mixed = stored_as(behind + weight * (seen - behind), inside.dtype)
    # What is no number mixes with nothing.
    return np.where(weight == 1, inside, np.where((weight == 0) | (seen == behind), outside, mixed))


def feather_weight(mask: np.ndarray, feather: int) -> np.ndarray:
    """float64 (H, W): 0 outside the mask, 1 deeper inside than `feather` pixels, d / (feather + 1) at depth d between.

    The depth of a pixel is its chessboard distance to the nearest pixel outside. Where no pixel of the mask is deeper
    than `feather`, the deepest ones have the weight 1: a feather is never wider than the mask is deep. (A part of the
    mask that is thinner than the deepest one stays below 1.)
    """
    weight = np.zeros(mask.shape)
    if not mask.any():
        return weight
    x0, y0, x1, y1 = bounding_box(mask)
    # One pixel more than the box on each side, as far as the scan reaches: the edge of a mask may be that of its box.
    near = slice(max(y0 - 1, 0), y1 + 1), slice(max(x0 - 1, 0), x1 + 1)
    inside = mask[near]
    depth = inside.astype(np.float64)
    for _ in range(feather):
        padded = np.pad(inside, 1, constant_values=True)
        inside = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).all(axis=(2, 3))
        if not inside.any():
            break
        depth += inside
    weight[near] = depth / depth.max()
    return weight
