"""This module holds the numbers that one may choose for `inversions`. The command line makes its options of the fields.

What `Settings` has too is named and bounded there, so that the bench inverts the runs that compositions make.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from sd21.words import shown

from ..fields import option
from ..settings import Settings

# The guidance of a composition, and so that of a prompt swap.
SWAP_SCALE = Settings().guidance_scale
_OF_SETTINGS = {one.name: one for one in fields(Settings)}


def _as_in_settings(name: str):
    one = _OF_SETTINGS[name]
    return field(default=one.default, metadata=one.metadata)


@dataclass(frozen=True)
class Choices:
    """The run that is inverted, and the limits of the bench. Raises ValueError, naming the field, for what is out of
    range."""

    steps: int = _as_in_settings("steps")
    solver: str = _as_in_settings("solver")
    grid: str = _as_in_settings("grid")
    lower_order_final: bool = _as_in_settings("lower_order_final")
    max_batch: int | None = _as_in_settings("max_batch")
    max_sweeps: int = option(20, "sweeps that a method may take for a scan, or for a step where it solves steps")
    reference: float | None = option(
        1e-5,
        "tolerance of the reference trajectory of a real scan, which the default inversion makes and the states of all "
        "methods are compared with; none leaves these errors out, and saves its rows",
    )
    swap_scale: float = option(SWAP_SCALE, "guidance scale of the run under another prompt")
    seed: int = option(0, "seed of the noise of the generated scans")

    def __post_init__(self):
        self.settings()
        if self.reference is not None:
            _renamed("reference", "tolerance", self.reference)
        _renamed("swap_scale", "guidance_scale", self.swap_scale)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is a whole number from 0 to {2**31 - 1}, got {shown(self.seed)}")

    def settings(self, **more: object) -> Settings:
        """The Settings of such runs. more: other fields. Raises what Settings raises."""
        shared = {name: getattr(self, name) for name in (one.name for one in fields(self)) if name in _OF_SETTINGS}
        return Settings(**{"start": 1} | shared | more)


def _renamed(name: str, known_as: str, value: object) -> None:
    """Check a value as Settings checks its own field, and name ours in the error."""
    try:
        Settings(**{known_as: value})
    except ValueError as error:
        raise ValueError(str(error).replace(known_as, name, 1)) from None
