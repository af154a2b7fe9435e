"""These tests say what the rows of every named table are, and what a table refuses."""

import pytest
import torch
from analytic_models import sd_schedule
from measured_orders import uneven

from solvers import (
    SOLVERS,
    Grid,
    StepTable,
    ddim,
    discrete,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    exponential_ab2,
    exponential_ab3,
    time_uniform,
    unip3,
)

GRID = time_uniform(sd_schedule(), 20)
UNEVEN = uneven(20)
# The highest degree in lam of a data prediction that rows of the solver's full order integrate exactly.
EXACT_DEGREE = {"ddim": 0, "dpm_solver_pp_2m": 0, "exponential_ab2": 1, "exponential_ab3": 2, "dpm_solver_pp_3m": 1}
EXACT_DEGREE["unip3"] = 2
TERMS = {"ddim": 1, "dpm_solver_pp_2m": 2, "exponential_ab2": 2}
TERMS |= dict.fromkeys(("exponential_ab3", "dpm_solver_pp_3m", "unip3"), 3)

by_solver = pytest.mark.parametrize("name", SOLVERS)
by_grid = pytest.mark.parametrize(
    "grid",
    (
        GRID,
        UNEVEN,
        GRID.reversed(),
        UNEVEN.reversed(),
        GRID.until(6),
        GRID.until(1),
        discrete(sd_schedule(), 20),
        discrete(sd_schedule(), 20, "leading", "sigma_min"),
    ),
    ids=lambda grid: grid.name,
)


def test_the_named_solvers():
    assert {name: solver.__name__ for name, solver in SOLVERS.items()} == {name: name for name in EXACT_DEGREE}


@by_solver
@by_grid
@pytest.mark.parametrize("lower_order_final", (False, True))
def test_a_constant_data_prediction_is_integrated_exactly(name, grid, lower_order_final):
    """The sum of b is the first-order weight, so that any row moves along alpha x0 + sigma noise while x0 stays."""
    table = SOLVERS[name](grid, lower_order_final)
    assert table.steps == grid.steps and table.terms == TERMS[name]
    assert torch.isnan(table.a[0]) and torch.isnan(table.b[0]).all()
    for i in range(1, grid.steps + 1):
        a, weights = table.row(i)
        # alpha[i-1] = a alpha[i] + sum of b and sigma[i-1] = a sigma[i]. The weights reach some 40 on the reversed
        # paper's grid and cancel: 40 roundings of 1e-16.
        assert a * grid.alpha[i] + sum(weights) == pytest.approx(grid.alpha[i - 1].item(), abs=1e-14)
        assert a * grid.sigma[i] == pytest.approx(grid.sigma[i - 1].item(), rel=1e-15)


def moment(lam: torch.Tensor, degree: int) -> torch.Tensor:
    """The antiderivative of exp(lam) lam^degree."""
    return lam.exp() * (torch.ones_like(lam), lam - 1, lam**2 - 2 * lam + 2)[degree]


def rows_error(table: StepTable, grid: Grid, degree: int) -> float:
    """The largest error of a full-order row when D = lam^degree; x / sigma obeys d(x / sigma) / dlam = exp(lam) D."""
    worst = 0.0
    for i in range(1, grid.steps + 2 - table.terms):
        _, weights = table.row(i)
        step = sum(weight * grid.lam[i + j] ** degree for j, weight in enumerate(weights))
        exact = grid.sigma[i - 1] * (moment(grid.lam[i - 1], degree) - moment(grid.lam[i], degree))
        worst = max(worst, abs(step - exact).item())
    return worst


@by_solver
@pytest.mark.parametrize("grid", (GRID, UNEVEN, GRID.reversed(), UNEVEN.reversed()), ids=lambda grid: grid.name)
def test_polynomials_are_integrated_exactly_up_to_a_degree_and_no_further(name, grid):
    for degree in range(3):
        error = rows_error(SOLVERS[name](grid), grid, degree)
        if degree <= EXACT_DEGREE[name]:
            assert error < 1e-12  # weights of 40 and lam² of 12: some thousand roundings
        else:
            assert error > 1e-3  # seen: 4e-3 and more


@by_solver
def test_the_order_of_a_row_follows_from_the_predictions_behind_it(name):
    """From the noise end 1, 2, 3; with lower_order_final the same towards the clean end."""
    solver, order = SOLVERS[name], TERMS[name]

    def orders(table):
        return [1 + sum(weight != 0 for weight in table.row(i)[1][1:]) for i in range(1, table.steps + 1)]

    begins = [min(order, 21 - i) for i in range(1, 21)]
    assert orders(solver(GRID)) == begins
    assert orders(solver(GRID, lower_order_final=True)) == [min(o, i) for i, o in enumerate(begins, 1)]
    # On a reversed grid the clean end is where the run begins, and there is nothing left to lower.
    assert orders(solver(GRID.reversed(), lower_order_final=True)) == begins
    assert orders(solver(discrete(sd_schedule(), 20))) == [1, *begins[1:]]
    assert orders(solver(GRID.until(2))) == [min(order, 2), 1]


def test_rows_of_lower_order_are_those_of_the_lower_solvers():
    first, midpoint, exact = ddim(GRID), dpm_solver_pp_2m(GRID), exponential_ab2(GRID)
    for solver, second in ((exponential_ab3, exact), (dpm_solver_pp_3m, midpoint), (unip3, midpoint)):
        table, final = solver(GRID), solver(GRID, lower_order_final=True)
        assert table.row(20)[1] == (*first.row(20)[1], 0, 0) == (first.row(20)[1][0], 0, 0)
        assert table.row(19)[1] == (*second.row(19)[1], 0)
        assert final.row(2)[1] == (*second.row(2)[1], 0)
        assert final.row(1)[1] == (*first.row(1)[1], 0, 0)
        assert torch.equal(final.b[3:], table.b[3:])
    assert torch.equal(unip3(GRID).b[1:19], exponential_ab3(GRID).b[1:19])
    assert torch.equal(ddim(GRID, lower_order_final=True).b[1:], first.b[1:])


@by_solver
def test_a_final_sigma_of_zero_makes_the_last_row_the_data_prediction(name):
    for lower_order_final in (False, True):
        a, (own, *older) = SOLVERS[name](discrete(sd_schedule(), 20), lower_order_final).row(1)
        assert (a, own) == (0, 1) and not any(older)


@by_solver
def test_no_run_leads_up_from_a_final_sigma_of_zero(name):
    with pytest.raises(ValueError, match="non-finite"):
        SOLVERS[name](discrete(sd_schedule(), 20).reversed())


def test_2m_is_the_papers_formula():
    """arXiv:2211.01095, Alg. 2, written out."""
    table, lam, alpha = dpm_solver_pp_2m(GRID), GRID.lam, GRID.alpha
    for i in range(1, 20):
        h, r = lam[i - 1] - lam[i], (lam[i] - lam[i + 1]) / (lam[i - 1] - lam[i])
        weight = -alpha[i - 1] * torch.expm1(-h)
        expected = (weight * (1 + 1 / (2 * r)), -weight / (2 * r))
        assert table.row(i)[1] == pytest.approx([value.item() for value in expected], rel=1e-14)  # some roundings


def test_the_last_row_of_2m_on_the_papers_grid():
    """The weights that make this row hard to invert: +3.4 and -2.4 of the first-order weight, from r = 0.206."""
    (first,), (own, older) = ddim(GRID).row(1)[1], dpm_solver_pp_2m(GRID).row(1)[1]
    assert own / first == pytest.approx(3.42, abs=0.01) and older / first == pytest.approx(-2.42, abs=0.01)


def test_hand_made_tables_are_checked():
    table = dpm_solver_pp_2m(GRID)
    shapes = r"a and b must be float64 of shapes \(steps \+ 1,\) and \(steps \+ 1, k\)"
    for a, b in (
        (table.a, table.b[1:]),
        (table.a, table.b[:, 0]),
        (table.a, table.b[:, :0]),
        (table.a.float(), table.b),
        (table.a, table.b.float()),
        (table.a[:, None], table.b),
        (table.a[:1], table.b[:1]),
    ):
        with pytest.raises(ValueError, match=shapes):
            StepTable("misshapen", a, b)
    with pytest.raises(ValueError, match="b holds non-finite numbers"):
        StepTable("infinite", table.a, torch.full_like(table.b, torch.inf))
    with pytest.raises(ValueError, match="a holds non-finite numbers"):
        StepTable("infinite", table.a * torch.inf, table.b)
    with pytest.raises(ValueError, match="row 0 of a must be nan"):
        StepTable("one row more", table.a.nan_to_num(), table.b)
    with pytest.raises(ValueError, match="row 0 of b must be nan"):
        StepTable("one row more", table.a, table.b.nan_to_num())
    for i, j in ((20, 1), (20, 2), (19, 2)):
        b = exponential_ab3(GRID).b.clone()
        b[i, j] = 1
        with pytest.raises(ValueError, match=rf"b\[{21 - j}:, {j}\] must be 0: nothing precedes the first step"):
            StepTable("no history", table.a, b)
