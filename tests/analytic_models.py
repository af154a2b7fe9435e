"""Test problems for `solvers`: data whose denoiser, and for the Gaussian the whole ODE, is known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from solvers import Grid, NoiseSchedule, log_snr


def sd_schedule() -> NoiseSchedule:
    """Stable Diffusion's schedule: sqrt(beta) linear over 1000 training times."""
    return NoiseSchedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)


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
        noise = torch.randn(count, len(self.mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return self.mean + self.variance.sqrt() * noise


@dataclass(frozen=True)
class Mixture:
    """Equal-weight mixture of N(means[k], diag(variance)); means (K, dim), variance (dim,), float64."""

    means: Tensor
    variance: Tensor

    def x0_fn(self, grid: Grid):
        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            alpha, sigma = at(grid.alpha, i, x)[:, None], at(grid.sigma, i, x)[:, None]
            means, variance = self.means.to(x), self.variance.to(x)
            total = alpha**2 * variance + sigma**2
            offset = x[:, None] - alpha * means  # (N, K, dim)
            weight = torch.softmax(-0.5 * (offset**2 / total).sum(-1), dim=-1)
            return (weight[..., None] * (means + alpha * variance / total * offset)).sum(1)

        return x0_fn

    def solution(self, x: Tensor, schedule: NoiseSchedule, steps: int = 500) -> Tensor:
        """The probability-flow ODE's state at the clean end from x at the noise end, by the classical Runge-Kutta
        method of order 4 in lam: z = x / alpha obeys dz/dlam = x0_hat - z."""
        grid = log_snr(schedule, 2 * steps)  # every second point is a midpoint
        x0_fn, h = self.x0_fn(grid), (grid.lam[0] - grid.lam[-1]).item() / steps

        def slope(z: Tensor, i: int) -> Tensor:
            return x0_fn(grid.alpha[i] * z, i) - z

        z = x / grid.alpha[-1]
        for i in range(2 * steps, 0, -2):
            k1 = slope(z, i)
            k2 = slope(z + h / 2 * k1, i - 1)
            k3 = slope(z + h / 2 * k2, i - 1)
            k4 = slope(z + h * k3, i - 2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return grid.alpha[0] * z

    def sample(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chosen = self.means[torch.randint(len(self.means), (count,), generator=generator)]
        return chosen + self.variance.sqrt() * torch.randn(chosen.shape, dtype=torch.float64, generator=generator)


def anisotropic_gaussian() -> Gaussian:
    return Gaussian(torch.tensor([1.0, -0.5, 0.3, 2.0]).double(), torch.tensor([4.0, 1.0, 0.25, 0.04]).double())


def mixture(dim: int = 16, components: int = 8, seed: int = 0, spread: float = 1.0, width: float = 0.3) -> Mixture:
    """`components` means drawn from N(0, spread²), each of standard deviation `width`."""
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(components, dim, dtype=torch.float64, generator=generator)
    return Mixture(means, torch.full((dim,), width**2, dtype=torch.float64))
