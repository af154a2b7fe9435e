"""Inversion through a small random UNet, eps and v: the float32 targets, on latents it made and on latents it did not.

Random weights are harder than trained ones: nothing ties the prediction to the data.
"""

import functools

import pytest
import torch
from small_models import small_unet

from solvers import NoiseSchedule, data_prediction, denoise, dpm_solver_pp_2m, invert, time_uniform

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
GRID = time_uniform(NoiseSchedule.from_betas(BETAS), 20)
SHAPE = (2, 4, 8, 8)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def unet(dtype):
    return small_unet().to(dtype).eval()


def prediction(prediction_type, dtype, scale=1.0):
    context, null_context = normal(2, 1, 1, 48, seed=9).to(dtype)
    return data_prediction(unet(dtype), GRID, prediction_type, context, null_context=null_context, scale=scale)


def smooth_latents(dtype):
    """Latents that no sampler made: noise with the 1/f spectrum of photographs, of unit variance."""
    frequency = (torch.fft.fftfreq(8)[:, None] ** 2 + torch.fft.rfftfreq(8)[None] ** 2).sqrt()
    latents = torch.fft.irfft2(torch.fft.rfft2(normal(*SHAPE, seed=5)) / (0.05 + frequency), s=SHAPE[2:])
    return (latents / latents.std()).to(dtype)


def round_trip_error(inversion, table, x0_fn):
    x0, start = inversion.states[0], len(inversion.states) - 1
    back = denoise(inversion.states[-1], GRID, table, x0_fn, start=start)
    return ((back - x0).flatten(1).norm(dim=1) / x0.flatten(1).norm(dim=1)).max()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("source", ["smooth", "generated"])
def test_float32_reaches_its_target_in_fifteen_sweeps(source, lower_order_final, prediction_type):
    table, x0_fn = dpm_solver_pp_2m(GRID, lower_order_final), prediction(prediction_type, torch.float32)
    x0 = smooth_latents(torch.float32)
    if source == "generated":
        x0 = denoise(normal(*SHAPE, seed=1).float(), GRID, table, x0_fn)
    inversion = invert(x0, GRID, table, x0_fn, start=6, max_sweeps=15)
    # 2e-6 is the default tolerance in float32; the sampler's rounding moves with the batch size, hence the half more.
    assert round_trip_error(inversion, table, x0_fn) <= 3e-6
    for method in ("naive", "frozen"):
        assert round_trip_error(invert(x0, GRID, table, x0_fn, start=6, method=method), table, x0_fn) > 1e-5


@pytest.mark.parametrize("start, sweeps", [(6, 30), (20, 40)])
def test_float64_goes_on_to_rounding(start, sweeps):
    table, x0_fn = dpm_solver_pp_2m(GRID), prediction("v_prediction", torch.float64)
    inversion = invert(smooth_latents(torch.float64), GRID, table, x0_fn, start=start, tol=1e-11, max_sweeps=sweeps)
    assert round_trip_error(inversion, table, x0_fn) <= 1e-11


@pytest.mark.parametrize("tol, times_naive", [(1e-3, 10), (1e-6, 20)])
def test_cost_from_the_noise_end(tol, times_naive):
    """All 20 steps, in multiples of the naive inversion's 20 evaluations; the measured round trips are charged too."""
    table, x0_fn = dpm_solver_pp_2m(GRID), prediction("v_prediction", torch.float64)
    report = invert(smooth_latents(torch.float64), GRID, table, x0_fn, tol=tol).report
    assert report.nfe.max() <= times_naive * 20


def test_a_known_beginning_is_recovered():
    table, x0_fn = dpm_solver_pp_2m(GRID), prediction("v_prediction", torch.float64)
    began = GRID.alpha[6] * smooth_latents(torch.float64) + GRID.sigma[6] * normal(*SHAPE, seed=7)
    x0 = denoise(began, GRID, table, x0_fn, start=6)
    inversion = invert(x0, GRID, table, x0_fn, start=6, tol=1e-11)
    # The solve's 1e-11 amplified on the way up; a thousandfold would show another trajectory, and the test fail.
    assert (inversion.states[-1] - began).norm() / began.norm() < 1e-8


def test_a_guided_run_is_inverted():
    table, x0_fn = dpm_solver_pp_2m(GRID), prediction("v_prediction", torch.float32, scale=2.5)
    x0 = denoise(normal(*SHAPE, seed=1).float(), GRID, table, x0_fn)
    inversion = invert(x0, GRID, table, x0_fn, start=6, tol=5e-6)
    assert round_trip_error(inversion, table, x0_fn) <= 1e-5
    assert (
        (inversion.report.nfe - 2) % 12 == 0
    ).all()  # runs, sweeps, the naive run's last D; both rows of every state
