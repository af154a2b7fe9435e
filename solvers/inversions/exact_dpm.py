"""Exact inversion of DPM-Solvers undoes a step by the forward step method, with a rule of its own for when to stop. It
stands apart from `frozen` because it freezes more, follows a schedule of step lengths, and knows no tolerance.

Hong et al., "On Exact Inversion of DPM-Solvers", arXiv:2311.18387 (CVPR 2024). Algorithm 1 undoes first-order steps,
algorithm 2 those of DPM-Solver++(2M). The row of a multistep table is written as a first-order step plus corrections,

    x[i-1] = a[i] x[i] + c D(x[i], i) + sum over j = 1..k-1 of b[i, j] (D[i+j] - D[i]),     c = sum over j of b[i, j],

and the corrections are frozen, D[i] within them too, at the data predictions of a first-order climb y[i], y[i+1], ...
from x[i-1]. What is left is solved from y[i] on by x <- x - rho R, where R = a x + c D(x) + corrections - x[i-1]. The
solution obeys the row no better than the climb foresaw D[i] and D[i+j], however small R becomes. On `ddim` there is
nothing to freeze.

The iteration stops where the *sum* of the squares of R is below 1e-3, a bound that does not know how large an image is,
or after 500 evaluations, and says nothing then. rho grows linearly over the first 20 iterations to 1/2 (`ddim`), to 1
(the step from x[0], in other tables) or to 10 / t[i-1] (their other steps). In first-order rows it is halved where the
sum has not fallen for more than 20 iterations.

Departures from the authors' code
- Their climb evaluates the network every ten training times. An x0_fn knows the grid's times alone, so here the climb
  takes one step to an interval of the grid. That is two evaluations for each term of the row, or one in all where the
  row is first-order. The first of the iteration repeats one of them, as theirs does.
- They take the lower time of a step as t less 1000 // steps. On their own grid (linspace, rounded) that misses the
  lower state's time by one, at one step. Here the lower time is the grid's.
- Their sum runs over the batch. Here every image has its own and leaves when it is solved.
- 10 / t[i-1] is bounded by 1, so that grids with short first steps do not begin with rho = 10.
- Tables other than `ddim` and 2M are ours, as is 2M without lower_order_final, whose first step they take to be
  first-order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..progress import Progress
from ..tables import add_weighted
from .run import Run, Solution
from .steps import StepEquation, climb, first_order_equation, iterate

SUM_OF_SQUARES = 1e-3
EVALUATIONS = 500
WARM_UP = 20
# ReduceLROnPlateau's rule: what has not fallen below 1 - THRESHOLD of the best for more than PATIENCE iterations in a
# row halves the step length.
PATIENCE = 20
THRESHOLD = 1e-4


@dataclass
class StepLength:
    """rho of one image, iteration by iteration.

    full: what it grows to. plateau: whether it is halved where the sum of squares has stopped falling.
    """

    full: float
    plateau: bool

    def __post_init__(self) -> None:
        self.length, self.iteration, self.best, self.bad = self.full, 0, float("inf"), 0

    def next(self, sum_of_squares: float) -> float:
        """rho of this iteration, whose sum of squares is given."""
        self.iteration += 1
        warming = self.iteration <= WARM_UP
        rho = self.full * self.iteration / WARM_UP if warming else self.length
        if sum_of_squares < (1 - THRESHOLD) * self.best:
            self.best, self.bad = sum_of_squares, 0
        else:
            self.bad += 1
        if self.plateau and self.bad > PATIENCE:
            self.length, self.bad = self.length / 2, 0
        return rho


def solve_exact_dpm(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Undo the steps by the forward step method, until its own bound or for min(500, 1 + max_sweeps) evaluations.

    tol plays no part. The residuals are relative ones, as in the other methods, and not the sums that the rule reads.
    """

    def solve_step(step: StepEquation) -> tuple[Tensor, list[list[float]]]:
        lengths = [_step_length(run, step.i) for _ in step.guess]

        def advance(x: Tensor, residual: Tensor, size: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            sums = residual.flatten(1).double().square().sum(dim=1).cpu()
            done = sums < SUM_OF_SQUARES
            rho = [lengths[image].next(one) for image, one in zip(images.tolist(), sums.tolist(), strict=True)]
            rho = torch.tensor(rho, dtype=torch.float64).masked_fill(done, 0)
            return x - rho.to(x).view(-1, *[1] * (x.ndim - 1)) * residual, done

        return iterate(step, min(EVALUATIONS, 1 + max_sweeps), advance)

    return climb(run, solve_step, progress, lambda i, below: _frozen_corrections(run, i, below))


def _step_length(run: Run, i: int) -> StepLength:
    multistep, first_order = run.table.b[1:, 1:].any().item(), not run.table.b[i, 1:].any()
    if not multistep:
        return StepLength(0.5, plateau=True)
    full = 1.0 if i == 1 else min(1.0, 10 / max(run.grid.t[i - 1].item(), 10.0))
    return StepLength(full, plateau=first_order)


def _frozen_corrections(run: Run, i: int, below: Tensor) -> StepEquation:
    """a x + c D(x) = x[i-1] - corrections, with the corrections of the first-order climb from x[i-1] = below."""
    a, weights = run.table.row(i)
    terms = max(j for j, weight in enumerate(weights) if weight or j == 0) + 1
    y, states = below, []
    for index in range(i, i + terms):
        step = first_order_equation(run, index, y)
        y = step.fixed_point(y, step.residual(y, step.data(y, run.images), run.images))
        states.append(y)
    target = below
    if terms > 1:
        data = [run.prediction.for_images(run.images)(y, i + j) for j, y in enumerate(states)]
        target = add_weighted(below, (-weight for weight in weights[1:]), [later - data[0] for later in data[1:]])
    return StepEquation(run, i, a, sum(weights), target, below, states[0])
