"""SDEdit (Meng et al., ICLR 2022, arXiv:2108.01073): the pasted image, noised part of the way and denoised."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import numpy as np
import torch

from solvers import denoise

from ..canvas import Composition, Job, Sample, encode, on_canvases, timed, to_scans
from ..compose import text_prediction
from ..inversions import sampler
from ..placement import to_canvas
from ..settings import Settings
from . import noise

# Neither paper says what it took. Meng et al. find 0.3 to 0.6 to work well (section 3.2).
STRENGTH = 0.5


def sdedit(
    model,
    samples: Sequence[Sample],
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
    strength: float = STRENGTH,
    seed: int = 0,
) -> list[Composition]:
    """The pasted image's latent noised to the state round(strength * steps), then denoised under the text prompt.

    strength: Meng et al.'s t0, in (0, 1]; how much of the grid is run. Nothing keeps the background, as in the paper's
        comparison. inversions: not used.
    It differs from Meng et al. in that the text-guided latent model denoises, and by the ODE solver of all methods here
    in place of their SDE. Raises ValueError as `compose_batch` does, and for a strength out of range or of
    less than half a step.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is a share of the steps in (0, 1], got {strength}")
    start = round(strength * settings.steps)
    if start < 1:
        raise ValueError(
            f"strength {strength} of {settings.steps} steps rounds to none: give more than {0.5 / settings.steps:g}"
        )

    def run(jobs: list[Job], token: int) -> list[Composition]:
        seconds: dict[str, float] = {}
        images = [pasted_image(job) for job in jobs]
        pasted = encode(model, images, settings, seconds)
        with timed(seconds, "composition", model.device):
            grid, table = sampler(model, settings)
            x0_fn = text_prediction(model, jobs, token, grid, settings)
            x = noise.noised(pasted, noise.draw(noise.generator(seed), pasted), grid, start)
            latent = denoise(x, grid, table, x0_fn, start=start, progress=progress)
        nfe = {"inversion": 0, "composition": x0_fn.evaluations // len(jobs)}
        return to_scans(
            model, jobs, latent, token, settings, inversion=[{}] * len(jobs), nfe=[nfe] * len(jobs), seconds=seconds
        )

    return on_canvases(model, samples, settings, run)


def pasted_image(job: Job) -> torch.Tensor:
    """The pasted image on the job's canvas, as its background is: (3, h, w) in [-1, 1]."""
    values = np.where(job.placement.object_mask[..., None], job.placement.image, job.sample.background.values())
    return to_canvas(values, job.background.shape[1:]).to(job.background.device)
