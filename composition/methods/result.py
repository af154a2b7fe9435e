"""This module holds the Composition, which every method returns."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from solvers import InversionReport

from ..figures import before_after
from ..focus import Window
from ..inversions import Trajectory
from ..matching import Match
from ..metrics.label_truth import LabelTruth
from ..placement import Sample


@dataclass(frozen=True, eq=False, repr=False)  # arrays have no plain equality, and fill a screen
class Composition:
    """One result. All arrays are in the background's own coordinates and size (H, W).

    sample: what it was made of. image: (H, W) or (H, W, 3), stored values of the background's own kind.
    decoded: whether all pixels came through the autoencoder, so that nothing in them is of a scan itself.
    mask: bool (H, W), where the tumour is. placed: as image, the placed object with its tissue, before composition.
    scale: pixels of the background for a pixel of the object's scan. true_size: whether the object is as large as it
        was, in millimetres.
    label: measures of whether the mask is true of the image.
    match: how the object's grey values were matched. window: the part of the background that the network saw.
    canvas: (height, width) in pixels of what it saw. solver: the name of the step table.
    inversion: the reports of "background" and "object", for methods that invert. reused: whether each of the two
        inversions had been made before.
    rows: rows through the UNet by stage, "inversion" and "composition"; a reused inversion costs none.
    seconds: by stage, "encode", "inversion", "composition" and "decode", as far as the method timed them.
    trajectories: of "background" and "object", where they were asked for; else None.
    """

    sample: Sample
    image: np.ndarray
    decoded: bool
    mask: np.ndarray
    placed: np.ndarray
    scale: float
    true_size: bool
    label: LabelTruth
    match: Match
    window: Window
    canvas: tuple[int, int]
    solver: str
    exceptional_token: int
    inversion: dict[str, InversionReport]
    reused: dict[str, bool]
    rows: dict[str, int]
    seconds: dict[str, float]
    trajectories: dict[str, Trajectory] | None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        errors = [
            f"{name} inverted to {100 * report.error:.1f} %"
            for name, report in self.inversion.items()
            if report.error is not None
        ]
        contrast = "unknown" if self.label.contrast is None else f"{self.label.contrast:.2f} of its own"
        tumour = f"tumour of {self.mask.sum()} pixels, contrast {contrast}"
        about = [f"{height}x{width} {self.image.dtype}", tumour, *errors]
        return f"Composition({', '.join(about)}, {sum(self.rows.values())} rows)"

    def _repr_png_(self) -> bytes:
        """The before/after figure, which notebooks show."""
        file = io.BytesIO()
        before_after(self.sample, self.image, self.mask).save(file, format="png")
        return file.getvalue()
