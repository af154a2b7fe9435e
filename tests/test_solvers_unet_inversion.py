"""Runs through a small random UNet that predicts eps or v are inverted here. The tests hold the float32 targets, on
latents that the UNet made and on latents that it did not make.

Random weights are harder than trained ones: nothing ties the prediction to the data.
"""

import functools
import itertools

import pytest
import torch
from analytic_models import normal, sd_schedule
from relative_error import relative
from round_trips import round_trip_errors, smooth_latents
from small_models import small_unet

from solvers import data_prediction, denoise, dpm_solver_pp_2m, exponential_ab3, invert, time_uniform

GRID = time_uniform(sd_schedule(), 20)
SHAPE = (2, 4, 8, 8)


@functools.cache
def unet(dtype):
    return small_unet().to(dtype).eval()


def prediction(prediction_type, dtype, scale=1.0):
    context, null_context = normal(2, 1, 1, 48, seed=9).to(dtype)
    return data_prediction(unet(dtype), GRID, prediction_type, context, null_context=null_context, scale=scale)


@pytest.mark.parametrize(
    "source, lower_order_final, prediction_type",
    [
        pytest.param(*case, marks=[] if case == ("smooth", False, "v_prediction") else pytest.mark.slow)
        for case in itertools.product(("smooth", "generated"), (False, True), ("epsilon", "v_prediction"))
    ],
)
def test_float32_reaches_its_target_in_fifteen_sweeps(source, lower_order_final, prediction_type):
    solver = functools.partial(dpm_solver_pp_2m, lower_order_final=lower_order_final)
    x0_fn = prediction(prediction_type, torch.float32)
    x0 = smooth_latents(2, SHAPE[1:], torch.float32)
    if source == "generated":
        x0 = denoise(normal(*SHAPE, seed=1).float(), GRID, solver(GRID), x0_fn)
    states = invert(x0, GRID, solver, x0_fn, start=6, max_sweeps=15).states
    # 2e-6 is the default tolerance in float32; the sampler's rounding moves with the batch size, hence the half more.
    assert round_trip_errors(states, GRID, solver, x0_fn).max() <= 3e-6
    for method in ("naive", "frozen"):
        states = invert(x0, GRID, solver, x0_fn, start=6, method=method).states
        assert round_trip_errors(states, GRID, solver, x0_fn).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, start, sweeps",
    [
        (dpm_solver_pp_2m, 6, 30),
        (dpm_solver_pp_2m, 20, 40),
        (functools.partial(exponential_ab3, lower_order_final=True), 6, 30),
    ],
)
def test_float64_goes_on_to_rounding(solver, start, sweeps):
    x0_fn, x0 = prediction("v_prediction", torch.float64), smooth_latents(2, SHAPE[1:], torch.float64)
    states = invert(x0, GRID, solver, x0_fn, start=start, tol=1e-11, max_sweeps=sweeps).states
    assert round_trip_errors(states, GRID, solver, x0_fn).max() <= 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("tol, times_naive", [(1e-3, 10), (1e-6, 20)])
def test_cost_from_the_noise_end(tol, times_naive):
    """All 20 steps, in multiples of the naive inversion's 20 rows; the measured round trips are charged too."""
    x0_fn = prediction("v_prediction", torch.float64)
    inversion = invert(smooth_latents(2, SHAPE[1:], torch.float64), GRID, dpm_solver_pp_2m, x0_fn, tol=tol)
    assert inversion.rows.max() <= times_naive * 20


@pytest.mark.slow
def test_a_known_beginning_is_recovered():
    x0_fn, run = prediction("v_prediction", torch.float64), GRID.until(6)
    began = GRID.alpha[6] * smooth_latents(2, SHAPE[1:], torch.float64) + GRID.sigma[6] * normal(*SHAPE, seed=7)
    x0 = denoise(began, run, dpm_solver_pp_2m(run), x0_fn)
    inversion = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, start=6, tol=1e-11)
    # The solve's 1e-11 amplified on the way up; a thousandfold would show another trajectory, and the test fail.
    assert relative(inversion.states[-1], began) < 1e-8


@pytest.mark.slow
def test_a_guided_run_is_inverted():
    x0_fn = prediction("v_prediction", torch.float32, scale=2.5)
    x0 = denoise(normal(*SHAPE, seed=1).float(), GRID, dpm_solver_pp_2m(GRID), x0_fn)
    inversion = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, start=6, tol=5e-6)
    assert round_trip_errors(inversion.states, GRID, dpm_solver_pp_2m, x0_fn).max() <= 1e-5
    # Whole runs and sweeps, both rows of every state.
    assert (inversion.rows % 12 == 0).all()
