"""The method: `compose` one tumour into one scan, or `compose_batch` many at once. Signatures; the bodies follow."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from .images import Scan
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
    inversion: dict[str, dict]  # "background", "object": {"method", "nfe", "sweeps", "residual", "converged", "reused"}
    nfe: dict[str, int]  # network rows by stage: "inversion", "composition"
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
    """Compose every sample, those of one canvas size in one batch.

    inversions: a mapping from key (str, see inversions.inversion_key) to inversions.Trajectory. Backgrounds found
    there are not inverted again, new ones are added: a dict keeps them in memory, any other mapping where it likes.
    progress: wraps an iterable, as tqdm does.
    """
    raise NotImplementedError
