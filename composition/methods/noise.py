"""This module draws Gaussian noise that depends on the seed alone, for the baselines that need some.

It draws on the CPU, so that the device does not change a result, and anew for each sample, as TF-ICON does.
"""

from __future__ import annotations

import torch

from solvers import Grid


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def draw(source: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of the shape, dtype and device of `like` (1, C, h, w), drawn in float32."""
    return torch.randn(like.shape, generator=source).to(like)


def noised(x0: torch.Tensor, z: torch.Tensor, grid: Grid, i: int) -> torch.Tensor:
    """The forward process (Eq. 2) on the grid: alpha[i] x0 + sigma[i] z, for z like x0."""
    return grid.alpha[i].item() * x0 + grid.sigma[i].item() * z
