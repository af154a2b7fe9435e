"""Guided runs (Eq. 6 with s > 1) are inverted here. The tests say where the inversion is exact, what it costs, and that
it reports where it stops.

Guidance stretches the difference of two predictions s times, and the map from noise to image with it. An image that
fits the condition is inverted at almost the price of s = 1; one that does not may have no preimage at all.
"""

import functools

import pytest
import torch
from analytic_models import Mixture, mixture, normal, sd_schedule
from round_trips import round_trip_errors

from solvers import InversionError, denoise, dpm_solver_pp_2m, guided, invert, time_uniform

GRID = time_uniform(sd_schedule(), 20)
DATA = mixture()
CONDITION = Mixture(DATA.means[:4], DATA.variance)


def guided_prediction(scale, components=4):
    text, null = Mixture(DATA.means[:components], DATA.variance).x0_fn(GRID), DATA.x0_fn(GRID)

    def x0_fn(x, i):
        return guided(text(x, i), null(x, i), scale)

    x0_fn.rows_per_state = 2
    return x0_fn


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("start, scale", [(6, 1.5), (6, 2.5), (6, 5.0), (20, 2.5)])
def test_images_that_fit_the_condition_are_inverted(start, scale, lower_order_final):
    solver = functools.partial(dpm_solver_pp_2m, lower_order_final=lower_order_final)
    x0_fn = guided_prediction(scale)
    generated = denoise(normal(8, 16, seed=3), GRID, solver(GRID), x0_fn)
    for x0 in (CONDITION.sample(8, seed=1), generated):
        inversion = invert(x0, GRID, solver, x0_fn, start=start, tol=1e-10)
        assert round_trip_errors(inversion.states, GRID, solver, x0_fn).max() <= 1e-10
        naive = invert(x0, GRID, solver, x0_fn, start=start, method="naive")
        assert round_trip_errors(naive.states, GRID, solver, x0_fn).max() > 5e-3  # seen: 9e-3 to 1.3e-1


def test_newton_gmres_goes_on_where_mixing_stalls():
    """Images that fit the condition badly: mixing alone solves two of the eight, Newton-GMRES the rest, at a price."""
    solver = functools.partial(dpm_solver_pp_2m, lower_order_final=True)
    x0_fn = guided_prediction(1.5, components=2)
    inversion = invert(DATA.sample(8, seed=1), GRID, solver, x0_fn, start=6, tol=1e-6, max_sweeps=400)
    assert inversion.converged.all()
    sweeps = sorted(report.sweeps for report in inversion.reports)
    assert sweeps[1] < 15 and sweeps[2] > 60  # seen: 2, 5 and 120 to 209
    # Whole runs and sweeps of six states, both rows of every state.
    assert (inversion.rows % 12 == 0).all()


def test_images_that_do_not_fit_the_condition_fail_loudly():
    x0 = DATA.sample(16, seed=1)  # some belong to the other four components
    with pytest.raises(InversionError, match=r"[1-9]\d? of 16 images") as caught:
        invert(x0, GRID, dpm_solver_pp_2m, guided_prediction(5.0), start=6, tol=1e-6, max_sweeps=80)
    reports = caught.value.reports
    assert 0 < sum(report.converged for report in reports) < 16
    assert all((report.error <= 1e-6) == report.converged for report in reports)


def test_defect_returns_the_best_it_came_by():
    """On images that do not fit the condition its error goes up and down: at its end, 1.8 times its lowest."""
    x0_fn, x0 = guided_prediction(5.0), DATA.sample(16, seed=1)
    settings = dict(start=6, tol=1e-6, max_sweeps=20, method="defect", on_failure="return")
    inversion = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, **settings)
    assert any(report.residuals[-1] > 1.2 * min(report.residuals) for report in inversion.reports)
    assert all(report.error == min(report.residuals) for report in inversion.reports)
    # Measured by the same calls, of a batch of another size; the round trip passes its rounding on.
    torch.testing.assert_close(
        inversion.errors, round_trip_errors(inversion.states, GRID, dpm_solver_pp_2m, x0_fn), rtol=1e-9, atol=1e-9
    )
