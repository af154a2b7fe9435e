"""This module says what an entry of the table of inversions is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..grids import Grid
from ..prediction import X0Fn
from .run import Solve


@dataclass(frozen=True)
class OwnSampler:
    """The sampler that a method inverts, where that is not the run's own table. `grid` ends at the run's start.

    denoise: (kept, grid, x0_fn) -> x0 (B, ...), with everything that the inversion keeps, `Solution.kept`.
    from_one_state: (x[start], grid, x0_fn) -> x0, with what a user has who keeps one state alone; None where the method
        keeps no more than that.
    """

    denoise: Callable[[Any, Grid, X0Fn], Tensor]
    from_one_state: Callable[[Tensor, Grid, X0Fn], Tensor] | None = None


@dataclass(frozen=True)
class InversionMethod:
    """A method of `invert`.

    exact: whether it promises the tolerance, so that a miss is a failure. measured: whether its round-trip error is
    known; a method without it saves the rows of the measurement, and its reports say None.
    sampler: the sampler that it inverts, where that is another than the run's. Its states are measured through the
    run's all the same.
    trajectory: whether its states follow one another as those of a run do, so that a composition can read them.
    """

    solve: Solve
    exact: bool
    measured: bool = True
    sampler: OwnSampler | None = None
    trajectory: bool = True

    def __post_init__(self) -> None:
        if self.exact and not self.measured:
            raise ValueError("an exact method promises a tolerance, so its error has to be measured: measured=True")
