"""Anderson mixing for a batch of independent fixed-point problems: the iteration under every iterative inversion."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# (x (n, ...), images (n,)) -> step g (n, ...), residual (n,). The plain iteration is x <- x - g, until residual 0.
Equation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AndersonSettings:
    """depth: earlier iterates that are mixed in. 5, 10 and 20 measured alike, to within two sweeps in ten.
    growth: a residual this many times the best means that the mixture has left the region its secants describe: start
        again from the best, with half the step.
    stall, patience: an image that has not brought its residual to `stall` times what it was, `patience` iterations ago,
        will not do so with more of the same.
    """

    depth: int = 10
    growth: float = 3.0
    stall: float = 0.5
    patience: int = 10


class AndersonMixing:
    """Anderson mixing (type II) of one problem (Walker and Ni, SIAM J. Numer. Anal. 49, 2011).

    Iterates are kept as flat float64 vectors on the CPU, so that the least squares are float64 on every device.
    """

    def __init__(self, depth: int) -> None:
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
class Goal:
    """When an image counts as solved.

    tol: bound on the residual, and on the error where there is one.
    error: error(x) of an x whose residual is small: what the caller wants below tol, and would not pay for at every
        iteration. Where it is still too large, the residual's bound shrinks by as much as it was.
    """

    tol: float
    error: Callable[[Tensor], float] | None = None

    def __post_init__(self) -> None:
        # Measured on the joint equations, the iterate after x has an error of 0.01 to 1 times x's residual up to
        # start = 7, and of 1 to 3 times it from the noise end: twice tol is about the bound that wastes least.
        self.bound = self.tol if self.error is None else 2 * self.tol

    def met(self, x: Tensor, residual: float) -> bool:
        if self.error is None or residual > self.bound:
            return residual <= self.bound
        error = self.error(x)
        if error > self.tol:
            self.bound = residual * self.tol / error
        return error <= self.tol


@dataclass
class Search:
    """One image's way to its goal: a residual per evaluation, the best iterate, and the step from it."""

    goal: Goal
    mixing: AndersonMixing
    residuals: list[float] = field(default_factory=list)
    solved: bool = False
    restarts: int = 0

    def advance(self, x: Tensor, g: Tensor, residual: float, settings: AndersonSettings) -> Tensor:
        """The next iterate after x, whose step and residual these are.

        Where the residual meets the goal that is x itself; a goal that measures an error measures the iterate after x,
        which is closer by a step that is already paid for.
        """
        self.residuals.append(residual)
        lowest = min(self.residuals)
        if residual == lowest:
            self.best, self.best_step = x, g
        if self.goal.error is None and self.goal.met(x, residual):
            self.solved = True
            return x
        if residual > settings.growth * lowest:
            self.restarts += 1
            self.mixing.restart()
            x, g = self.best, self.best_step
        following = self.mixing.step(x, g, damping=0.5**self.restarts)
        self.solved = self.goal.error is not None and self.goal.met(following, residual)
        return following

    def stalled(self, settings: AndersonSettings) -> bool:
        earlier = self.residuals[: -settings.patience]
        return bool(earlier) and min(self.residuals) > settings.stall * min(earlier)


def anderson_solve(
    equation: Equation,
    x: Tensor,
    goals: list[Goal],
    *,
    max_iterations: int,
    settings: AndersonSettings = AndersonSettings(),
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> tuple[Tensor, list[Search]]:
    """Solve `equation` from x (B, ...) for a batch of images; one that meets its goal or stalls leaves the batch.

    Returns the solutions, or the best iterates where there is none, and the searches that led to them.
    """
    x, searches = x.clone(), [Search(goal, AndersonMixing(settings.depth)) for goal in goals]
    active = list(range(len(x)))
    for _ in progress(range(max_iterations)) if progress else range(max_iterations):
        if not active:
            break
        current = x[active]
        steps, residuals = equation(current, torch.tensor(active))
        for row, image in enumerate(active):
            x[image] = searches[image].advance(current[row], steps[row], residuals[row].item(), settings)
        active = [image for image in active if not (searches[image].solved or searches[image].stalled(settings))]
    for image, search in enumerate(searches):
        if not search.solved:
            x[image] = search.best
    return x, searches
