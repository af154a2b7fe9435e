"""Anderson mixing solves a batch of independent fixed-point problems, and every iterative inversion is built on it. The
module stands apart because it knows nothing of diffusion.

It takes an equation and a tolerance. A small residual does not always mean a small error; where it does not, the caller
also passes a function that measures the error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
# Measured on the joint equations, the iterate after x has an error of 0.01 to 1 times x's residual up to start = 7, and
# of 1 to 3 times it from the noise end: a residual of twice the tolerance is about the bound that wastes least.
WORTH_MEASURING = 2.0


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
            scale = dg.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)  # columns shrink as the solve converges
            gamma = torch.linalg.lstsq(dg / scale, g_mixed[:, None], rcond=1e-12, driver="gelsd").solution[:, 0] / scale
            x_mixed, g_mixed = x_mixed - dx @ gamma, g_mixed - dg @ gamma
        return (x_mixed - damping * g_mixed).to(x).view_as(x)


@dataclass
class Search:
    """One image's search for a solution: what the image has to reach, and what has happened so far.

    tol: bound on the residual, or on the error where there is a measure of it.
    measure: measure(x) -> the error that the caller wants below tol. It is too dear for every iteration, so it is
        called only where the residual of x is small.
    residuals: one per evaluation. error: the last one measured, nan before the first. best, best_step: the iterate of
        the smallest residual and the plain step from it.
    """

    tol: float
    measure: Callable[[Tensor], float] | None = None
    mixing: AndersonMixing = field(default_factory=AndersonMixing)
    residuals: list[float] = field(default_factory=list)
    error: float = float("nan")
    solved: bool = False
    restarts: int = 0

    def __post_init__(self) -> None:
        self.bound = self.tol if self.measure is None else WORTH_MEASURING * self.tol

    def judge(self, x: Tensor, residual: float) -> None:
        """Mark the search as solved if x, which has this residual, meets the tolerance.

        The error is measured once the residual is within `bound`. If the error is still too large, the bound shrinks by
        the factor by which it was too large.
        """
        if residual > self.bound:
            return
        if self.measure is None:
            self.solved = True
            return
        self.error = self.measure(x)
        self.solved = self.error <= self.tol
        if not self.solved:
            self.bound = residual * self.tol / self.error

    def advance(self, x: Tensor, g: Tensor, residual: float) -> Tensor:
        """The iterate that follows x, given the plain step g and the residual of x.

        It is x itself where the residual alone decides and meets the tolerance. Where an error is measured, the iterate
        that follows x is measured: it is closer to the solution, and its step has already been paid for.
        """
        self.residuals.append(residual)
        lowest = min(self.residuals)
        if residual == lowest:
            self.best, self.best_step = x, g
        if self.measure is None:
            self.judge(x, residual)
            if self.solved:
                return x
        if residual > GROWTH * lowest:
            self.restarts += 1
            self.mixing.restart()
            x, g = self.best, self.best_step
        following = self.mixing.step(x, g, damping=0.5**self.restarts)
        if self.measure is not None:
            self.judge(following, residual)
        return following

    @property
    def stalled(self) -> bool:
        earlier = self.residuals[:-PATIENCE]
        return bool(earlier) and min(self.residuals) > STALL * min(earlier)


def anderson_solve(
    equation: Equation,
    x: Tensor,
    tol: float,
    *,
    max_iterations: int,
    measure: Callable[[Tensor, int], float] | None = None,
    first: Evaluation | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> tuple[Tensor, list[Search]]:
    """Solve `equation` from x (B, ...) for a batch of images; one that is solved or stalls leaves the batch.

    measure: measure(x, image) -> error, where the tolerance is not one on the residual.
    first: the equation's value at x for all images, where it is known already.
    Returns the solutions, or the best iterates where there is none, and the searches that led to them.
    """
    x, active = x.clone(), list(range(len(x)))
    searches = [Search(tol, measure and (lambda x, image=image: measure(x, image))) for image in active]
    for _ in progress(range(max_iterations)) if progress else range(max_iterations):
        if not active:
            break
        current = x[active]
        steps, residuals = first or equation(current, torch.tensor(active))
        first = None
        for row, image in enumerate(active):
            x[image] = searches[image].advance(current[row], steps[row], residuals[row].item())
        active = [image for image in active if not (searches[image].solved or searches[image].stalled)]
    for image, search in enumerate(searches):
        if not search.solved:
            x[image] = search.best
    return x, searches
