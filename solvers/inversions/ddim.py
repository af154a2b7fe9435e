"""DDIM inversion runs DDIM upwards, one evaluation a step, whatever the run's solver is. It is the baseline of the
field, and stands apart from `naive` because the sampler that it is meant for is DDIM and not the run's own.

Song, Meng and Ermon, "Denoising Diffusion Implicit Models", arXiv:2010.02502 (ICLR 2021), section 4.3; Dhariwal and
Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233 (NeurIPS 2021), appendix F. The
probability-flow ODE, discretised by Euler's rule, is run upwards with the noise prediction of the state that is left:

    x[i] / alpha[i] = x[i-1] / alpha[i-1] + (sigma[i] / alpha[i] - sigma[i-1] / alpha[i-1]) eps(x[i-1], t[i-1]).

That is the row of `ddim` on the reversed grid, and on a run of `ddim` it is `naive`. It solves nothing, and is no
inverse of DDIM either, whose step down takes eps(x[i], t[i]).

Departures from the authors' code: none from that of Dhariwal and Nichol. Much public code takes eps(x[i-1], t[i])
instead, the lower state with the upper time (Prompt-to-Prompt and what came after it). That is the first iterate of
`fixed-point`, and no step of any ODE solver.
"""

from dataclasses import replace

from torch import Tensor

from ..grids import Grid
from ..prediction import X0Fn
from ..progress import Progress
from ..sampling import denoise
from ..tables import ddim
from .run import Run, Solution


def solve_ddim(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    """Run DDIM upwards, in `start` evaluations, and keep x[start] for DDIM to go back from.

    tol and max_sweeps play no part.
    """
    x, _ = replace(run, way_up=ddim(run.grid.reversed())).up(run.x0, run.images, progress)
    return Solution(x, [[] for _ in x], kept=x[:, -1])


def ddim_denoise(x: Tensor, grid: Grid, x0_fn: X0Fn) -> Tensor:
    """x[start] -> x[0] by DDIM, in start evaluations, where start = grid.steps. It raises what `denoise` raises."""
    return denoise(x, grid, ddim(grid), x0_fn)
