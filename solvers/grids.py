"""A time grid holds the times of a run. This module defines it and holds the grids that have a name. It stands apart
because grids know nothing of solvers, whose tables are made from them.

Index 0 is the clean end and index `steps` the noise end, the paper's T.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .schedule import NoiseSchedule, half_log_snr


@dataclass(frozen=True, eq=False)  # tensors have no plain equality
class Grid:
    """The times of a run, which leads from index `steps` to index 0.

    All tensors are float64 of shape (steps + 1,), on the CPU. ValueError where they do not keep to this description.
    t: the time handed to the network, 0..N-1, any real number; a sampler never uses index 0.
    alpha, sigma: alpha² + sigma² = 1.
    lam: log(alpha / sigma), strictly monotone; +inf where sigma is 0. It falls with the index on every named grid, and
        rises on a reversed one.
    """

    name: str
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    def __post_init__(self) -> None:
        for field in ("t", "alpha", "sigma", "lam"):
            values = getattr(self, field)
            if values.dtype != torch.float64 or values.ndim != 1 or len(values) != len(self.t) or len(values) < 2:
                raise ValueError(
                    f"{self.name}: {field} must be float64 of shape (steps + 1,), with one entry for every time and "
                    f"at least two; got {values.dtype} of shape {tuple(values.shape)}, where t has {len(self.t)} "
                    f"entries. Compute all four in float64 from the same times, or take a named grid"
                )
        steps = self.lam.diff()
        if not ((steps < 0).all() or (steps > 0).all()):
            raise ValueError(
                f"{self.name}: neighbouring times coincide or are out of order (lam must fall strictly, or rise "
                f"strictly); use fewer steps"
            )

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    @property
    def rises(self) -> bool:
        """Whether lam rises with the index, so that a run on this grid leads from clean to noise."""
        return (self.lam[-1] > self.lam[0]).item()

    def until(self, start: int) -> "Grid":
        """The grid of a run that starts at `start`: the indices 0..start of this one.

        start: 1..steps; ValueError otherwise. Indices keep their meaning, so an x0_fn of the whole grid fits.
        """
        start = self.check_start(start)
        return self if start == self.steps else self._pick(f"{self.name} until {start}", slice(start + 1))

    def reversed(self) -> "Grid":
        """The same times in reverse order: its index j is this grid's index steps - j."""
        return self._pick(f"{self.name} reversed", torch.arange(self.steps, -1, -1))

    def check_start(self, start: int) -> int:
        """`start` as an int. ValueError unless a run can start at this index."""
        index = _whole_number(start)
        if index is None or not 1 <= index <= self.steps:
            raise ValueError(f"start must be an index of 1..{self.steps} on {self.name}, got {start!r}")
        return index

    def _pick(self, name: str, indices: slice | Tensor) -> "Grid":
        return Grid(name, self.t[indices], self.alpha[indices], self.sigma[indices], self.lam[indices])


def time_uniform(schedule: NoiseSchedule, steps: int) -> Grid:
    """The grid that is even in continuous time, from 1/N to 1. The DPM-Solver authors, TF-ICON and the paper use it."""
    steps = _check_steps(steps)
    t = torch.linspace(1 / schedule.training_times, 1, steps + 1, dtype=torch.float64)
    return _continuous(f"time_uniform({steps})", schedule, t)


def log_snr(schedule: NoiseSchedule, steps: int) -> Grid:
    """The grid that is even in lam between the same two ends, "logSNR" in the DPM-Solver authors' code."""
    steps = _check_steps(steps)
    ends = torch.tensor([1 / schedule.training_times, 1.0], dtype=torch.float64)
    clean, noise = schedule.lam(ends).tolist()
    t = schedule.time(torch.linspace(clean, noise, steps + 1, dtype=torch.float64))
    return _continuous(f"log_snr({steps})", schedule, t)


# The grids that a schedule and a number of steps determine, by name.
GRIDS: dict[str, Callable[[NoiseSchedule, int], Grid]] = {"time_uniform": time_uniform, "log_snr": log_snr}


def discrete(
    schedule: NoiseSchedule,
    steps: int,
    spacing: Literal["leading", "trailing", "linspace"] = "linspace",
    final_sigma: Literal["zero", "sigma_min"] = "zero",
    steps_offset: int = 0,
) -> Grid:
    """The grids of diffusers' DPMSolverMultistepScheduler, under its names. Their times are integer training times.

    final_sigma: "zero" leaves no noise at all at index 0, where t[0] = -1 marks a time that no network was trained on.
        "sigma_min" puts the first training time there.
    steps_offset: added to the "leading" times (1 in Stable Diffusion's own scheduler settings).
    ValueError for unknown names and for more steps than there are times.
    """
    steps = _check_steps(steps)
    total = schedule.training_times
    rank = torch.arange(1, steps + 1, dtype=torch.float64)  # 1 is the cleanest time the network sees
    if steps_offset and spacing != "leading":
        raise ValueError(f"steps_offset={steps_offset} belongs to spacing='leading', got spacing={spacing!r}")
    if spacing == "leading":
        n = rank * (total // (steps + 1)) + steps_offset
    elif spacing == "trailing":
        # np.arange settles ties such as 937.5 (48 steps) the way diffusers' own grids do.
        n = torch.tensor(np.arange(total, 0, -total / steps)[:steps].round()).flip(0) - 1
    elif spacing == "linspace":
        n = (rank * ((total - 1) / steps)).round()
    else:
        raise ValueError(f"spacing must be 'leading', 'trailing' or 'linspace', got {spacing!r}")
    if n[-1] >= total:
        raise ValueError(f"steps={steps}, steps_offset={steps_offset} lead past the last training time, {total - 1}")
    if final_sigma not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigma must be 'zero' or 'sigma_min', got {final_sigma!r}")

    last = -1.0 if final_sigma == "zero" else 0.0
    log_alpha_last = n.new_zeros(1) if final_sigma == "zero" else schedule.log_alphas[:1]
    log_alpha = torch.cat([log_alpha_last, schedule.log_alphas[n.long()]])
    name = f"discrete({steps}, {spacing}, {final_sigma}" + (f", offset {steps_offset})" if steps_offset else ")")
    return _grid(name, torch.cat([n.new_tensor([last]), n]), log_alpha)


def _continuous(name: str, schedule: NoiseSchedule, t: Tensor) -> Grid:
    return _grid(name, t * schedule.training_times - 1, schedule.log_alpha(t))


def _grid(name: str, network_time: Tensor, log_alpha: Tensor) -> Grid:
    alpha, sigma = log_alpha.exp(), torch.expm1(2 * log_alpha).abs().sqrt()
    return Grid(name, network_time, alpha, sigma, half_log_snr(log_alpha))


def _check_steps(steps: int) -> int:
    whole = _whole_number(steps)
    if whole is None or whole < 1:
        raise ValueError(f"steps must be a whole number, 1 or more, got {steps!r}")
    return whole


def _whole_number(value: object) -> int | None:
    """`value` as an int if it is an integer, of Python, numpy or torch; None for everything else, bools included."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
