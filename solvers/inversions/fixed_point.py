"""Plain and Anderson-accelerated fixed-point iteration of a step's equation, for any table: x <- f(x) (`steps`). Both
stand in one module because the second is the first with a mixing of the earlier iterates.

Plain: Meiri et al., "Fixed-point Inversion for Text-to-image Diffusion Models", arXiv:2312.12540v1 (2023), FPI.
Accelerated: Pan, Gherardi, Xie and Huang, "Effective Real Image Editing with Accelerated Iterative Diffusion
Inversion", arXiv:2309.04907 (ICCV 2023), AIDI, whose plain form is the same iteration as FPI's. With g(x) = x - f(x),
the mixing takes the affine combination of the last depth + 1 iterates whose g is smallest, and steps to the same
combination of their f.

`frozen` solves the same equation, and differs from the accelerated form in its slope and in its safety alone. It
divides the residual by the slope on unit Gaussian data, a + b alpha[i], where f divides by a + b / alpha[i], the slope
on data of infinite variance. It mixes ten earlier iterates, restarts where the residual grows, gives up where it
stalls, keeps the best iterate, and has 1 + max_sweeps evaluations. The methods here do none of this, as in the papers:
the iterate after the last evaluation is the result, whether it is better or not.

Departures from the authors' code
- Meiri et al. take 20 iterations in their script, and stop at nothing. Here an image leaves where the relative residual
  of its step meets tol, and max_sweeps bounds the evaluations after the first further.
- Their experiments begin with a latent that has been pushed through 5 % of noise and back. Here x0 is inverted.
- The authors of AIDI have published no code that we know of. Depth 3 and five iterations after the first are those of a
  public re-implementation (wmchen/diffusion-inversion), which leaves the first iterate out of the history. Here it
  counts.
- Tables of several terms are ours: the older data predictions are held, and the first estimate is the naive run's x[i]
  in place of x[i-1].
"""

from torch import Tensor

from ..progress import Progress
from .anderson import AndersonMixing
from .run import Run, Solution
from .steps import StepEquation, climb, iterate

FPI_ITERATIONS = 20
AIDI_ITERATIONS = 6
AIDI_DEPTH = 3


def solve_fixed_point(
    run: Run, tol: float, max_sweeps: int, progress: Progress = None, *, iterations: int = FPI_ITERATIONS
) -> Solution:
    """Iterate x <- f(x) in every step, until a relative residual of tol or for min(iterations, 1 + max_sweeps)
    evaluations."""

    def solve_step(step: StepEquation) -> tuple[Tensor, list[list[float]]]:
        def advance(x: Tensor, residual: Tensor, size: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
            return step.fixed_point(x, residual), size <= tol

        return iterate(step, min(iterations, 1 + max_sweeps), advance)

    return climb(run, solve_step, progress)


def solve_fixed_point_anderson(
    run: Run,
    tol: float,
    max_sweeps: int,
    progress: Progress = None,
    *,
    iterations: int = AIDI_ITERATIONS,
    depth: int = AIDI_DEPTH,
) -> Solution:
    """Iterate as `solve_fixed_point` does, and mix in the last `depth` iterates."""

    evaluations = min(iterations, 1 + max_sweeps)
    return climb(run, lambda step: solve_anderson(step, tol, evaluations, depth), progress)


def solve_anderson(step: StepEquation, tol: float, evaluations: int, depth: int) -> tuple[Tensor, list[list[float]]]:
    """x[i] of one step, from step.guess on, and the residuals of every image's evaluations."""
    mixings = [AndersonMixing(depth) for _ in step.guess]

    def advance(x: Tensor, residual: Tensor, size: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        g, following = x - step.fixed_point(x, residual), x.clone()
        for row, image in enumerate(images.tolist()):
            following[row] = mixings[image].step(x[row], g[row])
        return following, size <= tol

    return iterate(step, evaluations, advance)
