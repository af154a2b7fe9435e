"""The tests and the benchmark of inversion share this module. It holds latents to invert, and a measurement of the
round trip that does not rely on the inversion's own report."""

import functools

import torch
from analytic_models import mixture, sd_schedule
from relative_error import relative_by_image
from torch import Tensor

from solvers import Grid, Solver, denoise, dpm_solver_pp_2m, time_uniform

DATA = mixture()
IMAGES = DATA.sample(8, seed=1)


def problem(steps: int = 20, lower_order_final: bool = False):
    """Grid, solver and exact x0_fn: 2M on the paper's grid, for images of DATA."""
    grid = time_uniform(sd_schedule(), steps)
    return grid, functools.partial(dpm_solver_pp_2m, lower_order_final=lower_order_final), DATA.x0_fn(grid)


def round_trip_errors(states: Tensor, grid: Grid, solver: Solver, x0_fn) -> Tensor:
    """(B,) float64: |denoise(x[start]) - x0| / |x0| of inverted states (start + 1, B, ...), from x[start] alone."""
    x0, run = states[0], grid.until(len(states) - 1)
    return relative_by_image(denoise(states[-1], run, solver(run), x0_fn), x0)


def smooth_latents(count: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Latents that no sampler made: noise with the 1/f spectrum of photographs, of unit variance; seed 5."""
    noise = torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    height, width = shape[1:]
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2).sqrt()
    latents = torch.fft.irfft2(torch.fft.rfft2(noise) / (0.4 / height + frequency), s=(height, width))
    return (latents / latents.std()).to(dtype)
