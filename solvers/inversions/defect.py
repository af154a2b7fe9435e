"""The defect method measures every iterate and steps by what it misses. It stands apart because the joint method begins
with it too.

It asks for the z whose naive inversion leads to x0. An iterate is a run of the unmodified sampler, from the naive
inversion of z down to some x[0], and the defect is x[0] - x0. z <- z - defect is a Newton step on data for which the
naive inversion is the inverse; Anderson mixing makes up for what it is not.

The states of that run obey every row of the table: only their end is off, by an error that is measured and not guessed.
z = x0 comes first, which is the naive inversion itself, so that it is accepted where it meets the tolerance.
"""

import torch
from torch import Tensor

from ..progress import Progress
from .anderson import Evaluation, Search, anderson_solve
from .run import Run, Solution, relative


class MeasuredRuns:
    """Runs of the unmodified sampler that are measured against x0. Of every image's runs it keeps the one that came
    nearest.

    states: x[1..start] of these runs, (B, start, ...). errors: their round-trip errors, (B,) float64, inf before the
    first.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.states = torch.stack([run.x0] * run.start, 1)
        self.errors = torch.full((len(run.x0),), torch.inf, dtype=torch.float64)

    def defect(self, x: Tensor, images: Tensor) -> Evaluation:
        """Run down from x[start] = x (n, ...): where the run ends less x0, like x, and the round-trip errors, (n,)."""
        x0, states = self.run.x0[images], self.run.down(x, images)
        defect = states[:, 0] - x0
        errors = relative(defect, x0)
        better = errors < self.errors[images]
        self.errors[images[better]], self.states[images[better]] = errors[better], states[better, 1:]
        return defect, errors

    def search(self, tol: float, max_sweeps: int, progress: Progress) -> list[Search]:
        """Iterate z <- z - defect with Anderson mixing, for all images at once. The residuals are round-trip errors."""

        def equation(z: Tensor, images: Tensor) -> Evaluation:
            return self.defect(self.run.up(z, images)[0][:, -1], images)

        return anderson_solve(equation, self.run.x0, tol, max_steps=max_sweeps, progress=progress)[1]


def solve_defect(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Iterate z <- z + x0 - sample(naive(z)) with Anderson mixing. The method is exact where it converges.

    A sweep takes 2 * start evaluations, one after the other, and so does the naive inversion, which is measured first.
    The residuals are the round-trip errors of all iterates, and the states those of the best one's run.
    """
    runs = MeasuredRuns(run)
    searches = runs.search(tol, max_sweeps, progress)
    return Solution(runs.states, [search.residuals for search in searches], runs.errors)
