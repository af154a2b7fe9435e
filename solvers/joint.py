"""The joint method: every state of a sampling run, solved for at once.

A run from x[start] obeys one equation per step. With its end x[0] given, and its beginning not, they are the equations

    R[i] = x[i-1] - (a[i] x[i] + sum over j of b[i, j] D(x[i+j])) = 0,        i = 1..start,

in the unknowns x[1..start]. No step can be undone by itself, since row i holds all states from i-1 to i+k-1. Iterated
as it stands, x[i] <- (x[i-1] - sum over j of b[i, j] D(x[i+j])) / a[i] diverges. The joint method iterates

    x <- x - J^-1 R

instead, a simplified Newton step: J is the Jacobian that the same table has on unit Gaussian data, whose denoiser is
linear, D(x) = alpha[i] x. It is one start-by-start matrix of numbers, the same for every pixel, known from the table
alone. `anderson` accelerates the iteration, and `newton` takes over where it stalls.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Equation, Evaluation, Search, anderson_solve
from .grids import Grid
from .newton import newton_gmres
from .run import Run, Solution
from .sampling import Progress
from .tables import StepTable


@dataclass(frozen=True)
class TrajectoryEquations:
    """R of a table's run. Unknown states x are (n, start, ...), holding x[1..start]; x0 is (n, ...).

    a, b: the run's rows 1..start, (start,) and (start, k) float64. jacobian: dR/dx on unit Gaussian data,
    (start, start) float64.
    """

    a: Tensor
    b: Tensor
    jacobian: Tensor

    @classmethod
    def of_run(cls, grid: Grid, table: StepTable) -> "TrajectoryEquations":
        a, b, alpha = table.a[1:], table.b[1:, : table.steps], grid.alpha[1:]
        jacobian = torch.diag(torch.ones_like(a[1:]), -1) - torch.diag(a)
        for j, weights in enumerate(b.T):
            rows = len(a) - j  # the last j rows have no D[i+j]
            jacobian -= torch.diag(weights[:rows] * alpha[j:], j)
        return cls(a, b, jacobian)

    def residual(self, x0: Tensor, x: Tensor, data: Tensor) -> Tensor:
        """R (n, start, ...) of the states x and their data predictions D."""
        a, *b = (column.to(x).view(-1, *[1] * (x.ndim - 2)) for column in (self.a, *self.b.T))
        residual = _below(x0, x) - a * x
        for j, weights in enumerate(b):
            rows = len(a) - j
            residual[:, :rows] -= weights[:rows] * data[:, j:]
        return residual

    def relative(self, x0: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """The largest |R[i]| / |x[i-1]| of every image, (n,)."""
        return (residual.flatten(2).norm(dim=2) / _below(x0, x).flatten(2).norm(dim=2)).amax(dim=1)

    def newton_step(self, residual: Tensor) -> Tensor:
        """J^-1 R, (n, start, ...)."""
        inverse = torch.linalg.inv(self.jacobian).to(residual)
        return torch.einsum("ij,nj...->ni...", inverse, residual)


def solve_joint(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """All states at once: a sweep takes `start` evaluations, which are one batch. Exact where it converges.

    The residuals that are returned are the largest relative R of every sweep. A residual does not bound the round trip,
    for a run passes an error in its states on, enlarged or reduced. Measured, the round-trip error is 0.1 to 10 times
    the largest relative R, and up to 60 times it from the noise end through a random network. An image whose R is about
    tol therefore takes the step it has paid for and is run down once, and is solved when it arrives.
    """
    equations = TrajectoryEquations.of_run(run.grid, run.table)

    def equation(x: Tensor, images: Tensor, data: Tensor | None = None) -> Evaluation:
        x0 = run.x0[images]
        data = run.prediction.sweep(x, images) if data is None else data
        residual = equations.residual(x0, x, data)
        return equations.newton_step(residual), equations.relative(x0, x, residual)

    def error(x: Tensor, image: int) -> float:
        return run.error(x[None, -1], torch.tensor([image])).item()

    naive, naive_data = run.naive()
    first = equation(naive, run.images, naive_data)
    x, searches = anderson_solve(
        equation, naive, tol, max_iterations=max_sweeps, measure=error, first=first, progress=progress
    )
    for image, search in enumerate(searches):
        left = max_sweeps - len(search.residuals)
        if not search.solved and left > 0:
            x[image] = _newton(equation, x[image], image, search, left)
        if not search.solved:  # nothing worse than the naive inversion is returned
            candidates = [(error(candidate, image), candidate) for candidate in (x[image], naive[image])]
            search.error, x[image] = min(candidates, key=lambda measured: measured[0])
    errors = torch.tensor([search.error for search in searches], dtype=torch.float64)
    return Solution(x, errors, [search.residuals for search in searches])


def _newton(equation: Equation, x: Tensor, image: int, search: Search, max_evaluations: int) -> Tensor:
    """Newton-GMRES for this image from x (start, ...), on what is left of its sweeps."""

    def of_this_image(x: Tensor) -> tuple[Tensor, float]:
        steps, residuals = equation(x[None], torch.tensor([image]))
        return steps[0], residuals.item()

    return newton_gmres(of_this_image, x, search, max_evaluations=max_evaluations)


def _below(x0: Tensor, x: Tensor) -> Tensor:
    """x[0..start-1]."""
    return torch.cat([x0[:, None], x[:, :-1]], dim=1)
