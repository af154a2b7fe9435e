"""SDEdit noises the pasted image part of the way and denoises it (Meng et al., ICLR 2022, arXiv:2108.01073).

It stands in the tables to show what one gets without any inversion.
"""

from __future__ import annotations

import numpy as np
import torch

from ..canvas import canvas_image
from .frame import Frame
from .noise import draw, generator, noised
from .result import Composition

# Neither paper says what it took. Meng et al. find 0.3 to 0.6 to work well (section 3.2).
STRENGTH = 0.5


def sdedit(frame: Frame, *, strength: float = STRENGTH, seed: int = 0) -> Composition:
    """The pasted image's latent noised to the state round(strength * steps), then denoised under the text prompt.

    strength: Meng et al.'s t0, in (0, 1]; how much of the grid is run. Nothing keeps the background, as in the paper's
        comparison.
    It differs from Meng et al. in that the text-guided latent model denoises, and by the ODE solver of all methods here
    in place of their SDE. Raises ValueError for a strength out of range or of less than half a step, and
    for settings.detail.
    """
    steps = frame.grid.steps
    if frame.settings.detail:
        raise ValueError("detail is what the autoencoder loses of a background, and sdedit draws it anew; leave it off")
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a share of the steps in (0, 1], got {strength}")
    start = round(strength * steps)
    if start < 1:
        raise ValueError(f"strength {strength} of {steps} steps rounds to none: give more than {0.5 / steps:g}")
    pasted = frame.encode(pasted_image(frame))
    with frame.stage("composition"):
        x = noised(pasted, draw(generator(seed), pasted), frame.grid, start)
        latent = frame.denoise(x, frame.text_prediction(), start)
    return frame.finish(latent)


def pasted_image(frame: Frame) -> torch.Tensor:
    """The pasted image on the canvas, as the background is: (1, 3, h, w) in [-1, 1]."""
    inside = frame.placement.object_mask[..., None]
    return canvas_image(frame.model, np.where(inside, frame.placement.image, frame.seen.background.values()))
