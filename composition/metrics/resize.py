"""All metrics share one resizing, so that none of them sees an image resampled in another way. This module holds it."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def square(images: torch.Tensor, side: int) -> torch.Tensor:
    """The whole of images (B, 3, H, W) in [-1, 1] at side x side pixels: bicubic, antialiased, overshoots cut off."""
    return F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
