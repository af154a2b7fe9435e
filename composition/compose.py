"""The method: `compose` puts one tumour into one scan, `compose_batch` many at once.

1. Placement: the object moves to where the user wants it, in the background's own pixels (placement.py).
2. Prompts: exceptional, normal, null (prompts.py).
3. Inversion of backgrounds and placed objects, in one batch, under the exceptional prompt (inversions.py).
4. Eq. 8 at i = start (blending.py).
5. Denoising to 0 under the text prompt, with Eq. 9 on the way (blending.py).
6. Decoding, and back to the background's size, mode and bit depth.

No noise is drawn anywhere: the same inputs give the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from solvers import data_prediction, denoise

from . import blending, prompts
from .images import Scan
from .inversions import Trajectory, carried_history, inversion_key, invert_latents, network, sampler
from .placement import Placement, PlacementError, canvas_size, from_canvas, place, to_canvas, to_latent_mask
from .settings import Settings


@dataclass(frozen=True)
class Sample:
    """One composition's inputs. Masks are bool arrays (H, W): object_mask of obj's size, user_mask of background's."""

    background: Scan
    obj: Scan
    object_mask: np.ndarray
    user_mask: np.ndarray
    prompt: str | None  # None: the exceptional prompt


@dataclass(frozen=True)
class Composition:
    """One result. All arrays are in the background's own coordinates and size (H, W)."""

    image: np.ndarray  # (H, W) or (H, W, 3), uint8 or uint16, as the background's file
    mask: np.ndarray  # bool (H, W): where the tumour is
    placed: np.ndarray  # as image: the placed object with its tissue, before composition
    clipped: float  # share of the placed object mask that lay outside the user mask and was cut
    canvas: tuple[int, int]  # (height, width) in pixels that the network saw
    exceptional_token: int
    inversion: dict[str, dict]  # "background", "object": method, nfe, sweeps, residual, converged, reused
    nfe: dict[str, int]  # UNet rows by stage, "inversion" and "composition"; a reused inversion costs none
    seconds: dict[str, float]  # of the whole batch, by stage: "encode", "inversion", "composition", "decode"


def compose(
    model,
    background: Scan,
    obj: Scan,
    object_mask: np.ndarray,
    user_mask: np.ndarray,
    prompt: str | None,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
) -> Composition:
    """`compose_batch` for a single sample."""
    sample = Sample(background, obj, object_mask, user_mask, prompt)
    return compose_batch(model, [sample], settings, inversions=inversions, progress=progress)[0]


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
    inversions: any mapping from `inversion_key` to `Trajectory`. A background found there is not inverted again, and
        a new one, inverted by itself, is put there; a dict keeps them in memory.
    progress: wraps the solvers' loops, e.g. tqdm.
    Returns one Composition for every sample, in their order. Before the network runs, raises ValueError (PlacementError
    for what cannot be placed); later solvers.InversionError for a scan that missed the tolerance.
    """
    token = prompts.exceptional_token(model.text_encoder.config.vocab_size, settings.exceptional_token)
    factor = model.vae.config.factor
    jobs: dict[tuple[int, int], list[_Job]] = {}
    for number, sample in enumerate(samples):
        placement = place(sample.background, sample.obj, sample.object_mask, sample.user_mask)
        canvas = canvas_size(sample.background.size, model.image_size, factor)
        grid = (canvas[0] // factor, canvas[1] // factor)
        job = _Job(
            number,
            sample,
            placement,
            background=to_canvas(sample.background.values(), canvas).to(model.device),
            obj=to_canvas(placement.image, canvas).to(model.device),
            m_obj=to_latent_mask(placement.object_mask, grid).to(model.device),
            m_user=to_latent_mask(placement.user_mask, grid).to(model.device),
        )
        if not job.m_obj.any():
            raise PlacementError(
                f"the object covers {placement.object_mask.sum()} pixels of {sample.background.name}, less than half "
                f"of any cell of the {grid[0]}x{grid[1]} latent grid; use a larger user mask"
            )
        jobs.setdefault(canvas, []).append(job)
    results = {}
    for batch in jobs.values():
        for job, result in zip(batch, _run(model, batch, token, settings, inversions, progress), strict=True):
            results[job.number] = result
    return [results[number] for number in range(len(samples))]


@dataclass(frozen=True)
class _Job:
    """A sample on the canvas: images (3, h, w) in [-1, 1], masks (1, h / 8, w / 8) of the latent grid."""

    number: int
    sample: Sample
    placement: Placement
    background: torch.Tensor
    obj: torch.Tensor
    m_obj: torch.Tensor
    m_user: torch.Tensor


@torch.no_grad()
def _run(model, jobs: list[_Job], token: int, settings: Settings, inversions, progress) -> list[Composition]:
    """Steps 3 to 6 for samples of one canvas size."""
    seconds: dict[str, float] = {}
    backgrounds, objects, reused = _trajectories(model, jobs, token, settings, inversions, progress, seconds)

    with _timed(seconds, "composition", model.device):
        x_bg = torch.stack([trajectory.states.to(model.device) for trajectory in backgrounds], dim=1)
        x_obj = torch.stack([trajectory.states for trajectory in objects], dim=1)
        m_obj, m_user = (torch.stack([getattr(job, name) for job in jobs]) for name in ("m_obj", "m_user"))
        grid, table = sampler(model, settings)
        start = settings.start
        history = None
        if settings.inverted_steps > start:
            history = blending.compose_states(carried_history(x_obj, table), carried_history(x_bg, table), m_obj)
        x0_fn = data_prediction(
            network(model, settings.max_batch),
            grid,
            model.prediction_type,
            prompts.normal_context(model, [job.sample.prompt for job in jobs], token),
            null_context=prompts.null_context(model, len(jobs)),
            scale=settings.guidance_scale,
        )
        latent = denoise(
            blending.compose_states(x_obj[start], x_bg[start], m_obj),
            grid,
            table,
            x0_fn,
            start=start,
            history=history,
            edit=blending.preserve_background(x_bg, m_user, settings.preserve_until, start),
            progress=progress,
        )
    with _timed(seconds, "decode", model.device):
        images = _in_pieces(model.decode, latent, settings.max_batch).float().cpu()

    results = []
    for row, job in enumerate(jobs):
        background, placement = job.sample.background, job.placement
        grayscale = background.grayscale and job.sample.obj.grayscale
        image = background.render(from_canvas(images[row], background.size), grayscale=grayscale)
        if settings.preserve == "pixels":
            image = blending.preserve_pixels(background, image, placement.user_mask, settings.feather)
        trajectories = {"background": backgrounds[row], "object": objects[row]}
        results.append(
            Composition(
                image=image,
                mask=placement.object_mask,
                placed=background.render(placement.image, grayscale=grayscale),
                clipped=placement.clipped,
                canvas=tuple(job.background.shape[1:]),
                exceptional_token=token,
                inversion={
                    name: {
                        "method": trajectory.method,
                        "nfe": trajectory.nfe,
                        "sweeps": trajectory.sweeps,
                        "residual": trajectory.residual,
                        "converged": trajectory.converged,
                        "reused": name == "background" and reused[row],
                    }
                    for name, trajectory in trajectories.items()
                },
                nfe={
                    "inversion": objects[row].nfe + (0 if reused[row] else backgrounds[row].nfe),
                    "composition": start * x0_fn.rows_per_state,
                },
                seconds=dict(seconds),
            )
        )
    return results


def _trajectories(
    model, jobs: list[_Job], token: int, settings: Settings, inversions, progress, seconds: dict[str, float]
) -> tuple[list[Trajectory], list[Trajectory], list[bool]]:
    """Every job's background and object, inverted, and whether its background had been inverted before."""
    known = {} if inversions is None else inversions
    # Without a mapping to outlive this batch the pixels are key enough, and the model's files need no hashing.
    keys = [
        job.background.cpu().numpy().tobytes()
        if inversions is None
        else inversion_key(model, job.background, token, settings)
        for job in jobs
    ]
    found = {key: known[key] for key in dict.fromkeys(keys) if key in known}
    new = {key: job.background for key, job in zip(keys, jobs, strict=True) if key not in found}
    objects = [job.obj for job in jobs]
    # What is kept must not depend on its company: a batch's other rows change the rounding, so new ones go one by one.
    groups = [[*new.values(), *objects]] if inversions is None else [*([image] for image in new.values()), objects]
    inverted = []
    for group in groups:
        with _timed(seconds, "encode", model.device):
            latents = _in_pieces(model.encode, torch.stack(group), settings.max_batch)
        with _timed(seconds, "inversion", model.device):
            inverted += invert_latents(model, latents, token, settings, progress)
    for key, trajectory in zip(new, inverted, strict=False):
        found[key] = known[key] = trajectory
    first = {key: keys.index(key) for key in new}
    reused = [first.get(key) != row for row, key in enumerate(keys)]
    return [found[key] for key in keys], inverted[len(new) :], reused


def _in_pieces(fn: Callable, rows: torch.Tensor, max_batch: int | None) -> torch.Tensor:
    return torch.cat([fn(piece) for piece in rows.split(max_batch or len(rows))])


@contextmanager
def _timed(seconds: dict[str, float], stage: str, device):
    """Add the stage's wall time to `seconds`."""
    begin = time.perf_counter()
    yield
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
