"""The method: `compose` puts one tumour into one scan, `compose_batch` many at once.

1. Placement: the object moves to where the user wants it, in the background's own pixels (placement.py).
2. Prompts: exceptional, normal, null (prompts.py).
3. Inversion of backgrounds and placed objects, in one batch, under the exceptional prompt (inversions.py).
4. Eq. 8 at i = start (blending.py).
5. Denoising to 0 under the text prompt, with Eq. 9 on the way (blending.py).
6. Decoding, and back to the background's size, mode and bit depth (canvas.py).

No noise is drawn anywhere: the same inputs give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

import numpy as np
import torch

from solvers import DataPrediction, Grid, data_prediction, denoise

from . import blending, prompts
from .canvas import Composition, Job, Sample, encode, masks, on_canvases, timed, to_scans
from .images import Scan
from .inversions import Trajectory, carried_history, inversion_key, invert_latents, network, sampler
from .settings import Settings


def compose_batch(
    model,
    samples: Sequence[Sample],
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
) -> list[Composition]:
    """Compose all samples; those whose canvas is of one size run as one batch.

    model: what sd21.load returns. prompt None in a sample denoises under the exceptional prompt.
    inversions: any mapping from `inversion_key` to `Trajectory`. A background or placed object found there is not
        inverted again, and a new one, inverted by itself, is put there; a dict keeps them in memory.
    progress: wraps the solvers' loops, e.g. tqdm.
    Returns one Composition for every sample, in their order. Before the network runs, raises ValueError (PlacementError
    for what cannot be placed); later solvers.InversionError for a scan that missed the tolerance.
    """

    def run(jobs: list[Job], token: int) -> list[Composition]:
        """Steps 3 to 6 for samples of one canvas size."""
        seconds: dict[str, float] = {}
        backgrounds, objects, reports = trajectories(model, jobs, token, settings, inversions, progress, seconds)
        with timed(seconds, "composition", model.device):
            x_bg = torch.stack([trajectory.states.to(model.device) for trajectory in backgrounds], dim=1)
            x_obj = torch.stack([trajectory.states for trajectory in objects], dim=1)
            history = None
            if settings.inverted_steps > settings.start:
                _, table = sampler(model, settings)
                carried = [carried_history(states, table) for states in (x_obj, x_bg)]
                history = blending.compose_states(*carried, masks(jobs)[0])
            latent, nfe = compose_trajectories(model, jobs, x_bg, x_obj, token, settings, history, progress)
        return to_scans(
            model,
            jobs,
            latent,
            token,
            settings,
            inversion=reports,
            nfe=[{"inversion": inversion_nfe(report), "composition": nfe} for report in reports],
            seconds=seconds,
        )

    return on_canvases(model, samples, settings, run)


def compose(
    model,
    background: Scan,
    obj: Scan,
    object_mask: np.ndarray,
    user_mask: np.ndarray,
    prompt: str | None,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    method: Callable = compose_batch,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
) -> Composition:
    """`compose_batch`, or another of baselines.METHODS, for a single sample."""
    sample = Sample(background, obj, object_mask, user_mask, prompt)
    return method(model, [sample], settings, inversions=inversions, progress=progress)[0]


def compose_trajectories(
    model,
    jobs: list[Job],
    x_bg: torch.Tensor,
    x_obj: torch.Tensor,
    token: int,
    settings: Settings,
    history: torch.Tensor | None = None,
    progress: Callable | None = None,
) -> tuple[torch.Tensor, int]:
    """Eq. 8 at i = start, and denoising under the text prompt with Eq. 9.

    x_bg, x_obj: states x[0..start], (start + 1 or more, B, C, h, w). history: the composed D[start + 1] (B, C, h, w),
    None for a first-order first step. Returns x[0] (B, C, h, w) and the network rows that each image took.
    """
    grid, table = sampler(model, settings)
    x0_fn = text_prediction(model, jobs, token, grid, settings)
    m_obj, m_user = masks(jobs)
    latent = denoise(
        blending.compose_states(x_obj[settings.start], x_bg[settings.start], m_obj),
        grid,
        table,
        x0_fn,
        start=settings.start,
        history=history,
        edit=blending.preserve_background(x_bg, m_user, settings.preserve_until, settings.start),
        progress=progress,
    )
    return latent, x0_fn.evaluations // len(jobs)


def text_prediction(model, jobs: list[Job], token: int, grid: Grid, settings: Settings) -> DataPrediction:
    """x0_fn under every job's text prompt, guided by settings.guidance_scale against the null prompt (Eq. 6)."""
    return data_prediction(
        network(model, settings.max_batch),
        grid,
        model.prediction_type,
        prompts.normal_context(model, [job.sample.prompt for job in jobs], token),
        null_context=prompts.null_context(model, len(jobs)),
        scale=settings.guidance_scale,
    )


def trajectories(
    model, jobs: list[Job], token: int, settings: Settings, inversions, progress, seconds: dict[str, float]
) -> tuple[list[Trajectory], list[Trajectory], list[dict[str, dict]]]:
    """Every job's background and object, inverted, and what Composition.inversion holds of the two."""
    known = {} if inversions is None else inversions
    images = [*(job.background for job in jobs), *(job.obj for job in jobs)]
    # Without a mapping to outlive this batch the pixels are key enough, and the model's files need no hashing.
    keys = [
        image.cpu().numpy().tobytes() if inversions is None else inversion_key(model, image, token, settings)
        for image in images
    ]
    found = {key: known[key] for key in dict.fromkeys(keys) if key in known}
    new = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
    # What is kept must not depend on its company: a batch's other rows change the rounding, so these go one by one.
    for group in [list(new)] if inversions is None else [[key] for key in new]:
        latents = encode(model, [new[key] for key in group], settings, seconds)
        with timed(seconds, "inversion", model.device):
            inverted = invert_latents(model, latents, token, settings, progress)
        for key, trajectory in zip(group, inverted, strict=True):
            found[key] = known[key] = trajectory
    first = {key: keys.index(key) for key in new}
    each = [found[key] for key in keys]
    told = [_report(found[key], reused=first.get(key) != number) for number, key in enumerate(keys)]
    backgrounds, objects = slice(len(jobs)), slice(len(jobs), None)
    pairs = zip(told[backgrounds], told[objects], strict=True)
    return each[backgrounds], each[objects], [{"background": one, "object": other} for one, other in pairs]


def _report(trajectory: Trajectory, reused: bool) -> dict:
    names = ("method", "nfe", "sweeps", "residual", "converged")
    return {name: getattr(trajectory, name) for name in names} | {"reused": reused}


def inversion_nfe(report: dict[str, dict]) -> int:
    """The network rows that the inversions of a report of `trajectories` took now: a reused one took none."""
    return sum(entry["nfe"] for entry in report.values() if not entry["reused"])
