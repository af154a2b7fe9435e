"""The joint method solves for every state of a sampling run at once. It stands apart from the other inversions because
it alone works on a system of equations, which this module sets up.

A run from x[start] obeys one equation per step. Here its end x[0] is given and its beginning is not, so the equations

    R[i] = x[i-1] - (a[i] x[i] + sum over j of b[i, j] D(x[i+j])) = 0,        i = 1..start,

have the unknowns x[1..start]. No step can be undone by itself, since row i holds all states from i-1 to i+k-1. The
iteration that the equations suggest, x[i] <- (x[i-1] - sum over j of b[i, j] D(x[i+j])) / a[i], diverges. The joint
method iterates

    x <- x - J^-1 R

instead, which is a simplified Newton step. J is the Jacobian that the same table has on unit Gaussian data, whose
denoiser is linear, D(x) = alpha[i] x. It is one start-by-start matrix of numbers, is the same for every pixel, and
follows from the table alone. `anderson` accelerates the iteration, and `newton` takes over where it stalls.
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
    """R of a table's run. The unknown states x are (n, start, ...) and hold x[1..start]; x0 is (n, ...).

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
    """Solve for all states at once. A sweep takes `start` evaluations in one batch. Exact where it converges.

    The residuals that are returned are the largest relative R of every sweep. They do not bound the round-trip error,
    because the run enlarges or reduces an error in its states as it passes it on. Measured, the round-trip error is 0.1
    to 10 times the largest relative R, and up to 60 times it from the noise end through a random network. So when an
    image's R comes near tol, the image takes one more step, whose evaluations are already done, and the sampler is run
    from the x[start] that results. The image is solved if that run ends within tol of x0.
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
        if not search.solved:  # return nothing worse than the naive inversion
            candidates = [(error(candidate, image), candidate) for candidate in (x[image], naive[image])]
            search.error, x[image] = min(candidates, key=lambda measured: measured[0])
    errors = torch.tensor([search.error for search in searches], dtype=torch.float64)
    return Solution(x, [search.residuals for search in searches], errors)


def _newton(equation: Equation, x: Tensor, image: int, search: Search, max_evaluations: int) -> Tensor:
    """Newton-GMRES for this image from x (start, ...), on what is left of its sweeps."""

    def of_this_image(x: Tensor) -> tuple[Tensor, float]:
        steps, residuals = equation(x[None], torch.tensor([image]))
        return steps[0], residuals.item()

    return newton_gmres(of_this_image, x, search, max_evaluations=max_evaluations)


def _below(x0: Tensor, x: Tensor) -> Tensor:
    """x[0..start-1]."""
    return torch.cat([x0[:, None], x[:, :-1]], dim=1)
