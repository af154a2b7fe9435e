"""The sampling loop runs any step table from any start. It stands apart from the tables because it is the one loop of
the package: inversion runs it too, downwards to measure and, on a reversed grid, upwards.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .grids import Grid
from .prediction import FiniteCheck, X0Fn, predict
from .progress import Progress, watched
from .tables import StepTable, add_weighted

Edit = Callable[[int, Tensor], Tensor] | None


def sample(
    x: Tensor,
    grid: Grid,
    table: StepTable,
    x0_fn: X0Fn,
    *,
    start: int | None = None,
    history: Sequence[Tensor] = (),
    edit: Edit = None,
    progress: Progress = None,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Run the table from `start` down to 0: yield (i, x[i], D[i]) for i = start, ..., 1, and finally (0, x[0], None).

    One step is x[i-1] = a[i] x[i] + sum over j of b[i, j] D[i+j], where D[i] = x0_fn(x[i], i).

    x: (B, ...) float32 or float64, the state at `start`. Its dtype is kept: the float64 table multiplies it as scalars.
    table: a solver's table on this grid. A run that starts below the noise end and continues no other run needs a grid
        and a table of its own, run = grid.until(start) and solver(run).
    start: 1..grid.steps, the grid's noise end by default.
    history: D[start+1], D[start+2], ... of the run that this one continues, each like x, as far as the rows weigh them.
    edit: edit(i, x) -> x of the same shape and dtype, called on every state, i = start, ..., 0, before the network
        sees it. The states that are yielded are edited ones.
    progress: wraps the loop's indices, as progress(indices, "step"); tqdm is such a function.
    The loop draws no random numbers and keeps no gradients. The call itself raises ValueError for arguments that do not
    fit together, and where a row weighs a data prediction that is neither run nor given. The loop raises ValueError for
    an edit or a data prediction that changes shape or dtype, and FloatingPointError (naming i) when a data prediction
    is not finite: at once on a CPU, before the last state on a GPU.
    """
    start = check_run(x, grid, table, start, history)
    return _run(x, table, x0_fn, start, list(history), edit, progress)


def denoise(
    x: Tensor,
    grid: Grid,
    table: StepTable,
    x0_fn: X0Fn,
    *,
    start: int | None = None,
    history: Sequence[Tensor] = (),
    edit: Edit = None,
    progress: Progress = None,
) -> Tensor:
    """x[0], (B, ...), of the run that `sample` makes of the same arguments. It raises what `sample` raises."""
    run = sample(x, grid, table, x0_fn, start=start, history=history, edit=edit, progress=progress)
    ((_, x0, _),) = deque(run, maxlen=1)
    return x0


def history_at(states: Tensor, table: StepTable, start: int) -> list[Tensor]:
    """D[start+1], ..., D[m] of a run of `table` with the states x[0..m], as `sample` takes them for its history.

    The network is not run. The run's rows are solved for their data predictions from the noise end down: row m gives
    D[m] = (x[m-1] - a[m] x[m]) / b[m, 0], and every further row subtracts what is already known.
    states: (m + 1, B, ...), unedited, with m = table.steps. start: 1..m.
    ValueError where these do not fit together, and where a row does not weigh its own data prediction.
    """
    m = table.steps
    if len(states) != m + 1 or not 1 <= start <= m:
        raise ValueError(
            f"table {table.name} runs through {m + 1} states and continues from 1..{m}; got {len(states)} states and "
            f"start={start}. Pass all states x[0], ..., x[{m}] of one run of this table, in this order"
        )
    known: list[Tensor] = []  # D[i+1], D[i+2], ...
    for i in range(m, start, -1):
        a, (own, *older) = table.row(i)
        if own == 0:
            raise ValueError(
                f"row {i} of {table.name} does not weigh D[{i}], so the states do not determine it; keep the data "
                f"predictions that sample yields instead"
            )
        implied = add_weighted(states[i - 1] - a * states[i], (-weight for weight in older), known)
        known.insert(0, implied / own)
    return known


@torch.no_grad()
def _run(
    x: Tensor, table: StepTable, x0_fn: X0Fn, start: int, history: list[Tensor], edit: Edit, progress: Progress
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    data = history  # D[i], D[i+1], ..., no more of them than a row can weigh
    check = FiniteCheck()
    x = _edited(edit, start, x)
    for i in watched(range(start, 0, -1), "step", progress):
        data = [predict(x0_fn, x, i, check), *data][: table.terms]
        yield i, x, data[0]
        a, weights = table.row(i)
        x = _edited(edit, i - 1, add_weighted(a * x, weights, data))
    check.read()
    yield 0, x, None


def check_run(x: Tensor, grid: Grid, table: StepTable, start: int | None, history: Sequence[Tensor] = ()) -> int:
    """The index a run starts from. ValueError for a state, table, start or history that do not fit together."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the state is a {type(x).__name__}; expected a tensor (B, ...), float32 or float64")
    if not isinstance(table, StepTable):
        raise TypeError(f"the table is {table!r}; expected a StepTable, which a solver makes: solver(grid)")
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        raise ValueError(
            f"states must be float32 or float64 of shape (B, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    table.check_fits(grid)
    start = grid.check_start(grid.steps if start is None else start)
    if start + len(history) > grid.steps:
        raise ValueError(
            f"start={start} and a history of {len(history)} reach past the noise end of {grid.name}: there is no "
            f"D[{start + len(history)}]"
        )
    for data in history:
        if data.shape != x.shape or data.dtype != x.dtype:
            raise ValueError(
                f"history must be a sequence of data predictions like the state, {x.dtype} of shape {tuple(x.shape)}; "
                f"got {data.dtype} of shape {tuple(data.shape)}"
            )
    for i in range(start, max(0, start - table.terms + 1), -1):
        _, weights = table.row(i)
        for j, weight in enumerate(weights):
            if weight and i + j > start + len(history):
                raise ValueError(
                    f"row {i} of {table.name} weighs D[{i + j}], which a run from start={start} with a history of "
                    f"{len(history)} does not have; pass it as history, or build the table for "
                    f"grid.until({start + len(history)})"
                )
    return start


def _edited(edit: Edit, i: int, x: Tensor) -> Tensor:
    if edit is None:
        return x
    edited = edit(i, x)
    if edited.shape != x.shape or edited.dtype != x.dtype:
        raise ValueError(
            f"edit must return a state like the one it is given, {x.dtype} of shape {tuple(x.shape)}; at index {i} it "
            f"returned {edited.dtype} of shape {tuple(edited.shape)}"
        )
    return edited
