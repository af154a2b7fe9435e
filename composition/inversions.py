"""This module inverts scans under the exceptional prompt, and makes the key under which a trajectory is kept.

The key stands beside the inversion, because it must hold all that the inversion depends on: the scan as it lies on the
canvas, the model, the run that inverts it and the settings of the inversion, and nothing else. So a background that
takes many tumours is inverted for the first of them alone, if the network sees the whole of it, and neither it nor a
tumour in its place is inverted again for another prompt, guidance or tau. A method looks both up in any mapping from
`inversion_key` to `Trajectory`; a dict keeps them in memory.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import marshal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

import sd21
import solvers
from sd21.files import sha256
from solvers import INVERSIONS, Grid, InversionReport, Solver, invert

from .calls import model_prediction, named
from .model import Model
from .prompts import exceptional_context
from .settings import Settings

# We raise it whenever the key is made of other things, or in another order.
KEY_VERSION = 2
# Every field of Settings is in one of these two sets, and a test holds that. The key is made of all fields that are not
# in the second one, so that a field somebody forgets costs an inversion and never reuses a stale one.
# max_batch changes no equation, and yet the last bits: a batch of another size rounds otherwise.
KEYED = frozenset({"inversion", "tolerance", "max_sweeps", "on_failure", "max_batch"})
NOT_KEYED = frozenset(
    {
        # What these choose is in the key itself, as numbers: the grid up to the last inverted state and the solver's
        # tables on it, and the token.
        *("steps", "grid", "solver", "lower_order_final", "start", "history", "exceptional_token"),
        # What these do to a scan before it is inverted is in the key as the image on the canvas.
        *("fit", "size", "match", "focus", "focus_context"),
        # These act after the inversion.
        *("preserve_background_until", "preserve_object_until", "guidance_scale", "detail", "preserve", "feather"),
    }
)


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Trajectory:
    """One scan's states x[0..k], float32 (k + 1, C, h, w), and what their inversion reported.

    decoded: x[0] decoded, float32 (3, h * 8, w * 8), which tells what the autoencoder loses; None where nobody asked.
    """

    states: torch.Tensor = field(repr=False)
    report: InversionReport
    decoded: torch.Tensor | None = field(default=None, repr=False)


def invert_latents(
    model: Model,
    latents: torch.Tensor,
    token: int,
    settings: Settings,
    grid: Grid,
    solver: Solver,
    *,
    images: Sequence[str],
    progress: Callable | None = None,
) -> list[Trajectory]:
    """Invert latents (B, C, h, w), all in one batch, to the noise end of `grid`, under the exceptional prompt and
    without guidance.

    images: the latents' names, for attention hooks. Raises solvers.InversionError where one misses the tolerance and
    settings.on_failure is "raise".
    """
    describe = named("inversion", images, ("exceptional",))
    context = exceptional_context(model, token)
    x0_fn = model_prediction(model, grid, describe, context, max_batch=settings.max_batch)
    inversion = invert(
        latents,
        grid,
        solver,
        x0_fn,
        method=settings.inversion,
        tol=settings.tolerance,
        max_sweeps=settings.max_sweeps,
        on_failure=settings.on_failure,
        progress=progress,
    )
    return [Trajectory(inversion.states[:, row].clone(), report) for row, report in enumerate(inversion.reports)]


def inversion_key(model: Model, image: torch.Tensor, token: int, settings: Settings, grid: Grid, solver: Solver) -> str:
    """A SHA-256 over all that a trajectory depends on.

    image: the scan on the canvas, (3, h, w). grid: from the clean end to the last inverted state. The numbers of the
    grid and of the solver's tables on it, both down and up, stand for the solver, whatever it is called. The code of
    `solvers` and `sd21` and of the module that holds the inversion method is in the key, so that whoever edits an
    inversion gets no result of the old one; what that module imports from elsewhere is not. A network stands in it by
    `model.identity`: whoever changes weights in memory must take another mapping. The versions of other software, the
    number of threads and the device's make are not in it; they change the last bits.
    """
    about = {
        "version": KEY_VERSION,
        "code": [CODE, *code_of(INVERSIONS[settings.inversion].solve)],
        "model": model.identity,
        "prediction_type": model.prediction_type,
        "dtype": str(model.dtype),
        "device": torch.device(model.device).type,
        "token": token,
        "image": [str(image.dtype), *image.shape],
        "settings": {one.name: getattr(settings, one.name) for one in fields(settings) if one.name not in NOT_KEYED},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    numbers = [grid.t, grid.alpha, grid.sigma, grid.lam]
    # A grid that ends at sigma[0] = 0 has no table upwards, and `invert` refuses it with a message of its own.
    for table in (solver(grid), solver(grid.reversed())) if grid.sigma[0] > 0 else ():
        numbers += [table.a, table.b]
    for tensor in (*numbers, image):
        digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of(paths: Iterable[Path]) -> str:
    """The SHA-256 of every file, in the order of their paths."""
    return " ".join(sha256(path) for path in sorted(paths))


# What inverts a scan, as it was when it was loaded: the networks, the solvers, and what this package adds to them.
HERE = Path(__file__).parent
CODE = digest_of(
    [
        *Path(sd21.__file__).parent.glob("*.py"),
        *Path(solvers.__file__).parent.rglob("*.py"),
        *(HERE / name for name in ("calls.py", "inversions.py", "prompts.py")),
    ]
)


def code_of(solve: Callable) -> list[str]:
    """What tells the code of an inversion method that is not in `solvers`, as it was loaded, from any other.

    It covers the function and all functions of its module; a partial's arguments count too.
    """
    about = []
    while isinstance(solve, functools.partial):
        about.append(repr((solve.args, sorted(solve.keywords.items()))))
        solve = solve.func
    function = inspect.unwrap(solve) if inspect.isfunction(solve) else type(solve).__call__
    home = function.__module__ or ""
    if home.split(".")[0] == solvers.__name__:
        return about  # CODE has it
    beside = vars(sys.modules[home]).values() if home in sys.modules else ()
    own = [one for one in beside if inspect.isfunction(one) and one.__module__ == home]
    # Version 2 of the format does not depend on what else refers to a constant.
    return [*about, *(hashlib.sha256(marshal.dumps(one.__code__, 2)).hexdigest() for one in (function, *own))]
