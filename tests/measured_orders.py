"""This module measures the order of a solver over doublings of the steps, on data whose ODE has a known solution. The
tests and the benchmark of solvers share it."""

from collections.abc import Callable

import torch
from analytic_models import Gaussian, Mixture, anisotropic_gaussian, normal, sd_schedule, small_mixture
from torch import Tensor

from solvers import Grid, Solver, denoise, log_snr

SCHEDULE = sd_schedule()
REFINEMENTS = (160, 320, 640)
FINE = (1280, 2560)


def even(steps: int) -> Grid:
    return log_snr(SCHEDULE, steps)


def uneven(steps: int) -> Grid:
    """Steps in lam of lengths h, 2h, h, 2h, .... On even steps r is 1, and a table that forgets r goes unnoticed."""
    fine = log_snr(SCHEDULE, steps // 2 * 3)
    keep = torch.arange(fine.steps + 1) % 3 != 2
    return Grid(f"uneven({steps})", fine.t[keep], fine.alpha[keep], fine.sigma[keep], fine.lam[keep])


class Problem:
    """The data, states x (8, dim) at the noise end, and `exact`, to which the ODE leads them at the clean end."""

    def __init__(self, data: Gaussian | Mixture, dim: int) -> None:
        self.data, self.x = data, normal(8, dim, seed=0)
        self.exact = data.solution(self.x, even(1), 1, 0)

    def error(self, solver: Solver, grid: Grid, start: str) -> float:
        """|x[0] - exact|; start: "first-order", as the solver's table begins, or "exact"."""
        run = {"first-order": self.own_run, "exact": self.exactly_begun_run}[start]
        return (run(solver, grid) - self.exact).norm().item()

    def own_run(self, solver: Solver, grid: Grid) -> Tensor:
        return denoise(self.x, grid, solver(grid), self.data.x0_fn(grid))

    def exactly_begun_run(self, solver: Solver, grid: Grid) -> Tensor:
        """x[0] of a run whose first k states are the ODE's own, and so are the data predictions of its history."""
        table, x0_fn = solver(grid), self.data.x0_fn(grid)
        start, steps = grid.steps - table.terms + 1, grid.steps
        states = [self.data.solution(self.x, grid, steps, i) for i in range(start, steps)] + [self.x]
        history = [x0_fn(x, i) for i, x in enumerate(states[1:], start + 1)]
        return denoise(states[0], grid, table, x0_fn, start=start, history=history)


PROBLEMS = {"gaussian": Problem(anisotropic_gaussian(), 4), "mixture": Problem(small_mixture(), 3)}


def measured_order(
    problem: Problem,
    solver: Solver,
    *,
    start: str = "first-order",
    make_grid: Callable[[int], Grid] = even,
    refinements: tuple[int, ...] = REFINEMENTS,
) -> float:
    """Slope of log(error) over log(1 / steps), by least squares over doublings of the steps."""
    errors = [problem.error(solver, make_grid(steps), start) for steps in refinements]
    log_steps, log_errors = torch.tensor(refinements).double().log(), torch.tensor(errors).double().log()
    log_steps, log_errors = log_steps - log_steps.mean(), log_errors - log_errors.mean()
    return -(log_steps @ log_errors / (log_steps @ log_steps)).item()
