"""Anderson mixing solves a batch of independent fixed-point problems, and every iterative inversion is built on it. The
module stands apart because it knows nothing of diffusion.

It takes an equation, whose evaluation gives a step and a residual, and a tolerance on that residual.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..finite import check_finite
from ..progress import Progress, watched

# (x (n, ...), images (n,)) -> step g (n, ...), residual (n,). The plain iteration is x <- x - g, until residual 0.
Evaluation = tuple[Tensor, Tensor]
Equation = Callable[[Tensor, Tensor], Evaluation]

# The number of earlier iterates that are mixed in. 5, 10 and 20 measured alike, to within two sweeps in ten.
DEPTH = 10
# A residual this many times the best means that the mixture has left the region that its secants describe. The mixing
# then starts again from the best iterate, with half the step.
GROWTH = 3.0
# An image that has not brought its residual to STALL times what it was, PATIENCE iterations ago, will not do so with
# more of the same.
STALL = 0.5
PATIENCE = 10


class AndersonMixing:
    """Anderson mixing (type II) of one problem (Walker and Ni, SIAM J. Numer. Anal. 49, 2011).

    Iterates are kept as flat float64 vectors on the CPU, so that the least squares are float64 on every device.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self.depth = depth
        self.restart()

    def restart(self) -> None:
        self.x: list[Tensor] = []
        self.g: list[Tensor] = []

    def step(self, x: Tensor, g: Tensor, damping: float = 1.0) -> Tensor:
        """The iterate after x, whose plain step is g; all of one shape and dtype."""
        self.x = [*self.x[-self.depth :], x.flatten().to("cpu", torch.float64)]
        self.g = [*self.g[-self.depth :], g.flatten().to("cpu", torch.float64)]
        x_mixed, g_mixed = self.x[-1], self.g[-1]
        if len(self.x) > 1:
            dx, dg = torch.stack(self.x, 1).diff(dim=1), torch.stack(self.g, 1).diff(dim=1)
            scale = dg.norm(dim=0)  # columns shrink as the solve converges
            scale[scale == 0] = 1  # where rounding has left the step as it was
            gamma = torch.linalg.lstsq(dg / scale, g_mixed[:, None], rcond=1e-12, driver="gelsd").solution[:, 0] / scale
            x_mixed, g_mixed = x_mixed - dx @ gamma, g_mixed - dg @ gamma
        return (x_mixed - damping * g_mixed).to(x).view_as(x)


@dataclass
class Search:
    """One image's search for a solution: what the image has to reach, and what has happened so far.

    tol: bound on the residual. residuals: one per evaluation. best, best_step: the iterate of the smallest residual and
        the plain step from it.
    """

    tol: float
    mixing: AndersonMixing = field(default_factory=AndersonMixing)
    residuals: list[float] = field(default_factory=list)
    solved: bool = False
    restarts: int = 0

    def judge(self, residual: float) -> None:
        """Mark the search as solved if an iterate of this residual meets the tolerance."""
        self.solved = residual <= self.tol

    def advance(self, x: Tensor, g: Tensor, residual: float) -> Tensor:
        """The iterate that follows x, given the plain step g and the residual of x. It is x itself where x is one."""
        self.residuals.append(residual)
        lowest = min(self.residuals)
        if residual == lowest:
            self.best, self.best_step = x, g
        self.judge(residual)
        if self.solved:
            return x
        if residual > GROWTH * lowest:
            self.restarts += 1
            self.mixing.restart()
            x, g = self.best, self.best_step
        return self.mixing.step(x, g, damping=0.5**self.restarts)

    @property
    def steps(self) -> int:
        """The steps taken: the evaluations after the first."""
        return len(self.residuals) - 1

    @property
    def stalled(self) -> bool:
        earlier = self.residuals[:-PATIENCE]
        return bool(earlier) and min(self.residuals) > STALL * min(earlier)


def anderson_solve(
    equation: Equation,
    x: Tensor,
    tol: float,
    *,
    max_steps: int,
    progress: Progress = None,
) -> tuple[Tensor, list[Search]]:
    """Solve `equation` from x (B, ...) for a batch of images; one that is solved or stalls leaves the batch.

    max_steps: evaluations of an image at most, after the first.
    Returns the solutions, or the best iterates where there is none, and the searches that led to them.
    """
    x, searches = x.clone(), [Search(tol) for _ in x]

    def evaluated(active: list[int]) -> list[int]:
        """Evaluate and advance these images; returns those that go on."""
        current = x[active]
        steps, residuals = equation(current, torch.tensor(active))
        check_finite(steps, "a step of the iteration")
        for row, image in enumerate(active):
            x[image] = searches[image].advance(current[row], steps[row], residuals[row].item())
        return [image for image in active if not (searches[image].solved or searches[image].stalled)]

    sweeps = watched(range(max_steps), "sweep", progress)  # a bar stands at 0 while x itself is evaluated
    active = evaluated(list(range(len(x))))
    for _ in sweeps:
        if not active:
            break
        active = evaluated(active)
    for image, search in enumerate(searches):
        if not search.solved:
            x[image] = search.best
    return x, searches
