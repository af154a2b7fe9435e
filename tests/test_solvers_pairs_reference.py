"""Here the samplers that algebra inverts are compared with numbers recorded from the authors' own code, run with a
small random network. The file tests/reference/own_samplers.json says what was called."""

import json
from pathlib import Path

import pytest
import torch
from analytic_models import sd_schedule

from solvers import Grid, data_prediction, ddim, invert
from solvers.inversions.bdia import bdia_denoise, bdia_from_one_state
from solvers.inversions.belm import belm_denoise, belm_from_one_state
from solvers.inversions.ddpm import ddpm_denoise, extract_noises
from solvers.inversions.edict import edict_denoise, edict_from_one_state

REFERENCE = json.loads((Path(__file__).parent / "reference" / "own_samplers.json").read_text())
W1, W2, CONTEXTS = (torch.tensor(REFERENCE[name], dtype=torch.float64) for name in ("w1", "w2", "contexts"))


def state(values):
    return torch.tensor(values, dtype=torch.float64).view(1, 4, 2, 2)


def runs(method):
    name = "{} until {}, scale {}".format
    return [pytest.param(run, id=name(method, run.get("start"), run["scale"])) for run in REFERENCE[method]["runs"]]


class Run:
    """A recorded run's grid until its start, the x0_fn of the network, and the times that the network was called at."""

    def __init__(self, run, first_time=0.0):
        schedule, self.times = sd_schedule(), []
        t = torch.arange(-99, 902, 100, dtype=torch.float64)
        t[0] = first_time
        log_alpha = schedule.log_alphas[t.clamp(min=0).long()]
        alpha, sigma = log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()
        self.whole = Grid("the authors' times", t, alpha, sigma, (alpha / sigma).log())
        self.grid = self.whole.until(run.get("start", 10))
        condition, null = CONTEXTS.view(2, 1, 1, 16)
        self.x0_fn = data_prediction(
            self.network, self.whole, "epsilon", condition, null_context=null, scale=run["scale"]
        )

    def network(self, x, t, context):
        self.times.append(t[0].item())
        return (torch.tanh(x.flatten(1) @ W1 + torch.sin(t / 250)[:, None] + context[:, 0]) @ W2).view_as(x)


def assert_equal(got, expected):
    # Both sides are float64, and the numbers are recorded to twelve places. An image of 16 values goes through twenty
    # guided evaluations at most, which enlarge a rounding some hundred times.
    torch.testing.assert_close(got, state(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("run", runs("edict"))
def test_edict_up_down_and_from_one_state(run):
    one = Run(run)
    x0 = state(REFERENCE["x0"])
    inversion = invert(x0, one.whole, ddim, one.x0_fn, start=run["start"], method="edict")
    assert one.times[: 2 * run["start"]] == run["up_times"]
    for got, expected in zip(inversion.kept, run["kept"], strict=True):
        assert_equal(got, expected)
    assert_equal(edict_from_one_state(inversion.kept[0], one.grid, one.x0_fn), run["from_x"])
    one.times.clear()
    x = edict_denoise(tuple(map(state, run["other"])), one.grid, one.x0_fn)
    assert one.times == run["down_times"]
    assert_equal(x, run["from_other"][0])


@pytest.mark.parametrize("run", runs("bdia"))
def test_bdia_up_and_down(run):
    """The authors evaluate the image at the negative time below their first, and so does this test's grid."""
    one = Run(run, first_time=-99.0)
    x0 = state(REFERENCE["x0"])
    inversion = invert(x0, one.whole, ddim, one.x0_fn, start=run["start"], method="bdia")
    assert one.times[: run["start"]] == run["up_times"]
    for got, expected in zip(inversion.kept, reversed(run["kept"]), strict=True):
        assert_equal(got, expected)
    one.times.clear()
    upper, lower = map(state, run["other"])
    x = bdia_denoise((lower, upper), one.grid, one.x0_fn)
    assert one.times == run["down_times"]
    assert_equal(x, run["from_other"][0])


@pytest.mark.parametrize(
    "method, run", [(method, *of.values) for method in ("belm", "bdia_of_belm") for of in runs(method)]
)
def test_the_code_of_belm_goes_down_alike(method, run):
    """Theirs evaluates the upper state too where it has the pair, and throws that away."""
    denoise, from_one_state = {
        "belm": (belm_denoise, belm_from_one_state),
        "bdia_of_belm": (bdia_denoise, bdia_from_one_state),
    }[method]
    one, upper = Run(run), state(run["upper"])
    assert_equal(denoise((state(run["lower"]), upper), one.grid, one.x0_fn), run["from_pair"])
    assert one.times == run["times"][1:]
    one.times.clear()
    assert_equal(from_one_state(upper, one.grid, one.x0_fn), run["from_upper"])
    assert one.times == run["times"]


@pytest.mark.parametrize("run", runs("ddpm"))
def test_ddpm_extracts_the_authors_noises_and_goes_back_with_them(run):
    """The authors set z[1] to zero, and so their run misses the image, by 4 % and 7 % here."""
    one = Run(run)
    states, noises = (torch.stack(list(map(state, run[of])), 1) for of in ("states", "noises"))
    passed, found = extract_noises(states, one.whole, one.x0_fn)
    assert one.times == run["times"]
    torch.testing.assert_close(passed, states, rtol=1e-9, atol=1e-9)  # as above
    # A noise is a difference over spread[i], 0.02 at the least here: a record of twelve places becomes one of ten.
    torch.testing.assert_close(found[:, 1:], noises[:, 1:], rtol=1e-8, atol=1e-8)
    assert not noises[:, 0].any() and found[:, 0].abs().mean() > 0.1
    for start in (5, 10):
        until = one.whole.until(start)
        assert_equal(ddpm_denoise((states[:, start], noises[:, :start]), until, one.x0_fn), run[f"back_from_{start}"])
        again = ddpm_denoise((passed[:, start], found[:, :start]), until, one.x0_fn)
        torch.testing.assert_close(again, states[:, 0], rtol=1e-12, atol=1e-12)
        assert (state(run[f"back_from_{start}"]) - states[:, 0]).norm() > 0.03 * states[:, 0].norm()
