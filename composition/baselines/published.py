"""The paper's method as its text and its starting point, TF-ICON's code, have it; our default is `compose_batch`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace

import torch

from solvers import data_prediction, denoise

from ..canvas import Composition, Job, Sample, on_canvases, timed, to_scans
from ..compose import compose_trajectories, inversion_nfe, trajectories
from ..inversions import network, sampler
from ..prompts import exceptional_context
from ..settings import Settings


def published(
    model,
    samples: Sequence[Sample],
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    *,
    inversions: MutableMapping | None = None,
    progress: Callable | None = None,
) -> list[Composition]:
    """Sections 4.2 and 4.3 as published: background and object inverted all the way to T, by the naive inversion, and
    denoised again; Eq. 8 composes their states at T', Eq. 9 preserves the background of that second trajectory, and the
    composite's first step, without history, is first-order.

    Where ours differs: it inverts exactly, to T' and one state further, reads every state from the stored trajectory,
    and carries the history, so `settings.inversion`, `tolerance` and `history` are not used here.
    inversions: as for `compose_batch`, shared with `tf_icon`.
    nfe counts the rows that are run; half of the inversion's are the round trip that measures it. TF-ICON's code takes
    none of these, and two rows for every other one of inverting and denoising again: it guides between the exceptional
    prompt and itself, which Eq. 6 turns into no guidance whatever the scale.
    """
    whole = naive_to_the_end(settings)

    def run(jobs: list[Job], token: int) -> list[Composition]:
        seconds: dict[str, float] = {}
        backgrounds, objects, reports = trajectories(model, jobs, token, whole, inversions, progress, seconds)
        with timed(seconds, "composition", model.device):
            ends = torch.stack([trajectory.states[-1].to(model.device) for trajectory in [*backgrounds, *objects]])
            states, nfe_again = denoise_again(model, ends, token, settings, progress)
            x_bg, x_obj = states.chunk(2, dim=1)
            latent, nfe = compose_trajectories(model, jobs, x_bg, x_obj, token, settings, progress=progress)
        counts = [
            {"inversion": inversion_nfe(report), "composition": nfe + nfe_again // len(jobs)} for report in reports
        ]
        return to_scans(model, jobs, latent, token, settings, inversion=reports, nfe=counts, seconds=seconds)

    return on_canvases(model, samples, settings, run)


def naive_to_the_end(settings: Settings) -> Settings:
    """The settings of TF-ICON's inversion: naive, to T."""
    return replace(settings, inversion="naive", start=settings.steps, history="restart")


def denoise_again(model, x: torch.Tensor, token: int, settings: Settings, progress) -> tuple[torch.Tensor, int]:
    """States x[0..T] of the run from x = x[T] (B, C, h, w) under the exceptional prompt, (T + 1, B, C, h, w), and the
    network rows it took."""
    grid, table = sampler(model, settings)
    x0_fn = data_prediction(
        network(model, settings.max_batch), grid, model.prediction_type, exceptional_context(model, token)
    )
    states = []

    def keep(i: int, x: torch.Tensor) -> torch.Tensor:
        states.append(x)
        return x

    denoise(x, grid, table, x0_fn, edit=keep, progress=progress)
    return torch.stack(states[::-1]), x0_fn.evaluations
