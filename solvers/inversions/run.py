"""Every inversion method works on a `Run`, the sampling run that it is to find, and returns a `Solution`. This module
holds both: the way down, the way up, and what they cost. It stands apart so that the methods, which share it, can be
written and read one by one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..finite import check_finite
from ..grids import Grid
from ..prediction import X0Fn, predict
from ..progress import Progress
from ..sampling import denoise, sample
from ..tables import StepTable

# What a row costs that goes back through the network, in rows that go forward: the usual count, twice the arithmetic.
# Without gradients of the weights the arithmetic is nearer to once, and what is kept for the way back costs memory.
BACKWARD_ROWS = 2


class CountedPrediction:
    """An x0_fn that knows which image every row belongs to, and counts the rows through the network for each image.

    rows: (B,) int64.
    """

    def __init__(self, x0_fn: X0Fn, images: int) -> None:
        self.x0_fn = x0_fn
        with torch.inference_mode(False):  # or `pulled_back` could not count within inference mode
            self.rows = torch.zeros(images, dtype=torch.int64)

    def for_images(self, images: Tensor) -> X0Fn:
        """The x0_fn whose row n belongs to image images[n].

        The inner x0_fn gets the images too if it has a `for_images` of its own, as `DataPrediction` does.
        """
        of_images = getattr(self.x0_fn, "for_images", None)
        inner = self.x0_fn if of_images is None else of_images(images)
        rows_per_state = getattr(self.x0_fn, "rows_per_state", 1)

        def x0_fn(x: Tensor, i: int | Tensor) -> Tensor:
            self.rows.index_add_(0, images, torch.full_like(images, rows_per_state))
            return predict(inner, x, i)

        return x0_fn

    def sweep(self, x: Tensor, images: Tensor) -> Tensor:
        """D of the states x[1..start] of these images, (n, start, ...), in one call with n * start states."""
        start = x.shape[1]
        x0_fn = self.for_images(images.repeat_interleave(start))
        return x0_fn(x.flatten(0, 1), torch.arange(1, start + 1).repeat(len(x))).view_as(x)

    def pulled_back(
        self, x: Tensor, i: int, images: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """D(x, i) of the states x (n, ...) of these images, and dD/dx transposed times cotangent(D), both like x.

        Every row goes forward and back, and so counts 1 + BACKWARD_ROWS. TypeError where the x0_fn keeps no gradient.
        It works within torch.no_grad and torch.inference_mode; the network's weights and contexts must not have been
        made within the latter. A network that keeps no gradient itself, beneath a parameterisation that does, goes
        unnoticed: the gradient is then that of the parameterisation.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            data = self.for_images(images)(leaf, i)
            if not data.requires_grad:
                raise TypeError(
                    "this inversion goes back through the network, and the x0_fn keeps no gradient: run the network "
                    "without torch.no_grad, or take a method that needs none"
                )
            (product,) = torch.autograd.grad(data, leaf, cotangent(data.detach()))
        rows = BACKWARD_ROWS * getattr(self.x0_fn, "rows_per_state", 1)
        self.rows.index_add_(0, images, torch.full_like(images, rows))
        return data.detach(), check_finite(product, "a gradient of the network")


@dataclass(frozen=True)
class Run:
    """The run from grid.steps that is to end in x0 (B, ...). `images` (n,) says which of the B every row belongs to.

    grid, table: those of this run, which starts at the noise end of its grid. way_up: the same solver's table on the
    reversed grid.
    """

    x0: Tensor
    grid: Grid
    table: StepTable
    way_up: StepTable
    prediction: CountedPrediction

    @property
    def start(self) -> int:
        return self.grid.steps

    @property
    def images(self) -> Tensor:
        return torch.arange(len(self.x0))

    def down(self, x: Tensor, images: Tensor) -> Tensor:
        """x[0..start] (n, start + 1, ...) of the unmodified sampler from x[start] = x (n, ...)."""
        states = [x for _, x, _ in sample(x, self.grid, self.table, self.prediction.for_images(images))]
        return check_finite(torch.stack(states[::-1], 1), "a state on the way down")

    def up(self, x: Tensor, images: Tensor, progress: Progress = None) -> tuple[Tensor, Tensor]:
        """x[1..start] of the solver run on the reversed grid from x[0] = x (n, ...), and its D[0..start-1].

        Both are (n, start, ...).
        """
        x0_fn = self.prediction.for_images(images)

        def reversed_x0_fn(x: Tensor, j: int) -> Tensor:
            return x0_fn(x, self.start - j)

        climb = list(sample(x, self.grid.reversed(), self.way_up, reversed_x0_fn, progress=progress))
        states = check_finite(torch.stack([x for _, x, _ in climb[1:]], 1), "a state on the way up")
        return states, torch.stack([data for _, _, data in climb[:-1]], 1)

    def naive(self) -> tuple[Tensor, Tensor]:
        """The naive inversion of all images, x[1..start], and D[1..start] of it; both are (B, start, ...).

        The way up has evaluated all D but the last, so this takes one evaluation more than `up`.
        """
        x, data = self.up(self.x0, self.images)
        last = self.prediction.for_images(self.images)(x[:, -1], self.start)
        return x, torch.cat([data[:, 1:], last[:, None]], dim=1)

    def error(self, x: Tensor, images: Tensor) -> Tensor:
        """The round-trip error |denoise(x[start]) - x0| / |x0| of x[start] = x (n, ...); (n,) float64 on the CPU."""
        back = denoise(x, self.grid, self.table, self.prediction.for_images(images))
        return relative(check_finite(back, "the end of the round trip") - self.x0[images], self.x0[images])


class Solution(NamedTuple):
    """What an inversion method found.

    states: x[1..start], (B, start, ...). residuals: for every image one number per evaluation of the solve, of what the
    method drives to zero. errors: the round-trip errors, (B,) float64, of a method that has measured them on its way;
    `invert` measures them for any other. kept: what the method's own sampler needs to go back, if it has one
    (`OwnSampler`): a tensor (B, ...), or a tuple of such tensors.
    """

    states: Tensor
    residuals: list[list[float]]
    errors: Tensor | None = None
    kept: Tensor | tuple[Tensor, ...] | None = None


# (run, tol, max_sweeps, progress) -> Solution. An inversion method is such a function.
Solve = Callable[[Run, float, int, Progress], Solution]


def relative(difference: Tensor, reference: Tensor) -> Tensor:
    """|difference| / |reference| row by row, (n,) float64 on the CPU.

    The norms are float64's: squares of what float32 still holds may be more than it can. Raises FloatingPointError for
    what is not finite.
    """
    norms = [torch.linalg.vector_norm(each.flatten(1), dim=1, dtype=torch.float64) for each in (difference, reference)]
    return check_finite(norms[0].cpu() / norms[1].cpu(), "a relative error")
