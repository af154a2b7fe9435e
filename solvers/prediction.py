"""This module turns a network into the data prediction that a solver works with. It holds the parameterisation, the
guidance and the calls of the network. It stands apart because solvers know data predictions alone: what a network takes
and returns, and how many rows it can take at once, is known only here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import Grid

# x (N, ...), i an int or an int64 tensor (N,) -> x0_hat (N, ...). A solver knows nothing else of a network.
X0Fn = Callable[[Tensor, int | Tensor], Tensor]
# x (N, ...), t (N,) float64 on the CPU, context (N, L, D) -> eps or v (N, ...).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CallRows:
    """What the rows of one call of the network are. Every field is int64 (N,), on the CPU, with an entry per row.

    i: the index on the grid. images: the number of the image within the batch. contexts: 0 for the condition, 1 for the
    null context.
    """

    i: Tensor
    images: Tensor
    contexts: Tensor


# The context manager that is entered around the call of the network whose rows these are.
OnCall = Callable[[CallRows], AbstractContextManager[object]]


class DataPrediction:
    """The x0_fn of a network on a grid, made by `data_prediction`.

    rows_per_state: the rows through the network that one state costs, 2 when guided.
    rows: the rows run so far; set it to 0 to start a new count.
    """

    def __init__(
        self,
        network: Network,
        grid: Grid,
        prediction_type: str,
        contexts: list[Tensor],
        scale: float,
        max_batch: int | None,
        on_call: OnCall | None,
    ) -> None:
        self.network, self.grid, self.prediction_type, self.scale = network, grid, prediction_type, scale
        self.contexts, self.max_batch, self.on_call = contexts, max_batch, on_call or nullcontext
        self.rows_per_state = len(contexts)
        self.rows = 0

    def __call__(self, x: Tensor, i: int | Tensor) -> Tensor:
        """x (N, ...), i an int or int64 (N,) in 0..steps -> x0_hat like x. Row n is image n.

        ValueError where they do not fit together, and where a context of several rows does not have N.
        """
        for context in self.contexts:
            if len(context) not in (1, len(x)):
                raise ValueError(
                    f"a context of {len(context)} rows does not fit {len(x)} states; give 1 row or {len(x)}"
                )
        return self._predict(x, i, torch.arange(len(x)))

    def for_images(self, images: Tensor) -> X0Fn:
        """The x0_fn whose row n belongs to image images[n] and gets that image's row of a context of several rows.

        images: int64 (N,) on the CPU, counted from 0. ValueError where a context has too few rows.
        """
        for context in self.contexts:
            if 1 < len(context) <= images.max():
                raise ValueError(
                    f"a context of {len(context)} rows does not reach to image {images.max()}; give 1 row or one per "
                    f"image"
                )

        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            return self._predict(x, i, images)

        return x0_fn

    def _predict(self, x: Tensor, i: int | Tensor, images: Tensor) -> Tensor:
        if len(x) == 0:
            raise ValueError("a data prediction takes one state or more, got none; leave the call out")
        index = _rows_index(i, len(x), self.grid.steps)
        output = self._run_network(x, index, images)
        if self.rows_per_state == 2:
            text, null = output.chunk(2)
            output = guided(text, null, self.scale)

        shape = (len(x),) + (1,) * (x.ndim - 1)
        on_grid = (self.grid.alpha, self.grid.sigma)
        alpha, sigma = (values[index].to(x, non_blocking=True).view(shape) for values in on_grid)
        if self.prediction_type == "epsilon":
            return (x - sigma * output) / alpha
        return alpha * x - sigma * output

    def _run_network(self, x: Tensor, index: Tensor, images: Tensor) -> Tensor:
        """The outputs under all contexts, one context after the other, in calls of at most max_batch rows."""
        copies = self.rows_per_state
        rows = CallRows(index.repeat(copies), images.repeat(copies), torch.arange(copies).repeat_interleave(len(x)))
        x = torch.cat([x] * copies)
        context = torch.cat([_context_of_images(context, images) for context in self.contexts])
        outputs = []
        for piece in torch.arange(len(x)).split(self.max_batch or len(x)):
            part = slice(int(piece[0]), int(piece[-1]) + 1)
            call = CallRows(rows.i[part], rows.images[part], rows.contexts[part])
            with self.on_call(call):
                outputs.append(self.network(x[part], self.grid.t[call.i], context[part]))
            self.rows += len(call.i)
        return torch.cat(outputs)


def data_prediction(
    network: Network,
    grid: Grid,
    prediction_type: str,
    context: Tensor,
    *,
    null_context: Tensor | None = None,
    scale: float = 1.0,
    max_batch: int | None = None,
    on_call: OnCall | None = None,
) -> DataPrediction:
    """The x0_fn(x, i) of an eps- or v-predicting network, guided by `scale` (Eq. 6).

    prediction_type: "epsilon", x0 = (x - sigma eps) / alpha; "v_prediction", x0 = alpha x - sigma v (arXiv:2202.00512).
    context, null_context: (1 or B, L, D). One row serves any number of states; B rows serve B states, row for row, or,
        under `for_images`, the B images.
    scale: the guidance scale s. At 1 the null context drops out of Eq. 6 and the network runs once; otherwise the
        condition and the null context run as one batch, and null_context is required.
    max_batch: the largest number of rows in one call of the network, of which a guided state takes two; None for no
        limit.
    on_call: on_call(rows) returns a context manager, which is entered right before the call of the network that has
        these rows, and left right after it, also where the network raises.
    ValueError where these do not fit together.
    """
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be 'epsilon' or 'v_prediction', got {prediction_type!r}")
    if max_batch is not None and (not isinstance(max_batch, int) or max_batch < 1):
        raise ValueError(f"max_batch must be a whole number, 1 or more, or None for no limit; got {max_batch!r}")
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
    return DataPrediction(network, grid, prediction_type, contexts, scale, max_batch, on_call)


def guided(text: Tensor, null: Tensor, scale: float) -> Tensor:
    """Eq. 6, classifier-free guidance: null + s * (text - null)."""
    return null + scale * (text - null)


class FiniteCheck:
    """Tells of data predictions that are not finite, when `read` asks. Reading makes the CPU wait for a GPU, so a loop
    on a GPU reads once, at its end: what is not finite stays so until then."""

    def __init__(self) -> None:
        self.unread: list[tuple[int | Tensor, Tensor]] = []  # the index, and for each row whether it is finite

    def add(self, x0_hat: Tensor, i: int | Tensor) -> None:
        self.unread.append((i, torch.isfinite(x0_hat).flatten(1).all(1)))

    def read(self) -> None:
        """FloatingPointError, naming the index, for the first prediction that is not finite."""
        for i, finite in self.unread:
            if not finite.all():
                where = torch.as_tensor(i, device="cpu").expand(len(finite))[~finite.cpu()].unique().tolist()
                raise FloatingPointError(
                    f"the data prediction at index i = {', '.join(map(str, where))} is not finite; check the state "
                    f"that went in, and if the network runs in float16, run it in bfloat16 or float32"
                )
        self.unread.clear()


def predict(x0_fn: X0Fn, x: Tensor, i: int | Tensor, check: FiniteCheck | None = None) -> Tensor:
    """x0_fn(x, i). ValueError unless it has x's shape and dtype, FloatingPointError (naming i) unless it is finite.

    check: where given and x lies on a GPU, the prediction is only noted there, for the caller to read.
    """
    x0_hat = x0_fn(x, i)
    if x0_hat.shape != x.shape or x0_hat.dtype != x.dtype:
        raise ValueError(
            f"x0_fn must return what it is given, {x.dtype} of shape {tuple(x.shape)}; it returned {x0_hat.dtype} of "
            f"shape {tuple(x0_hat.shape)}. Return one prediction per state, cast to the dtype of x"
        )
    noted = FiniteCheck() if check is None else check
    noted.add(x0_hat, i)
    if check is None or not x.is_cuda:
        noted.read()
    return x0_hat


def _rows_index(i: int | Tensor, rows: int, steps: int) -> Tensor:
    index = torch.as_tensor(i, device="cpu")
    if index.dtype != torch.int64 or index.shape not in ((), (rows,)):
        raise ValueError(
            f"i must be an int or int64 of shape ({rows},), got {index.dtype} of shape {tuple(index.shape)}; pass one "
            f"index for all {rows} states, or one for each"
        )
    if not ((index >= 0) & (index <= steps)).all():
        raise ValueError(
            f"i must lie in 0..{steps}, got {index.min()} to {index.max()}; make the data prediction on the grid that "
            f"the run is on"
        )
    return index.expand(rows)


def _context_of_images(context: Tensor, images: Tensor) -> Tensor:
    """The context of every row, (N, L, D). A context of a single row serves every image."""
    return context.expand(len(images), *context.shape[1:]) if len(context) == 1 else context[images]
