"""These tests say what each named grid is and refuses, and how grids are cut and reversed. The times of the grids are
compared with other codes' in test_solvers_diffusers.py and test_solvers_reference.py."""

import numpy as np
import pytest
import torch
from analytic_models import sd_schedule

from solvers import GRIDS as BY_NAME
from solvers import Grid, discrete, log_snr, time_uniform

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
    # Both sides round alpha and sigma, and then a log, by some 1e-16 each; seen: 4e-16.
    torch.testing.assert_close(grid.lam, torch.log(grid.alpha / grid.sigma), rtol=1e-14, atol=1e-14)
    assert (grid.t.diff() > 0).all()
    assert {values.dtype for values in (grid.t, grid.alpha, grid.sigma, grid.lam)} == {torch.float64}


def test_time_uniform_runs_over_the_training_times_evenly():
    t = GRIDS[0].t
    assert (t[0].item(), t[-1].item()) == (0.0, 999.0)
    # A time of up to 999 rounds by 1e-13, which is 2e-15 of the spacing.
    torch.testing.assert_close(t.diff(), torch.full((20,), 999 / 20, dtype=torch.float64), rtol=1e-14, atol=0)


def test_log_snr_is_even_in_lam_between_the_same_ends():
    grid = GRIDS[1]
    # lam -> t -> lam may cost 1e-12 at the clean end, where log(alpha) is -4e-4 and known to 1e-16: ten times that.
    torch.testing.assert_close(grid.t[[0, -1]], torch.tensor([0.0, 999.0]).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(grid.lam.diff(), (grid.lam[-1] - grid.lam[0]).expand(20) / 20, rtol=1e-11, atol=0)


def test_a_final_sigma_of_zero_is_clean_data():
    grid = GRIDS[4]
    assert (grid.alpha[0].item(), grid.sigma[0].item(), grid.lam[0].item()) == (1, 0, float("inf"))


def test_the_steps_offset_shifts_the_leading_times():
    plain, offset = (discrete(SCHEDULE, 20, "leading", "zero", steps_offset=k) for k in (0, 1))
    assert (offset.t[1:] - plain.t[1:]).tolist() == [1] * 20


def test_the_named_grids_are_those_that_a_schedule_and_steps_determine():
    assert BY_NAME == {"time_uniform": time_uniform, "log_snr": log_snr}


FIELDS = ("t", "alpha", "sigma", "lam")


@by_name
@pytest.mark.parametrize("start", (1, 6, 20))
def test_a_part_of_a_grid_keeps_its_indices(grid, start):
    part = grid.until(start)
    assert part.steps == start
    assert part is grid if start == 20 else part.name == f"{grid.name} until {start}"
    for field in FIELDS:
        assert torch.equal(getattr(part, field), getattr(grid, field)[: start + 1])


@by_name
def test_a_reversed_grid_is_the_same_times_upside_down(grid):
    upside_down = grid.reversed()
    assert upside_down.rises and not grid.rises
    assert upside_down.name == f"{grid.name} reversed"
    for field in FIELDS:
        assert [getattr(upside_down, field)[j].item() for j in range(21)] == [
            getattr(grid, field)[20 - j].item() for j in range(21)
        ]


@pytest.mark.parametrize("start", (0, -1, 21, 6.0, None, True, np.float64(6), "6"))
def test_a_part_past_the_grid_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be an index of 1\.\.20 on time_uniform\(20\), got"):
        GRIDS[0].until(start)


@pytest.mark.parametrize("start", (np.int64(6), torch.tensor(6)))
def test_a_start_may_be_any_librarys_integer(start):
    assert GRIDS[0].check_start(start) == 6 and type(GRIDS[0].check_start(start)) is int
    assert GRIDS[0].until(start).name == "time_uniform(20) until 6"
    assert time_uniform(SCHEDULE, np.int64(20)).name == "time_uniform(20)"


@pytest.mark.parametrize("steps", (0, -1, 2.5, "20", True))
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


def test_hand_made_grids_are_checked():
    grid = GRIDS[0]
    with pytest.raises(ValueError, match="sigma must be float64"):
        Grid("half", grid.t, grid.alpha, grid.sigma.float(), grid.lam)
    with pytest.raises(ValueError, match="lam must be float64 of shape"):
        Grid("short", grid.t, grid.alpha, grid.sigma, grid.lam[1:])
    for indices in ([0, 2, 1], [2, 0, 1], [1, 1]):
        with pytest.raises(ValueError, match="coincide or are out of order"):
            Grid("shuffled", *(getattr(grid, field)[indices] for field in FIELDS))
