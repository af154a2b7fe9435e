"""This module tests O-BELM. It is exact as a pair, it is of second order, and it is no inverse at all when one of the
two states is dropped."""

import pytest
import torch
from analytic_models import anisotropic_gaussian, mixture, normal, sd_schedule
from relative_error import relative_by_image

from solvers import (
    belm_denoise,
    belm_image_pair,
    belm_invert,
    belm_start,
    ddim,
    discrete,
    log_snr,
    sample,
    time_uniform,
)

SCHEDULE = sd_schedule()
GRID = time_uniform(SCHEDULE, 20)
DATA = mixture()
X0_FN = DATA.x0_fn(GRID)


def worst(x, expected):
    return relative_by_image(x, expected).max().item()


# A pair comes back to a few hundred roundings: on the way up the rule divides by (p/q)², some 600 over the grid.
@pytest.mark.parametrize("dtype, bar", [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("start", [2, 6, 20])
def test_a_pair_goes_up_and_down_exactly(start, dtype, bar):
    x0 = DATA.sample(8, seed=1).to(dtype)
    image_pair = belm_image_pair(x0, GRID, X0_FN)
    back = belm_denoise(belm_invert(image_pair, GRID, X0_FN, start=start), GRID, X0_FN, start=start)
    assert worst(back[0], x0) < bar and worst(back[1], image_pair[1]) < bar
    assert back[0].dtype == dtype

    began = belm_start(normal(8, 16, seed=1, dtype=dtype), GRID, X0_FN, start=start)
    (_, _, _), (_, lower, _), *_ = sample(began[1], GRID.until(start), ddim(GRID.until(start)), X0_FN)
    assert torch.equal(began[0], lower)
    again = belm_invert(belm_denoise(began, GRID, X0_FN, start=start), GRID, X0_FN, start=start)
    assert worst(again[0], began[0]) < bar and worst(again[1], began[1]) < bar


def test_one_state_alone_is_not_inverted():
    x0 = DATA.sample(8, seed=1)
    _, upper = belm_invert(belm_image_pair(x0, GRID, X0_FN), GRID, X0_FN)
    back, _ = belm_denoise(belm_start(upper, GRID, X0_FN), GRID, X0_FN)
    assert worst(back, x0) > 1e-2  # the other state of the pair was the information


def test_order_two_on_data_with_a_known_solution():
    data, errors = anisotropic_gaussian(), []
    noise = normal(16, 4, seed=0)
    for steps in (40, 80, 160, 320):
        grid = log_snr(SCHEDULE, steps)
        x0_fn = data.x0_fn(grid)
        exact = data.solution(noise, grid, steps, 0)
        # Started with the exact partner, so that the first-order step of belm_start is not what is measured.
        pair = (data.solution(noise, grid, steps, steps - 1), noise)
        errors.append(worst(belm_denoise(pair, grid, x0_fn)[0], exact))
    orders = (torch.tensor(errors[:-1]) / torch.tensor(errors[1:])).log2()
    assert (orders - 2).abs().max() < 0.1, orders


def test_every_evaluation_is_one_step():
    calls = []
    belm_denoise(belm_start(DATA.sample(1, 0), GRID, X0_FN), GRID, lambda x, i: calls.append(i) or X0_FN(x, i))
    assert calls == list(range(19, 0, -1))


def test_bad_arguments_are_named():
    x = DATA.sample(2, seed=0)
    with pytest.raises(ValueError, match="two states of a pair must agree"):
        belm_denoise((x, x.float()), GRID, X0_FN)
    with pytest.raises(ValueError, match="start must be an index"):
        belm_invert((x, x), GRID, X0_FN, start=21)
    with pytest.raises(ValueError, match=r"ends at sigma\[0\] = 0"):
        belm_image_pair(x, discrete(SCHEDULE, 20), X0_FN)
