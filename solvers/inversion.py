"""Inversion finds the states of the sampling run that ends in a given x0. This module holds its entry point, `invert`,
and what it reports; the methods are in `inversions/`, one file each. It stands apart from `sampling`, which runs a
table and solves nothing.

`invert` asks which trajectory *leads to* x0 when a table runs down from x[start]. The usual method ("naive") asks where
the solver *arrives* when it runs upwards from x0, and that is no inverse: undoing the step i -> i-1 takes D(x[i]),
D(x[i+1]), ..., and none of these states is known on the way up. Others ("frozen", and all over `inversions/steps.py`)
solve every step by itself and hold the older data predictions at an estimate. They are no inverses either, however
tightly they solve each step, unless the table weighs no older ones.

Every method is measured in the same way, by the round trip x[start] -> denoise -> x0 through the unmodified sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .grids import Grid
from .inversions import INVERSIONS
from .inversions.run import CountedPrediction, Run, Solution
from .prediction import X0Fn
from .progress import Progress
from .sampling import check_run
from .tables import Solver, StepTable

# A float32 network leaves about ten roundings of its own in a round trip. In float64 we ask for less than it can give.
DEFAULT_TOL = {torch.float32: 2e-6, torch.float64: 1e-11}


@dataclass(frozen=True)
class InversionReport:
    """What the inversion of one image did.

    method, tolerance: what was asked for.
    rows: all rows through the network. A guided evaluation counts two, and a measured round trip counts its `start`
        evaluations. A row that a gradient goes back through (`guided-newton`) counts three.
    sweeps: evaluations of the solve after its first; 0 where the naive inversion was accepted.
    error: the round-trip error |denoise(x[start]) - x0| / |x0|, measured from x[start] alone; None where the method
        leaves it unmeasured.
    converged: error <= tolerance; None where the error is unmeasured.
    residuals: one number per evaluation, of what the solve drives to zero. For "joint" and "defect" it is the
        round-trip error of every iterate, from the naive inversion's on, and in Newton-GMRES, between these, the
        largest |R[i]| / |x[i-1]| of the trajectory's equations; for the methods that solve one step after the other
        (`inversions/steps.py`) they are the residuals of their steps. The others solve nothing.
    """

    method: str
    tolerance: float
    rows: int
    sweeps: int
    error: float | None
    converged: bool | None
    residuals: tuple[float, ...]


@dataclass(frozen=True)
class Inversion:
    """What `invert` returns.

    states: (start + 1, B, ...), from x[0] = x0 to x[start], in x0's dtype. reports: one per image. kept: what the
    method's own sampler needs to go back, if it has one: INVERSIONS[method].sampler.denoise(kept, run, x0_fn) is x0
    again, where run = grid.until(start).

    errors (float64), rows (int64), converged (bool): (B,), the reports' entries as tensors. What is unmeasured has the
    error nan, and has not converged.
    """

    states: Tensor = field(repr=False)
    reports: tuple[InversionReport, ...]
    kept: Tensor | tuple[Tensor, ...] | None = field(default=None, repr=False)

    @property
    def errors(self) -> Tensor:
        errors = [float("nan") if report.error is None else report.error for report in self.reports]
        return torch.tensor(errors, dtype=torch.float64)

    @property
    def rows(self) -> Tensor:
        return torch.tensor([report.rows for report in self.reports])

    @property
    def converged(self) -> Tensor:
        return torch.tensor([bool(report.converged) for report in self.reports])


class InversionError(RuntimeError):
    """An inversion missed its tolerance; `reports` say by how much, image by image."""

    def __init__(self, reports: Sequence[InversionReport]) -> None:
        super().__init__(reports)
        self.reports = tuple(reports)

    def __str__(self) -> str:
        worst = max(range(len(self.reports)), key=lambda image: self.reports[image].error)
        report = self.reports[worst]
        return (
            f"{report.method}: {sum(report.converged for report in self.reports)} of {len(self.reports)} images below "
            f"a round-trip error of {report.tolerance:.1e}; worst {report.error:.1e} (image {worst}, {report.rows} "
            f"rows). Where the residuals still fall, allow more sweeps; where they have stopped at the network's "
            f"rounding, raise tol; otherwise lower the guidance scale or start, use a table with lower_order_final (an "
            f"x0 need not have a preimage), or take the best that was found with on_failure='return'"
        )


@torch.no_grad()
def invert(
    x0: Tensor,
    grid: Grid,
    solver: Solver,
    x0_fn: X0Fn,
    *,
    start: int | None = None,
    method: str = "joint",
    tol: float | None = None,
    max_sweeps: int = 200,
    on_failure: str = "raise",
    progress: Progress = None,
) -> Inversion:
    """The states x[0..start] of the solver's run from x[start], without history, that ends in x0.

    That run is sample(x[start], run, solver(run), x0_fn), where run = grid.until(start).

    x0: (B, ...), float32 or float64; states and solve keep its dtype.
    solver: the function from a grid to a table, such as dpm_solver_pp_2m, and not a table. `invert` makes one table for
        the run, and one on the reversed grid for the way up, with which every method begins.
    x0_fn: gets up to B * start states at different i in one call. Two attributes of it are used where it has them, as a
        `DataPrediction` does: for_images(images) returns the x0_fn whose row n belongs to image images[n], and
        rows_per_state is the number of rows that a state costs in the reports (1 without it). A function of your own
        around a DataPrediction has to pass both on. Without for_images a context must be one row, or states meet the
        contexts of other images; without rows_per_state guided states count as one row.
    start: 1..grid.steps, the noise end by default.
    method: a name in INVERSIONS, whose module in `inversions/` says what it does. "joint" and "defect" are exact where
        they converge; no other inverts the run, though some invert a sampler of their own; "naive-unmeasured" is
        "naive" without the round trip that measures it, at half the rows.
    tol: bound on every image's round-trip error |denoise(x[start]) - x0| / |x0|. By default 2e-6 in float32 and 1e-11
        in float64; a network that runs in half precision leaves 1e-4 to 1e-3 and needs a tol to match. The methods that
        solve one step after the other bound the residual of each step by it, or have a rule of their own.
    max_sweeps: evaluations of the solve that an image may take after its first, which is the naive inversion's. For
        the methods that solve one step after the other it is those of every step, or as many as the method's paper
        has, where these are fewer. "joint" and "defect" take 2 * start * (1 + max_sweeps) states at most.
    on_failure: what to do when an exact method misses tol: "raise" an InversionError with the reports, or "return" the
        best that was found. The methods that are no inverses promise no tolerance and always return.
    progress: wraps the loop, as progress(indices, "sweep") for the exact methods and progress(indices, "step") for the
        others; tqdm is such a function.
    Before the network runs, TypeError for a table in the solver's place, and ValueError for arguments that do not fit
    together and for a grid that ends at sigma[0] = 0. FloatingPointError when a data prediction, a state or a step of
    the solve is not finite.
    """
    run = _run_to(x0, grid, grid.steps if start is None else start, solver, x0_fn)
    if method not in INVERSIONS:
        raise ValueError(f"method must be one of {', '.join(INVERSIONS)}, got {method!r}")
    if on_failure not in ("raise", "return"):
        raise ValueError(f"on_failure must be 'raise' or 'return', got {on_failure!r}")
    tol = DEFAULT_TOL[x0.dtype] if tol is None else tol
    if not (tol > 0 and max_sweeps >= 0):
        raise ValueError(f"tol must be above 0 and max_sweeps 0 or more; got {tol} and {max_sweeps}")

    solution = INVERSIONS[method].solve(run, tol, max_sweeps, progress)
    _check_solution(method, solution, run)
    reports = _reports(method, tol, solution, run)
    if INVERSIONS[method].exact and on_failure == "raise" and not all(report.converged for report in reports):
        raise InversionError(reports)
    return Inversion(torch.cat([x0[None], solution.states.transpose(0, 1)]), reports, solution.kept)


def _reports(method: str, tol: float, solution: Solution, run: Run) -> tuple[InversionReport, ...]:
    """The images' reports. Errors that the method has not measured are measured here, unless they are to stay so."""
    if not INVERSIONS[method].measured:
        errors = [None] * len(run.x0)
    elif solution.errors is None:
        errors = run.error(solution.states[:, -1], run.images).tolist()
    else:
        errors = solution.errors.tolist()
    about = zip(run.prediction.rows.tolist(), errors, solution.residuals, strict=True)
    return tuple(
        InversionReport(
            method,
            tol,
            rows,
            sweeps=max(0, len(residuals) - 1),
            error=error,
            converged=None if error is None else error <= tol,
            residuals=tuple(residuals),
        )
        for rows, error, residuals in about
    )


def _run_to(x0: Tensor, grid: Grid, start: int, solver: Solver, x0_fn: X0Fn) -> Run:
    """The run that is to end in x0. Raises what `invert` raises for an x0, a grid, a start or a solver."""
    if isinstance(solver, StepTable):
        raise TypeError(
            f"invert takes the solver itself, a function from a grid to a table, and makes the tables it needs; got "
            f"the table {solver.name}. Pass dpm_solver_pp_2m, say, or lambda grid: dpm_solver_pp_2m(grid, "
            f"lower_order_final=True)"
        )
    if not callable(solver):
        raise TypeError(f"invert takes a solver, a function from a grid to a table such as ddim; got {solver!r}")
    grid = grid.until(start)
    table = solver(grid)
    check_run(x0, grid, table, None)
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
    return Run(x0, grid, table, solver(grid.reversed()), CountedPrediction(x0_fn, len(x0)))


def _check_solution(method: str, solution: object, run: Run) -> None:
    """TypeError or ValueError for what an inversion method of somebody's own may have returned by mistake."""
    if not isinstance(solution, Solution):
        raise TypeError(f"the inversion {method!r} returned {type(solution).__name__}; a method returns a Solution")
    states, expected = solution.states, (len(run.x0), run.start, *run.x0.shape[1:])
    if states.shape != expected or states.dtype != run.x0.dtype or len(solution.residuals) != len(run.x0):
        raise ValueError(
            f"the inversion {method!r} returned states {tuple(states.shape)} {states.dtype} and "
            f"{len(solution.residuals)} lists of residuals; expected x[1..start], {expected} {run.x0.dtype}, and a "
            "list for each image"
        )
