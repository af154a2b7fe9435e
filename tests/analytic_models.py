"""This module holds test problems for `solvers`. The denoiser of their data is known exactly, and for the Gaussian the
whole ODE is known too. Tests and benchmarks share them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import Grid, NoiseSchedule

# Stable Diffusion's noise: sqrt(beta) is linear over 1000 training times ("scaled_linear").
SD_BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def sd_schedule() -> NoiseSchedule:
    """Stable Diffusion's schedule."""
    return NoiseSchedule.from_betas(SD_BETAS)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gaussian noise, drawn in float64 whatever its dtype."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def at(values: Tensor, i: int | Tensor, x: Tensor) -> Tensor:
    """values[i] in x's dtype, shaped to broadcast over the rows of x (N, dim)."""
    return values[torch.as_tensor(i)].to(x).reshape(-1, 1)


@dataclass(frozen=True)
class Gaussian:
    """N(mean, diag(variance)); mean and variance (dim,) float64."""

    mean: Tensor
    variance: Tensor

    def x0_fn(self, grid: Grid):
        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            alpha, sigma = at(grid.alpha, i, x), at(grid.sigma, i, x)
            mean, variance = self.mean.to(x), self.variance.to(x)
            return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

        return x0_fn

    def solution(self, x: Tensor, grid: Grid, start: int, end: int) -> Tensor:
        """The probability-flow ODE's state at `end`: (x - alpha mean) / sqrt(alpha² variance + sigma²) is conserved."""

        def deviation(i: int) -> Tensor:
            return (grid.alpha[i] ** 2 * self.variance + grid.sigma[i] ** 2).sqrt()

        standard = (x - grid.alpha[start] * self.mean) / deviation(start)
        return grid.alpha[end] * self.mean + deviation(end) * standard

    def sample(self, count: int, seed: int) -> Tensor:
        return self.mean + self.variance.sqrt() * normal(count, len(self.mean), seed=seed)


@dataclass(frozen=True)
class Mixture:
    """Equal-weight mixture of N(means[k], diag(variance)); means (K, dim), variance (dim,), float64."""

    means: Tensor
    variance: Tensor

    def x0_fn(self, grid: Grid):
        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            return self.denoised(x, at(grid.alpha, i, x), at(grid.sigma, i, x))

        return x0_fn

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x]; alpha and sigma (N, 1) or (1, 1)."""
        alpha, sigma = alpha[:, None], sigma[:, None]
        means, variance = self.means.to(x), self.variance.to(x)
        total = alpha**2 * variance + sigma**2
        offset = x[:, None] - alpha * means  # (N, K, dim)
        weight = torch.softmax(-0.5 * (offset**2 / total).sum(-1), dim=-1)
        return (weight[..., None] * (means + alpha * variance / total * offset)).sum(1)

    def solution(self, x: Tensor, grid: Grid, start: int, end: int, longest: float = 0.01) -> Tensor:
        """The probability-flow ODE's state at `end`, by the classical Runge-Kutta method of order 4 in lam, in steps of
        at most `longest`: z = x / alpha obeys dz/dlam = x0_hat - z."""
        begin, length = grid.lam[start], (grid.lam[end] - grid.lam[start]).item()
        steps = math.ceil(abs(length) / longest)
        h = length / steps

        def slope(z: Tensor, done: float) -> Tensor:
            lam = (begin + done * h).view(1, 1)
            alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
            return self.denoised(alpha * z, alpha, sigma) - z

        z = x / grid.alpha[start]
        for step in range(steps):
            k1 = slope(z, step)
            k2 = slope(z + h / 2 * k1, step + 0.5)
            k3 = slope(z + h / 2 * k2, step + 0.5)
            k4 = slope(z + h * k3, step + 1)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return grid.alpha[end] * z

    def sample(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = self.means[torch.randint(len(self.means), (count,), generator=generator)]
        return chosen + self.variance.sqrt() * torch.randn(chosen.shape, dtype=torch.float64, generator=generator)


def anisotropic_gaussian() -> Gaussian:
    return Gaussian(torch.tensor([1.0, -0.5, 0.3, 2.0]).double(), torch.tensor([4.0, 1.0, 0.25, 0.04]).double())


def mixture(dim: int = 16, components: int = 8, seed: int = 0, spread: float = 1.0, width: float = 0.3) -> Mixture:
    """`components` means drawn from N(0, spread²), each of standard deviation `width`."""
    means = spread * normal(components, dim, seed=seed)
    return Mixture(means, torch.full((dim,), width**2, dtype=torch.float64))


def small_mixture() -> Mixture:
    """Four wide components in three dimensions, whose ODE is smooth enough for orders to be measured."""
    return mixture(dim=3, components=4, width=0.7)
