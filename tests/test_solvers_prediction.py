"""From eps and v to x0, guidance (Eq. 6), batches of many indices, and evaluation counts."""

import pytest
import torch
from analytic_models import anisotropic_gaussian, at, sd_schedule

from solvers import data_prediction, discrete, log_snr, time_uniform
from solvers.prediction import predict

GRID = time_uniform(sd_schedule(), 20)
DATA = anisotropic_gaussian()
TEXT, NULL = torch.full((1, 2, 4), 0.5, dtype=torch.float64), torch.full((1, 2, 4), -0.25, dtype=torch.float64)


def states(rows=5, dtype=torch.float64):
    return torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def exact_network(prediction_type, grid):
    """The network that a perfect training on Gaussian data would give, as a function of the network's own time."""

    def network(x, t, context):
        i = torch.searchsorted(grid.t, t)
        alpha, sigma = at(grid.alpha, i, x), at(grid.sigma, i, x)
        x0 = DATA.x0_fn(grid)(x, i)
        eps = (x - alpha * x0) / sigma
        return eps if prediction_type == "epsilon" else alpha * eps - sigma * x0

    return network


def plain_network(x, t, context):
    return torch.sin(x + t.to(x)[:, None] / 500 + context[:, 0])


@pytest.mark.parametrize("grid", (GRID, log_snr(sd_schedule(), 20), discrete(sd_schedule(), 20)), ids=lambda g: g.name)
@pytest.mark.parametrize("prediction_type", ("epsilon", "v_prediction"))
def test_a_perfect_network_gives_the_exact_denoiser(prediction_type, grid):
    x0_fn = data_prediction(exact_network(prediction_type, grid), grid, prediction_type, TEXT)
    x = states()
    for i in range(1, 21):
        # eps to x0 divides by alpha, 0.068 at the noise end.
        torch.testing.assert_close(x0_fn(x, i), DATA.x0_fn(grid)(x, i), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("scale", (1.0, 2.5))
@pytest.mark.parametrize("prediction_type", ("epsilon", "v_prediction"))
def test_rows_at_different_indices_equal_calls_one_by_one(prediction_type, scale, dtype):
    """A sweep of the inversion is one batch; every operation here is by element, so the bits are the same."""
    x0_fn = data_prediction(
        plain_network, GRID, prediction_type, TEXT.to(dtype), null_context=NULL.to(dtype), scale=scale
    )
    x, i = states(5, dtype), torch.tensor([20, 3, 3, 1, 11])
    rows = torch.cat([x0_fn(x[n : n + 1], int(i[n])) for n in range(5)])
    assert torch.equal(x0_fn(x, i), rows)
    assert rows.dtype == dtype


def test_the_network_gets_the_grids_time_in_float64():
    seen = []

    def network(x, t, context):
        seen.append(t)
        return x

    data_prediction(network, GRID, "epsilon", TEXT, null_context=NULL, scale=2.0)(states(2), torch.tensor([20, 1]))
    assert torch.equal(seen[0], GRID.t[[20, 1, 20, 1]])


@pytest.mark.parametrize("scale", (0.0, 2.5, 7.5))
def test_guidance_is_equation_6(scale):
    """On eps, from the two unguided runs; x0 is affine in eps, so Eq. 6 holds for x0 as it does for eps."""
    text, null = (data_prediction(plain_network, GRID, "epsilon", context) for context in (TEXT, NULL))
    x0_fn = data_prediction(plain_network, GRID, "epsilon", TEXT, null_context=NULL, scale=scale)
    x = states()
    expected = null(x, 9) + scale * (text(x, 9) - null(x, 9))
    torch.testing.assert_close(x0_fn(x, 9), expected, rtol=1e-12, atol=1e-12)


def test_evaluations_count_network_rows():
    calls = []

    def network(x, t, context):
        calls.append(len(x))
        return x

    single = data_prediction(network, GRID, "epsilon", TEXT, null_context=NULL)
    guided = data_prediction(network, GRID, "epsilon", TEXT, null_context=NULL, scale=2.5)
    for x0_fn in (single, guided):
        x0_fn(states(5), 3)
        x0_fn(states(2), 4)
    assert calls == [5, 2, 10, 4]  # one call each: condition and null share a batch
    assert (single.rows_per_state, single.evaluations) == (1, 7)
    assert (guided.rows_per_state, guided.evaluations) == (2, 14)


def test_a_context_per_state_stays_with_its_state():
    contexts = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1, 1).expand(5, 2, 4)
    x0_fn = data_prediction(plain_network, GRID, "v_prediction", contexts)
    x = states()
    for n in range(5):
        alone = data_prediction(plain_network, GRID, "v_prediction", contexts[n : n + 1])
        assert torch.equal(x0_fn(x, 8)[n], alone(x[n : n + 1], 8)[0])
    with pytest.raises(ValueError, match="a context of 5 rows does not fit 4 states"):
        x0_fn(states(4), 8)


@pytest.mark.parametrize("i", (21, -1, torch.tensor([0, 1, 2, 3, 21]), torch.tensor([1, 2]), 2.0, torch.ones(5)))
def test_indices_off_the_grid_are_refused(i):
    with pytest.raises(ValueError, match="i must"):
        data_prediction(plain_network, GRID, "epsilon", TEXT)(states(), i)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got 'eps'"):
        data_prediction(plain_network, GRID, "eps", TEXT)
    with pytest.raises(ValueError, match=r"scale=2.5 .* pass null_context"):
        data_prediction(plain_network, GRID, "epsilon", TEXT, scale=2.5)
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(1, 4\)"):
        data_prediction(plain_network, GRID, "epsilon", TEXT, null_context=NULL[:, :1], scale=2.5)


def test_non_finite_rows_of_a_sweep_are_named_by_their_indices():
    def x0_fn(x, i):
        return torch.where((i == 3)[:, None], torch.nan, x)

    with pytest.raises(FloatingPointError, match="at index i = 3 is not finite"):
        predict(x0_fn, states(), torch.tensor([5, 4, 3, 2, 3]))
