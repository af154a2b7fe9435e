"""Newton-GMRES, for equations that Anderson mixing does not solve: strong guidance, sharp data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Search


@dataclass(frozen=True)
class NewtonSettings:
    """krylov: Krylov vectors a Newton step may use, one evaluation each.
    forcing: the linear system is solved to this fraction; products by differences are not worth more in float32.
    noise: slopes of g over two short distances differ by g's rounding. Where that is more than `noise` of g itself, g
        cannot be improved upon.
    decrease, halvings: a step must bring |g| down by this fraction of what the linear model promises; one that does not
        is halved so often before the iteration gives up.
    """

    krylov: int = 30
    forcing: float = 0.03
    noise: float = 0.3
    decrease: float = 0.1
    halvings: int = 6


def newton_gmres(
    equation: Callable[[Tensor], tuple[Tensor, float]],
    x: Tensor,
    search: Search,
    *,
    max_evaluations: int,
    settings: NewtonSettings = NewtonSettings(),
) -> Tensor:
    """Inexact Newton with backtracking for one image, J v by differences (Knoll and Keyes, J. Comput. Phys. 193, 2004).

    equation: x -> (g, residual), preconditioned: g is the plain iteration's step, so that its Jacobian is near 1.
    search: the image's. Its goal ends the iteration; `solved`, and a residual per evaluation, are written to it.
    Returns the solution, or the last iterate where the line search or the evaluations gave out.
    """
    last = len(search.residuals) + max_evaluations

    def evaluate(x: Tensor) -> tuple[Tensor, float]:
        g, residual = equation(x)
        search.residuals.append(residual)
        return g.flatten().to("cpu", torch.float64), residual

    def moved(direction: Tensor, length: float) -> Tensor:
        return x + (length * direction).to(x).view_as(x)

    def slope(v: Tensor, spread: float) -> Tensor:
        return (evaluate(moved(v, spread))[0] - g) / spread

    g, residual = evaluate(x)
    while not search.goal.met(x, residual):
        if last - len(search.residuals) < 4:
            return x
        # Balances the difference's truncation and its rounding. g is of x's units, and not 0 where x is.
        spread = torch.finfo(x.dtype).eps ** 0.5 * max(x.norm().item(), g.norm().item())
        unit = g / g.norm()
        short = spread / 10  # a tenth, for the rounding does not shrink with it and the curvature does
        rounding = short * (slope(unit, 2 * short) - slope(unit, short)).norm()
        if rounding > settings.noise * g.norm():
            return x

        vectors = min(settings.krylov, last - len(search.residuals) - 1)
        direction = -gmres(lambda v, spread=spread: slope(v, spread), g, vectors, settings.forcing)
        for length in (0.5**halving for halving in range(settings.halvings + 1)):
            if len(search.residuals) >= last:
                return x
            trial = moved(direction, length)
            trial_g, residual = evaluate(trial)
            if trial_g.norm() < (1 - settings.decrease * length) * g.norm():
                break
        else:
            return x
        x, g = trial, trial_g
    search.solved = True
    return x


def gmres(product: Callable[[Tensor], Tensor], rhs: Tensor, max_vectors: int, tol: float) -> Tensor:
    """The y of a growing Krylov space that minimises |product(y) - rhs|, until below tol |rhs| (Saad and Schultz 1986).

    rhs, y: flat float64 vectors. One product per vector of the space.
    """
    basis, products = [rhs / rhs.norm()], []
    y = torch.zeros_like(rhs)
    for _ in range(max_vectors):
        products.append(product(basis[-1]))
        space, images = torch.stack(basis, 1), torch.stack(products, 1)
        weights = torch.linalg.lstsq(images, rhs[:, None], driver="gelsd").solution[:, 0]
        y = space @ weights
        if (images @ weights - rhs).norm() < tol * rhs.norm():
            break
        vector = products[-1]
        for _ in range(2):  # one pass of Gram-Schmidt loses orthogonality, two are enough
            vector = vector - space @ (space.T @ vector)
        if vector.norm() == 0:
            break
        basis.append(vector / vector.norm())
    return y
