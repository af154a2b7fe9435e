"""Every constant of the method in one frozen place, with the source of its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin, get_type_hints


def _setting(default, about: str):
    """A field and what it means; the command line makes its option and its help of them."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Settings:
    """What one composition depends on beside its inputs and the model. Defaults are the paper's where it gives them.

    Raises ValueError, naming the field, where a value is outside its range.
    """

    # TF-ICON, whose solver the paper takes over: DPM-Solver++(2M), uniform in time, no first-order last step.
    steps: int = _setting(20, "T, the steps of the whole grid (paper, section 5.1)")
    grid: Literal["time_uniform", "log_snr"] = _setting("time_uniform", "how the steps are spaced (as TF-ICON)")
    lower_order_final: bool = _setting(False, "take the last step to first order (TF-ICON does not)")

    start: int = _setting(6, "T', the state at which Eq. 8 composes, counted from the clean end (paper, section 5.1)")
    # The paper's Fig. 9 says the reverse of Eq. 9, which is followed here.
    preserve_until: int = _setting(
        3,
        "tau of Eq. 9, which puts the background back on states preserve_until to start: the smaller, the longer it is "
        "kept; above start, never (paper, section 5.1)",
    )
    history: Literal["carry", "restart"] = _setting(
        "carry",
        "carry composes the data prediction of the state before start too, so that the first step is already second "
        "order; restart makes it first order. At start = steps there is nothing to carry",
    )
    guidance_scale: float = _setting(
        2.5,
        "s of Eq. 6. Not in the paper; TF-ICON: 2.5 within a domain, 5.0 across; 1 is no guidance, at half the cost",
    )
    exceptional_token: int | None = _setting(
        None, "token id of the exceptional prompt; by default 7788, as TF-ICON, or its like in a small vocabulary"
    )

    # At 5 % one sweep does where a scan behaves as analytic data do, and leaves 1 to 2 %; two inversions and their
    # measured round trips then cost 30 rows of the network. TF-ICON, hence the paper: "naive", nothing measured.
    inversion: Literal["joint", "defect", "frozen", "naive"] = _setting(
        "joint", "how scans are inverted; joint and defect are exact, to within the tolerance"
    )
    tolerance: float = _setting(
        5e-2, "round-trip error, relative, at which an exact inversion may stop; 1e-3 costs about twice as much"
    )

    preserve: Literal["latent", "pixels"] = _setting(
        "latent",
        "latent: the decoded image, the paper's result; pixels: with the scan's own pixels outside the user mask",
    )
    feather: int = _setting(4, "pixels over which `preserve pixels` blends; they lie wholly inside the user mask")

    max_batch: int | None = _setting(
        None, "rows in one call of the network at most; bounds memory and changes no equation"
    )

    def __post_init__(self):
        _whole(self, "steps", 1)
        _whole(self, "start", 1, self.steps)
        _whole(self, "preserve_until", 0)
        _whole(self, "feather", 0)
        if self.max_batch is not None:
            _whole(self, "max_batch", 1)
        if self.exceptional_token is not None:
            _whole(self, "exceptional_token", 0)
        for name, kind in get_type_hints(Settings).items():
            if get_origin(kind) is Literal:
                _choice(self, name, get_args(kind))
            elif kind is bool:
                _choice(self, name, (False, True))
        if not isinstance(self.tolerance, int | float) or not self.tolerance > 0:
            raise ValueError(f"tolerance is a relative error above 0, got {self.tolerance!r}")
        if not isinstance(self.guidance_scale, int | float) or not abs(self.guidance_scale) < float("inf"):
            raise ValueError(f"guidance_scale is a finite number (1 turns guidance off), got {self.guidance_scale!r}")

    @property
    def inverted_steps(self) -> int:
        """How far the scans are inverted: start, and one state further where the history is carried."""
        return min(self.start + 1, self.steps) if self.history == "carry" else self.start


def _whole(settings: Settings, name: str, low: int, high: int | None = None) -> None:
    value = getattr(settings, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        expected = f"a whole number from {low}" + (f" to {high}" if high is not None else " up")
        raise ValueError(f"{name} is {expected}, got {value!r}")


def _choice(settings: Settings, name: str, allowed: tuple) -> None:
    value = getattr(settings, name)
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}; got {value!r}")
