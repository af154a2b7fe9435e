"""Blended latent diffusion draws what the text says inside the user mask, and does not look at the object.

Avrahami et al., ACM Trans. Graph. 42(4), 2023, arXiv:2206.02779. It stands in the tables to show what the prompt alone
makes of the place.
"""

from __future__ import annotations

import torch

from ..blending import blend
from .frame import Frame
from .noise import draw, generator, noised
from .result import Composition

SKIPPED = 0.25  # share of the steps that is not run, at the noise end: the default of the authors' public code


def blended_latent_diffusion(frame: Frame, *, skipped: float = SKIPPED, seed: int = 0) -> Composition:
    """Algorithm 1 of Avrahami et al.: the background noised to state steps - int(skipped * steps), then denoised under
    the text prompt; outside M_user each state is the background's latent with fresh noise of that state's level, and
    the clean one at the end. The object's pixels play no part: this is what text alone makes of the place.

    skipped: share of the steps, in [0, 1).
    The algorithm has two ways to mend what the autoencoder loses outside the mask. The blend of pixels is
    settings.preserve = "pixels"; we leave out the decoder that is fitted to each image. We also leave out the mask that
    shrinks over the steps, which is for thin masks. Their code, unlike the algorithm, begins with pure noise even where
    it skips steps, noises the background to the level of the step before, and never blends the clean one. Their
    guidance scale is 7.5.
    Raises ValueError for a share out of range.
    """
    if not 0 <= skipped < 1:
        raise ValueError(f"skipped is a share of the steps in [0, 1), got {skipped}")
    grid, source = frame.grid, generator(seed)
    start = grid.steps - int(skipped * grid.steps)
    background = frame.encode(frame.background)

    def noisy_background(i: int) -> torch.Tensor:
        return noised(background, draw(source, background), grid, i)

    def edit(i: int, x: torch.Tensor) -> torch.Tensor:
        return blend(x, noisy_background(i) if i > 0 else background, frame.m_user)

    with frame.stage("composition"):
        latent = frame.denoise(noisy_background(start), frame.text_prediction(), start, edit=edit)
    return frame.finish(latent, of_object=False)
