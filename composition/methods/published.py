"""This module holds the paper's method as its text and its starting point, TF-ICON's code, have it.

It stands beside `ours`, so that every table can show what our changes are worth.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from solvers import sample

from .frame import Frame
from .ours import denoise_composite
from .result import Composition


def published(frame: Frame) -> Composition:
    """Sections 4.2 and 4.3 as published: background and object inverted all the way to T, by the naive inversion, and
    denoised again; Eq. 8 composes their states at T', Eq. 9 preserves the background of that second trajectory, and the
    composite's first step, without history, is first-order.

    Our method differs in these ways. It inverts to T' alone, and measures and mends the inversion; it reads every state
    from the stored trajectory; it holds the object; and it gives back what the autoencoder loses. So this method does
    not use settings.inversion, history and preserve_object_until. How the object is placed and what the network sees is
    the frame's matter, as for every method: with `Settings.paper()` that is the paper's too.
    Half of the inversion's rows are the round trip that measures it. TF-ICON's code does not run these. It runs two
    rows for every other one of inverting and denoising again, because it guides between the exceptional prompt and
    itself, which Eq. 6 turns into no guidance whatever the scale is.
    """
    x_bg, x_obj = invert_to_the_end(frame)
    with frame.stage("composition"):
        x_bg, x_obj = denoise_again(frame, torch.cat([x_bg[-1], x_obj[-1]])).split(1, dim=1)
        latent = denoise_composite(frame, x_bg, x_obj)
    return frame.finish(latent)


def invert_to_the_end(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """TF-ICON's inversion of background and object: naive, to T. As `Frame.invert` returns them."""
    return frame.invert(frame.grid.steps, replace(frame.settings, inversion="naive"))


def denoise_again(frame: Frame, x: torch.Tensor) -> torch.Tensor:
    """The states x[0..T] of the runs from x[T] of background and object (2, C, h, w), under the exceptional prompt:
    (T + 1, 2, C, h, w)."""
    x0_fn = frame.exceptional_prediction(("background", "object"))
    states = [x for _, x, _ in sample(x, frame.grid, frame.table, x0_fn, progress=frame.progress_of("inversion"))]
    return torch.stack(states[::-1])
