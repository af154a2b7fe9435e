"""What each named grid and table is and refuses; test_solvers_diffusers.py and _reference.py compare values."""

import pytest
import torch
from analytic_models import sd_schedule

from solvers import Grid, StepTable, ddim, discrete, dpm_solver_pp_2m, exponential_ab2, log_snr, time_uniform

SCHEDULE = sd_schedule()
GRIDS = (
    time_uniform(SCHEDULE, 20),
    log_snr(SCHEDULE, 20),
    discrete(SCHEDULE, 20, "leading", "sigma_min"),
    discrete(SCHEDULE, 20, "trailing", "zero"),
    discrete(SCHEDULE, 20, "linspace", "zero"),
)
by_name = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)


@by_name
def test_every_grid_is_variance_preserving_and_falls_in_lam(grid):
    assert grid.steps == 20
    # alpha and sigma are rounded once each: a few 1e-16.
    torch.testing.assert_close(grid.alpha**2 + grid.sigma**2, torch.ones_like(grid.alpha), rtol=1e-15, atol=0)
    torch.testing.assert_close(grid.lam, torch.log(grid.alpha / grid.sigma), rtol=1e-12, atol=1e-12)
    assert (grid.t.diff() > 0).all()
    assert {values.dtype for values in (grid.t, grid.alpha, grid.sigma, grid.lam)} == {torch.float64}


def test_time_uniform_runs_over_the_training_times_evenly():
    t = GRIDS[0].t
    assert (t[0].item(), t[-1].item()) == (0.0, 999.0)
    torch.testing.assert_close(t.diff(), torch.full((20,), 999 / 20, dtype=torch.float64), rtol=1e-12, atol=0)


def test_log_snr_is_even_in_lam_between_the_same_ends():
    grid = GRIDS[1]
    torch.testing.assert_close(grid.t[[0, -1]], torch.tensor([0.0, 999.0]).double(), rtol=0, atol=1e-9)
    # lam -> t -> lam costs some 1e-12 at the clean end, where sigma² is small.
    torch.testing.assert_close(grid.lam.diff(), (grid.lam[-1] - grid.lam[0]).expand(20) / 20, rtol=1e-9, atol=0)


def test_a_final_sigma_of_zero_is_clean_data():
    grid = GRIDS[4]
    assert (grid.alpha[0].item(), grid.sigma[0].item(), grid.lam[0].item()) == (1, 0, float("inf"))
    for table in (ddim(grid), dpm_solver_pp_2m(grid), exponential_ab2(grid)):
        assert table.row(1) == (0, 1, 0)  # x[0] is the data prediction itself


def test_the_steps_offset_shifts_the_leading_times():
    plain, offset = (discrete(SCHEDULE, 20, "leading", "zero", steps_offset=k) for k in (0, 1))
    assert (offset.t[1:] - plain.t[1:]).tolist() == [1] * 20


@by_name
@pytest.mark.parametrize("build", (ddim, dpm_solver_pp_2m, exponential_ab2))
def test_a_constant_data_prediction_is_integrated_exactly(grid, build):
    """b + c is the first-order weight, so that any row moves along alpha x0 + sigma noise when x0 does not change."""
    table = build(grid)
    assert torch.isnan(torch.stack([table.a[0], table.b[0], table.c[0]])).all()
    for i in range(1, 21):
        a, b, c = table.row(i)
        # alpha[i-1] = a alpha[i] + b + c and sigma[i-1] = a sigma[i]; b and c are up to 4 and cancel.
        assert a * grid.alpha[i] + b + c == pytest.approx(grid.alpha[i - 1].item(), abs=1e-14)
        assert a * grid.sigma[i] == pytest.approx(grid.sigma[i - 1].item(), rel=1e-15)
        assert table.row(i, first=True) == (a, b + c, 0)


@pytest.mark.parametrize("build", (dpm_solver_pp_2m, exponential_ab2))
def test_which_rows_are_first_order(build):
    grid = GRIDS[0]
    first = ddim(grid)
    assert [i for i in range(1, 21) if build(grid).c[i] == 0] == [20]
    final = build(grid, lower_order_final=True)
    assert [i for i in range(1, 21) if final.c[i] == 0] == [1, 20]
    assert final.row(1) == first.row(1) and final.row(20) == first.row(20)


def test_the_last_row_of_2m_on_the_papers_grid():
    """The weights that make this row hard to invert: +3.4 and -2.4 of the first-order weight, from r = 0.206."""
    grid = GRIDS[0]
    first, (_, b, c) = ddim(grid).row(1)[1], dpm_solver_pp_2m(grid).row(1)
    assert b / first == pytest.approx(3.42, abs=0.01) and c / first == pytest.approx(-2.42, abs=0.01)


@pytest.mark.parametrize("steps", (0, -1, 2.5, "20"))
@pytest.mark.parametrize("build", (time_uniform, log_snr, discrete))
def test_a_number_of_steps_that_is_none_is_refused(build, steps):
    with pytest.raises(ValueError, match="steps must be a whole number"):
        build(SCHEDULE, steps)


@pytest.mark.parametrize(
    "settings, message",
    (
        (dict(steps=20, spacing="karras"), "spacing must be .* got 'karras'"),
        (dict(steps=20, final_sigma="none"), "final_sigma must be .* got 'none'"),
        (dict(steps=20, spacing="trailing", steps_offset=1), "steps_offset=1 belongs to spacing='leading'"),
        (dict(steps=20, spacing="leading", steps_offset=500), "past the last training time, 999"),
        (dict(steps=1000, spacing="trailing", final_sigma="sigma_min"), "times coincide"),
        (dict(steps=2000), "times coincide"),
    ),
)
def test_discrete_refuses_what_it_cannot_place(settings, message):
    with pytest.raises(ValueError, match=message):
        discrete(SCHEDULE, **settings)


def test_hand_made_grids_and_tables_are_checked():
    grid = GRIDS[0]
    table = ddim(grid)
    with pytest.raises(ValueError, match="sigma must be float64"):
        Grid("half", grid.t, grid.alpha, grid.sigma.float(), grid.lam)
    with pytest.raises(ValueError, match="lam must be float64 of shape"):
        Grid("short", grid.t, grid.alpha, grid.sigma, grid.lam[1:])
    with pytest.raises(ValueError, match="out of order"):
        Grid("reversed", grid.t.flip(0), grid.alpha.flip(0), grid.sigma.flip(0), grid.lam.flip(0))
    with pytest.raises(ValueError, match="b must be float64 of shape"):
        StepTable("short", table.a, table.b[1:], table.c)
    with pytest.raises(ValueError, match="b holds non-finite numbers"):
        StepTable("infinite", table.a, torch.full_like(table.b, torch.inf), table.c)
    with pytest.raises(ValueError, match=r"c\[20\] is 1, must be 0"):
        StepTable("no history", table.a, table.b, torch.ones_like(table.c))
