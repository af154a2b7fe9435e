"""Time grids: the times of a run, and the ways of choosing them that have a name.

Index 0 is the clean end and index `steps` the noise end, the paper's T. Grids know nothing of solvers: the tables are
made from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .schedule import NoiseSchedule, half_log_snr


@dataclass(frozen=True)
class Grid:
    """The times of a run, which leads from index `steps` to index 0.

    All tensors are float64 of shape (steps + 1,), on the CPU. ValueError where they are not as said here.
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
                    f"{self.name}: {field} must be float64 of shape (steps + 1,), got {values.dtype} of shape "
                    f"{tuple(values.shape)}"
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
        """Whether lam rises with the index: a run on this grid leads from clean to noise."""
        return (self.lam[-1] > self.lam[0]).item()

    def until(self, start: int) -> "Grid":
        """The grid of a run that starts at `start`: the indices 0..start of this one.

        start: 1..steps; ValueError otherwise. Indices keep their meaning, so an x0_fn of the whole grid fits.
        """
        self.check_start(start)
        return self if start == self.steps else self._pick(f"{self.name} until {start}", slice(start + 1))

    def reversed(self) -> "Grid":
        """The same times upside down: its index j is this grid's index steps - j."""
        return self._pick(f"{self.name} reversed", torch.arange(self.steps, -1, -1))

    def check_start(self, start: int) -> None:
        """ValueError unless a run can start at this index."""
        if not isinstance(start, int) or not 1 <= start <= self.steps:
            raise ValueError(f"start must be an index of 1..{self.steps} on {self.name}, got {start!r}")

    def _pick(self, name: str, indices: slice | Tensor) -> "Grid":
        return Grid(name, self.t[indices], self.alpha[indices], self.sigma[indices], self.lam[indices])


def time_uniform(schedule: NoiseSchedule, steps: int) -> Grid:
    """Uniform in continuous time, 1 to 1/N. The grid of the DPM-Solver authors and of TF-ICON, hence the paper's."""
    _check_steps(steps)
    t = torch.linspace(1 / schedule.training_times, 1, steps + 1, dtype=torch.float64)
    return _continuous(f"time_uniform({steps})", schedule, t)


def log_snr(schedule: NoiseSchedule, steps: int) -> Grid:
    """Uniform in lam between the same two ends: the "logSNR" grid of the DPM-Solver authors' code."""
    _check_steps(steps)
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
    """Integer training times: the grids of diffusers' DPMSolverMultistepScheduler, under its names.

    final_sigma: what index 0 is: no noise at all ("zero", for which t[0] = -1 stands; no network knows it) or the first
        training time ("sigma_min").
    steps_offset: added to the "leading" times (1 in Stable Diffusion's own scheduler settings).
    ValueError for unknown names and for more steps than there are times.
    """
    _check_steps(steps)
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


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number, 1 or more, got {steps!r}")
