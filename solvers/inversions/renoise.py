"""ReNoise averages the iterates of a step's fixed-point iteration. It stands apart from `fixed_point` because it stops
at nothing: the number of its evaluations and what it averages are fixed in advance.

Garibi, Patashnik, Voynov, Averbuch-Elor and Cohen-Or, "ReNoise: Real Image Inversion Through Iterative Noising",
arXiv:2403.14602 (ECCV 2024). From x^0 = x[i-1] on, x^(k+1) = f(x^k) noises x[i-1] once more, with the noise prediction
of the last estimate (`steps`). The result noises it with a weighted mean of these predictions. f is affine in eps, so

    x[i] = sum over k of w[k] f(x^k),        sum of w[k] = 1.

Weights and numbers are those of the authors' configuration: w is even over k = 0..4 in steps to a t[i] below 250, and
over k = 8, 9 in all others, which therefore take ten evaluations.

Departures from the authors' code
- Below t = 250 their loop evaluates a sixth time and leaves that prediction out of its mean. Here it is not made.
- Noise correction is left out. It changes the noise that a stochastic sampler adds, and our tables add none. The
  authors switch it off for DDIM too.
- Noise regularisation is left out. It pulls the mean prediction towards the statistics of
  noise, with random shifts, for the sake of editing, and takes it away from the solution on purpose.
- Their example for Stable Diffusion at 50 steps has one renoising step in place of nine: pass renoisings=1. Where the
  evaluations end before the mean begins, the last f(x^k) is taken, as in their code.
- Tables of several terms are ours, as in `fixed_point`, and the first estimate is then the naive run's x[i].
"""

import torch
from torch import Tensor

from ..progress import Progress
from .run import Run, Solution
from .steps import StepEquation, climb, iterate

RENOISINGS = 9
# Steps to a time below EARLY, in training times, are of another kind: they average from the first prediction on.
EARLY = 250.0
EARLY_MEAN = range(0, 5)
LATE_MEAN = range(8, 10)


def solve_renoise(
    run: Run, tol: float, max_sweeps: int, progress: Progress = None, *, renoisings: int = RENOISINGS
) -> Solution:
    """Average the iterates of every step's fixed-point iteration. tol plays no part.

    A step takes 1 + min(renoisings, max_sweeps) evaluations, and no more than its mean needs. The residuals are those
    of the iterates that are evaluated; the mean itself is not among them.
    """

    def solve_step(step: StepEquation) -> tuple[Tensor, list[list[float]]]:
        mean = EARLY_MEAN if run.grid.t[step.i] < EARLY else LATE_MEAN
        noised: list[Tensor] = []

        def advance(x: Tensor, residual: Tensor, size: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            noised.append(step.fixed_point(x, residual))
            return noised[-1], torch.zeros(len(images), dtype=torch.bool)

        last, residuals = iterate(step, min(mean.stop, 1 + min(renoisings, max_sweeps)), advance)
        averaged = noised[mean.start : mean.stop]
        return (sum(averaged) / len(averaged) if averaged else last), residuals

    return climb(run, solve_step, progress)
