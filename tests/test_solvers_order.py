"""This module measures the order of every named table, on data whose sampling ODE has a known solution."""

import functools

import pytest
import torch
from measured_orders import FINE, PROBLEMS, even, measured_order, uneven

from solvers import SOLVERS, Grid, StepTable, dpm_solver_pp_2m, dpm_solver_pp_3m, unip3

# What comes out with a first-order start, as every run of its own has it, and with an exact one. The error of the one
# first-order row, h², stays in the run. The curvature of 3M has half its weight, an error of h³ in every row.
ORDERS = {
    "ddim": (1, 1),
    "dpm_solver_pp_2m": (2, 2),
    "exponential_ab2": (2, 2),
    "exponential_ab3": (2, 3),
    "dpm_solver_pp_3m": (2, 2),
    "unip3": (2, 3),
}
# The mixture's denoiser is nonlinear, so that it is the harder problem and the one for every day.
by_problem = pytest.mark.parametrize(
    "problem", [pytest.param(name, marks=[] if name == "mixture" else pytest.mark.slow) for name in PROBLEMS]
)


@pytest.mark.parametrize("start", ("first-order", "exact"))
@by_problem
@pytest.mark.parametrize("name", SOLVERS)
def test_measured_order(name, problem, start):
    order = ORDERS[name][start == "exact"]
    # On the Gaussian the error of order 3 nearly cancels over the grid: what is left beside it fades late.
    refinements = {"refinements": FINE} if (problem, order) == ("gaussian", 3) else {}
    measured = measured_order(PROBLEMS[problem], SOLVERS[name], start=start, **refinements)
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_measured_order_on_uneven_steps(name):
    measured = measured_order(PROBLEMS["mixture"], SOLVERS[name], start="exact", make_grid=uneven)
    assert measured == pytest.approx(ORDERS[name][1], abs=0.1)


@by_problem
@pytest.mark.parametrize("name", [name for name, (order, _) in ORDERS.items() if order == 2])
def test_a_first_order_last_row_keeps_order_two(name, problem):
    """One step of local error h² among many: lower_order_final costs accuracy, not that order."""
    solver = functools.partial(SOLVERS[name], lower_order_final=True)
    assert measured_order(PROBLEMS[problem], solver) == pytest.approx(2, abs=0.1)


def with_weights(name, change):
    """The solver with its weights of older predictions changed, the weight of D[i] keeping the rows consistent."""

    def solver(grid: Grid) -> StepTable:
        table = SOLVERS[name](grid)
        b = change(table, grid)
        b[:, 0] = table.b.sum(1) - b[:, 1:].sum(1)
        return StepTable("wrong", table.a, b)

    return solver


def scaled(column, factor):
    def change(table, grid):
        b = table.b.clone()
        b[:, column] *= factor
        return b

    return change


def even_weights(name):
    """The weights that the solver has on even steps: r taken as 1."""

    def change(table, grid):
        lam = torch.linspace(grid.lam[0], grid.lam[-1], grid.steps + 1, dtype=torch.float64)
        taken = SOLVERS[name](Grid("even", grid.t, grid.alpha, grid.sigma, lam)).b
        return taken * (table.b.sum(1) / taken.sum(1))[:, None]

    return change


MULTISTEP = [name for name, (order, _) in ORDERS.items() if order > 1]
WRONG = {
    f"{name}, b[:, {column}] times {factor}": (name, even, scaled(column, factor))
    for name in MULTISTEP
    for column in range(1, SOLVERS[name](even(2)).terms)
    for factor in (0.9, -1)
} | {f"{name}, r taken as 1": (name, uneven, even_weights(name)) for name in MULTISTEP}


@pytest.mark.parametrize(
    "mistake",
    # A wrong sign is much the larger mistake.
    [pytest.param(mistake, marks=pytest.mark.slow if "times -1" in mistake else []) for mistake in WRONG],
)
def test_a_wrong_coefficient_shows(mistake):
    """The problems above are worth nothing if a wrong table passes on them."""
    name, make_grid, change = WRONG[mistake]
    assert measured_order(PROBLEMS["gaussian"], with_weights(name, change), start="exact", make_grid=make_grid) < 1.5


@by_problem
def test_half_the_curvature_shows(problem):
    """The smallest mistake there is to make, and the one that 3M makes: unip3's rows but for the curvature's weight."""
    three_m, unip = (PROBLEMS[problem].error(solver, even(640), "exact") for solver in (dpm_solver_pp_3m, unip3))
    assert three_m > 50 * unip  # seen: 130 and 580 times


def test_changing_nothing_changes_nothing():
    grid = uneven(20)
    torch.testing.assert_close(
        with_weights("dpm_solver_pp_2m", scaled(1, 1))(grid).b[1:], dpm_solver_pp_2m(grid).b[1:], rtol=1e-13, atol=0
    )


def test_the_mixture_solution_is_converged():
    """In steps twice as long it is off by sixteen times its own error, below 1 % of the least measured."""
    problem = PROBLEMS["mixture"]
    double = problem.data.solution(problem.x, even(1), 1, 0, longest=0.02)
    assert 0 < (double - problem.exact).norm() < 1.2e-8  # 16 * 1 % of 8e-8, and a little less
