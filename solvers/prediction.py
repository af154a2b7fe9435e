"""From a network to the data prediction a solver works with: parameterisation and guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from .grids import Grid

# x (N, ...), i an int or an int64 tensor (N,) -> x0_hat (N, ...). All that a solver knows of a network.
X0Fn = Callable[[Tensor, int | Tensor], Tensor]
# x (N, ...), t (N,) float64 on the CPU, context (N, L, D) -> eps or v (N, ...).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class DataPrediction:
    """x0_fn of a network on a grid, made by `data_prediction`.

    rows_per_state: network rows one state costs, 2 when guided.
    evaluations: network rows run so far; set it to 0 to start a new count.
    """

    def __init__(
        self, network: Network, grid: Grid, prediction_type: str, contexts: list[Tensor], scale: float
    ) -> None:
        self.network, self.grid, self.prediction_type, self.scale = network, grid, prediction_type, scale
        self.contexts = contexts
        self.rows_per_state = len(contexts)
        self.evaluations = 0

    def __call__(self, x: Tensor, i: int | Tensor) -> Tensor:
        """x (N, ...), i an int or int64 (N,) in 0..steps -> x0_hat like x. ValueError where they do not fit."""
        rows, index = len(x), _rows_index(i, len(x), self.grid.steps)
        contexts = [_rows_context(context, rows) for context in self.contexts]
        output = self.network(
            torch.cat([x] * self.rows_per_state),
            self.grid.t[index].repeat(self.rows_per_state),
            torch.cat(contexts),
        )
        self.evaluations += rows * self.rows_per_state
        if self.rows_per_state == 2:
            text, null = output.chunk(2)
            output = guided(text, null, self.scale)

        shape = (rows,) + (1,) * (x.ndim - 1)
        alpha, sigma = (values[index].to(x).view(shape) for values in (self.grid.alpha, self.grid.sigma))
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha
        return alpha * x - sigma * output


def data_prediction(
    network: Network,
    grid: Grid,
    prediction_type: str,
    context: Tensor,
    *,
    null_context: Tensor | None = None,
    scale: float = 1.0,
) -> DataPrediction:
    """x0_fn(x, i) of an eps- or v-predicting network, guided by `scale` (Eq. 6).

    prediction_type: "epsilon", x0 = (x - sigma eps) / alpha; "v_prediction", x0 = alpha x - sigma v (arXiv:2202.00512).
    context, null_context: (1 or B, L, D). One row serves any number of states; B rows serve B states, row for row.
    scale: the guidance scale s. At 1 the null context has no part in Eq. 6 and the network runs once; otherwise
        condition and null run as one batch, and null_context is required.
    ValueError where these do not fit together.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction', got {prediction_type!r}")
    contexts = [context]
    if scale != 1:
        if null_context is None:
            raise ValueError(f"scale={scale:g} guides between two contexts: pass null_context, or scale=1 for none")
        if null_context.shape[1:] != context.shape[1:]:
            raise ValueError(
                f"context and null_context run in one batch and must agree in (L, D), got {tuple(context.shape[1:])} "
                f"and {tuple(null_context.shape[1:])}"
            )
        contexts.append(null_context)
    return DataPrediction(network, grid, prediction_type, contexts, scale)


def guided(text: Tensor, null: Tensor, scale: float) -> Tensor:
    """Eq. 6, classifier-free guidance: null + s * (text - null)."""
    return null + scale * (text - null)


def predict(x0_fn: X0Fn, x: Tensor, i: int | Tensor) -> Tensor:
    """x0_fn(x, i), checked: ValueError for a shape or dtype not x's, FloatingPointError (naming i) for nan, inf."""
    x0_hat = x0_fn(x, i)
    if x0_hat.shape != x.shape or x0_hat.dtype != x.dtype:
        raise ValueError(
            f"x0_fn must return what it is given, {x.dtype} of shape {tuple(x.shape)}; it returned {x0_hat.dtype} of "
            f"shape {tuple(x0_hat.shape)}"
        )
    if not torch.isfinite(x0_hat).all():
        bad = ~torch.isfinite(x0_hat).flatten(1).all(1).cpu()
        where = torch.as_tensor(i, device="cpu").expand(len(x))[bad].unique().tolist()
        raise FloatingPointError(
            f"the data prediction at index i = {', '.join(map(str, where))} is not finite; check the state that went "
            f"in, and if the network runs in float16, run it in bfloat16 or float32"
        )
    return x0_hat


def _rows_index(i: int | Tensor, rows: int, steps: int) -> Tensor:
    index = torch.as_tensor(i, device="cpu")
    if index.dtype != torch.int64 or index.shape not in ((), (rows,)):
        raise ValueError(
            f"i must be an int or int64 of shape ({rows},), got {index.dtype} of shape {tuple(index.shape)}"
        )
    if not ((index >= 0) & (index <= steps)).all():
        raise ValueError(f"i must lie in 0..{steps}, got {index.min()} to {index.max()}")
    return index.expand(rows)


def _rows_context(context: Tensor, rows: int) -> Tensor:
    if len(context) not in (1, rows):
        raise ValueError(f"a context of {len(context)} rows does not fit {rows} states; give 1 row or {rows}")
    return context.expand(rows, *context.shape[1:])
