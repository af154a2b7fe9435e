"""This module gives the solvers the network, and describes every call of it for the attention hooks.

A hook sees one call of the network after another, and inside a composition it must not have to count them. So whoever
runs the network says of each call which stage it belongs to and what its rows are. All runs of a method go through
here, and that is why the module stands apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sd21.attention import describe_call
from solvers import CallRows, DataPrediction, Grid, data_prediction

from .model import Model

Stage = Literal["inversion", "composition"]


@dataclass(frozen=True)
class Call:
    """One call of the network, as a hook finds it at `site.call`. The three tuples have an entry per row of q, k and v.

    i: the index on the time grid, 0 at the clean end; the rows of a call of Newton-GMRES lie at different ones.
    images: "background", "object" or "composite". contexts: "exceptional", "text" or "null".
    """

    stage: Stage
    i: tuple[int, ...]
    images: tuple[str, ...]
    contexts: tuple[str, ...]


def named(stage: Stage, images: Sequence[str], contexts: Sequence[str]) -> Callable[[CallRows], Call]:
    """The description of calls whose images and contexts have these names, in the order of their numbers."""

    def describe(rows: CallRows) -> Call:
        image_names = tuple(images[number] for number in rows.images.tolist())
        context_names = tuple(contexts[number] for number in rows.contexts.tolist())
        return Call(stage, tuple(rows.i.tolist()), image_names, context_names)

    return describe


def model_prediction(
    model: Model,
    grid: Grid,
    describe: Callable[[CallRows], Call],
    context: Tensor,
    *,
    null_context: Tensor | None = None,
    scale: float = 1.0,
    max_batch: int | None = None,
) -> DataPrediction:
    """The model's data prediction x0_fn(x, i), whose calls hooks can tell apart.

    describe: says what a call is. context, null_context: (1 or B, L, D). scale: s of Eq. 6, 1 for no guidance.
    max_batch: the largest number of rows in one call. It raises what `solvers.data_prediction` raises.
    """
    return data_prediction(
        model.unet,
        grid,
        model.prediction_type,
        context,
        null_context=null_context,
        scale=scale,
        max_batch=max_batch,
        on_call=lambda rows: describe_call(model.unet, describe(rows)),
    )
