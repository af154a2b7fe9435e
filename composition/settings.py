"""Every constant of the method in one frozen place, with the source of its default."""

from __future__ import annotations

from dataclasses import dataclass

GRIDS = ("time_uniform", "log_snr")
METHODS = ("joint", "defect", "frozen", "naive")


@dataclass(frozen=True)
class Settings:
    """What a composition depends on beside its inputs and the model. Defaults are the paper's where it gives them.

    Raises ValueError, naming the field, where a value is outside its range.
    """

    # The sampler. Paper, section 5.1: T = 20. TF-ICON: DPM-Solver++(2M), uniform in time, no first-order last step.
    steps: int = 20
    grid: str = "time_uniform"  # "time_uniform" | "log_snr"
    lower_order_final: bool = False

    # T', the state at which Eq. 8 composes. Paper, section 5.1.
    start: int = 6
    # tau of Eq. 9, which acts on i = preserve_until, ..., start: the smaller, the longer the background is kept.
    # (The paper's Fig. 9 says the reverse; we follow the equation.) Above `start` Eq. 9 never acts. Paper, section 5.1.
    preserve_until: int = 3
    # "carry": the data prediction before `start` is composed too, so that the first step is already second order.
    # "restart": that step is first order. At start = steps there is nothing to carry, and both are "restart".
    history: str = "carry"

    # s of Eq. 6. The paper does not give it; TF-ICON uses 2.5 within a domain and 5.0 across domains.
    guidance_scale: float = 2.5

    # The token id of the exceptional prompt. None: 7788 as TF-ICON, or its like in a small vocabulary (prompts.py).
    exceptional_token: int | None = None

    # How the scans are inverted (solvers.invert), and the relative residual at which it may stop.
    inversion: str = "joint"  # "joint" | "defect" | "frozen" | "naive"
    tolerance: float = 1e-2

    # "latent": the decoded canvas, the paper's result. "pixels": the scan's own pixels outside the user mask, blended
    # over `feather` pixels of the scan that lie wholly inside the mask.
    preserve: str = "latent"
    feather: int = 4

    # The largest number of rows in one network call; bounds memory and changes no equation. None: no bound.
    max_batch: int | None = None

    def __post_init__(self):
        _whole(self, "steps", 1)
        _whole(self, "start", 1, self.steps)
        _whole(self, "preserve_until", 0)
        _whole(self, "feather", 0)
        if self.max_batch is not None:
            _whole(self, "max_batch", 1)
        if self.exceptional_token is not None:
            _whole(self, "exceptional_token", 0)
        _choice(self, "grid", GRIDS)
        _choice(self, "inversion", METHODS)
        _choice(self, "history", ("carry", "restart"))
        _choice(self, "preserve", ("latent", "pixels"))
        if not self.tolerance > 0:
            raise ValueError(f"tolerance is a relative residual above 0, got {self.tolerance!r}")
        if not abs(self.guidance_scale) < float("inf"):
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


def _choice(settings: Settings, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(settings, name)
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}; got {value!r}")
