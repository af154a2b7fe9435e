"""These images are drawn by arithmetic. They are the same on every machine, and have flat parts, edges, texture and
colour."""

import torch


def drawn_image(size: int, variant: int = 0) -> torch.Tensor:
    """A bright disc on a shaded, rippled ground, (1, 3, size, size) float32 in [-1, 1]. Variants move and tint them."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    ground = 0.5 * x - 0.3 * y + 0.1 * torch.sin((20 + 7 * variant) * x + 13 * y)
    disc = (x - 0.5 - 0.05 * variant) ** 2 + (y - 0.4) ** 2 < 0.04
    gray = torch.where(disc, 0.8 - 0.1 * variant, ground - 0.4)
    return torch.stack([gray, gray * 0.9, gray - 0.02 * variant])[None].clamp(-1, 1).float()
