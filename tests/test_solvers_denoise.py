"""`denoise`: starts, history, edits, dtypes, counts, and what it refuses."""

import pytest
import torch
from analytic_models import mixture, sd_schedule

from solvers import ddim, denoise, discrete, dpm_solver_pp_2m, time_uniform

GRID = time_uniform(sd_schedule(), 20)
TABLE = dpm_solver_pp_2m(GRID)
DATA = mixture(dim=16)


def noise(batch=4, dtype=torch.float64):
    return torch.randn(batch, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def recorded_run(x, **settings):
    """x[0], all states by index and all data predictions by index."""
    states, predictions = {}, {}

    def x0_fn(x, i):
        return predictions.setdefault(i, DATA.x0_fn(GRID)(x, i))

    out = denoise(x, GRID, TABLE, x0_fn, edit=lambda i, x: states.setdefault(i, x), **settings)
    return out, states, predictions


def never(x, i):
    raise AssertionError("the network ran before the arguments were checked")


def test_a_step_is_the_tables_three_numbers():
    x, states, predictions = recorded_run(noise())
    assert list(states) == list(range(20, -1, -1)) and list(predictions) == list(range(20, 0, -1))
    assert torch.equal(states[0], x)
    for i in range(20, 0, -1):
        expected = TABLE.a[i] * states[i] + TABLE.b[i] * predictions[i]
        if i < 20:
            expected += TABLE.c[i] * predictions[i + 1]
        # The same three products; only the order of rounding may differ.
        torch.testing.assert_close(states[i - 1], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("start", (19, 6, 1))
def test_a_run_continued_with_its_history_is_the_same_run(start):
    x, states, predictions = recorded_run(noise())
    continued = denoise(states[start], GRID, TABLE, DATA.x0_fn(GRID), start=start, history=predictions[start + 1])
    assert torch.equal(continued, x)
    restarted = denoise(states[start], GRID, TABLE, DATA.x0_fn(GRID), start=start)
    assert not torch.allclose(restarted, x, rtol=1e-4)


def test_a_run_without_history_starts_as_ddim():
    _, states, _ = recorded_run(noise(), start=6)
    _, _, predictions = recorded_run(noise(), start=6)
    a, b, _ = ddim(GRID).row(6)
    torch.testing.assert_close(states[5], a * states[6] + b * predictions[6], rtol=1e-13, atol=1e-13)


def test_edits_reach_the_network_and_the_result():
    replacement = noise() + 1

    def edit(i, x):
        return replacement if i in (10, 0) else x

    seen = {}

    def x0_fn(x, i):
        return DATA.x0_fn(GRID)(seen.setdefault(i, x), i)

    out = denoise(noise(), GRID, TABLE, x0_fn, edit=edit)
    assert seen[10] is replacement and out is replacement


def test_progress_wraps_the_steps():
    steps = []

    def progress(indices):
        for i in indices:
            steps.append(i)
            yield i

    denoise(noise(), GRID, TABLE, DATA.x0_fn(GRID), start=6, progress=progress)
    assert steps == [6, 5, 4, 3, 2, 1]


def test_dtypes_are_kept_and_float32_is_close():
    exact = denoise(noise(), GRID, TABLE, DATA.x0_fn(GRID))
    single = denoise(noise(dtype=torch.float32), GRID, TABLE, DATA.x0_fn(GRID))
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    # 6e-8 a rounding, a few a step, and 3.4 + 2.4 as weights of the last; 20 steps.
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_the_same_input_gives_the_same_bits():
    x = noise(dtype=torch.float32)
    before = x.clone()
    first, second = (denoise(x, GRID, TABLE, DATA.x0_fn(GRID)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype, bound", ((torch.float32, 1e-5), (torch.float64, 1e-14)))
def test_a_batch_equals_single_runs(dtype, bound):
    """Relative bound: a reduction over 16 numbers may be ordered otherwise in a batch, which 20 steps may amplify."""
    x = noise(batch=7, dtype=dtype)
    batch = denoise(x, GRID, TABLE, DATA.x0_fn(GRID))
    single = torch.cat([denoise(row[None], GRID, TABLE, DATA.x0_fn(GRID)) for row in x])
    assert ((batch - single).norm(dim=1) / single.norm(dim=1)).max() <= bound


def test_a_final_sigma_of_zero_ends_in_the_data_prediction():
    grid = discrete(sd_schedule(), 10)
    predictions = {}

    def x0_fn(x, i):
        return predictions.setdefault(i, DATA.x0_fn(grid)(x, i))

    assert torch.equal(denoise(noise(), grid, dpm_solver_pp_2m(grid), x0_fn), predictions[1])


@pytest.mark.parametrize("start", (0, -1, 21, 6.0))
def test_a_start_off_the_grid_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be an index of 1\.\.20"):
        denoise(noise(), GRID, TABLE, never, start=start)


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"has 20 steps, grid time_uniform\(10\) has 10"):
        denoise(noise(), time_uniform(sd_schedule(), 10), TABLE, never)


@pytest.mark.parametrize("x", (noise().half(), noise().bfloat16(), noise().int(), noise()[0]))
def test_states_of_another_dtype_or_without_a_batch_are_refused(x):
    with pytest.raises(ValueError, match="states must be float32 or float64 of shape"):
        denoise(x, GRID, TABLE, never)


@pytest.mark.parametrize("history", (noise(batch=3), noise(dtype=torch.float32)))
def test_a_history_that_does_not_match_is_refused(history):
    with pytest.raises(ValueError, match="history must match the state"):
        denoise(noise(), GRID, TABLE, never, start=6, history=history)


def test_a_history_at_the_noise_end_is_refused():
    with pytest.raises(ValueError, match=r"there is no D\[21\]"):
        denoise(noise(), GRID, TABLE, never, history=noise())


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_a_non_finite_prediction_names_its_index(value):
    def x0_fn(x, i):
        return torch.full_like(x, value) if i == 7 else DATA.x0_fn(GRID)(x, i)

    with pytest.raises(FloatingPointError, match="at index i = 7 is not finite"):
        denoise(noise(), GRID, TABLE, x0_fn)


@pytest.mark.parametrize("change", (lambda x: x[:1], lambda x: x.float()))
def test_a_prediction_of_another_shape_or_dtype_is_refused(change):
    with pytest.raises(ValueError, match="x0_fn must return what it is given"):
        denoise(noise(), GRID, TABLE, lambda x, i: change(x))


@pytest.mark.parametrize("change", (lambda x: x[:1], lambda x: x.double()))
def test_an_edit_that_changes_shape_or_dtype_is_refused(change):
    with pytest.raises(ValueError, match=r"edit must return a state like .* at index 19 it returned"):
        denoise(
            noise(dtype=torch.float32), GRID, TABLE, DATA.x0_fn(GRID), edit=lambda i, x: change(x) if i == 19 else x
        )


def test_no_gradients_are_kept():
    out = denoise(noise().requires_grad_(), GRID, TABLE, DATA.x0_fn(GRID))
    assert not out.requires_grad
