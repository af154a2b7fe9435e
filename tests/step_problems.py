"""This module holds the problems of the tests of stepwise inversions: runs as a method is given them, the equations of
a step written out, and what was recorded of the authors' code."""

import json
from pathlib import Path

import torch
from analytic_models import mixture, sd_schedule
from round_trips import IMAGES

from solvers import Grid, data_prediction, ddim, time_uniform
from solvers.inversions.run import CountedPrediction, Run
from solvers.schedule import half_log_snr

SCHEDULE = sd_schedule()
GRID = time_uniform(SCHEDULE, 20)
REFERENCE = json.loads((Path(__file__).parent / "reference" / "step_inversions.json").read_text())


def grid_at(times):
    """The grid at these training times, from the clean end."""
    n = torch.tensor(times)
    log_alpha = SCHEDULE.log_alphas[n]
    sigma = torch.expm1(2 * log_alpha).abs().sqrt()
    return Grid("recorded", n.double(), log_alpha.exp(), sigma, half_log_snr(log_alpha))


def network(x, t, context):
    """The reference's. Its times are the same for all rows of a call."""
    return torch.sin(x + 0.5 * x.roll(1, dims=1) + t.view(-1, *[1] * (x.ndim - 1)) / 500)


def recorded_problem(times):
    grid = grid_at(times)
    return grid, data_prediction(network, grid, "epsilon", torch.zeros(1, 1, 1, dtype=torch.float64))


def run_of(solver=ddim, start=6, grid=GRID, x0=IMAGES, x0_fn=None):
    """The run that an inversion method is given."""
    grid = grid.until(start)
    prediction = CountedPrediction(mixture().x0_fn(grid) if x0_fn is None else x0_fn, len(x0))
    return Run(x0, grid, solver(grid), solver(grid.reversed()), prediction)


def noise_prediction(run, x, i):
    """eps(x, t[i]), written out."""
    return (x - run.grid.alpha[i] * run.prediction.x0_fn(x, i)) / run.grid.sigma[i]


def noised(run, below, i, x):
    """x[i-1] = below, taken up to t[i] by DDIM with the noise prediction of x at t[i]."""
    alpha, sigma = run.grid.alpha, run.grid.sigma
    ratio = alpha[i] / alpha[i - 1]
    return ratio * below + (sigma[i] - ratio * sigma[i - 1]) * noise_prediction(run, x, i)
