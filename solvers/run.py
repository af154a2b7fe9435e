"""A sampling run as an inversion sees it: the way down, the way up, and what they cost."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .grids import Grid
from .prediction import X0Fn, predict
from .sampling import denoise
from .tables import StepTable

Progress = Callable[[Iterable[int]], Iterable[int]] | None


class CountedPrediction:
    """An x0_fn that counts the network evaluations spent on every image, and runs large batches in pieces.

    nfe: (B,) int64. max_batch: the largest number of states in one call of x0_fn (None: no limit).
    """

    def __init__(self, x0_fn: X0Fn, images: int, max_batch: int | None) -> None:
        self.x0_fn, self.max_batch = x0_fn, max_batch
        self.nfe = torch.zeros(images, dtype=torch.int64)

    def for_images(self, images: Tensor) -> X0Fn:
        """The x0_fn whose row n belongs to image images[n]."""

        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            self.nfe.index_add_(0, images, torch.full_like(images, getattr(self.x0_fn, "rows_per_state", 1)))
            if self.max_batch is None or len(x) <= self.max_batch:
                return predict(self.x0_fn, x, i)
            index = torch.as_tensor(i).expand(len(x))
            pieces = zip(x.split(self.max_batch), index.split(self.max_batch), strict=True)
            return torch.cat([predict(self.x0_fn, piece, piece_index) for piece, piece_index in pieces])

        return x0_fn

    def sweep(self, x: Tensor, images: Tensor) -> Tensor:
        """D of the states x[1..start] of all images, (n, start, ...), as one batch of n * start rows."""
        start = x.shape[1]
        x0_fn = self.for_images(images.repeat_interleave(start))
        return x0_fn(x.flatten(0, 1), torch.arange(1, start + 1).repeat(len(x))).view_as(x)


@dataclass(frozen=True)
class Run:
    """The run of `table` from `start` that is to end in x0 (B, ...). `images` (n,): which of the B a row belongs to."""

    x0: Tensor
    grid: Grid
    table: StepTable
    start: int
    prediction: CountedPrediction

    @property
    def images(self) -> Tensor:
        return torch.arange(len(self.x0))

    def down(self, x: Tensor, images: Tensor) -> Tensor:
        """x[0..start] (n, start + 1, ...) of the unmodified sampler from x[start] = x (n, ...)."""
        states = []

        def keep(i: int, x: Tensor) -> Tensor:
            states.append(x)
            return x

        denoise(x, self.grid, self.table, self.prediction.for_images(images), start=self.start, edit=keep)
        return torch.stack(states[::-1], 1)

    def up(self, x: Tensor, images: Tensor, progress: Progress = None) -> tuple[Tensor, Tensor]:
        """x[1..start] of the multistep solver run on the reversed grid from x[0] = x (n, ...), and the D[0..start-1] it
        took; (n, start, ...) both."""
        x0_fn, lam, states, data = self.prediction.for_images(images), self.grid.lam, [], []
        for i in progress(range(1, self.start + 1)) if progress else range(1, self.start + 1):
            data.append(x0_fn(x, i - 1))
            ahead = data[-1]
            if i > 1 and self.table.c[1 : self.start].any():
                r = ((lam[i - 2] - lam[i - 1]) / (lam[i - 1] - lam[i])).item()
                ahead = ahead + (data[-1] - data[-2]) / (2 * r)
            a, b, _ = self.table.row(i, first=True)  # solved for x[i], it is the first-order row upwards
            x = (x - b * ahead) / a
            states.append(x)
        return torch.stack(states, 1), torch.stack(data, 1)

    def naive(self) -> tuple[Tensor, Tensor]:
        """The naive inversion of all images, x[1..start], and D[1..start] of it, (B, start, ...) both.

        All but the last D were evaluated on the way up: one evaluation more than `up`, where a sweep takes `start`.
        """
        x, data = self.up(self.x0, self.images)
        last = self.prediction.for_images(self.images)(x[:, -1], self.start)
        return x, torch.cat([data[:, 1:], last[:, None]], dim=1)

    def error(self, x: Tensor, images: Tensor) -> Tensor:
        """The round-trip error |denoise(x[start]) - x0| / |x0| of x[start] = x (n, ...); (n,) float64 on the CPU."""
        return relative(self.down(x, images)[:, 0] - self.x0[images], self.x0[images])


def relative(difference: Tensor, reference: Tensor) -> Tensor:
    """|difference| / |reference| row by row, (n,) float64 on the CPU."""
    norms = [values.flatten(1).norm(dim=1).cpu().double() for values in (difference, reference)]
    return norms[0] / norms[1]
