"""Here the stepwise inversions are compared with numbers recorded from the authors' public code."""

import functools
from dataclasses import replace

import pytest
import torch
from analytic_models import normal
from step_problems import REFERENCE, recorded_problem, run_of

from solvers import INVERSIONS, InversionMethod, ddim, dpm_solver_pp_2m, invert
from solvers.inversions import fixed_point
from solvers.inversions.steps import first_order_equation

LOWERED = functools.partial(dpm_solver_pp_2m, lower_order_final=True)


@pytest.mark.parametrize("renoisings", [9, 1])
def test_renoise_is_the_authors(monkeypatch, renoisings):
    recorded = REFERENCE[f"renoise {renoisings}"]
    solve = functools.partial(INVERSIONS["renoise"].solve, renoisings=renoisings)
    monkeypatch.setitem(INVERSIONS, "recorded", InversionMethod(solve, exact=False))
    check_whole(recorded, "recorded")


def test_fixed_point_is_the_authors():
    """Their loop knows no tolerance, so that one is given which is never met."""
    check_whole(REFERENCE["fixed-point"], "fixed-point", tol=1e-300)


def check_whole(recorded, method, **limits):
    grid, x0_fn = recorded_problem(recorded["t"])
    expected = torch.tensor(recorded["states"], dtype=torch.float64)
    states = invert(expected[:1], grid, ddim, x0_fn, method=method, **limits).states[:, 0]
    # Both sides are float64. The iteration enlarges roundings of 1e-16 some ten times a step on this rough network.
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-11)
    assert (expected[-1] - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize(("order", "solver", "size"), [(1, ddim, 16), (2, LOWERED, 128)])
def test_exact_dpm_is_the_authors_in_states_and_cost(order, solver, size):
    recorded = REFERENCE[f"exact-dpm {order}"]
    grid, x0_fn = recorded_problem(recorded["t"])
    x0 = normal(1, 4, size, size, seed=3)
    inversion = invert(x0, grid, solver, x0_fn, method="exact-dpm", max_sweeps=499)
    check_kept(inversion.states, recorded)
    assert inversion.rows.item() == sum(recorded["calls"]) + grid.steps  # ours are measured


def test_the_released_guided_newton_is_the_authors():
    recorded = REFERENCE["guided-newton-released"]
    grid, x0_fn = recorded_problem(recorded["t"])
    x0 = normal(1, 4, 64, 64, seed=3)
    check_kept(invert(x0, grid, ddim, x0_fn, method="guided-newton-released").states, recorded)


def check_kept(states, recorded):
    # float64 on both sides; eta = 1e-6 of the Newton step, which the authors do not have, moves it by that fraction.
    torch.testing.assert_close(states[:, 0, 0, 0, :6], torch.tensor(recorded["first"]).double(), rtol=0, atol=1e-6)
    norms = states.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor(recorded["norms"]).double(), rtol=1e-6, atol=0)


def test_anderson_mixing_is_that_of_a_public_re_implementation():
    """Which begins its history with f(x[i-1]): here that is where the search begins."""
    recorded = REFERENCE["anderson"]
    grid, x0_fn = recorded_problem(recorded["t"])
    expected = torch.tensor(recorded["states"], dtype=torch.float64)
    run = run_of(start=1, grid=grid, x0=normal(1, 3, 4, seed=3), x0_fn=x0_fn)
    step = replace(first_order_equation(run, 1, run.x0), guess=expected[:1].view(1, 3, 4))
    for evaluations in range(1, len(expected)):
        x, _ = fixed_point.solve_anderson(step, 1e-300, evaluations, depth=3)
        # They invert a matrix of products of residuals, which costs half the digits as the residuals shrink.
        torch.testing.assert_close(x.flatten(), expected[evaluations], rtol=0, atol=1e-7)
