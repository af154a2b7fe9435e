"""Inversion of guided runs (Eq. 6 with s > 1): where it is exact, what it costs, and that it says where it stops.

Guidance stretches the difference of two predictions s times, and the map from noise to image with it. An image that
fits the condition is inverted at almost the price of s = 1; one that does not may have no preimage at all.
"""

import pytest
import torch
from analytic_models import Mixture, mixture, sd_schedule

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


def worst_round_trip(inversion, table, x0_fn):
    x0, start = inversion.states[0], len(inversion.states) - 1
    back = denoise(inversion.states[-1], GRID, table, x0_fn, start=start)
    return ((back - x0).norm(dim=1) / x0.norm(dim=1)).max()


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("start, scale", [(6, 1.5), (6, 2.5), (6, 5.0), (20, 2.5)])
def test_images_that_fit_the_condition_are_inverted(start, scale, lower_order_final):
    table, x0_fn = dpm_solver_pp_2m(GRID, lower_order_final), guided_prediction(scale)
    noise = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for x0 in (CONDITION.sample(8, seed=1), denoise(noise, GRID, table, x0_fn)):
        inversion = invert(x0, GRID, table, x0_fn, start=start, tol=1e-10)
        assert worst_round_trip(inversion, table, x0_fn) <= 1e-10
        naive = invert(x0, GRID, table, x0_fn, start=start, method="naive")
        assert worst_round_trip(naive, table, x0_fn) > 5e-3  # seen: 9e-3 to 1.3e-1


def test_newton_gmres_goes_on_where_mixing_stalls():
    """Images that fit the condition badly: mixing alone solves two of the eight, Newton-GMRES the rest, at a price."""
    table, x0_fn = dpm_solver_pp_2m(GRID, lower_order_final=True), guided_prediction(1.5, components=2)
    report = invert(DATA.sample(8, seed=1), GRID, table, x0_fn, start=6, tol=1e-6, max_sweeps=400).report
    assert report.converged.all()
    assert (report.sweeps < 15).sum() == 2 and (report.sweeps > 60).sum() == 6  # seen: 7, 8 and 85 to 194
    # Whole runs and sweeps of six states, and the naive run's last data prediction, both rows of every state.
    assert ((report.nfe - 2) % 12 == 0).all()


def test_images_that_do_not_fit_the_condition_fail_loudly():
    x0 = DATA.sample(16, seed=1)  # some belong to the other four components
    with pytest.raises(InversionError, match=r"[1-9]\d? of 16 images") as caught:
        invert(x0, GRID, dpm_solver_pp_2m(GRID), guided_prediction(5.0), start=6, tol=1e-6, max_sweeps=80)
    report = caught.value.report
    assert 0 < int(report.converged.sum()) < 16
    assert (report.residual[report.converged] <= 1e-6).all() and (report.residual[~report.converged] > 1e-6).all()
