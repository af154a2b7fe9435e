"""Sampling: any step table, from any start."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .grids import Grid
from .prediction import X0Fn, predict
from .tables import StepTable


@torch.no_grad()
def denoise(
    x: Tensor,
    grid: Grid,
    table: StepTable,
    x0_fn: X0Fn,
    *,
    start: int | None = None,
    history: Tensor | None = None,
    edit: Callable[[int, Tensor], Tensor] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Tensor:
    """Run the table from `start` down to 0: x[i-1] = a[i] x[i] + b[i] D[i] + c[i] D[i+1], where D[i] = x0_fn(x[i], i).

    x: (B, ...) float32 or float64, the state at `start`; its dtype is kept, the float64 table meets it as scalars.
    start: 1..grid.steps, the grid's noise end by default.
    history: D[start + 1], shaped like x, for a run that continues another; without it the first step is first-order.
    edit: edit(i, x) -> x of the same shape and dtype, called on every state, i = start, ..., 0, before the network
        sees it.
    progress: wraps the loop's indices, e.g. tqdm.
    Returns x[0], (B, ...). Draws no random numbers. Raises ValueError for arguments that do not fit together, before
    the network runs, and FloatingPointError (naming i) when a data prediction is not finite.
    """
    start = check_run(x, grid, table, start, history)
    x = _edited(edit, start, x)
    for i in progress(range(start, 0, -1)) if progress else range(start, 0, -1):
        x0 = predict(x0_fn, x, i)
        a, b, c = table.row(i, first=history is None)
        x = a * x + b * x0 if c == 0 else a * x + b * x0 + c * history
        x, history = _edited(edit, i - 1, x), x0
    return x


def check_run(x: Tensor, grid: Grid, table: StepTable, start: int | None, history: Tensor | None = None) -> int:
    """The index a run starts from, after ValueError for a state, table, start or history that do not fit together."""
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2:
        raise ValueError(
            f"states must be float32 or float64 of shape (B, ...), got {x.dtype} of shape {tuple(x.shape)}"
        )
    table.check_fits(grid)
    start = grid.steps if start is None else start
    if not isinstance(start, int) or not 1 <= start <= grid.steps:
        raise ValueError(f"start must be an index of 1..{grid.steps} on {grid.name}, got {start!r}")
    if history is not None:
        if start == grid.steps:
            raise ValueError(
                f"start={start} is the noise end of {grid.name}: there is no D[{start + 1}] to pass as history"
            )
        if history.shape != x.shape or history.dtype != x.dtype:
            raise ValueError(
                f"history must match the state, {x.dtype} of shape {tuple(x.shape)}; got {history.dtype} of shape "
                f"{tuple(history.shape)}"
            )
    return start


def _edited(edit: Callable[[int, Tensor], Tensor] | None, i: int, x: Tensor) -> Tensor:
    if edit is None:
        return x
    edited = edit(i, x)
    if edited.shape != x.shape or edited.dtype != x.dtype:
        raise ValueError(
            f"edit must return a state like the one it is given, {x.dtype} of shape {tuple(x.shape)}; at index {i} it "
            f"returned {edited.dtype} of shape {tuple(edited.shape)}"
        )
    return edited
