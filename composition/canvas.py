"""Samples onto the network's canvas and latents back to scans: what every method does before and after its own part.

A method is a function `run(jobs, token) -> compositions` on jobs of one canvas size; `on_canvases` makes the jobs and
`to_scans` the compositions, so that methods differ in nothing but what they do to latents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from . import blending, prompts
from .images import Scan
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

    @property
    def grayscale(self) -> bool:
        """Whether the result is: it is if both scans are."""
        return self.background.grayscale and self.obj.grayscale


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


@dataclass(frozen=True)
class Job:
    """A sample on the canvas: images (3, h, w) in [-1, 1], masks (1, h / 8, w / 8) of the latent grid."""

    number: int
    sample: Sample
    placement: Placement
    background: torch.Tensor
    obj: torch.Tensor
    m_obj: torch.Tensor
    m_user: torch.Tensor


Run = Callable[[list[Job], int], list[Composition]]


@torch.no_grad()
def on_canvases(model, samples: Sequence[Sample], settings: Settings, run: Run) -> list[Composition]:
    """One Composition for every sample, in their order: `run(jobs, token)` for the samples of each canvas size.

    token: the exceptional prompt's. Raises ValueError, PlacementError for what cannot be placed, before the first run.
    """
    token = prompts.exceptional_token(model.text_encoder.config.vocab_size, settings.exceptional_token)
    factor = model.vae.config.factor
    batches: dict[tuple[int, int], list[Job]] = {}
    for number, sample in enumerate(samples):
        placement = place(sample.background, sample.obj, sample.object_mask, sample.user_mask)
        canvas = canvas_size(sample.background.size, model.image_size, factor)
        grid = (canvas[0] // factor, canvas[1] // factor)
        job = Job(
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
        batches.setdefault(canvas, []).append(job)
    results = {}
    for jobs in batches.values():
        for job, result in zip(jobs, run(jobs, token), strict=True):
            results[job.number] = result
    return [results[number] for number in range(len(samples))]


def masks(jobs: list[Job]) -> tuple[torch.Tensor, torch.Tensor]:
    """M_obj and M_user of all jobs, (B, 1, h, w) each."""
    return torch.stack([job.m_obj for job in jobs]), torch.stack([job.m_user for job in jobs])


def encode(model, images: list[torch.Tensor], settings: Settings, seconds: dict[str, float]) -> torch.Tensor:
    """Images (3, h, w) of one canvas as latents (B, C, h / 8, w / 8)."""
    with timed(seconds, "encode", model.device):
        return _in_pieces(model.encode, torch.stack(images), settings.max_batch)


@torch.no_grad()
def reproduce(model, values: np.ndarray) -> np.ndarray:
    """An image as the model's autoencoder gives it back: values (H, W, 3) in [-1, 1] on both sides."""
    size = values.shape[:2]
    canvas = canvas_size(size, model.image_size, model.vae.config.factor)
    image = to_canvas(values, canvas).to(model.device)
    return from_canvas(model.decode(model.encode(image[None]))[0].float().cpu(), size)


def to_scans(
    model,
    jobs: list[Job],
    latent: torch.Tensor,
    token: int,
    settings: Settings,
    *,
    inversion: list[dict[str, dict]],
    nfe: list[dict[str, int]],
    seconds: dict[str, float],
) -> list[Composition]:
    """Decode latents (B, C, h, w) and bring them to the backgrounds' size, channels and bit depth.

    inversion, nfe: for every job; seconds: of the whole batch. All three go into the results as Composition says.
    """
    with timed(seconds, "decode", model.device):
        images = _in_pieces(model.decode, latent, settings.max_batch).float().cpu()
    results = []
    for row, job in enumerate(jobs):
        background = job.sample.background
        image = background.render(from_canvas(images[row], background.size), grayscale=job.sample.grayscale)
        if settings.preserve == "pixels":
            image = blending.preserve_pixels(background, image, job.placement.user_mask, settings.feather)
        placed = placed_object(job.sample, job.placement)
        results.append(composition_of(job, image, placed, token, inversion[row], nfe[row], seconds))
    return results


def placed_object(sample: Sample, placement: Placement) -> np.ndarray:
    """The placed object with its tissue, as pixels of the background's kind: what Composition.placed is."""
    return sample.background.render(placement.image, grayscale=sample.grayscale)


def composition_of(
    job: Job, image: np.ndarray, placed: np.ndarray, token: int, inversion: dict, nfe: dict, seconds: dict
) -> Composition:
    """The result of one job, all but the arguments taken from the job."""
    return Composition(
        image=image,
        mask=job.placement.object_mask,
        placed=placed,
        clipped=job.placement.clipped,
        canvas=tuple(job.background.shape[1:]),
        exceptional_token=token,
        inversion=inversion,
        nfe=nfe,
        seconds=dict(seconds),
    )


def _in_pieces(fn: Callable, rows: torch.Tensor, max_batch: int | None) -> torch.Tensor:
    return torch.cat([fn(piece) for piece in rows.split(max_batch or len(rows))])


@contextmanager
def timed(seconds: dict[str, float], stage: str, device):
    """Add the stage's wall time to `seconds`."""
    begin = time.perf_counter()
    yield
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
