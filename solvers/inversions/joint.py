"""The joint method solves for every state of a sampling run at once. It stands apart from the other inversions because
it alone works on a system of equations, which this module sets up.

A run from x[start] obeys one equation per step. Here its end x[0] is given and its beginning is not, so the equations

    R[i] = x[i-1] - (a[i] x[i] + sum over j of b[i, j] D(x[i+j])) = 0,        i = 1..start,

have the unknowns x[1..start]. No step can be undone by itself, since row i holds all states from i-1 to i+k-1. The
iteration that the equations suggest, x[i] <- (x[i-1] - sum over j of b[i, j] D(x[i+j])) / a[i], diverges. The joint
method iterates

    x <- x - J^-1 R

instead, which is a simplified Newton step. J is the Jacobian that the same table has on Gaussian data, whose denoiser
is linear. It is one start-by-start matrix of numbers, is the same for every pixel, and follows from the table alone.

The residual of these equations certifies nothing: measured, the round-trip error is 0.1 to 60 times the largest
relative R. Only a run of the sampler tells, and the states of such a run obey every row but R[1]. A Newton step from
them is therefore the defect, x[0] - x0, times a number; as a step on real scans that is worse than the way up from the
defect (README). So the method begins with the iteration that measures every iterate and climbs, `defect`, and takes up
the rows, preconditioned by J, where that one stalls: Newton-GMRES (`newton`) solves them then.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..grids import Grid
from ..progress import Progress
from ..tables import StepTable
from .anderson import Search
from .defect import MeasuredRuns
from .newton import newton_gmres
from .run import Run, Solution

# The variance of the Gaussian data that J is taken of. A Newton step from the measured naive inversion of 32 real scans
# left 2.44 % (median) and 7.25 % (worst) with 10, 2.66 % and 8.5 % with 1, 2.42 % and 7.13 % with 30.
DATA_VARIANCE = 10.0


@dataclass(frozen=True)
class TrajectoryEquations:
    """R of a table's run. The unknown states x are (n, start, ...) and hold x[1..start]; x0 is (n, ...).

    a, b: the run's rows 1..start, (start,) and (start, k) float64. jacobian: dR/dx on Gaussian data of
    DATA_VARIANCE, (start, start) float64.
    """

    a: Tensor
    b: Tensor
    jacobian: Tensor

    @classmethod
    def of_run(cls, grid: Grid, table: StepTable, variance: float = DATA_VARIANCE) -> "TrajectoryEquations":
        a, b = table.a[1:], table.b[1:, : table.steps]
        gain = (grid.alpha * variance / (grid.alpha**2 * variance + grid.sigma**2))[1:]  # D(x) = gain x on such data
        jacobian = torch.diag(torch.ones_like(a[1:]), -1) - torch.diag(a)
        for j, weights in enumerate(b.T):
            rows = len(a) - j  # the last j rows have no D[i+j]
            jacobian -= torch.diag(weights[:rows] * gain[j:], j)
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
    """Solve for all states at once. Exact where it converges.

    It begins as `solve_defect` does, measures the naive inversion first and accepts it where it meets tol. An image
    that the mixing does not solve starts from the naive inversion again, by Newton-GMRES on its equations. A sweep of
    these is one batch of `start` evaluations, and every Newton iterate is measured, which counts as a sweep too.
    The residuals are the round-trip errors of the measured iterates, in Newton-GMRES with the largest relative R of
    every sweep between them.
    """
    runs, equations = MeasuredRuns(run), TrajectoryEquations.of_run(run.grid, run.table)
    searches = runs.search(tol, max_sweeps, progress)
    for image, search in enumerate(searches):
        if not search.solved and search.steps < max_sweeps:
            _newton(runs, equations, image, search, max_sweeps - search.steps)
    return Solution(runs.states, [search.residuals for search in searches], runs.errors)


def _newton(runs: MeasuredRuns, equations: TrajectoryEquations, image: int, search: Search, max_sweeps: int) -> None:
    """Newton-GMRES for this image, on what is left of its sweeps. The best run of all stays in `runs`."""
    images = torch.tensor([image])
    x0 = runs.run.x0[images]
    naive = runs.run.up(x0, images)[0][0]

    def equation(x: Tensor) -> tuple[Tensor, float]:
        residual = equations.residual(x0, x[None], runs.run.prediction.sweep(x[None], images))
        return equations.newton_step(residual)[0], equations.relative(x0, x[None], residual).item()

    def error(x: Tensor) -> float:
        return runs.defect(x[None, -1], images)[1].item()

    newton_gmres(equation, naive, search, max_evaluations=max_sweeps, measure=error)


def _below(x0: Tensor, x: Tensor) -> Tensor:
    """x[0..start-1]."""
    return torch.cat([x0[:, None], x[:, :-1]], dim=1)
