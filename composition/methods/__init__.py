"""This package holds the method and its baselines, each a function of a Frame, and `compose`, which drives any of them.

METHODS is the one table of methods, in the order of the paper's Tab. 1: a new one is a file here and an entry there.
Each has its own file, so that its equations, constants and departures from its authors' code stand in one place.
What is a method's own (strength, thresholds, seed) is a keyword argument whose default is a named constant with its
source; functools.partial sets it: `compose(..., method=partial(sdedit, strength=0.3))`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import numpy as np
import torch

from solvers import Grid, NoiseSchedule, Solver

from ..inversions import Trajectory
from ..model import Model
from ..placement import Sample, check_masks, in_common_terms
from ..scans.images import Scan
from ..settings import Settings
from . import blended, copy_paste, ours, published, sdedit, tficon
from .frame import Frame, Method, OnState
from .result import Composition

METHODS: dict[str, Method] = {
    "copy-paste": copy_paste.copy_paste,
    "blended": blended.blended_latent_diffusion,
    "sdedit": sdedit.sdedit,
    "tf-icon": tficon.tf_icon,
    "published": published.published,
    "ours": ours.ours,
}

__all__ = ["METHODS", "Composition", "Frame", "Method", "compose"]


@torch.no_grad()
def compose(
    model: Model,
    background: Scan,
    obj: Scan,
    object_mask: np.ndarray,
    user_mask: np.ndarray,
    prompt: str | None,
    settings: Settings | None = None,
    *,
    method: str | Method = "ours",
    table: Solver | None = None,
    grid: Callable[[NoiseSchedule, int], Grid] | None = None,
    inversions: MutableMapping[str, Trajectory] | None = None,
    on_state: OnState | None = None,
    keep_trajectories: bool = False,
    progress: Callable | None = None,
    around: np.ndarray | None = None,
) -> Composition:
    """Put one tumour into one scan.

    model: what sd21.load returns. object_mask, user_mask: bool (H, W), of the sizes of obj and of background.
    prompt: None denoises under the exceptional prompt. settings: Settings() by default.
    method: a name of METHODS, or a function of a Frame.
    table: builds the step table on a grid, in place of the one that settings.solver names; settings.lower_order_final
        is then the builder's own affair. grid: builds the grid from a schedule and settings.steps, in place of
        settings.grid.
    inversions: any mapping from `inversion_key` to `Trajectory`. A background or placed object found there is not
        inverted again, and a new one is put there; a dict keeps them in memory. A mapping is not used while an
        attention hook is set.
    on_state: called with every (i, x[i], D[i]) of the composition's run, i = start..0, as the network saw them, each
        (1, C, h, w) and in tf-icon (3, C, h, w); D[0] is None. A method without a run (copy-paste) never calls it.
    keep_trajectories: leave the inverted trajectories in the result.
    progress: progress(iterable, what it counts) wraps the solvers' loops, e.g. tqdm.
    around: bool (H, W) on the background, a region that the network's window must contain too, so that all slices of a
        volume share one window. An object may then be smaller than a latent cell.
    Before the network runs, raises TypeError for arguments of another type and for a method that does not exist, and
    ValueError (PlacementError for masks and for what cannot be placed) for values that do not fit; later
    solvers.InversionError for a scan that missed the tolerance, where settings.on_failure is "raise".
    """
    settings, run = _settings_or_default(settings), method_of(method)
    _check_callable("table", table, "a function from a grid to a StepTable; settings.solver takes a name")
    _check_callable("grid", grid, "a function of a schedule and a number of steps; settings.grid takes a name")
    _check_callable("on_state", on_state, "a function of i, x[i] and D[i]")
    _check_callable("progress", progress, "a function that wraps an iterable, such as tqdm.tqdm")
    if not hasattr(model, "unet"):
        raise TypeError(f"model is {model!r}; expected a model, as sd21.load returns (composition/model.py)")
    if not isinstance(inversions, MutableMapping | None):
        raise TypeError(f"inversions is {inversions!r}; expected a mapping, such as {{}} or an InversionStore, or None")
    sample = Sample(background, obj, object_mask, user_mask, prompt)
    check_masks(*tuple(sample)[:4])
    if around is not None:
        check_masks(background, obj, object_mask, around)
    sample = in_common_terms(sample)
    schedule = NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod)
    frame = Frame(
        model,
        sample,
        settings,
        settings.build_grid(schedule) if grid is None else grid(schedule, settings.steps),
        settings.build_table if table is None else table,
        inversions=inversions,
        on_state=on_state,
        keep_trajectories=keep_trajectories,
        progress=progress,
        around=around,
    )
    composition = run(frame)
    if not isinstance(composition, Composition):
        raise TypeError(f"the method {method!r} returned {composition!r}; a method returns frame.finish(latent)")
    return composition


def method_of(method: str | Method) -> Method:
    """The method of this name in METHODS, or the function itself. Raises TypeError for anything else."""
    found = METHODS.get(method) if isinstance(method, str) else method
    if not callable(found):
        raise TypeError(f"method is one of {', '.join(METHODS)}, or a function of a Frame; got {method!r}")
    return found


def _settings_or_default(settings: object) -> Settings:
    if not isinstance(settings, Settings | None):
        raise TypeError(f"settings is a {type(settings).__name__}; expected Settings(...), or None for the defaults")
    return Settings() if settings is None else settings


def _check_callable(name: str, value: object, expected: str) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}; expected {expected}")
