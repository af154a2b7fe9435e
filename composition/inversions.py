"""Scans as trajectories: inverted once under the exceptional prompt, kept, and read wherever a state is needed.

A trajectory depends on the scan as it lies on the canvas, the model and the settings of the inversion, and on nothing
else: a background that takes many tumours is inverted for the first of them alone, and neither it nor a tumour in
its place is inverted again for another prompt, guidance, tau or method. `compose_batch` looks both up in any
mapping from `inversion_key` to `Trajectory`; a dict keeps them in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

from solvers import Grid, NoiseSchedule, StepTable, data_prediction, dpm_solver_pp_2m, invert, log_snr, time_uniform

from .prompts import exceptional_context
from .settings import Settings

GRIDS = {"time_uniform": time_uniform, "log_snr": log_snr}


@dataclass(frozen=True)
class Trajectory:
    """One scan's states x[0..k], float32 (k + 1, C, h, w), and what their inversion reported.

    method, nfe (network rows spent), sweeps, residual (round-trip error, relative), converged: solvers.invert's report.
    """

    states: torch.Tensor
    method: str
    nfe: int
    sweeps: int
    residual: float
    converged: bool


def sampler(model, settings: Settings) -> tuple[Grid, StepTable]:
    """The time grid and DPM-Solver++(2M)'s table on it, for the model's noise schedule."""
    grid = GRIDS[settings.grid](NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod), settings.steps)
    return grid, dpm_solver_pp_2m(grid, lower_order_final=settings.lower_order_final)


def network(model, max_batch: int | None) -> Callable:
    """The model's UNet, taking any number of rows in calls of at most max_batch."""

    def run(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        pieces = zip(*(rows.split(max_batch or len(x)) for rows in (x, t, context)), strict=True)
        return torch.cat([model.unet(*piece) for piece in pieces])

    return run


def invert_latents(model, latents: torch.Tensor, token: int, settings: Settings, progress=None) -> list[Trajectory]:
    """Invert latents (B, C, h, w), all in one batch, under the exceptional prompt and without guidance.

    They are inverted up to settings.inverted_steps. Raises solvers.InversionError where one misses the tolerance.
    """
    grid, table = sampler(model, settings)
    x0_fn = data_prediction(
        network(model, settings.max_batch), grid, model.prediction_type, exceptional_context(model, token)
    )
    inversion = invert(
        latents,
        grid,
        table,
        x0_fn,
        start=settings.inverted_steps,
        method=settings.inversion,
        tol=settings.tolerance,
        progress=progress,
    )
    report = inversion.report
    return [
        Trajectory(
            inversion.states[:, row].clone(),
            report.method,
            int(report.nfe[row]),
            int(report.sweeps[row]),
            float(report.residual[row]),
            bool(report.converged[row]),
        )
        for row in range(len(latents))
    ]


def carried_history(states: torch.Tensor, table: StepTable) -> torch.Tensor:
    """D[k] of trajectories x[0..k], (k + 1, B, ...): the data prediction their sampling run starts with.

    Nothing is evaluated: that run's first step, x[k-1] = a x[k] + (b + c) D[k], is solved for D[k].
    """
    k = len(states) - 1
    a, b, _ = table.row(k, first=True)
    return (states[k - 1] - a * states[k]) / b


def inversion_key(model, image: torch.Tensor, token: int, settings: Settings) -> str:
    """A SHA-256 over all that a trajectory depends on: the image on the canvas (3, h, w), the model, the settings."""
    about = {
        "model": model.identity,
        "prediction_type": model.prediction_type,
        "dtype": str(model.dtype),
        "device": torch.device(model.device).type,
        "token": token,
        "shape": list(image.shape),
        "image_dtype": str(image.dtype),
        **{
            name: getattr(settings, name)
            for name in ("steps", "grid", "lower_order_final", "inverted_steps", "inversion", "tolerance")
        },
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    digest.update(image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
