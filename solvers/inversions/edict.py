"""EDICT is a sampler that algebra inverts. Two coupled states take DDIM's step in turn, each by the noise that the
network predicts of the other.

Wallace, Gokul and Naik, "EDICT: Exact Diffusion Inversion via Coupled Transformations", arXiv:2211.12446 (CVPR 2023).
With eps(y) = (y - alpha[i] D(y, i)) / sigma[i], DDIM's step is x[i-1] = a x[i] + c eps(x[i]), where
a = alpha[i-1] / alpha[i] and c = sigma[i-1] - a sigma[i]. EDICT couples two such states and then mixes them:

    x <- a x + c eps(y),    y <- a y + c eps(x),    x <- p x + (1 - p) y,    y <- p y + (1 - p) x.

Each line changes one state by the other alone, so it is undone as it stands, and the four in reverse order are the step
upwards. Both states begin as the image, and it keeps both, (x[start], y[start]). p = 0.93 is the paper's. The mixing
brings the two together, by p² a step, on the way down, so that rounding grows by 1 / p² a step on the way up. Every
other step moves y first, as counted from the run's start; the mixing is always in this order. A step takes two
evaluations. From one state alone the run begins with y = x, as that of a new image does.

Departures from the authors' code: it interpolates alpha² between training times with the two weights exchanged, which
shows where the number of steps does not divide 1000. It runs in float64 throughout, and ours in the state's dtype.
"""

import torch
from torch import Tensor

from ..finite import check_finite
from ..grids import Grid
from ..prediction import X0Fn, predict
from ..progress import Progress, watched
from .pairs import Pair, check_pair
from .run import Run, Solution

P = 0.93


@torch.no_grad()
def edict_denoise(kept: Pair, grid: Grid, x0_fn: X0Fn, p: float = P) -> Tensor:
    """(x[start], y[start]) -> x[0], by 2 start evaluations, where start = grid.steps.

    TypeError or ValueError for a pair that does not match, and ValueError for a grid that ends at sigma[0] = 0 and for
    a p outside 0..1.
    """
    _check(p)
    pair = list(check_pair(kept, grid))
    for i in range(grid.steps, 0, -1):
        a, c = _coefficients(grid, i)
        for moved in _order(grid, i):
            pair[moved] = a * pair[moved] + c * _noise(x0_fn, grid, pair[1 - moved], i)
        x = p * pair[0] + (1 - p) * pair[1]
        pair = [x, p * pair[1] + (1 - p) * x]
    return pair[0]


def edict_from_one_state(x: Tensor, grid: Grid, x0_fn: X0Fn, p: float = P) -> Tensor:
    """x[start] -> x[0], by 2 start evaluations, with y[start] = x[start]. It raises what `edict_denoise` raises."""
    return edict_denoise((x, x), grid, x0_fn, p)


def solve_edict(run: Run, tol: float, max_sweeps: int, progress: Progress = None, p: float = P) -> Solution:
    """Both states go up from x0, and the states are those of x. It solves nothing, at 2 `start` evaluations."""
    _check(p)
    x0_fn = run.prediction.for_images(run.images)
    pair, states = [run.x0, run.x0], []
    for i in watched(range(1, run.start + 1), "step", progress):
        a, c = _coefficients(run.grid, i)
        y = (pair[1] - (1 - p) * pair[0]) / p
        pair = [(pair[0] - (1 - p) * y) / p, y]
        for moved in reversed(_order(run.grid, i)):
            pair[moved] = (pair[moved] - c * _noise(x0_fn, run.grid, pair[1 - moved], i)) / a
            check_finite(pair[moved], "a state on the way up")
        states.append(pair[0])
    return Solution(torch.stack(states, 1), [[] for _ in run.x0], kept=tuple(pair))


def _coefficients(grid: Grid, i: int) -> tuple[float, float]:
    """a and c of DDIM's step from i to i-1, in x and eps."""
    a = grid.alpha[i - 1] / grid.alpha[i]
    return a.item(), (grid.sigma[i - 1] - a * grid.sigma[i]).item()


def _order(grid: Grid, i: int) -> tuple[int, int]:
    """Which state of the pair moves first in the step from i to i-1, and which second."""
    return (0, 1) if (grid.steps - i) % 2 == 0 else (1, 0)


def _noise(x0_fn: X0Fn, grid: Grid, x: Tensor, i: int) -> Tensor:
    """eps(x), (B, ...)."""
    return (x - grid.alpha[i].item() * predict(x0_fn, x, i)) / grid.sigma[i].item()


def _check(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"p, the part of a state that the mixing keeps, must be above 0 and at most 1, got {p}")
