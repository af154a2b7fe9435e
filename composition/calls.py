"""This module gives the solvers the network, and describes every call of it for the attention hooks.

A hook sees one call of the network after another, and inside a composition it must not have to count them. So whoever
runs the network says of each call which stage it belongs to and what its rows are. All runs of the network in
`composition` begin here, and that is why the module stands apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sd21.attention import describe_calls
from solvers import CallRows, DataPrediction, Grid, data_prediction

from .model import Model

Stage = Literal["inversion", "composition"]


@dataclass(frozen=True)
class Call:
    """One call of the network, as a hook finds it at `site.call`. The three tuples have an entry per row of q, k and v.

    i: the index on the time grid, 0 at the clean end; the rows of a joint inversion's sweep lie at different ones.
    images: "background", "object" or "composite". contexts: "exceptional", "text" or "null".
    """

    stage: Stage
    i: tuple[int, ...]
    images: tuple[str, ...]
    contexts: tuple[str, ...]


@contextmanager
def predicting(
    model: Model,
    grid: Grid,
    contexts: Mapping[str, Tensor],
    *,
    stage: Stage,
    images: Sequence[str],
    scale: float = 1.0,
    max_batch: int | None = None,
    call_of: Callable[[CallRows], Call] | None = None,
) -> Iterator[DataPrediction]:
    """The model's data prediction x0_fn(x, i) for the time of the block, whose calls hooks can tell apart.

    contexts: the condition's context (1 or B, L, D) by its name, and after it the null one's where there is guidance.
    images: the names of the batch's images. scale: s of Eq. 6. max_batch: the largest number of rows in one call.
    call_of: says what a call is, for rows that have contexts of their own; by default `images` and `contexts` say it.
    """
    names, tensors = tuple(contexts), tuple(contexts.values())

    def named(rows: CallRows) -> Call:
        image_names = tuple(images[image] for image in rows.images.tolist())
        return Call(stage, tuple(rows.i.tolist()), image_names, tuple(names[n] for n in rows.contexts.tolist()))

    with describe_calls(model.unet) as describe:
        yield data_prediction(
            model.unet,
            grid,
            model.prediction_type,
            tensors[0],
            null_context=tensors[1] if len(tensors) > 1 else None,
            scale=scale,
            max_batch=max_batch,
            on_call=lambda rows: describe((call_of or named)(rows)),
        )
