"""These tests add a solver and an inversion method as a researcher would, and check what they are told of slips."""

import pytest
import torch
from analytic_models import mixture, normal, sd_schedule

from solvers import (
    INVERSIONS,
    SOLVERS,
    InversionMethod,
    Solution,
    data_prediction,
    ddim,
    denoise,
    dpm_solver_pp_2m,
    invert,
    tables,
    time_uniform,
)

GRID = time_uniform(sd_schedule(), 20)
DATA = mixture()
X0_FN = DATA.x0_fn(GRID)


def test_an_own_inversion_is_measured_and_charged_by_invert(monkeypatch):
    """Here it returns noise of its own for every state, and says nothing of its error."""

    def solve(run, tol, max_sweeps, progress):
        return Solution(normal(len(run.x0), run.start, 16, seed=3), [[] for _ in run.x0])

    monkeypatch.setitem(INVERSIONS, "noise", InversionMethod(solve, exact=False))
    x0 = DATA.sample(4, seed=1)
    inversion = invert(x0, GRID, dpm_solver_pp_2m, X0_FN, start=6, method="noise")
    run = GRID.until(6)
    back = denoise(inversion.states[-1], run, dpm_solver_pp_2m(run), X0_FN)
    # The same sampler from the same state; only the order of a sum may differ.
    torch.testing.assert_close(inversion.errors, (back - x0).norm(dim=1) / x0.norm(dim=1), rtol=1e-12, atol=0)
    assert inversion.rows.tolist() == [6] * 4 and not inversion.converged.any()


def test_a_named_solver_takes_lower_order_final(monkeypatch):
    monkeypatch.setattr(tables, "SOLVERS", dict(SOLVERS))

    def mine(grid):
        return ddim(grid)

    with pytest.raises(TypeError, match="mine needs a parameter lower_order_final=False"):
        tables._named(mine)
    assert "mine" not in tables.SOLVERS


def test_what_is_no_state_table_or_solver_is_told():
    x = DATA.sample(2, seed=0)
    with pytest.raises(TypeError, match="the state is a ndarray; expected a tensor"):
        denoise(x.numpy(), GRID, ddim(GRID), X0_FN)
    with pytest.raises(TypeError, match=r"the table is <function ddim.*; expected a StepTable, which a solver makes"):
        denoise(x, GRID, ddim, X0_FN)
    with pytest.raises(
        TypeError, match="invert takes a solver, a function from a grid to a table such as ddim; got 'ddim'"
    ):
        invert(x, GRID, "ddim", X0_FN)


def test_grids_and_tables_can_be_asked_whether_they_are_the_same():
    other = time_uniform(sd_schedule(), 20)
    assert (
        GRID == GRID and GRID != other and ddim(GRID) != ddim(GRID)
    )  # by identity, since tensors have no plain equality


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "the inversion 'own' returned NoneType; a method returns a Solution"),
        (
            lambda x: Solution(x[:, :3], [[], []]),
            ValueError,
            r"returned states \(2, 3, 16\) .*expected x\[1\.\.start\]",
        ),
        (lambda x: Solution(x.float(), [[], []]), ValueError, r"float32 .*expected .*float64"),
        (lambda x: Solution(x, []), ValueError, "0 lists of residuals; expected .* a list for each image"),
    ],
)
def test_what_an_own_inversion_returns_by_mistake_is_told(monkeypatch, returned, error, message):
    def solve(run, tol, max_sweeps, progress):
        return returned and returned(torch.stack([run.x0] * run.start, 1))

    monkeypatch.setitem(INVERSIONS, "own", InversionMethod(solve, exact=False))
    with pytest.raises(error, match=message):
        invert(DATA.sample(2, seed=1), GRID, dpm_solver_pp_2m, X0_FN, start=6, method="own")


def test_an_empty_batch_is_told():
    x0_fn = data_prediction(lambda x, t, context: x, GRID, "epsilon", torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="takes one state or more, got none"):
        x0_fn(torch.zeros(0, 16), 3)
