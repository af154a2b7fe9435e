"""A solver is written here as a table of numbers. The module defines a step and holds the solvers that have a name. It
stands apart because sampling and inversion are written once for any table.

A multistep solver moves from index i to i-1 by

    x[i-1] = a[i] * x[i] + sum over j = 0..k-1 of b[i, j] * D[i+j],        D[i] = x0_fn(x[i], i).

Its numbers depend on the grid alone, so a solver is a function from a grid to a `StepTable`.

All solvers here step through the same integral (arXiv:2211.01095, Eq. 9). With h[i] = lam[i-1] - lam[i] and
tau = (lam - lam[i]) / h[i], which runs from 0 to 1 over the step,

    x[i-1] = sigma[i-1] / sigma[i] * x[i]  +  alpha[i-1] h[i] * integral over tau of exp(-h[i] (1 - tau)) D(tau).

They differ in the polynomial that stands for D, and in how they weigh its slope and its curvature.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import Grid


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class StepTable:
    """The numbers of a solver on a grid. ValueError where they do not keep to this description.

    a: float64 of shape (steps + 1,). b: float64 of shape (steps + 1, k), k >= 1.
    Row i leads from i to i-1. Row 0 does not exist and holds nan, so that indices are the paper's. b[i, j] is 0 where
    i + j > steps, since no data prediction precedes D[steps].
    """

    name: str
    a: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        fits = self.a.ndim == 1 and self.b.ndim == 2 and len(self.a) == len(self.b) >= 2 and self.b.shape[1] >= 1
        if not fits or {self.a.dtype, self.b.dtype} != {torch.float64}:
            raise ValueError(
                f"{self.name}: a and b must be float64 of shapes (steps + 1,) and (steps + 1, k), got {self.a.dtype} "
                f"of shape {tuple(self.a.shape)} and {self.b.dtype} of shape {tuple(self.b.shape)}"
            )
        for field, values in (("a", self.a), ("b", self.b)):
            if not torch.isfinite(values[1:]).all():
                raise ValueError(f"{self.name}: {field} holds non-finite numbers: {values[1:].tolist()}")
            if not torch.isnan(values[0]).all():
                raise ValueError(f"{self.name}: row 0 of {field} must be nan, for no step leads on from index 0")
        for j in range(1, self.terms):
            first = max(1, self.steps + 1 - j)
            if self.b[first:, j].any():
                raise ValueError(
                    f"{self.name}: b[{first}:, {j}] must be 0: nothing precedes the first step, and these rows weigh "
                    f"a data prediction past D[{self.steps}]"
                )

    @property
    def steps(self) -> int:
        return len(self.a) - 1

    @property
    def terms(self) -> int:
        """k, the number of data predictions that a row can weigh."""
        return self.b.shape[1]

    def row(self, i: int) -> tuple[float, tuple[float, ...]]:
        """(a[i], b[i]) as floats."""
        return self.a[i].item(), tuple(self.b[i].tolist())

    def check_fits(self, grid: Grid) -> None:
        """ValueError unless the table has one row for every step of the grid."""
        if self.steps != grid.steps:
            raise ValueError(
                f"table {self.name} has {self.steps} steps, grid {grid.name} has {grid.steps}; build the table from "
                f"the grid it runs on"
            )


def add_weighted(x: Tensor, weights: Iterable[float], data: Iterable[Tensor]) -> Tensor:
    """x + sum of weights[j] * data[j], added in this order; a weight of 0 adds nothing, whatever its data.

    Rows at the start of a run have fewer data predictions than weights, and the weights past them are 0.
    """
    for weight, term in zip(weights, data, strict=False):
        if weight:
            x = x + weight * term
    return x


# A solver is a function from a grid to a table. The named ones also take lower_order_final=False.
Solver = Callable[[Grid], StepTable]
SOLVERS: dict[str, Solver] = {}


def _named(solver: Solver) -> Solver:
    """Enter a solver in SOLVERS. TypeError for one that does not take lower_order_final, as all named ones do."""
    if "lower_order_final" not in inspect.signature(solver).parameters:
        raise TypeError(f"{solver.__name__} needs a parameter lower_order_final=False, as every named solver has")
    SOLVERS[solver.__name__] = solver
    return solver


@_named
def ddim(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """DDIM without noise (arXiv:2010.02502), which is DPM-Solver++ at order 1 (arXiv:2211.01095).

    D is held constant over the step, so `lower_order_final` changes nothing.
    """
    return _multistep("ddim", grid, lower_order_final)


@_named
def dpm_solver_pp_2m(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """DPM-Solver++(2M), second order (arXiv:2211.01095, Alg. 2). With r[i] = h[i+1] / h[i]:

        b[i, 0] = -alpha[i-1] * expm1(-h[i]) * (1 + 1 / (2 r[i])),    b[i, 1] = alpha[i-1] * expm1(-h[i]) / (2 r[i])

    lower_order_final: make the row of the clean end (i = 1) first-order.
    """
    return _multistep("dpm_solver_pp_2m", grid, lower_order_final, (_integrals(grid)[0] / 2,))


@_named
def exponential_ab2(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """Exponential Adams-Bashforth of order 2: the line in lam through D[i] and D[i+1], integrated exactly.

    The authors of DPM-Solver++(2M) call it the "taylor" variant, and diffusers solver_type="heun". It differs from 2M
    in the weight of the slope alone, which is alpha[i-1] * (1 + expm1(-h) / h) here and
    -alpha[i-1] * expm1(-h) / 2 in 2M.
    lower_order_final: make the row of the clean end (i = 1) first-order.
    """
    _, slope, _ = _integrals(grid)
    return _multistep("exponential_ab2", grid, lower_order_final, (slope,))


@_named
def exponential_ab3(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """Exponential Adams-Bashforth of order 3: the quadratic in lam through D[i], D[i+1], D[i+2], integrated exactly.

    The run's first row is first-order and its second row is that of `exponential_ab2`.
    lower_order_final: make the last two rows second-order (i = 2) and first-order (i = 1).
    """
    _, slope, curvature = _integrals(grid)
    return _multistep("exponential_ab3", grid, lower_order_final, (slope,), (slope, curvature))


@_named
def dpm_solver_pp_3m(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """The multistep update for order 3 of the DPM-Solver authors' code, and of diffusers at solver_order=3.

    It takes the quadratic of `exponential_ab3` and weighs its curvature with half of the exact integral, as if the
    coefficient of tau² were a second derivative. Its measured order is therefore 2, not 3. Second-order rows are 2M's.
    lower_order_final: make the last two rows second-order (i = 2) and first-order (i = 1).
    """
    constant, slope, curvature = _integrals(grid)
    return _multistep("dpm_solver_pp_3m", grid, lower_order_final, (constant / 2,), (slope, curvature / 2))


@_named
def unip3(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """UniP of order 3, the predictor of UniPC (arXiv:2302.04867), for data predictions with B(h) = expm1(h), "bh2".

    At its full order B(h) cancels and the update is that of `exponential_ab3`. At order 2 the authors take the constant
    1/2 instead of solving for the weight, which gives 2M. So the table is ab3's with 2M's second-order rows.
    lower_order_final: make the last two rows second-order (i = 2) and first-order (i = 1).
    """
    constant, slope, curvature = _integrals(grid)
    return _multistep("unip3", grid, lower_order_final, (constant / 2,), (slope, curvature))


def _step_lengths(grid: Grid) -> Tensor:
    """h[i] = lam[i-1] - lam[i], negative on a grid whose lam rises; h[0] is nan."""
    return -grid.lam.diff(prepend=grid.lam.new_tensor([torch.nan]))


def _integrals(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """alpha[i-1] h[i] * integral of exp(-h[i] (1 - tau)) tau^m for m = 0, 1, 2; roll(1) is index i-1."""
    h, alpha = _step_lengths(grid), grid.alpha.roll(1)
    mean = 1 + torch.expm1(-h) / h
    return -alpha * torch.expm1(-h), alpha * mean, alpha * (1 - 2 * mean / h)


def _multistep(name: str, grid: Grid, lower_order_final: bool, *corrections: tuple[Tensor, ...]) -> StepTable:
    """The table whose rows of order 1 hold D constant and whose rows of order p add corrections[p - 2].

    corrections: for p = 2 the weight of the slope, (slope,), of the line through D[i] and D[i+1]; for p = 3 the weights
        (slope, curvature) of the coefficients of tau and tau² of the quadratic through D[i], D[i+1] and D[i+2].
    A row has the highest order that the run's earlier predictions allow. At a clean end it is lower: at most i with
    `lower_order_final`, and 1 in the last row where sigma[0] is 0, for h[1] is infinite there. On a reversed grid the
    clean end comes first, where orders are low anyway.
    """
    i = torch.arange(grid.steps + 1)
    order = (grid.steps + 1 - i).clamp(max=1 + len(corrections))
    if lower_order_final and not grid.rises:
        order = torch.minimum(order, i)
    if grid.sigma[0] == 0:
        order[1] = 1

    b = grid.lam.new_zeros(grid.steps + 1, 1 + len(corrections))
    b[:, 0], _, _ = _integrals(grid)
    for p, weights in enumerate(corrections, start=2):
        rows = i[order == p]
        _add_correction(b, rows, _step_lengths(grid), *(weight[rows] for weight in weights))
    a = grid.sigma.roll(1) / grid.sigma
    a[0], b[0] = torch.nan, torch.nan
    lowered = ", lower_order_final" if lower_order_final and corrections else ""
    return StepTable(f"{name} on {grid.name}{lowered}", a, b)


def _add_correction(b: Tensor, rows: Tensor, h: Tensor, slope: Tensor, curvature: Tensor | None = None) -> None:
    """Add slope * c1 + curvature * c2 to these rows of b; c1, c2 are the polynomial's coefficients of tau and tau².

    With the divided differences d0 = (D[i] - D[i+1]) h[i] / h[i+1] and d1 = (D[i+1] - D[i+2]) h[i] / h[i+2], a line has
    c1 = d0, and a quadratic has c2 = (d0 - d1) h[i] / (h[i+1] + h[i+2]) and c1 = d0 + c2 h[i+1] / h[i].
    """
    if curvature is not None:
        bend = (slope * h[rows + 1] + curvature * h[rows]) / (h[rows + 1] + h[rows + 2])  # the weight of d0 - d1
        older = bend * h[rows] / h[rows + 2]
        b[rows, 1] -= older
        b[rows, 2] += older
        slope = slope + bend
    newer = slope * h[rows] / h[rows + 1]
    b[rows, 0] += newer
    b[rows, 1] -= newer
