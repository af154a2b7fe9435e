"""These tests follow a network's output to x0, from eps and from v, and through guidance (Eq. 6). They also check the
rows, the size and the count of the network's calls."""

from contextlib import contextmanager

import pytest
import torch
from analytic_models import anisotropic_gaussian, at, normal, sd_schedule

from solvers import CallRows, data_prediction, discrete, log_snr, time_uniform
from solvers.prediction import predict

GRID = time_uniform(sd_schedule(), 20)
DATA = anisotropic_gaussian()
TEXT, NULL = torch.full((1, 2, 4), 0.5, dtype=torch.float64), torch.full((1, 2, 4), -0.25, dtype=torch.float64)


def states(rows=5, dtype=torch.float64):
    return normal(rows, 4, seed=0, dtype=dtype)


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
    # Both orders of the operations round a few times by 1e-16, and s / alpha, at most 13 here, enlarges that.
    torch.testing.assert_close(x0_fn(x, 9), expected, rtol=1e-14, atol=1e-14)


def test_rows_are_counted():
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
    assert (single.rows_per_state, single.rows) == (1, 7)
    assert (guided.rows_per_state, guided.rows) == (2, 14)


def test_a_context_per_state_stays_with_its_state():
    contexts = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1, 1).expand(5, 2, 4)
    x0_fn = data_prediction(plain_network, GRID, "v_prediction", contexts)
    x = states()
    for n in range(5):
        alone = data_prediction(plain_network, GRID, "v_prediction", contexts[n : n + 1])
        assert torch.equal(x0_fn(x, 8)[n], alone(x[n : n + 1], 8)[0])
    with pytest.raises(ValueError, match="a context of 5 rows does not fit 4 states"):
        x0_fn(states(4), 8)


def watched_prediction(calls, **settings):
    """Guided, with a context per image; `calls` collects what on_call was told and what the network then got."""
    contexts = torch.linspace(-1, 1, 3, dtype=torch.float64).view(3, 1, 1).expand(3, 2, 4)

    @contextmanager
    def on_call(rows):
        calls.append([rows])
        yield

    def network(x, t, context):
        calls[-1] += (x, t, context)
        return plain_network(x, t, context)

    return data_prediction(
        network,
        GRID,
        "epsilon",
        contexts,
        null_context=NULL,
        scale=2.5,
        on_call=on_call,
        **settings,
    )


@pytest.mark.parametrize("max_batch", (None, 1, 3, 7, 100))
def test_on_call_knows_every_row_of_every_call(max_batch):
    calls = []
    x0_fn = watched_prediction(calls, max_batch=max_batch)
    x, i, images = states(5), torch.tensor([20, 3, 4, 1, 11]), torch.tensor([2, 0, 0, 1, 2])
    x0_fn.for_images(images)(x, i)
    sizes = [len(rows.i) for rows, *_ in calls]
    assert sum(sizes) == 10 == x0_fn.rows and max(sizes) == min(max_batch or 10, 10)
    for rows, x_seen, t, context in calls:
        assert isinstance(rows, CallRows) and {rows.i.dtype, rows.images.dtype, rows.contexts.dtype} == {torch.int64}
        assert len(rows.i) == len(rows.images) == len(rows.contexts) == len(x_seen)
        assert torch.equal(t, GRID.t[rows.i])
        for n in range(len(x_seen)):
            row = (i == rows.i[n]).nonzero().item()  # the indices are all different, and name the state
            assert images[row] == rows.images[n] and torch.equal(x_seen[n], x[row])
            expected = x0_fn.contexts[0][rows.images[n]] if rows.contexts[n] == 0 else NULL[0]
            assert torch.equal(context[n], expected)
    everything = torch.cat([torch.stack([rows.i, rows.contexts]) for rows, *_ in calls], dim=1)
    assert sorted(everything.T.tolist()) == sorted([n, context] for n in i.tolist() for context in (0, 1))


def test_what_on_call_enters_is_around_one_call_each():
    open_calls, seen = [], []

    @contextmanager
    def on_call(rows):
        open_calls.append(rows.i.tolist())
        try:
            yield
        finally:
            open_calls.pop()

    def network(x, t, context):
        seen.append(list(open_calls))
        if t.min() == GRID.t[1]:
            raise RuntimeError("the network broke")
        return x

    x0_fn = data_prediction(network, GRID, "epsilon", TEXT, on_call=on_call, max_batch=2)
    x0_fn(states(3), torch.tensor([20, 3, 4]))
    assert seen == [[[20, 3]], [[4]]] and open_calls == []
    with pytest.raises(RuntimeError, match="the network broke"):
        x0_fn(states(1), 1)
    assert seen[-1] == [[1]] and open_calls == []


@pytest.mark.parametrize("max_batch", (1, 3, 7, 100))
def test_max_batch_changes_no_bit(max_batch):
    """Every operation of this network is by element."""
    x, i, images = states(5), torch.tensor([20, 3, 4, 1, 11]), torch.tensor([2, 0, 0, 1, 2])
    whole = watched_prediction([]).for_images(images)(x, i)
    assert torch.equal(watched_prediction([], max_batch=max_batch).for_images(images)(x, i), whole)


def test_row_n_is_image_n_unless_told():
    calls = []
    x0_fn = watched_prediction(calls)
    x = states(3)
    assert torch.equal(x0_fn(x, 7), x0_fn.for_images(torch.arange(3))(x, 7))
    assert [rows.images.tolist() for rows, *_ in calls] == [[0, 1, 2, 0, 1, 2]] * 2
    with pytest.raises(ValueError, match="a context of 3 rows does not reach to image 3"):
        x0_fn.for_images(torch.tensor([0, 3]))


@pytest.mark.parametrize("max_batch", (0, -1, 2.5))
def test_a_max_batch_that_is_none_is_refused(max_batch):
    with pytest.raises(ValueError, match="max_batch must be a whole number, 1 or more"):
        data_prediction(plain_network, GRID, "epsilon", TEXT, max_batch=max_batch)


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
