"""The naive inversion runs the same solver upwards, as TF-ICON does, and so the paper. It is no inverse: it evaluates D
at the wrong end of every step. The other methods begin with it.
"""

from ..progress import Progress
from .run import Run, Solution


def solve_naive(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Run the solver upwards, on the reversed grid. It solves nothing, at `start` evaluations."""
    x, _ = run.up(run.x0, run.images, progress)
    return Solution(x, [[] for _ in x])
