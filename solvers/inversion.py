"""Inversion: the states of the sampling run that ends in a given x0.

Which trajectory *leads to* x0 when a table runs down from x[start] is one question, and the one `invert` answers. Where
a solver *arrives* when it runs upwards from x0 is another, and the usual answer to it ("naive") is no inverse: undoing
the step i -> i-1 takes D(x[i]) and D(x[i+1]), and on the way up neither state is known. Solving every step for itself,
with the older data prediction held at an estimate ("frozen"), is no inverse either, however tightly it is solved.

What counts is measured the same way for every method: the round trip, x[start] -> denoise -> x0, through the sampler as
it is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Goal, anderson_solve
from .grids import Grid
from .joint import solve_joint
from .prediction import X0Fn
from .run import CountedPrediction, Progress, Run, relative
from .sampling import check_run
from .tables import StepTable

# A float32 network leaves some ten roundings of its own in a round trip; float64 is asked for less than it can give.
DEFAULT_TOL = {torch.float32: 2e-6, torch.float64: 1e-11}


@dataclass(frozen=True)
class InversionReport:
    """What an inversion did; an entry per image in every tensor and list.

    residual: the round-trip error |denoise(x[start]) - x0| / |x0|, measured from x[start] alone, for every method.
    converged: residual <= tol.
    nfe: network evaluations, each and every one: guided rows twice, and `start` for every measured round trip.
    sweeps: iterations of the solve.
    history: what the solve drove to zero, a number per iteration: of "joint" the largest |R[i]| / |x[i-1]| of the
        trajectory's equations (those of Newton-GMRES' probes, once it takes over, included), of "defect" the round-trip
        error, of "frozen" the residuals of its steps one after the other. "naive" solves nothing.
    """

    method: str
    tol: float
    nfe: Tensor
    sweeps: Tensor
    residual: Tensor
    converged: Tensor
    history: list[list[float]]

    def __str__(self) -> str:
        worst = int(self.residual.argmax())
        return (
            f"{self.method}: {int(self.converged.sum())} of {len(self.converged)} images below a round-trip error of "
            f"{self.tol:.1e}; worst {self.residual[worst]:.1e} (image {worst}, {int(self.nfe[worst])} evaluations)"
        )


@dataclass(frozen=True)
class Inversion:
    """states: (start + 1, B, ...), x[0] = x0 up to x[start], in x0's dtype. report: their exactness and their cost."""

    states: Tensor
    report: InversionReport


class InversionError(RuntimeError):
    """An inversion missed its tolerance; `report` says by how much, image by image."""

    def __init__(self, report: InversionReport) -> None:
        super().__init__(
            f"{report}. Where the history still falls, allow more sweeps; where it has stopped at the network's "
            f"rounding, raise tol; otherwise lower the guidance scale or start, use a table with lower_order_final (an "
            f"x0 need not have a preimage), or take the best that was found with on_failure='return'"
        )
        self.report = report


@torch.no_grad()
def invert(
    x0: Tensor,
    grid: Grid,
    table: StepTable,
    x0_fn: X0Fn,
    *,
    start: int | None = None,
    method: str = "joint",
    tol: float | None = None,
    max_sweeps: int = 200,
    max_batch: int | None = None,
    on_failure: str = "raise",
    progress: Progress = None,
) -> Inversion:
    """The states x[0..start] of the run of `table` from x[start], without history, that ends in x0.

    x0: (B, ...), float32 or float64; states and solve keep its dtype.
    x0_fn: is asked for up to B * start rows at different i in one call, so a context behind it must be one row.
    start: 1..grid.steps, the noise end by default.
    method:
        "joint", exact: all states at once, `start` evaluations a sweep as one batch of B * start rows. See `joint`.
        "defect", exact where it converges: z <- z + x0 - sample(naive(z)), with Anderson mixing. 2 * start evaluations
            an iteration, one after the other, and the memory of a few images.
        "naive", not an inverse: the multistep solver run upwards, as TF-ICON does.
        "frozen", not an inverse: every step's implicit equation solved by itself, the older data prediction held at
            the naive run's; the idea of Hong et al., "On Exact Inversion of DPM-Solvers", arXiv:2311.18387.
    tol: bound on every image's round-trip error |denoise(x[start]) - x0| / |x0|. By default 2e-6 in float32 and 1e-11
        in float64; a network that runs in half precision leaves 1e-4 to 1e-3 and needs a tol to match.
    max_sweeps: iterations an image may take.
    max_batch: the largest number of states in one call of x0_fn; None for no limit.
    on_failure: what to do when an exact method misses tol: "raise" an InversionError with the report, or "return" the
        best that was found. The two that are no inverses promise nothing that could be missed, and always return.
    progress: wraps the loop's iterations, e.g. tqdm.
    Raises ValueError, before the network runs, for arguments that do not fit together and for a grid that ends at
    sigma[0] = 0; FloatingPointError when a data prediction is not finite.
    """
    start = check_run(x0, grid, table, start)
    _check_problem(x0, table)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if on_failure not in ("raise", "return"):
        raise ValueError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    tol = DEFAULT_TOL[x0.dtype] if tol is None else tol
    if not (tol > 0 and max_sweeps >= 1 and (max_batch is None or max_batch >= 1)):
        raise ValueError(
            f"tol must be above 0, max_sweeps and max_batch 1 or more; got {tol}, {max_sweeps} and {max_batch}"
        )

    run = Run(x0, grid, table, start, CountedPrediction(x0_fn, len(x0), max_batch))
    x, error, history = METHODS[method](run, tol, max_sweeps, progress)
    sweeps = torch.tensor([len(residuals) for residuals in history])
    report = InversionReport(method, tol, run.prediction.nfe, sweeps, error, error <= tol, history)
    if method in EXACT and on_failure == "raise" and not report.converged.all():
        raise InversionError(report)
    return Inversion(torch.cat([x0[None], x.transpose(0, 1)]), report)


# A method returns x[1..start] (B, start, ...), the round-trip errors (B,) and every image's history.
Solution = tuple[Tensor, Tensor, list[list[float]]]


def solve_naive(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    x, _ = run.up(run.x0, run.images, progress)
    return x, run.error(x[:, -1], run.images), [[] for _ in x]


def solve_frozen(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    naive, data = run.naive()  # data[:, i] is D[i + 1]
    x, states, history = run.x0, [], [[] for _ in run.x0]
    for i in progress(range(1, run.start + 1)) if progress else range(1, run.start + 1):
        a, b, c = run.table.row(i, first=i == run.start)
        below, target = x, x - c * data[:, i] if c else x

        def equation(x: Tensor, images: Tensor, i=i, a=a, b=b, below=below, target=target) -> tuple[Tensor, Tensor]:
            residual = a * x + b * run.prediction.for_images(images)(x, i) - target[images]
            return residual / (a + b * run.grid.alpha[i].item()), relative(residual, below[images])

        x, searches = anderson_solve(equation, naive[:, i - 1], [Goal(tol) for _ in x], max_iterations=max_sweeps)
        states.append(x)
        history = [earlier + search.residuals for earlier, search in zip(history, searches, strict=True)]
    return torch.stack(states, 1), run.error(x, run.images), history


def solve_defect(run: Run, tol: float, max_sweeps: int, progress: Progress = None) -> Solution:
    states = torch.stack([run.x0] * run.start, 1)
    lowest = torch.full((len(states),), torch.inf, dtype=torch.float64)

    def equation(z: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        trajectory = run.down(run.up(z, images)[0][:, -1], images)
        defect = trajectory[:, 0] - run.x0[images]
        error = relative(defect, run.x0[images])
        better = error < lowest[images]
        lowest[images[better]], states[images[better]] = error[better], trajectory[better, 1:]
        return defect, error

    goals = [Goal(tol) for _ in states]
    _, searches = anderson_solve(equation, run.x0, goals, max_iterations=max_sweeps, progress=progress)
    return states, lowest, [search.residuals for search in searches]


METHODS = {"joint": solve_joint, "defect": solve_defect, "naive": solve_naive, "frozen": solve_frozen}
EXACT = ("joint", "defect")


def _check_problem(x0: Tensor, table: StepTable) -> None:
    if table.a[1] == 0:
        raise ValueError(
            f"{table.name} ends at sigma[0] = 0: its last step forgets x[1] (a[1] = 0), so no run can be traced back. "
            f"Invert on a grid that ends at a positive sigma: time_uniform, log_snr, discrete(final_sigma='sigma_min')"
        )
    values = x0.flatten(1)
    if len(x0) == 0 or not torch.isfinite(values).all() or not values.any(dim=1).all():
        raise ValueError(
            "x0 must hold one image or more, all finite and none zero throughout: errors are relative to |x0|"
        )
