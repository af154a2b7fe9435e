"""BDIA-DDIM is a sampler that algebra inverts: a two-step rule (`pairs.py`) that corrects DDIM's last step.

Zhang, Lewis and Kleijn, "Exact Diffusion Inversion via Bi-directional Integration Approximation", arXiv:2307.10829
(ECCV 2024). DDIM takes x[i], by one evaluation there, down to i-1 and as well up to i+1:

    down[i] = a[i] x[i] + b[i] D[i],    a[i] = sigma[i-1] / sigma[i],    b[i] = alpha[i-1] - a[i] alpha[i],

and up[i] alike, with i+1 for i-1. The step that led to x[i] was wrong by what up[i] misses x[i+1] by, and BDIA makes up
for a part gamma of that:

    x[i-1] = down[i] + gamma (x[i+1] - up[i]),      x[i+1] = up[i] + (x[i-1] - down[i]) / gamma.

The run's first step is DDIM's. It keeps the pair (x[start-1], x[start]). With gamma = 0 the rule is DDIM, and has no
inverse; rounding grows on the way up by 1 / gamma a step. It is of first order, and of second where gamma = 1 and the
steps are even in lam.

gamma is 0.94, as in the authors' own editing experiments. For round-trip editing they recommend 0.92 to 1; for sampling
alone, 1 at 40 steps and 0.5 at 10.

Departures from the authors' code: it evaluates the image one step below its cleanest training time, at a negative time;
ours is evaluated at t[0]. It interpolates alpha² between training times with the two weights exchanged, which shows
where the number of steps does not divide 1000. The reimplementation that the authors of BELM compare with leaves the
network out of its first step upwards; ours and the authors' own have it.
"""

import functools

import torch
from torch import Tensor

from ..grids import Grid
from ..prediction import X0Fn
from ..progress import Progress
from ..tables import ddim
from .pairs import Pair, Rule, denoise_one, denoise_pair, row_by_row, solve_pair
from .run import Run, Solution

GAMMA = 0.94


def bdia_denoise(kept: Pair, grid: Grid, x0_fn: X0Fn, gamma: float = GAMMA) -> Tensor:
    """(x[start-1], x[start]) -> x[0], by start - 1 evaluations, where start = grid.steps.

    TypeError or ValueError for a pair that does not match, and ValueError for a grid that ends at sigma[0] = 0 and for
    a gamma outside 0..1.
    """
    return denoise_pair(_rule(gamma), kept, grid, x0_fn)


def bdia_from_one_state(x: Tensor, grid: Grid, x0_fn: X0Fn, gamma: float = GAMMA) -> Tensor:
    """x[start] -> x[0], by start evaluations: a DDIM step guesses x[start-1]. It raises what `bdia_denoise` raises."""
    return denoise_one(_rule(gamma), x, grid, x0_fn)


def solve_bdia(run: Run, tol: float, max_sweeps: int, progress: Progress = None, gamma: float = GAMMA) -> Solution:
    """The pair goes up and its last is kept. It solves nothing, at `start` evaluations. ValueError for gamma = 0."""
    if gamma == 0:
        raise ValueError("BDIA with gamma = 0 is DDIM, which algebra does not invert; take a gamma above 0, at most 1")
    return solve_pair(_rule(gamma), run, progress)


def bdia_rule(grid: Grid, gamma: float = GAMMA) -> Tensor:
    """The rule in x and D. Row i holds the weights of x[i], x[i+1] and D[i] in x[i-1]; (steps, 3), row 0 is nan."""
    i = torch.arange(1, grid.steps)
    down, up = ddim(grid), ddim(grid.reversed())
    j = grid.steps - i  # of the reversed grid: its row j leads from i to i+1
    return row_by_row(down.a[i] - gamma * up.a[j], torch.full_like(down.a[i], gamma), down.b[i, 0] - gamma * up.b[j, 0])


def _rule(gamma: float) -> Rule:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be a number from 0 to 1, got {gamma}")
    return functools.partial(bdia_rule, gamma=gamma)
