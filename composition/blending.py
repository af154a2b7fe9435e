"""The paper's blends of two trajectories, and that of the result with the scan. Masks are one inside, zero outside."""

from __future__ import annotations

import numpy as np
import torch

from .images import Scan


def compose_states(x_obj: torch.Tensor, x_bg: torch.Tensor, m_obj: torch.Tensor) -> torch.Tensor:
    """Eq. 8: the object's state inside M_obj, the background's outside. (B, C, h, w), and m_obj (B, 1, h, w)."""
    return x_obj * m_obj + x_bg * (1 - m_obj)


def preserve_background(x_bg: torch.Tensor, m_user: torch.Tensor, preserve_until: int, start: int):
    """Eq. 9 as an `edit(i, x)` of the solver: for i in [preserve_until, start], both included, the background's own
    state outside M_user. x_bg: its trajectory (start + 1 or more, B, C, h, w); m_user (B, 1, h, w)."""

    def edit(i: int, x: torch.Tensor) -> torch.Tensor:
        if not preserve_until <= i <= start:
            return x
        return x * m_user + x_bg[i] * (1 - m_user)

    return edit


def preserve_pixels(background: Scan, rendered: np.ndarray, user_mask: np.ndarray, feather: int) -> np.ndarray:
    """`rendered` inside the user mask, and outside it the scan's own pixels, to the bit.

    rendered: pixels (H, W) or (H, W, 3) of the scan's dtype. The blend over the outermost `feather` pixels lies wholly
    inside the mask, in equal steps; the scan's border needs none, having nothing beyond it.
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
