"""The frozen method solves every step's equation by itself, as tightly as it is asked to, with Anderson mixing. It is
the bench's proof that a trajectory of solved steps is no inverse of a multistep sampler.

The idea to hold the older data predictions is that of Hong et al., "On Exact Inversion of DPM-Solvers",
arXiv:2311.18387; `exact_dpm` is their method.
"""

from torch import Tensor

from ..progress import Progress
from .anderson import Evaluation, anderson_solve
from .run import Run, Solution
from .steps import StepEquation, climb


def solve_frozen(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Solve every step's equation to tol, or by `max_sweeps` evaluations after its first."""

    def solve_step(step: StepEquation) -> tuple[Tensor, list[list[float]]]:
        def equation(x: Tensor, images: Tensor) -> Evaluation:
            residual = step.residual(x, step.data(x, images), images)
            return residual / step.slope, step.relative(residual, images)

        x, searches = anderson_solve(equation, step.guess, tol, max_steps=max_sweeps)
        return x, [search.residuals for search in searches]

    return climb(run, solve_step, progress)
