"""This module tests `sample` and `denoise`: it covers steps, starts, history, edits and dtypes, and the arguments that
they refuse."""

import functools

import pytest
import torch
from analytic_models import mixture, normal, sd_schedule
from relative_error import relative_by_image

from solvers import (
    SOLVERS,
    StepTable,
    ddim,
    denoise,
    discrete,
    dpm_solver_pp_2m,
    exponential_ab3,
    history_at,
    sample,
    time_uniform,
)

GRID = time_uniform(sd_schedule(), 20)
TABLE = dpm_solver_pp_2m(GRID)
DATA = mixture(dim=16)
X0_FN = DATA.x0_fn(GRID)
by_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def noise(batch=4, dtype=torch.float64):
    return normal(batch, 16, seed=0, dtype=dtype)


def recorded_run(x, grid, table, **settings):
    """All states and all data predictions of a run, by index."""
    steps = list(sample(x, grid, table, X0_FN, **settings))
    return {i: x for i, x, _ in steps}, {i: data for i, _, data in steps if i}


def never(x, i):
    raise AssertionError("the network ran before the arguments were checked")


@by_solver
@pytest.mark.parametrize("start", (20, 6, 2, 1))
def test_a_step_is_the_tables_numbers(solver, start):
    run = GRID.until(start)
    table = solver(run)
    states, predictions = recorded_run(noise(), run, table)
    assert list(states) == list(range(start, -1, -1)) and list(predictions) == list(range(start, 0, -1))
    assert torch.equal(denoise(noise(), run, table, X0_FN), states[0])
    for i in range(start, 0, -1):
        assert torch.equal(predictions[i], X0_FN(states[i], i))
        expected = table.a[i] * states[i]
        for j in range(min(table.terms, start + 1 - i)):
            expected = expected + table.b[i, j] * predictions[i + j]
        # The same products; only the order of rounding may differ.
        torch.testing.assert_close(states[i - 1], expected, rtol=1e-13, atol=1e-13)


@by_solver
@pytest.mark.parametrize("start", (19, 18, 6, 1))
def test_a_run_continued_with_its_history_is_the_same_run(solver, start):
    table = solver(GRID)
    states, predictions = recorded_run(noise(), GRID, table)
    history = [predictions[i] for i in range(start + 1, min(start + table.terms, 21))]
    assert torch.equal(denoise(states[start], GRID, table, X0_FN, start=start, history=history), states[0])
    everything = [predictions[i] for i in range(start + 1, 21)]
    assert torch.equal(denoise(states[start], GRID, table, X0_FN, start=start, history=everything), states[0])
    if table.terms > 1:
        stacked = torch.stack(history)  # a tensor is a sequence of its rows
        assert torch.equal(denoise(states[start], GRID, table, X0_FN, start=start, history=stacked), states[0])
        restarted = denoise(states[start], GRID.until(start), solver(GRID.until(start)), X0_FN)
        assert not torch.allclose(restarted, states[0], rtol=1e-4)


def test_a_run_of_its_own_starts_as_ddim():
    run = GRID.until(6)
    states, predictions = recorded_run(noise(), run, exponential_ab3(run))
    a, (b,) = ddim(GRID).row(6)
    assert torch.equal(states[5], a * states[6] + b * predictions[6])


def test_the_loop_stops_where_the_caller_does():
    seen = []
    for i, _, _ in sample(noise(), GRID, TABLE, lambda x, i: seen.append(i) or X0_FN(x, i)):
        if i == 18:
            break
    assert seen == [20, 19, 18]


@by_solver
@pytest.mark.parametrize("start", (1, 5, 6, 7))
def test_the_history_of_a_run_follows_from_its_states(solver, start):
    run = GRID.until(7)
    table = solver(run)
    states, predictions = recorded_run(noise(), run, table)
    history = history_at(torch.stack([states[i] for i in range(8)]), table, start)
    assert len(history) == 7 - start
    for i, data in enumerate(history, start + 1):
        # A division by b[i, 0] and what the rows above hand down: some tens of roundings.
        torch.testing.assert_close(data, predictions[i], rtol=1e-12, atol=1e-12)


def test_the_history_of_the_first_step_is_that_step_solved():
    """x[6] = a x[7] + b D[7], to the bit."""
    run = GRID.until(7)
    states = torch.stack([x for _, x, _ in sample(noise(), run, dpm_solver_pp_2m(run), X0_FN)][::-1])
    a, (b,) = ddim(GRID).row(7)
    (history,) = history_at(states, dpm_solver_pp_2m(run), 6)
    assert torch.equal(history, (states[6] - a * states[7]) / b)


def test_states_that_do_not_tell_their_history_are_refused():
    states = torch.zeros(8, 2, 16)
    table = dpm_solver_pp_2m(GRID.until(7))
    for start, given in ((0, states), (8, states), (6, states[:7]), (6, torch.zeros(21, 2, 16))):
        with pytest.raises(ValueError, match=r"runs through 8 states and continues from 1\.\.7; got"):
            history_at(given, table, start)
    b = table.b.clone()
    b[7] = 0
    with pytest.raises(ValueError, match=r"row 7 of mute does not weigh D\[7\]"):
        history_at(states, StepTable("mute", table.a, b), 6)


def test_edits_reach_the_network_and_the_result():
    replacement = noise() + 1

    def edit(i, x):
        return replacement if i in (10, 0) else x

    seen = {}

    def x0_fn(x, i):
        return X0_FN(seen.setdefault(i, x), i)

    yielded = {i: x for i, x, _ in sample(noise(), GRID, TABLE, x0_fn, edit=edit)}
    assert seen[10] is replacement and yielded[10] is replacement and yielded[0] is replacement
    assert denoise(noise(), GRID, TABLE, x0_fn, edit=edit) is replacement


def test_every_state_is_edited_once_before_the_network_sees_it():
    calls = []
    edit = lambda i, x: calls.append(("edit", i)) or x  # noqa: E731
    denoise(noise(), GRID.until(2), ddim(GRID.until(2)), lambda x, i: calls.append(("run", i)) or x, edit=edit)
    assert calls == [("edit", 2), ("run", 2), ("edit", 1), ("run", 1), ("edit", 0)]


def test_progress_wraps_the_steps_and_says_that_they_are_steps():
    steps = []

    def progress(indices, counted):
        assert counted == "step"
        for i in indices:
            steps.append(i)
            yield i

    denoise(noise(), GRID.until(6), dpm_solver_pp_2m(GRID.until(6)), X0_FN, progress=progress)
    assert steps == [6, 5, 4, 3, 2, 1]


@by_solver
def test_dtypes_are_kept_and_float32_is_close(solver):
    exact = denoise(noise(), GRID, solver(GRID), X0_FN)
    single = denoise(noise(dtype=torch.float32), GRID, solver(GRID), X0_FN)
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    # 6e-8 a rounding, a few a step, and up to 14 as weights of the last; 20 steps.
    torch.testing.assert_close(single.double(), exact, rtol=3e-5, atol=3e-5)


def test_the_same_input_gives_the_same_bits():
    x = noise(dtype=torch.float32)
    before = x.clone()
    first, second = (denoise(x, GRID, TABLE, X0_FN) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype, bound", ((torch.float32, 1e-5), (torch.float64, 1e-14)))
def test_a_batch_equals_single_runs(dtype, bound):
    """Relative bound: a reduction over 16 numbers may be ordered otherwise in a batch, which 20 steps may amplify."""
    x = noise(batch=7, dtype=dtype)
    batch = denoise(x, GRID, TABLE, X0_FN)
    single = torch.cat([denoise(row[None], GRID, TABLE, X0_FN) for row in x])
    assert relative_by_image(batch, single).max() <= bound


@by_solver
def test_a_final_sigma_of_zero_ends_in_the_data_prediction(solver):
    grid = discrete(sd_schedule(), 10)
    *_, (_, _, last), (_, x, _) = sample(noise(), grid, solver(grid), DATA.x0_fn(grid))
    assert torch.equal(x, last)


@pytest.mark.parametrize("start", (0, -1, 21, 6.0))
def test_a_start_off_the_grid_is_refused(start):
    with pytest.raises(ValueError, match=r"start must be an index of 1\.\.20"):
        sample(noise(), GRID, TABLE, never, start=start)


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"has 20 steps, grid time_uniform\(10\) has 10"):
        sample(noise(), time_uniform(sd_schedule(), 10), TABLE, never)


@pytest.mark.parametrize("x", (noise().half(), noise().bfloat16(), noise().int(), noise()[0]))
def test_states_of_another_dtype_or_without_a_batch_are_refused(x):
    with pytest.raises(ValueError, match="states must be float32 or float64 of shape"):
        sample(x, GRID, TABLE, never)


@pytest.mark.parametrize("history", ([noise(batch=3)], [noise(dtype=torch.float32)], noise()))
def test_a_history_that_does_not_match_is_refused(history):
    with pytest.raises(ValueError, match="history must be a sequence of data predictions like the state"):
        sample(noise(), GRID, TABLE, never, start=6, history=history)


@pytest.mark.parametrize("start, history, missing", ((20, 1, 21), (19, 2, 21), (18, 4, 22)))
def test_a_history_past_the_noise_end_is_refused(start, history, missing):
    with pytest.raises(ValueError, match=rf"reach past the noise end .* there is no D\[{missing}\]"):
        sample(noise(), GRID, TABLE, never, start=start, history=[noise()] * history)


@pytest.mark.parametrize(
    "solver, start, history, row, weighed",
    (
        (dpm_solver_pp_2m, 6, 0, 6, 7),
        (dpm_solver_pp_2m, 1, 0, 1, 2),
        (exponential_ab3, 6, 0, 6, 7),
        (exponential_ab3, 6, 1, 6, 8),
        (exponential_ab3, 18, 1, 18, 20),
        # The rows 1 and 2 of lower order do not ask for it.
        (functools.partial(exponential_ab3, lower_order_final=True), 3, 1, 3, 5),
    ),
)
def test_a_row_that_weighs_what_there_is_not_is_refused(solver, start, history, row, weighed):
    table, grid = solver(GRID), GRID.until(start + history)
    with pytest.raises(
        ValueError, match=rf"row {row} of .* weighs D\[{weighed}\].*pass it as history, or .*until\({grid.steps}\)"
    ):
        sample(noise(), GRID, table, never, start=start, history=[noise()] * history)
    # What the message says helps.
    denoise(noise(), grid, solver(grid), X0_FN, start=start, history=[noise()] * history)


def test_a_later_row_that_weighs_what_there_is_not_is_refused():
    """Row 6 weighs D[6] alone, and row 5 a D[7] that the run from 6 does not make."""
    b = exponential_ab3(GRID).b.clone()
    b[6, 1:] = 0
    with pytest.raises(ValueError, match=r"row 5 of skipping weighs D\[7\]"):
        sample(noise(), GRID, StepTable("skipping", TABLE.a, b), never, start=6)


def test_a_run_starts_anywhere_where_its_rows_allow_it():
    final = dpm_solver_pp_2m(GRID, lower_order_final=True)
    a, (b, _) = final.row(1)
    assert torch.equal(denoise(noise(), GRID, final, X0_FN, start=1), a * noise() + b * X0_FN(noise(), 1))


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_a_non_finite_prediction_names_its_index(value):
    def x0_fn(x, i):
        return torch.full_like(x, value) if i == 7 else X0_FN(x, i)

    with pytest.raises(FloatingPointError, match="at index i = 7 is not finite"):
        denoise(noise(), GRID, TABLE, x0_fn)


@pytest.mark.parametrize("change", (lambda x: x[:1], lambda x: x.float()))
def test_a_prediction_of_another_shape_or_dtype_is_refused(change):
    with pytest.raises(ValueError, match="x0_fn must return what it is given"):
        denoise(noise(), GRID, TABLE, lambda x, i: change(x))


@pytest.mark.parametrize("change", (lambda x: x[:1], lambda x: x.double()))
def test_an_edit_that_changes_shape_or_dtype_is_refused(change):
    with pytest.raises(ValueError, match=r"edit must return a state like .* at index 19 it returned"):
        denoise(noise(dtype=torch.float32), GRID, TABLE, X0_FN, edit=lambda i, x: change(x) if i == 19 else x)


def test_no_gradients_are_kept_and_the_callers_are_left_on():
    for i, x, data in sample(noise().requires_grad_(), GRID, TABLE, X0_FN):
        assert i == 20 or not x.requires_grad
        assert data is None or not data.requires_grad
        assert torch.is_grad_enabled()
