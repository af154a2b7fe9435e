"""This module holds Eq. 8 and Eq. 9 of the paper, and the blend of the result with the scan's own pixels.

Both equations are one operation on different states, `blend`, so it is written once. Masks are one inside and zero
outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from .scans.images import Scan


def blend(inside: torch.Tensor, outside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`inside` where the mask is one and `outside` where it is zero: (B, C, h, w) both, mask (B or 1, 1, h, w)."""
    return inside * mask + outside * (1 - mask)


def compose_states(x_obj: torch.Tensor, x_bg: torch.Tensor, m_obj: torch.Tensor) -> torch.Tensor:
    """Eq. 8: the object's state inside M_obj and the background's outside, (B, C, h, w) both; and so for anything else
    that the two trajectories have at one index, their data predictions above all."""
    return blend(x_obj, x_bg, m_obj)


def preserve_background(
    x_bg: Sequence[torch.Tensor], m_user: torch.Tensor, preserve_until: int, start: int
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """Eq. 9 as an `edit(i, x)` of the solver: for i in [preserve_until, start], both included, the state x[i] is kept
    inside M_user, and outside it becomes the background's own state x_bg[i]. x_bg: x[0..start] or more, each like x."""

    def edit(i: int, x: torch.Tensor) -> torch.Tensor:
        return blend(x, x_bg[i], m_user) if preserve_until <= i <= start else x

    return edit


def preserve_pixels(background: Scan, rendered: np.ndarray, user_mask: np.ndarray, feather: int) -> np.ndarray:
    """`rendered` inside the user mask, and outside it the scan's own pixels, to the bit.

    rendered: pixels (H, W) or (H, W, 3) of the scan's dtype. The blend over the outermost `feather` pixels lies wholly
    inside the mask, in equal steps; the scan's border needs none, because nothing lies beyond it.
    """
    original = background.pixels
    if original.ndim < rendered.ndim:
        original = np.repeat(original[..., None], 3, axis=2)
    weight = feather_weight(user_mask, feather).reshape(user_mask.shape + (1,) * (rendered.ndim - 2))
    blended = original + weight * (rendered.astype(np.float64) - original)
    return np.rint(blended).astype(rendered.dtype)


def feather_weight(mask: np.ndarray, feather: int) -> np.ndarray:
    """float64 (H, W): 0 outside the mask, 1 deeper inside than `feather` pixels, d / (feather + 1) at depth d between.

    The depth of a pixel is its chessboard distance to the nearest pixel outside.
    """
    depth, inside = mask.astype(np.float64), mask
    for _ in range(feather):
        padded = np.pad(inside, 1, constant_values=True)
        inside = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).all(axis=(2, 3))
        depth += inside
    return depth / (feather + 1)
