"""O-BELM is a sampler that algebra inverts, and this module holds it so that the inversions can be compared with it. It
stands apart because O-BELM is not a step table.

Wang et al., "BELM: Bidirectional Explicit Linear Multi-step Samplers for Exact Inversion in Diffusion Models",
arXiv:2410.07273 (NeurIPS 2024). With y = x / alpha and s = sigma / alpha the probability-flow ODE is dy/ds = eps. The
two-step rule that is exact for every y quadratic in s, the leapfrog of an uneven grid, is O-BELM:

    y[i-1] = (p/q)² y[i+1] + (1 - (p/q)²) y[i] + p (1 - p/q) eps(x[i]),      p = s[i-1] - s[i],  q = s[i+1] - s[i].

The rule is solved for y[i+1] as easily as for y[i-1], so a *pair* of neighbouring states goes up and down exactly, at
one evaluation a step. Rounding grows on the way up by the product of the (q/p)². One state alone does not determine a
run: when only one of the two is kept, the other has to be guessed.
"""

import torch
from torch import Tensor

from ..grids import Grid
from ..prediction import X0Fn, predict
from ..progress import Progress, watched
from ..sampling import check_run
from ..tables import ddim
from .method import OwnSampler
from .run import Run, Solution

Pair = tuple[Tensor, Tensor]  # (x[i], x[i+1]), each (B, ...)


@torch.no_grad()
def belm_start(x: Tensor, grid: Grid, x0_fn: X0Fn, *, start: int | None = None) -> Pair:
    """The pair (x[start-1], x[start]) from x[start] alone, by one DDIM step, which takes one evaluation."""
    start = _check(x, grid, start)
    a, (b,) = ddim(grid).row(start)
    return a * x + b * predict(x0_fn, x, start), x


@torch.no_grad()
def belm_denoise(pair: Pair, grid: Grid, x0_fn: X0Fn, *, start: int | None = None) -> Pair:
    """(x[start-1], x[start]) -> (x[0], x[1]), in start - 1 evaluations. ValueError for a pair that does not match."""
    lower, upper = pair
    start = _check_pair(pair, grid, start)
    for i in range(start - 1, 0, -1):
        here, above, eps = _rule(grid, i)
        y = here * lower / grid.alpha[i].item() + above * upper / grid.alpha[i + 1].item()
        y = y + eps * _noise_prediction(x0_fn, grid, lower, i)
        lower, upper = grid.alpha[i - 1].item() * y, lower
    return lower, upper


@torch.no_grad()
def belm_invert(pair: Pair, grid: Grid, x0_fn: X0Fn, *, start: int | None = None) -> Pair:
    """(x[0], x[1]) -> (x[start-1], x[start]), in start - 1 evaluations. Undoes `belm_denoise` up to rounding."""
    for i in range(1, _check_pair(pair, grid, start)):
        pair = _up(pair, grid, x0_fn, i)
    return pair


@torch.no_grad()
def belm_image_pair(x0: Tensor, grid: Grid, x0_fn: X0Fn) -> Pair:
    """A pair (x[0], x[1]) for an image that no run has made. One DDIM step upwards, evaluated at t[0], gives x[1]."""
    if grid.sigma[0] == 0:
        raise ValueError(f"{grid.name} ends at sigma[0] = 0, from where no step leads up; take a grid that does not")
    a, (b,) = ddim(grid).row(1)
    return x0, (x0 - b * predict(x0_fn, x0, 0)) / a


def solve_belm(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Take the pair up and keep its last. This takes `start` evaluations and solves nothing."""
    x0_fn = run.prediction.for_images(run.images)
    pair, states = None, []
    for i in watched(range(run.start), "step", progress):
        pair = belm_image_pair(run.x0, run.grid, x0_fn) if pair is None else _up(pair, run.grid, x0_fn, i)
        states.append(pair[1])
    return Solution(torch.stack(states, 1), [[] for _ in run.x0], kept=pair)


def _denoise(pair: Pair, grid: Grid, x0_fn: X0Fn) -> Tensor:
    return belm_denoise(pair, grid, x0_fn)[0]


def _from_one_state(x: Tensor, grid: Grid, x0_fn: X0Fn) -> Tensor:
    return _denoise(belm_start(x, grid, x0_fn), grid, x0_fn)


SAMPLER = OwnSampler(_denoise, _from_one_state)


def _up(pair: Pair, grid: Grid, x0_fn: X0Fn, i: int) -> Pair:
    """(x[i-1], x[i]) -> (x[i], x[i+1])."""
    lower, upper = pair
    here, above, eps = _rule(grid, i)
    y = lower / grid.alpha[i - 1].item() - here * upper / grid.alpha[i].item()
    y = (y - eps * _noise_prediction(x0_fn, grid, upper, i)) / above
    return upper, grid.alpha[i + 1].item() * y


def _rule(grid: Grid, i: int) -> tuple[float, float, float]:
    """The weights of y[i], y[i+1] and eps(x[i]) in y[i-1]."""
    s = grid.sigma[i - 1 : i + 2] / grid.alpha[i - 1 : i + 2]
    p, q = (s[0] - s[1]).item(), (s[2] - s[1]).item()
    return 1 - (p / q) ** 2, (p / q) ** 2, p * (1 - p / q)


def _noise_prediction(x0_fn: X0Fn, grid: Grid, x: Tensor, i: int) -> Tensor:
    return (x - grid.alpha[i].item() * predict(x0_fn, x, i)) / grid.sigma[i].item()


def _check(x: Tensor, grid: Grid, start: int | None) -> int:
    return check_run(x, grid, ddim(grid), start)


def _check_pair(pair: Pair, grid: Grid, start: int | None) -> int:
    lower, upper = pair
    if lower.shape != upper.shape or lower.dtype != upper.dtype:
        raise ValueError(
            f"the two states of a pair must agree, got {lower.dtype} of shape {tuple(lower.shape)} and "
            f"{upper.dtype} of shape {tuple(upper.shape)}"
        )
    return _check(lower, grid, start)
