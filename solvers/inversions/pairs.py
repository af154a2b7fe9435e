"""O-BELM and BDIA are two-step rules, and this module takes any such rule down and up. It stands apart because the two
share everything but their weights. EDICT keeps a pair too, which is checked here.

A two-step rule gives x[i-1] from the two states above it and one data prediction,

    x[i-1] = here[i] x[i] + above[i] x[i+1] + data[i] D[i],        D[i] = x0_fn(x[i], i),

and it is solved for x[i+1] as easily. So a *pair* of neighbouring states goes up and down exactly, at one evaluation a
step. One state alone does not determine a run: where only x[start] was kept, a DDIM step guesses x[start-1]. On the way
up the other state of an image's first pair is a guess too. It is one DDIM step upwards, evaluated at t[0], that gives
x[1]. At start = 1 the pair is (x[0], x[1]) and holds the image itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..finite import check_finite
from ..grids import Grid
from ..prediction import X0Fn, predict
from ..progress import Progress, watched
from ..sampling import check_run
from ..tables import ddim
from .run import Run, Solution

Pair = tuple[Tensor, Tensor]  # each (B, ...)
# grid -> (steps, 3) float64, whose row i is (here[i], above[i], data[i]). Row 0 does not exist and holds nan.
Rule = Callable[[Grid], Tensor]


@torch.no_grad()
def denoise_pair(rule: Rule, pair: Pair, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """(x[start-1], x[start]) -> x[0], by start - 1 evaluations, where start = grid.steps."""
    lower, upper = check_pair(pair, grid)
    weights = rule(grid)
    for i in range(grid.steps - 1, 0, -1):
        here, above, data = weights[i].tolist()
        lower, upper = here * lower + above * upper + data * predict(x0_fn, lower, i), lower
    return lower


@torch.no_grad()
def denoise_one(rule: Rule, x: Tensor, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """x[start] -> x[0], by start evaluations, of which the first is for a DDIM step to x[start-1]."""
    check_state(x, grid)
    a, (b,) = ddim(grid).row(grid.steps)
    lower = a * x + b * predict(x0_fn, x, grid.steps)
    return denoise_pair(rule, (lower, x), grid, x0_fn)


def solve_pair(rule: Rule, run: Run, progress: Progress = None) -> Solution:
    """Take the image's pair up and keep its last, (x[start-1], x[start]). It solves nothing, at start evaluations."""
    x0_fn, weights = run.prediction.for_images(run.images), rule(run.grid)
    states = [run.x0]
    for i in watched(range(run.start), "step", progress):
        data = x0_fn(states[-1], i)
        if i == 0:
            a, (b,) = ddim(run.grid).row(1)
            x = (run.x0 - b * data) / a
        else:
            here, above, own = weights[i].tolist()
            x = (states[-2] - here * states[-1] - own * data) / above
        states.append(check_finite(x, "a state on the way up"))
    return Solution(torch.stack(states[1:], 1), [[] for _ in run.x0], kept=(states[-2], states[-1]))


def row_by_row(here: Tensor, above: Tensor, data: Tensor) -> Tensor:
    """The weights of the indices 1..steps-1, each (steps - 1,), as a rule returns them."""
    rows = torch.stack([here, above, data], 1)
    return torch.cat([torch.full((1, 3), torch.nan, dtype=rows.dtype), rows])


def check_pair(pair: Pair, grid: Grid) -> Pair:
    """The pair itself. TypeError or ValueError unless it is two states alike, for a run on this grid."""
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(one, Tensor) for one in pair):
        raise TypeError("expected the two states that the inversion kept, a pair of tensors (B, ...): Inversion.kept")
    first, second = pair
    if first.shape != second.shape or first.dtype != second.dtype:
        raise ValueError(
            f"the two states of a pair must agree, got {first.dtype} of shape {tuple(first.shape)} and "
            f"{second.dtype} of shape {tuple(second.shape)}; pass the pair as the inversion kept it"
        )
    check_state(first, grid)
    return pair


def check_state(x: Tensor, grid: Grid) -> None:
    """TypeError or ValueError unless an own sampler can run from x on this grid."""
    if grid.sigma[0] == 0:
        raise ValueError(
            f"{grid.name} ends at sigma[0] = 0, from where no step leads up; take a grid that ends at a positive "
            f"sigma, as `invert` does: time_uniform, log_snr, discrete(final_sigma='sigma_min')"
        )
    check_run(x, grid, ddim(grid), None)
