"""Gaussian noise that depends on the seed alone."""

from __future__ import annotations

import torch

from solvers import Grid


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def draw(source: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of the shape, dtype and device of `like` (B, ...): one draw on the CPU, the same in every
    row, so that a sample's noise does not depend on the others of its batch."""
    return torch.randn(like.shape[1:], generator=source).to(like).expand_as(like)


def noised(x0: torch.Tensor, z: torch.Tensor, grid: Grid, i: int) -> torch.Tensor:
    """The forward process (Eq. 2) on the grid: alpha[i] x0 + sigma[i] z, for z like x0 (B, ...)."""
    return grid.alpha[i].item() * x0 + grid.sigma[i].item() * z
