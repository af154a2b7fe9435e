"""This module holds our method: two measured inversions, Eq. 8 and Eq. 9. `published` says where the paper's differs.

The method is four steps, and everything around them is the Frame's:

1. Background and placed object are inverted under the exceptional prompt, up to `start`.
2. Eq. 8 composes their states at i = start.
3. The composite is denoised to 0 under the text prompt, and Eq. 9 preserves background and object on the way.
4. What the autoencoder loses of background and object is given back (`Frame.finish`).

Every state is read from the stored trajectories. No noise is drawn anywhere: the same inputs give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solvers import history_at

from ..blending import compose_states, preserve_states
from .frame import Frame
from .result import Composition


def ours(frame: Frame) -> Composition:
    """The four steps of this module.

    Raises solvers.InversionError for a scan that missed the tolerance, where settings.on_failure is "raise".
    """
    start, history = frame.settings.start, ()
    # A run continued with history takes as many data predictions above start as the solver weighs beside D[start].
    carried = frame.table.terms - 1 if frame.settings.history == "carry" else 0
    until = min(start + carried, frame.grid.steps)
    x_bg, x_obj = frame.invert(until)
    with frame.stage("composition"):
        if until > start:
            table = frame.solver(frame.grid.until(until))
            pairs = zip(history_at(x_obj, table, start), history_at(x_bg, table, start), strict=True)
            history = [compose_states(of_obj, of_bg, frame.m_obj) for of_obj, of_bg in pairs]
        latent = denoise_composite(frame, x_bg, x_obj, history, object_until=frame.settings.preserve_object_until)
    return frame.finish(latent, detail=True)


def denoise_composite(
    frame: Frame,
    x_bg: Sequence[torch.Tensor],
    x_obj: Sequence[torch.Tensor],
    history: Sequence[torch.Tensor] = (),
    *,
    object_until: int | None = None,
) -> torch.Tensor:
    """Eq. 8 at i = start, and denoising under the text prompt with Eq. 9: x[0] (1, C, h, w).

    x_bg, x_obj: states x[0..start] or more, (1, C, h, w) each. history: the composed D[start + 1], D[start + 2], ...;
    none for a run that begins at start. object_until: as settings.preserve_object_until.
    """
    settings, start = frame.settings, frame.settings.start
    x = compose_states(x_obj[start], x_bg[start], frame.m_obj)
    until = settings.preserve_background_until
    edit = preserve_states(x_bg, x_obj, frame.m_user, frame.m_held, start, until, object_until)
    return frame.denoise(x, frame.text_prediction(), start, history=history, edit=edit)
