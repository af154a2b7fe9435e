"""Blended latent diffusion (Avrahami et al., ACM Trans. Graph. 42(4), 2023, arXiv:2206.02779): text inside the mask."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import torch

from solvers import denoise

from ..canvas import Composition, Job, Sample, encode, masks, on_canvases, timed, to_scans
from ..compose import text_prediction
from ..inversions import sampler
from ..settings import Settings
from . import noise

SKIPPED = 0.25  # share of the steps that is not run, at the noise end: the default of the authors' public code


def blended_latent_diffusion(
    model,
    samples: Sequence[Sample],
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
    skipped: float = SKIPPED,
    seed: int = 0,
) -> list[Composition]:
    """Algorithm 1 of Avrahami et al.: the background noised to state steps - int(skipped * steps), then denoised under
    the text prompt; outside M_user each state is the background's latent with fresh noise of that state's level, and
    the clean one at the end. The object's pixels play no part: this is what text alone makes of the place.

    skipped: share of the steps, in [0, 1). inversions: not used.
    Of the algorithm's two ways to mend what the autoencoder loses outside the mask, settings.preserve = "pixels" is the
    blend of pixels; the decoder fitted to each image is left out. So is the mask that shrinks over the steps, which is
    for thin masks. Their code, unlike the algorithm, begins with pure noise even where it skips steps, noises the
    background to the level of the step before, and never blends the clean one. Their guidance scale is 7.5.
    Raises ValueError as `compose_batch` does, and for a share out of range.
    """
    if not 0 <= skipped < 1:
        raise ValueError(f"skipped is a share of the steps in [0, 1), got {skipped}")
    start = settings.steps - int(skipped * settings.steps)

    def run(jobs: list[Job], token: int) -> list[Composition]:
        seconds: dict[str, float] = {}
        background = encode(model, [job.background for job in jobs], settings, seconds)
        with timed(seconds, "composition", model.device):
            grid, table = sampler(model, settings)
            x0_fn = text_prediction(model, jobs, token, grid, settings)
            source, (_, m_user) = noise.generator(seed), masks(jobs)

            def blend(i: int, x: torch.Tensor) -> torch.Tensor:
                state = noise.noised(background, noise.draw(source, background), grid, i) if i > 0 else background
                return x * m_user + state * (1 - m_user)

            x = noise.noised(background, noise.draw(source, background), grid, start)
            latent = denoise(x, grid, table, x0_fn, start=start, edit=blend, progress=progress)
        nfe = {"inversion": 0, "composition": x0_fn.evaluations // len(jobs)}
        return to_scans(
            model, jobs, latent, token, settings, inversion=[{}] * len(jobs), nfe=[nfe] * len(jobs), seconds=seconds
        )

    return on_canvases(model, samples, settings, run)
