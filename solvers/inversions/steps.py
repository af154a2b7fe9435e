"""The inversions that undo one step after the other share this module: a row of the table as an equation for x[i], and
the climb from x[0] to x[start] that solves them in turn.

Row i of the table gives x[i-1] from x[i] and from the data predictions of x[i], x[i+1], .... On the way up x[i-1] is
known and the others are not. These methods hold the older data predictions D[i+1], D[i+2], ..., at those of the naive
run unless they say otherwise, and solve

    a[i] x + b[i, 0] D(x, i) = target,        target = x[i-1] - sum over j = 1..k-1 of b[i, j] D[i+j],

for x = x[i]. A first-order table such as `ddim` has no older data predictions; then nothing is held, and whoever solves
every step has inverted the run. For any other table the trajectory is as wrong as what is held, however small the
residuals of its steps.

The field's methods hold the noise prediction eps = (x - alpha[i] D) / sigma[i] of an estimate x and solve for the rest:

    f(x) = x - r(x) / (a[i] + b[i, 0] / alpha[i]),        r(x) = a[i] x + b[i, 0] D(x, i) - target,

which for `ddim` is f(x) = alpha[i] / alpha[i-1] x[i-1] + (sigma[i] - alpha[i] sigma[i-1] / alpha[i-1]) eps(x, t[i]).
To hold D itself instead would diverge on long steps. f evaluates the network at t[i], the time of the state that is
sought, from the first estimate on. DDIM inversion (`ddim`) evaluates at t[i-1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..finite import check_finite
from ..progress import Progress, watched
from ..tables import add_weighted, ddim
from .run import Run, Solution, relative


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class StepEquation:
    """Row i as an equation for x[i]: a x + own D(x, i) = target.

    below: x[i-1], (B, ...). guess: where the search begins, (B, ...): the naive run's x[i] for a table that weighs
    older data predictions, for which that run is made anyway, and x[i-1] itself for any other.
    """

    run: Run
    i: int
    a: float
    own: float
    target: Tensor
    below: Tensor
    guess: Tensor

    @property
    def slope(self) -> float:
        """The slope of a x + own D(x) on unit Gaussian data."""
        return self.a + self.own * self.run.grid.alpha[self.i].item()

    @property
    def noise_slope(self) -> float:
        """The slope of a x + own D(x) where eps stays as it is, as on data of infinite variance."""
        return self.a + self.own / self.run.grid.alpha[self.i].item()

    def data(self, x: Tensor, images: Tensor) -> Tensor:
        """D(x, i) of the states x (n, ...) of these images (n,); one evaluation each."""
        return self.run.prediction.for_images(images)(x, self.i)

    def fixed_point(self, x: Tensor, residual: Tensor) -> Tensor:
        """f(x), the solution while eps is held at that of x, whose residual is given."""
        return x - residual / self.noise_slope

    def residual(self, x: Tensor, data: Tensor, images: Tensor) -> Tensor:
        """a x + own data - target, like x."""
        return self.a * x + self.own * data - self.target[images]

    def relative(self, residual: Tensor, images: Tensor) -> Tensor:
        """|residual| / |x[i-1]|, (n,) float64 on the CPU."""
        return relative(residual, self.below[images])


# equation -> x[i] (B, ...) and, for every image, the residuals of its evaluations.
SolveStep = Callable[[StepEquation], tuple[Tensor, list[list[float]]]]

# (x (n, ...), residual (n, ...), relative residual (n,), images (n,)) -> the x that follow (n, ...), and whether that
# was its image's last, (n,) bool.
Advance = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def iterate(step: StepEquation, evaluations: int, advance: Advance) -> tuple[Tensor, list[list[float]]]:
    """From step.guess on, evaluate all images and let them advance, `evaluations` times at most.

    An image whose `advance` was its last leaves the batch. The x that is returned is what followed an image's last
    evaluation, and the residuals are those of its evaluations.
    """
    x, active = step.guess.clone(), torch.arange(len(step.guess))
    residuals: list[list[float]] = [[] for _ in x]
    for _ in range(evaluations):
        current = x[active]
        residual = step.residual(current, step.data(current, active), active)
        relative_residual = step.relative(residual, active)
        for image, value in zip(active.tolist(), relative_residual.tolist(), strict=True):
            residuals[image].append(value)
        following, done = advance(current, residual, relative_residual, active)
        x[active] = check_finite(following, f"an iterate of step {step.i}")
        active = active[~done]
        if len(active) == 0:
            break
    return x, residuals


def climb(
    run: Run,
    solve_step: SolveStep,
    progress: Progress = None,
    equation_of: Callable[[int, Tensor], StepEquation] | None = None,
) -> Solution:
    """x[1..start], one step after the other. The residuals of an image are those of its steps, in their order.

    equation_of: (i, x[i-1]) -> the equation of row i, for a method that holds something else than the naive run's data
        predictions, which are the default (`held_at_naive`).
    """
    equation_of = held_at_naive(run) if equation_of is None else equation_of
    x, states, residuals = run.x0, [], [[] for _ in run.x0]
    for i in watched(range(1, run.start + 1), "step", progress):
        x, found = solve_step(equation_of(i, x))
        states.append(x)
        residuals = [earlier + more for earlier, more in zip(residuals, found, strict=True)]
    return Solution(torch.stack(states, 1), residuals)


def held_at_naive(run: Run) -> Callable[[int, Tensor], StepEquation]:
    """The equations with the older data predictions of the naive run.

    A table that weighs older data predictions takes start + 1 evaluations for that run, any other table none.
    """
    naive, data = run.naive() if run.table.b[1:, 1:].any() else (None, None)  # data[:, i] is D[i + 1]

    def equation_of(i: int, below: Tensor) -> StepEquation:
        a, (own, *weights) = run.table.row(i)
        if naive is None:
            return StepEquation(run, i, a, own, below, below, below)
        target = add_weighted(below, (-weight for weight in weights), data[:, i:].unbind(1))
        return StepEquation(run, i, a, own, target, below, naive[:, i - 1])

    return equation_of


def first_order_equation(run: Run, i: int, below: Tensor) -> StepEquation:
    """The equation of DDIM's row i, whatever the run's table is."""
    a, (own,) = ddim(run.grid).row(i)
    return StepEquation(run, i, a, own, below, below, below)
