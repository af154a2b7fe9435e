"""The inversions that undo one step after the other share this module: a row of the table as an equation for x[i], and
the climb from x[0] to x[start] that solves them in turn.

Row i of the table gives x[i-1] from x[i] and from the data predictions of x[i], x[i+1], .... On the way up x[i-1] is
known and the others are not. These methods hold the older data predictions D[i+1], D[i+2], ... at those of the naive
run, and solve

    a[i] x + b[i, 0] D(x, i) = target,        target = x[i-1] - sum over j = 1..k-1 of b[i, j] D[i+j],

for x = x[i]. A first-order table such as `ddim` has no older data predictions; then nothing is held, and whoever solves
every step has inverted the run. For any other table the trajectory is as wrong as what is held, however small the
residuals of its steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..progress import Progress, watched
from ..tables import add_weighted
from .run import Run, Solution, relative


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class StepEquation:
    """Row i as an equation for x[i]: a x + own D(x, i) = target.

    below: x[i-1], (B, ...). guess: where the search begins, (B, ...): the naive run's x[i] for a table that weighs
    older data predictions, for which that run is made anyway, and x[i-1] itself for any other.
    """

    run: Run
    i: int
    a: float
    own: float
    target: Tensor
    below: Tensor
    guess: Tensor

    @property
    def slope(self) -> float:
        """The slope of a x + own D(x) on unit Gaussian data."""
        return self.a + self.own * self.run.grid.alpha[self.i].item()

    def data(self, x: Tensor, images: Tensor) -> Tensor:
        """D(x, i) of the states x (n, ...) of these images (n,); one evaluation each."""
        return self.run.prediction.for_images(images)(x, self.i)

    def solved_for(self, data: Tensor, images: Tensor) -> Tensor:
        """The x that solves the equation where its data prediction is `data`: (target - own data) / a."""
        return (self.target[images] - self.own * data) / self.a

    def residual(self, x: Tensor, data: Tensor, images: Tensor) -> Tensor:
        """a x + own data - target, like x."""
        return self.a * x + self.own * data - self.target[images]

    def relative(self, residual: Tensor, images: Tensor) -> Tensor:
        """|residual| / |x[i-1]|, (n,) float64 on the CPU."""
        return relative(residual, self.below[images])


# equation -> x[i] (B, ...) and, for every image, the residuals of its evaluations.
SolveStep = Callable[[StepEquation], tuple[Tensor, list[list[float]]]]


def climb(run: Run, solve_step: SolveStep, progress: Progress = None) -> Solution:
    """x[1..start], one step after the other. The residuals of an image are those of its steps, in their order.

    A table that weighs older data predictions takes start + 1 evaluations more, for those of the naive run.
    """
    naive, data = run.naive() if run.table.b[1:, 1:].any() else (None, None)  # data[:, i] is D[i + 1]
    x, states, residuals = run.x0, [], [[] for _ in run.x0]
    for i in watched(range(1, run.start + 1), "step", progress):
        a, (own, *weights) = run.table.row(i)
        target = x if data is None else add_weighted(x, (-weight for weight in weights), data[:, i:].unbind(1))
        guess = x if naive is None else naive[:, i - 1]
        x, found = solve_step(StepEquation(run, i, a, own, target, x, guess))
        states.append(x)
        residuals = [earlier + more for earlier, more in zip(residuals, found, strict=True)]
    return Solution(torch.stack(states, 1), residuals)
