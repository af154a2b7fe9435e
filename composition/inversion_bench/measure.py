"""This module measures inversions of one scan to one start: every method and tolerance is asked for the same problem,
and judged in the same way, whatever it says of itself.

The bench measures the round trip from x[start] alone through the unmodified sampler, and everything else, with
evaluations of its own, which no method is charged for. A method's rows are those that its inversion ran, with the
round trip that `invert` measures for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from solvers import INVERSIONS, Grid, Inversion, Solver, denoise, invert
from solvers.prediction import X0Fn

from ..runs.record import told
from ..settings import Settings
from . import cost, editing, whiteness
from .editing import Swap

# What a cell holds, as `Bench.cell` describes it.
FIGURES = (
    *("error", "reported", "own", "one_state", "converged", "measured", "rows", "sweeps", "residuals", "shape", "kept"),
    *("states", "reference", "noise", *editing.MEASURES, "machine"),
)
# What a method's rows and seconds are told as multiples of, and what a composition inverts with by default.
UNIT, DEFAULT = "naive", Settings().inversion


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Problem:
    """An x0 (1, C, h, w) whose inversion to the end of `grid` is asked for.

    solver, x0_fn: of the run. noise_end: whether the run starts at the noise end, where x[start] is compared with white
    noise. truth: the states x[1..start] (start, C, h, w) of the run that made x0; None for a scan that no run has made.
    swap: the run under another prompt; None where there is no other prompt.
    """

    x0: Tensor
    grid: Grid
    solver: Solver
    x0_fn: X0Fn
    noise_end: bool = False
    truth: Tensor | None = None
    swap: Swap | None = None


class Bench:
    """The measures of one problem, by method and tolerance. What several of them need is made once.

    tolerances: all that will be asked for. max_sweeps: as for `invert`. reference: the tolerance of the trajectory that
    states are compared with where the truth is unknown; None for none.
    """

    def __init__(self, problem: Problem, tolerances: Sequence[float], max_sweeps: int, reference: float | None = None):
        self.problem, self.least, self.max_sweeps, self.reference = problem, min(tolerances), max_sweeps, reference
        self._inverted: dict[tuple[str, float | None], tuple[Inversion, cost.Cost]] = {}
        self._judged: dict[bytes, dict] = {}

    @torch.no_grad()
    def cell(self, method: str, tolerance: float) -> dict:
        """What is measured of a method at a tolerance, as JSON holds it: numbers, None, and "inf" and "nan".

        error: |denoise(x[start]) - x0| / |x0|, from x[start] alone. reported: what the method's report says of it.
        own, one_state: the same through the sampler that the method inverts, with all that it keeps, and from x[start]
        alone; None where it inverts the run's own. converged: error <= tolerance. measured: as in INVERSIONS.
        rows, sweeps, residuals: of the report. shape: (C, h, w) of the latent. kept: latents that the method keeps for
        its way back. states: the relative errors of x[1..start]; None where nobody knows the true ones, and for states
        that are no trajectory. reference: why nobody knows them.
        noise: the measures of `whiteness`; None below the noise end. swap_psnr, swap_change: of `Swap`.
        machine: seconds, the naive inversion's seconds in the same process, and peak_bytes.
        Raises FloatingPointError for what is not finite.
        """
        entry = INVERSIONS[method]
        _, unit = self._invert(UNIT, tolerance)
        inversion, took = self._invert(method, tolerance)
        report, end = inversion.reports[0], inversion.states[-1]
        judged = self._judge(end)
        found = {
            "error": judged["error"],
            "reported": report.error,
            **self._own(method, inversion),
            "converged": judged["error"] <= tolerance,
            "measured": entry.measured,
            "rows": report.rows,
            "sweeps": report.sweeps,
            "residuals": list(report.residuals),
            "shape": list(self.problem.x0.shape[1:]),
            "kept": _latents(inversion.kept, self.problem.x0),
            "states": self._states(inversion.states[1:, 0]) if entry.trajectory else None,
            "reference": None if self.problem.truth is not None else self._reference[1],
            **{name: value for name, value in judged.items() if name != "error"},
        }
        found["machine"] = {"seconds": took.seconds, "naive_seconds": unit.seconds, "peak_bytes": took.peak_bytes}
        return for_json(found)

    def _invert(self, method: str, tolerance: float) -> tuple[Inversion, cost.Cost]:
        """The inversion of a method and its cost. One that solves nothing does not depend on the tolerance."""
        for key in ((method, tolerance), (method, None)):
            if key in self._inverted:
                return self._inverted[key]
        problem = self.problem
        if not self._inverted:
            problem.x0_fn(problem.x0, problem.grid.steps)  # the first call of a shape may take longer
        limits = {"tol": tolerance, "max_sweeps": self.max_sweeps, "on_failure": "return"}
        with cost.measured_cost(problem.x0.device) as took:
            inversion = invert(problem.x0, problem.grid, problem.solver, problem.x0_fn, method=method, **limits)
        solves = bool(inversion.reports[0].residuals)
        self._inverted[method, tolerance if solves else None] = inversion, took
        return inversion, took

    def _judge(self, end: Tensor) -> dict:
        """What x[start] is worth, whoever found it; several methods and tolerances may find the same."""
        key = end.cpu().contiguous().numpy().tobytes()
        if key not in self._judged:
            problem = self.problem
            back = denoise(end, problem.grid, problem.solver(problem.grid), problem.x0_fn)
            found = {"error": distance(back, problem.x0)}
            found["noise"] = whiteness.whiteness(end[0]) if problem.noise_end else None
            found |= dict.fromkeys(editing.MEASURES) if problem.swap is None else problem.swap.measured(end)
            self._judged[key] = found
        return self._judged[key]

    def _own(self, method: str, inversion: Inversion) -> dict[str, float | None]:
        """The errors through the method's own sampler; inf where its way back overflows."""
        sampler, problem = INVERSIONS[method].sampler, self.problem
        found: dict[str, float | None] = {"own": None, "one_state": None}
        if sampler is None:
            return found
        ways = {"own": (sampler.denoise, inversion.kept), "one_state": (sampler.from_one_state, inversion.states[-1])}
        for name, (way, given) in ways.items():
            if way is not None:
                try:
                    found[name] = distance(way(given, problem.grid, problem.x0_fn), problem.x0)
                except FloatingPointError:
                    found[name] = math.inf
        return found

    def _states(self, states: Tensor) -> list[float] | None:
        true = self.problem.truth if self.problem.truth is not None else self._reference[0]
        if true is None:
            return None
        return [distance(state, expected) for state, expected in zip(states, true, strict=True)]

    @cached_property
    def _reference(self) -> tuple[Tensor | None, str | None]:
        """The states x[1..start] of the default inversion at the tolerance of the reference, or None and why not.

        Where it misses a larger tolerance already, which is to be measured anyway, it is asked for no more.
        """
        if self.reference is None:
            return None, "no reference was asked for"
        try:
            for tolerance in sorted({max(self.least, self.reference), self.reference}, reverse=True):
                made, _ = self._invert(DEFAULT, tolerance)
                if not made.converged.all():
                    return None, f"the reference is off by {made.errors.item():.1e}"
        except (FloatingPointError, RuntimeError) as error:  # the cells themselves need no reference
            return None, f"the reference failed: {told(error)}"
        return made.states[1:, 0], None


def distance(x: Tensor, expected: Tensor) -> float:
    """|x - expected| / |expected| over the whole tensors, in float64."""
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64).item() for one in (x - expected, expected)]
    return norms[0] / norms[1]


def _latents(kept: Tensor | tuple[Tensor, ...] | None, x0: Tensor) -> float:
    """The size of what is kept, in latents; a method that keeps nothing else keeps x[start]."""
    kept = (kept,) if isinstance(kept, Tensor) else kept
    return 1.0 if kept is None else sum(one.numel() for one in kept) / x0.numel()


def for_json(value: object) -> object:
    """A value with the numbers that JSON does not have as "inf", "-inf" and "nan", as `float` reads them."""
    if isinstance(value, dict):
        return {name: for_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [for_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
