"""O-BELM is a sampler that algebra inverts: a two-step rule (`pairs.py`) of second order.

Wang et al., "BELM: Bidirectional Explicit Linear Multi-step Samplers for Exact Inversion in Diffusion Models",
arXiv:2410.07273 (NeurIPS 2024). With y = x / alpha and s = sigma / alpha the probability-flow ODE is dy/ds = eps. The
two-step rule that is exact for every y quadratic in s, the leapfrog of an uneven grid, is O-BELM:

    y[i-1] = (p/q)² y[i+1] + (1 - (p/q)²) y[i] + p (1 - p/q) eps[i],      p = s[i-1] - s[i],  q = s[i+1] - s[i],

where eps[i] = (x[i] - alpha[i] D[i]) / sigma[i]. It keeps the pair (x[start-1], x[start]). Rounding grows on the way up
by the product of the (q/p)².

Departures from the authors' code: its clean end has alpha = 1 and sigma = 0, and it evaluates the image at the training
time 1; ours is the grid's index 0, at t[0]. Its float32 coefficients are float64 here.
"""

from torch import Tensor

from ..grids import Grid
from ..prediction import X0Fn
from ..progress import Progress
from .pairs import Pair, denoise_one, denoise_pair, row_by_row, solve_pair
from .run import Run, Solution


def belm_denoise(kept: Pair, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """(x[start-1], x[start]) -> x[0], by start - 1 evaluations, where start = grid.steps.

    TypeError or ValueError for a pair that does not match, and ValueError for a grid that ends at sigma[0] = 0.
    """
    return denoise_pair(belm_rule, kept, grid, x0_fn)


def belm_from_one_state(x: Tensor, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """x[start] -> x[0], by start evaluations: a DDIM step guesses x[start-1]. It raises what `belm_denoise` raises."""
    return denoise_one(belm_rule, x, grid, x0_fn)


def solve_belm(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """The pair goes up and its last is kept. It solves nothing, at `start` evaluations."""
    return solve_pair(belm_rule, run, progress)


def belm_rule(grid: Grid) -> Tensor:
    """The rule in x and D. Row i holds the weights of x[i], x[i+1] and D[i] in x[i-1]; (steps, 3), row 0 is nan."""
    alpha, s = grid.alpha, grid.sigma / grid.alpha
    p, q = s[:-2] - s[1:-1], s[2:] - s[1:-1]
    below, noise = alpha[:-2], p * (1 - p / q) / grid.sigma[1:-1]
    here, above = (1 - (p / q) ** 2) / alpha[1:-1], (p / q) ** 2 / alpha[2:]
    return row_by_row(below * (here + noise), below * above, -below * noise * alpha[1:-1])
