"""This module measures what a prompt swap does to the background: the run from x[start] goes down under another prompt,
with guidance, as a composition's does, and what it shows outside the tumour is compared with the scan.

Outside the tumour's mask where the scan has one, and over the whole scan where it has none: no edit is asked for there.
The scan is x0 as the autoencoder shows it, so that what the autoencoder loses is no part of the measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from solvers import Grid, Solver, denoise
from solvers.prediction import X0Fn

from ..canvas import decoded, latent_shares
from ..metrics.fidelity import psnr
from ..model import Model

MEASURES = ("swap_psnr", "swap_change")
NOTHING = 1e-9  # the share of a cell that rounding may find in it


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Swap:
    """The run down under another prompt, and what tells the background.

    x0: (1, C, h, w). grid: of the run, which ends at its start. x0_fn: the data prediction under the other prompt.
    mask: of the tumour, bool (H, W) in the scan's pixels; None for a scan without one.
    """

    model: Model
    x0: Tensor
    grid: Grid
    solver: Solver
    x0_fn: X0Fn
    mask: np.ndarray | None

    def measured(self, x: Tensor) -> dict[str, float]:
        """Of x[start] (1, C, h, w): `swap_psnr`, the PSNR in dB of the canvas's pixels that hold no tumour, and
        `swap_change`, |x[0] - x0| / |x0| of the latent cells that hold none."""
        back = denoise(x, self.grid, self.solver(self.grid), self.x0_fn)
        cells = self._outside(self.x0)
        change = ((back - self.x0).double() * cells).norm() / (self.x0.double() * cells).norm()
        after, before = decoded(self.model, back), self._before
        return {
            "swap_psnr": psnr(after, before, self._outside(before)[None, None]).item(),
            "swap_change": change.item(),
        }

    @cached_property
    def _before(self) -> Tensor:
        return decoded(self.model, self.x0)

    def _outside(self, like: Tensor) -> Tensor:
        """Where nothing of the tumour is, bool (h, w) of this tensor; everywhere where the tumour leaves nothing."""
        size = tuple(like.shape[2:])
        outside = torch.ones(size, dtype=torch.bool) if self.mask is None else latent_shares(self.mask, size) < NOTHING
        return (outside if outside.any() else torch.ones_like(outside)).to(like.device)
