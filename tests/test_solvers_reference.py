"""Here the continuous grids and the multistep runs on them are compared with numbers recorded from the DPM-Solver
authors' own code."""

import json
from pathlib import Path

import pytest
import torch
from analytic_models import sd_schedule

from solvers import data_prediction, ddim, dpm_solver_pp_2m, exponential_ab2, log_snr, sample, time_uniform

RUNS = json.loads((Path(__file__).parent / "reference" / "dpm_solver.json").read_text())["runs"]
GRIDS = {"time_uniform": time_uniform, "logSNR": log_snr}


def network(x, t, context):
    return torch.sin(x + 0.5 * x.roll(1, dims=1) + t[:, None] / 500)


def from_clean(values):
    return torch.tensor(values, dtype=torch.float64).flip(0)


def build_table(grid, run):
    if run["order"] == 1:
        return ddim(grid)
    build = {"dpmsolver": dpm_solver_pp_2m, "taylor": exponential_ab2}[run["solver_type"]]
    return build(grid, lower_order_final=run["lower_order_final"])


@pytest.mark.parametrize(
    "run", RUNS, ids=lambda r: "{skip_type}-{steps}-{order}-{solver_type}-{lower_order_final}".format(**r)
)
def test_grid_and_states_equal_the_authors(run):
    grid = GRIDS[run["skip_type"]](sd_schedule(), run["steps"])
    # Both sides are float64; 1e-9 leaves room for their log(1 - exp) where ours is expm1. The requirement is 1e-6.
    torch.testing.assert_close(grid.t, from_clean(run["t"]) * 1000 - 1, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grid.lam, from_clean(run["lam"]), rtol=1e-9, atol=1e-9)

    expected = from_clean(run["states"])
    x0_fn = data_prediction(network, grid, "epsilon", torch.zeros(1, 1, 1, dtype=torch.float64))
    for i, x, _ in sample(expected[-1], grid, build_table(grid, run), x0_fn):
        torch.testing.assert_close(x, expected[i], rtol=1e-9, atol=1e-9)


def test_the_final_order_shows_in_the_reference():
    """Otherwise the runs above could not tell lower_order_final on from off."""
    off, on = [run for run in RUNS if run["skip_type"] == "time_uniform" and (run["steps"], run["order"]) == (5, 2)]
    assert on["lower_order_final"] != off["lower_order_final"]
    assert (from_clean(on["states"])[0] - from_clean(off["states"])[0]).abs().max() > 1e-3
