"""The edit-friendly inversion of DDPM stores noises. It draws states, and extracts for every step the noise that makes
DDPM go from one of them to the next. It keeps start + 1 states' worth of numbers, and its states are no trajectory.

Huberman-Spiegelglas, Kulikov and Michaeli, "An Edit Friendly DDPM Noise Space: Inversion and Manipulations",
arXiv:2304.06140 (CVPR 2024). Its sampler is DDPM, that is DDIM with eta = 1, whose step draws a noise z[i]:

    x[i-1] = a[i] x[i] + b[i] D[i] + spread[i] z[i],
    a[i] = sigma[i-1] / sigma[i] exp(-h[i]),    b[i] = -alpha[i-1] expm1(-2 h[i]),
    spread[i] = sigma[i-1] sqrt(-expm1(-2 h[i])),    h[i] = lam[i-1] - lam[i].

The states are drawn from q(x[i] | x0), x[i] = alpha[i] x0 + sigma[i] noise[i], independently of one another, and not
along a chain. The step is then solved for z[i] with x[i] and x[i-1] in their places, at one evaluation. These noises
are larger than DDPM's own and correlated from step to step, and they carry the image. (x[start], z[1..start]) is kept
and gives the image back. One state alone does not: a run from it draws its noises anew.

All noise is drawn on the CPU, in float64, from a fixed seed and alike for every image. So an image's result depends
neither on its batch nor on the device.

Departures from the authors' code: it sets z[1] to zero, so that its last step misses the image by spread[1] z[1]; ours
keeps z[1]. It draws from an unseeded generator. For 0 < eta < 1 it takes eta where DDIM has eta²; both agree at 1.
"""

import torch
from torch import Tensor

from ..finite import check_finite
from ..grids import Grid
from ..prediction import X0Fn, predict
from ..progress import Progress, watched
from .pairs import check_state
from .run import Run, Solution

SEED = 0  # of the states that the inversion draws
NEW_SEED = 1  # of the noises of a run from one state alone
Kept = tuple[Tensor, Tensor]  # x[start] (B, ...) and z[1..start] (B, start, ...)


@torch.no_grad()
def ddpm_denoise(kept: Kept, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """(x[start], z[1..start]) -> x[0], by start evaluations, where start = grid.steps.

    TypeError or ValueError for noises that do not match the state or the grid, and ValueError for a grid that ends at
    sigma[0] = 0.
    """
    x, noises = _checked(kept, grid)
    for i in range(grid.steps, 0, -1):
        mean, spread = _step(x, i, grid, x0_fn)
        x = mean + spread * noises[:, i - 1]
    return x


def ddpm_from_one_state(x: Tensor, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """x[start] -> x[0], by start evaluations, with noises drawn anew. It raises what `ddpm_denoise` raises."""
    check_state(x, grid)
    return ddpm_denoise((x, _drawn(x, grid.steps, NEW_SEED)), grid, x0_fn)


def solve_ddpm(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Draw the states and extract the noises, at `start` evaluations. It solves nothing."""
    alpha, sigma = (
        values[1:].to(run.x0).view(1, -1, *[1] * (run.x0.ndim - 1)) for values in (run.grid.alpha, run.grid.sigma)
    )
    drawn = alpha * run.x0[:, None] + sigma * _drawn(run.x0, run.start, SEED)
    states, noises = extract_noises(
        torch.cat([run.x0[:, None], drawn], 1), run.grid, run.prediction.for_images(run.images), progress
    )
    return Solution(states[:, 1:], [[] for _ in run.x0], kept=(states[:, -1], noises))


@torch.no_grad()
def extract_noises(states: Tensor, grid: Grid, x0_fn: X0Fn, progress: Progress = None) -> tuple[Tensor, Tensor]:
    """x[0..start] (B, start + 1, ...) -> the states that the sampler will pass, alike, and z[1..start] (B, start, ...).

    What the sampler makes of the noises differs from the states by rounding. The next noise is extracted from what it
    makes, so that rounding does not add up.
    """
    x = check_finite(states[:, -1], "a state that was drawn")
    passed, noises = [x], []
    for i in watched(range(len(states[0]) - 1, 0, -1), "step", progress):
        mean, spread = _step(x, i, grid, x0_fn)
        noises.append((states[:, i - 1] - mean) / spread)
        x = check_finite(mean + spread * noises[-1], "a state on the way down")
        passed.append(x)
    return torch.stack(passed[::-1], 1), torch.stack(noises[::-1], 1)


def ddpm_coefficients(grid: Grid, i: int) -> tuple[float, float, float]:
    """a[i], b[i] and spread[i]."""
    h, sigma = grid.lam[i - 1] - grid.lam[i], grid.sigma[i - 1]
    part = -torch.expm1(-2 * h)
    return tuple(
        each.item() for each in (sigma / grid.sigma[i] * torch.exp(-h), grid.alpha[i - 1] * part, sigma * part.sqrt())
    )


def _step(x: Tensor, i: int, grid: Grid, x0_fn: X0Fn) -> tuple[Tensor, float]:
    """The mean of x[i-1] given x[i], and spread[i]."""
    a, b, spread = ddpm_coefficients(grid, i)
    return a * x + b * predict(x0_fn, x, i), spread


def _drawn(x: Tensor, steps: int, seed: int) -> Tensor:
    """Noises (B, steps, ...) for the indices 1..steps, the same for every image and for any number of steps."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(x.shape[1:], dtype=torch.float64, generator=generator) for _ in range(steps)])
    return noise.to(x).expand(len(x), *noise.shape)


def _checked(kept: Kept, grid: Grid) -> Kept:
    if not isinstance(kept, tuple | list) or len(kept) != 2 or not all(isinstance(one, Tensor) for one in kept):
        raise TypeError("expected the state and the noises that the inversion kept, (x[start], z[1..start])")
    x, noises = kept
    check_state(x, grid)
    expected = (len(x), grid.steps, *x.shape[1:])
    if noises.shape != expected or noises.dtype != x.dtype:
        raise ValueError(
            f"a state {tuple(x.shape)} {x.dtype} at index {grid.steps} goes with noises {expected} of its dtype, got "
            f"{tuple(noises.shape)} {noises.dtype}; pass what the inversion kept, and the grid until its start"
        )
    return kept
