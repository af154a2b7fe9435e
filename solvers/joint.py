"""The joint method: every state of a sampling run, solved for at once.

A run from x[start] obeys one equation per step. With its end x[0] given, and its beginning not, they are the equations

    R[i] = x[i-1] - (a[i] x[i] + b[i] D(x[i]) + c[i] D(x[i+1])) = 0,        i = 1..start,

in the unknowns x[1..start]; row `start` is the first-order one, for there is no D(x[start+1]). No step can be undone by
itself: row i holds three neighbouring states. Iterated as it stands, x[i] <- (x[i-1] - b D(x[i]) - c D(x[i+1])) / a
diverges. The joint method iterates

    x <- x - J^-1 R

instead, a simplified Newton step: J is the Jacobian that the same table has on unit Gaussian data, whose denoiser is
linear, D(x) = alpha[i] x. It is one start-by-start matrix of numbers, the same for every pixel, known from the table
alone. `anderson` accelerates the iteration, and `newton` takes over where it stalls.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Goal, anderson_solve
from .grids import Grid
from .newton import newton_gmres
from .run import Progress, Run
from .tables import StepTable


@dataclass(frozen=True)
class TrajectoryEquations:
    """R of a table's run from `start`. Unknown states x are (n, start, ...), holding x[1..start]; x0 is (n, ...).

    a, b, c: the run's rows 1..start, (start,) float64. jacobian: dR/dx on unit Gaussian data, (start, start) float64.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    jacobian: Tensor

    @classmethod
    def of_run(cls, grid: Grid, table: StepTable, start: int) -> "TrajectoryEquations":
        rows = [table.row(i, first=i == start) for i in range(1, start + 1)]
        a, b, c = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
        alpha = grid.alpha[1 : start + 1]
        jacobian = torch.diag(-(a + b * alpha)) + torch.diag(-(c[:-1] * alpha[1:]), 1)
        return cls(a, b, c, jacobian + torch.diag(torch.ones_like(a[1:]), -1))

    def residual(self, x0: Tensor, x: Tensor, data: Tensor) -> Tensor:
        """R (n, start, ...) of the states x and their data predictions D."""
        a, b, c = (column.to(x).view(-1, *[1] * (x.ndim - 2)) for column in (self.a, self.b, self.c))
        residual = _below(x0, x) - a * x - b * data
        residual[:, :-1] -= c[:-1] * data[:, 1:]
        return residual

    def relative(self, x0: Tensor, x: Tensor, residual: Tensor) -> Tensor:
        """The largest |R[i]| / |x[i-1]| of every image, (n,)."""
        return (residual.flatten(2).norm(dim=2) / _below(x0, x).flatten(2).norm(dim=2)).amax(dim=1)

    def newton_step(self, residual: Tensor) -> Tensor:
        """J^-1 R, (n, start, ...)."""
        inverse = torch.linalg.inv(self.jacobian).to(residual)
        return torch.einsum("ij,nj...->ni...", inverse, residual)


def solve_joint(
    run: Run, tol: float, max_sweeps: int, progress: Progress = None
) -> tuple[Tensor, Tensor, list[list[float]]]:
    """x[1..start] (B, start, ...), the round-trip errors (B,) and every image's residuals, one per sweep.

    A residual does not bound the round trip, for a run passes an error in its states on, enlarged or reduced. Measured,
    the round-trip error is 0.1 to 10 times the largest relative R, and up to 60 times it from the noise end through a
    random network. An image whose R is about tol therefore takes the step it has paid for and is run down once, and is
    solved when it arrives.
    """
    equations = TrajectoryEquations.of_run(run.grid, run.table, run.start)
    errors = torch.full((len(run.x0),), torch.nan, dtype=torch.float64)

    naive, naive_data = run.naive()
    first_sweep = [naive_data]  # of the naive states, where the iteration begins

    def equation(x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        x0 = run.x0[images]
        data = first_sweep.pop() if first_sweep else run.prediction.sweep(x, images)
        residual = equations.residual(x0, x, data)
        return equations.newton_step(residual), equations.relative(x0, x, residual)

    def measured_error(image: int):
        def error(x: Tensor) -> float:
            errors[image] = run.error(x[None, -1], torch.tensor([image]))[0]
            return errors[image].item()

        return error

    goals = [Goal(tol, measured_error(image)) for image in range(len(errors))]
    x, searches = anderson_solve(equation, naive, goals, max_iterations=max_sweeps, progress=progress)
    for image, search in enumerate(searches):

        def of_this_image(x: Tensor, image: int = image) -> tuple[Tensor, float]:
            steps, residuals = equation(x[None], torch.tensor([image]))
            return steps[0], residuals[0].item()

        left = max_sweeps - len(search.residuals)
        if not search.solved and left > 0:
            x[image] = newton_gmres(of_this_image, x[image], search, max_evaluations=left)
        if not search.solved:  # nothing worse than the naive inversion is returned
            x[image] = min(x[image], naive[image], key=search.goal.error)
            search.goal.error(x[image])
    return x, errors, [search.residuals for search in searches]


def _below(x0: Tensor, x: Tensor) -> Tensor:
    """x[0..start-1]."""
    return torch.cat([x0[:, None], x[:, :-1]], dim=1)
