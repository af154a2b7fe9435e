"""Newton-GMRES solves equations that Anderson mixing does not solve, such as those of strong guidance or sharp data. It
stands apart because it is an iteration of its own, for one image at a time.

It continues an image's `Search` from where the mixing has left it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..finite import check_finite
from .anderson import Search

# Krylov vectors a Newton step may use, one evaluation each.
KRYLOV = 30
# The linear system is solved to this fraction. In float32, products that come from differences are not worth more.
FORCING = 0.03
# Slopes of g over two short distances differ by g's rounding. Where that is more than NOISE of g itself, g cannot be
# improved upon.
NOISE = 0.3
# A step must bring |g| down by this fraction of what the linear model promises. A step that does not is halved up to
# HALVINGS times, and then the iteration gives up.
DECREASE = 0.1
HALVINGS = 6


def newton_gmres(
    equation: Callable[[Tensor], tuple[Tensor, float]],
    x: Tensor,
    search: Search,
    *,
    max_evaluations: int,
    measure: Callable[[Tensor], float] | None = None,
) -> Tensor:
    """Inexact Newton with backtracking for one image, J v by differences (Knoll and Keyes, J. Comput. Phys. 193, 2004).

    equation: x -> (g, residual), preconditioned: g is the plain iteration's step, so that its Jacobian is near 1.
    search: the image's search, which x has not solved. It judges every Newton iterate and gets the residual of every
        evaluation.
    measure: measure(x) -> the error that search.tol bounds, where that is not the residual. It is called for every
        Newton iterate, and a call counts as an evaluation.
    Returns the solution, or the last iterate where the line search or the evaluations gave out.
    """
    last = len(search.residuals) + max_evaluations - (measure is not None)  # one is kept for the last measurement
    if last <= len(search.residuals):
        return x

    def evaluate(x: Tensor) -> tuple[Tensor, float]:
        g, residual = equation(x)
        search.residuals.append(residual)
        return check_finite(g.flatten().to("cpu", torch.float64), "a step of Newton-GMRES"), residual

    def judge(x: Tensor, residual: float) -> None:
        if measure is not None:
            residual = measure(x)
            search.residuals.append(residual)
        search.judge(residual)

    def moved(direction: Tensor, length: float) -> Tensor:
        return x + (length * direction).to(x).view_as(x)

    def slope(v: Tensor, spread: float) -> Tensor:
        return (evaluate(moved(v, spread))[0] - g) / spread

    g, _ = evaluate(x)
    while not search.solved:
        if last - len(search.residuals) < 4:
            return x
        # This length balances the truncation and the rounding of a difference. g has the units of x, and counts when x
        # is 0.
        spread = torch.finfo(x.dtype).eps ** 0.5 * max(x.norm().item(), g.norm().item())
        unit = g / g.norm()
        short = spread / 10  # with the length the effect of curvature shrinks, and that of rounding does not
        rounding = short * (slope(unit, 2 * short) - slope(unit, short)).norm()
        if rounding > NOISE * g.norm():
            return x

        vectors = min(KRYLOV, last - len(search.residuals) - 1)
        direction = -gmres(lambda v, spread=spread: slope(v, spread), g, vectors, FORCING)
        for length in (0.5**halving for halving in range(HALVINGS + 1)):
            if len(search.residuals) >= last:
                return x
            trial = moved(direction, length)
            trial_g, residual = evaluate(trial)
            if trial_g.norm() < (1 - DECREASE * length) * g.norm():
                break
        else:
            return x
        x, g = trial, trial_g
        judge(x, residual)
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
