"""A guided Newton step takes the residual of a step's fixed point as one number and divides it by its gradient. The
method stands apart because it alone goes back through the network.

Samuel et al., "Lightning-Fast Image Inversion and Editing for Text-to-Image Diffusion Models", arXiv:2312.12540v5 (ICLR
2025), GNRI. With f of `steps`, n numbers to an image, and the transition of the noising process as a prior,

    F(x) = |f(x) - x|_1 + lambda / beta |x - gamma x[i-1]|_2,     gamma = alpha[i] / alpha[i-1],  beta = 1 - gamma²,
    x <- x - F(x) / (n (dF/dx + eta)),                            number by number,

from x[i-1] on. There are two evaluations, and the f(x) of the smaller F is the result. The step moves every number by
an n-th of what would bring F to zero if that number alone were moved. F has no zero unless the prior's mean is a fixed
point, and where dF/dx is small the step is long without bound: the choice of the smallest F alone keeps a bad one out.

The authors' released code is another method, `guided-newton-released`. It runs the network under no_grad, so that dF/dx
is the sign of x - f(x) and nothing else, and its prior is the marginal of the noising process, at f(x):

    F(x) = |f(x) - x|_1 / alpha[i] + lambda |f(x) - alpha[i] / alpha[0] x[0]|_2² / (2 sigma[i]²),
    x <- x + alpha[i] F(x) sign(f(x) - x) / n,                from gamma x[i-1] on.

Cost: a row that goes back through the network counts as two more. A step of `guided-newton` costs four rows for an
image, one of `guided-newton-released` two.

Departures from the authors' code
- `guided-newton` has F, the prior and the gradient of the paper, which we know from others' quotations of it.
- lambda = 0.1 and two evaluations are those of their script. The paper's eta is small, without a value in the code;
  here it is 1e-6.
- Their loop takes a gradient after its last evaluation too, and does not use it. Here it is not taken.
- They divide by the gradient also where it is 0. Here such a number stays. They write 64 * 64 * 4 for n.
- Their sampler is Euler's ancestral one, in x / alpha, with noise from a list. Here it is the run's table, without any.
- They know no tolerance. Here an image leaves where its relative residual meets tol, and max_sweeps bounds the
  evaluations after the first further.
- Tables of several terms are ours, as in `fixed_point`, and the first estimate is then the naive run's x[i].
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..finite import check_finite
from ..progress import Progress
from .run import Run, Solution
from .steps import StepEquation, climb

EVALUATIONS = 2
LAMBDA = 0.1
ETA = 1e-6


class Objective(NamedTuple):
    """F of some states x (n, ...). residual: of the step's equation. following: f(x). value: F, (n,). gradient: dF/dx,
    None where it was not asked for. All but the value are like x."""

    residual: Tensor
    following: Tensor
    value: Tensor
    gradient: Tensor | None


def solve_guided_newton(
    run: Run,
    tol: float,
    max_sweeps: int,
    progress: Progress = None,
    *,
    released: bool = False,
    evaluations: int = EVALUATIONS,
    weight: float = LAMBDA,
) -> Solution:
    """Guided Newton steps, for min(evaluations, 1 + max_sweeps) evaluations a step and image.

    released: whether to take the released code's F in place of the paper's. weight: lambda. An image whose relative
    residual meets tol is done.
    """
    objective_of = released_objective if released else guided_objective

    def solve_step(step: StepEquation) -> tuple[Tensor, list[list[float]]]:
        x = step.guess.clone()
        if released and step.guess is step.below:
            x = _gamma(step) * x  # the same x / alpha
        found, active = x.clone(), torch.arange(len(x))
        smallest = torch.full((len(x),), torch.inf, dtype=torch.float64)
        residuals: list[list[float]] = [[] for _ in x]
        for left in reversed(range(min(evaluations, 1 + max_sweeps))):
            last = left == 0
            objective = objective_of(step, x[active], active, weight, not last)
            size, value = step.relative(objective.residual, active), objective.value.double().cpu()
            for image, one in zip(active.tolist(), size.tolist(), strict=True):
                residuals[image].append(one)
            better = value < smallest[active]
            smallest[active[better]], found[active[better]] = value[better], objective.following[better]
            if last or not (size > tol).any():
                break
            x[active] = check_finite(_newton_step(x[active], objective), f"an iterate of step {step.i}")
            active = active[size > tol]
        return check_finite(found, f"the state of step {step.i}"), residuals

    return climb(run, solve_step, progress)


def solve_guided_newton_released(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """The released code's steps, which take no gradient of the network; otherwise as `solve_guided_newton`."""
    return solve_guided_newton(run, tol, max_sweeps, progress, released=True)


def guided_objective(step: StepEquation, x: Tensor, images: Tensor, weight: float, differentiate: bool) -> Objective:
    """The paper's F. Its gradient takes a backward pass of the network."""

    def sign(data: Tensor) -> Tensor:  # of f(x) - x
        return torch.sign(-step.residual(x, data, images) / step.noise_slope)

    if differentiate:
        data, product = step.run.prediction.pulled_back(x, step.i, images, sign)
    else:
        data, product = step.data(x, images), None
    gamma = _gamma(step)
    away = x - gamma * step.below[images]
    distance = torch.linalg.vector_norm(away.flatten(1), dim=1)
    residual, strength = step.residual(x, data, images), weight / (1 - gamma**2)
    value = (residual / step.noise_slope).abs().flatten(1).sum(dim=1) + strength * distance
    gradient = None
    if product is not None:
        gradient = -(step.a * sign(data) + step.own * product) / step.noise_slope
        gradient = gradient + strength * away / distance.clamp(min=torch.finfo(x.dtype).tiny).view(_column(x))
    return Objective(residual, step.fixed_point(x, residual), value, gradient)


def released_objective(step: StepEquation, x: Tensor, images: Tensor, weight: float, differentiate: bool) -> Objective:
    """The released code's F, times alpha[i] so that it has the unit of x. Its gradient leaves the network out."""
    alpha, sigma = step.run.grid.alpha, step.run.grid.sigma[step.i].item()
    residual = step.residual(x, step.data(x, images), images)
    following = step.fixed_point(x, residual)
    centre = (alpha[step.i] / alpha[0]).item() * step.run.x0[images]
    prior = 0.5 * ((following - centre) / sigma).square()
    value = ((following - x).abs() + alpha[step.i].item() * weight * prior).flatten(1).sum(dim=1)
    return Objective(residual, following, value, torch.sign(x - following) if differentiate else None)


def _newton_step(x: Tensor, objective: Objective) -> Tensor:
    """x - F / (n (dF/dx + eta)), number by number; a number whose dF/dx is exactly 0 stays."""
    share = (objective.value / x[0].numel()).view(_column(x))
    step = share / (objective.gradient + ETA)
    return x - torch.where(objective.gradient == 0, 0, step)


def _gamma(step: StepEquation) -> float:
    alpha = step.run.grid.alpha
    return (alpha[step.i] / alpha[step.i - 1]).item()


def _column(x: Tensor) -> tuple[int, ...]:
    return (len(x),) + (1,) * (x.ndim - 1)
