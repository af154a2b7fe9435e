"""Solvers as tables: a step is three numbers.

A multistep data-prediction solver moves from i to i-1 by

    x[i-1] = a[i] * x[i] + b[i] * D[i] + c[i] * D[i+1],        D[i] = x0_fn(x[i], i)

so a solver *is* its table, and sampling and inversion are written once, for any table. A new solver is a function from
a grid to a StepTable: `exponential_ab2` shows one, and tests/test_solvers_order.py how its order is measured.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import Grid


@dataclass(frozen=True)
class StepTable:
    """The numbers of a solver on a grid. ValueError where they are not as said here.

    a, b, c: float64 of shape (steps + 1,). Row i leads from i to i-1; row 0 does not exist and holds nan, so that
        indices are the paper's. c[steps] is 0: there is no D[steps + 1].
    """

    name: str
    a: Tensor
    b: Tensor
    c: Tensor

    def __post_init__(self) -> None:
        for field in ("a", "b", "c"):
            values = getattr(self, field)
            if values.dtype != torch.float64 or values.ndim != 1 or len(values) != len(self.a) or len(values) < 2:
                raise ValueError(
                    f"{self.name}: {field} must be float64 of shape (steps + 1,), got {values.dtype} of shape "
                    f"{tuple(values.shape)}"
                )
            if not torch.isfinite(values[1:]).all():
                raise ValueError(f"{self.name}: {field} holds non-finite numbers: {values[1:].tolist()}")
        if self.c[-1] != 0:
            raise ValueError(
                f"{self.name}: c[{self.steps}] is {self.c[-1]:g}, must be 0: nothing precedes the first step"
            )

    @property
    def steps(self) -> int:
        return len(self.a) - 1

    def row(self, i: int, first: bool = False) -> tuple[float, float, float]:
        """(a[i], b[i], c[i]). With `first`, the row of a run that starts at i: D[i] stands in for the missing D[i+1],
        which makes the row first-order (DDIM)."""
        a, b, c = self.a[i].item(), self.b[i].item(), self.c[i].item()
        return (a, b + c, 0.0) if first else (a, b, c)

    def check_fits(self, grid: Grid) -> None:
        """ValueError unless the table has one row for every step of the grid."""
        if self.steps != grid.steps:
            raise ValueError(
                f"table {self.name} has {self.steps} steps, grid {grid.name} has {grid.steps}; build the table from "
                f"the grid it runs on"
            )


def ddim(grid: Grid) -> StepTable:
    """First order: DDIM without noise (arXiv:2010.02502), which is DPM-Solver++ at order 1 (arXiv:2211.01095)."""
    a, b = _first_order(grid)
    c = torch.zeros_like(b)
    c[0] = torch.nan
    return StepTable(f"ddim on {grid.name}", a, b, c)


def dpm_solver_pp_2m(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """DPM-Solver++(2M), second order (arXiv:2211.01095, Alg. 2). With h[i] = lam[i-1] - lam[i], r[i] = h[i+1] / h[i]:

        b = -alpha[i-1] * expm1(-h[i]) * (1 + 1 / (2 r[i])),    c = alpha[i-1] * expm1(-h[i]) / (2 r[i])

    The row of the noise end is first-order, and so is the last one (i = 1) with `lower_order_final`. On a grid that
    ends at sigma[0] = 0 the last row is first-order always, for h[1] is infinite there.
    """
    _, b = _first_order(grid)
    return _two_step(f"dpm_solver_pp_2m on {grid.name}", grid, b / 2, lower_order_final)


def exponential_ab2(grid: Grid, lower_order_final: bool = False) -> StepTable:
    """Exponential Adams-Bashforth of two steps, second order: the line in lam through D[i] and D[i+1], integrated.

    Known as the "taylor" variant of DPM-Solver++(2M) to its authors, as solver_type="heun" to diffusers. It differs
    from 2M in the weight of the line's slope alone: alpha[i-1] * (1 + expm1(-h) / h), which in 2M is
    -alpha[i-1] * expm1(-h) / 2.
    """
    h = _step_lengths(grid)
    weight = grid.alpha.roll(1) * (1 + torch.expm1(-h) / h)
    return _two_step(f"exponential_ab2 on {grid.name}", grid, weight, lower_order_final)


def _step_lengths(grid: Grid) -> Tensor:
    """h[i] = lam[i-1] - lam[i] > 0; h[0] is nan."""
    return -grid.lam.diff(prepend=grid.lam.new_tensor([torch.nan]))


def _first_order(grid: Grid) -> tuple[Tensor, Tensor]:
    """a and b of the exact solution for a data prediction that stays constant over the step; roll(1) is index i-1."""
    b = -grid.alpha.roll(1) * torch.expm1(-_step_lengths(grid))
    a = grid.sigma.roll(1) / grid.sigma
    a[0] = torch.nan
    return a, b


def _two_step(name: str, grid: Grid, weight: Tensor, lower_order_final: bool) -> StepTable:
    """The first-order row plus weight[i] / r[i] * (D[i] - D[i+1]), wherever D[i+1] exists; r[i] = h[i+1] / h[i]."""
    a, b = _first_order(grid)
    h = _step_lengths(grid)
    c = torch.zeros_like(b)
    rows = torch.arange(2 if lower_order_final or grid.sigma[0] == 0 else 1, grid.steps)
    c[rows] = -weight[rows] * h[rows] / h[rows + 1]
    c[0] = torch.nan
    return StepTable(name + ", lower_order_final" * lower_order_final, a, b - c, c)
