"""This module holds every constant of the method in one frozen dataclass, with the source of its default.

The command line makes its options of the fields, and records and keys are made of them, so that a new setting is one
field.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import get_args, get_type_hints

import numpy as np

from sd21.words import shown
from solvers import GRIDS, INVERSIONS, SOLVERS, Grid, NoiseSchedule, StepTable

from .matching import MATCHES

# The off value of every step beyond the paper, and the inversion that it takes over from TF-ICON.
PAPER = {
    "history": "restart",
    "preserve_background_until": 3,
    "preserve_object_until": None,
    "inversion": "naive",
    "fit": "box",
    "size": "region",
    "match": "none",
    "focus": "scan",
    "detail": False,
}

# What the other numbers may be, as (least, greatest); floats stand for fields that take fractions. Where no equation
# sets the greatest, it lies far beyond any use: a number above it is a slip, which would cost hours or memory.
BOUNDS = {
    "steps": (1, 1000),  # the times that Stable Diffusion was trained on
    "preserve_background_until": (0, 1_000_000),
    "preserve_object_until": (0, 1_000_000),
    "exceptional_token": (0, 10_000_000),
    "guidance_scale": (-100.0, 100.0),
    "tolerance": (1e-15, 1.0),  # an inversion that is off by the whole scan finds nothing
    "max_sweeps": (1, 10_000),
    "focus_context": (2.0, 1000.0),
    "feather": (0, 4096),
    "max_batch": (1, 1_000_000),
}


class _Trajectories(Collection):
    """The names in INVERSIONS of the methods whose states follow one another as those of a run do, so that a
    composition can read them; a method that is entered later counts as well."""

    def __contains__(self, name: object) -> bool:
        return name in INVERSIONS and INVERSIONS[name].trajectory

    def __iter__(self) -> Iterator[str]:
        return (name for name in INVERSIONS if name in self)

    def __len__(self) -> int:
        return len(list(iter(self)))


TRAJECTORIES = _Trajectories()


def _setting(default, about: str, choices: Collection[str] = ()):
    """A field, what it means and what it may be; the command line makes its option and its help of them.

    choices: names, or a table of solvers by name, in which an entry that is made later counts as well.
    """
    return field(default=default, metadata={"about": about, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What one composition depends on beside its inputs and the model.

    Defaults are the paper's, but for the steps beyond it, whose off values PAPER holds.

    `python -m composition run --help` explains every field; so does its metadata["about"]. Numbers may be numpy's; they
    are kept as Python's. Raises ValueError, naming the field, where a value is outside its range or of another kind.
    """

    # TF-ICON, whose solver the paper takes over: DPM-Solver++(2M), uniform in time, no first-order last step.
    steps: int = _setting(20, "T, the steps of the whole grid (paper, section 5.1)")
    solver: str = _setting("dpm_solver_pp_2m", "the step table, by its name in solvers.SOLVERS", SOLVERS)
    grid: str = _setting("time_uniform", "how the steps are spaced (as TF-ICON)", GRIDS)
    lower_order_final: bool = _setting(
        False, "take the last step, and with third-order tables the last two, to lower order (TF-ICON does not)"
    )

    start: int = _setting(6, "T', the state at which Eq. 8 composes, counted from the clean end (paper, section 5.1)")
    # The paper has 3. At 0 the background is 6 to 8 dB nearer to its own scan, though the edge of the user mask shows
    # by half a grey level more (the evidence's ablation of steps). The paper's Fig. 9 says the reverse of Eq. 9, which
    # is followed here.
    preserve_background_until: int | None = _setting(
        0,
        "tau of Eq. 9, which puts the background back outside the user mask, on the states from start down to this "
        "one; none, or a value above start: on no state (3 in the paper, section 5.1)",
    )
    preserve_object_until: int | None = _setting(
        0,
        "the same for the object: its own states are put back inside its mask, from start down to this one; none: on "
        "no state (the paper)",
    )
    # The carried data predictions are those of another prompt than the one that goes on, and buy nothing.
    history: str = _setting(
        "restart",
        "restart makes the first step first-order (the paper); carry composes the data predictions of the states "
        "before start too, as many as the solver weighs. At start = steps there is nothing to carry",
        ("restart", "carry"),
    )
    guidance_scale: float = _setting(
        2.5,
        "s of Eq. 6. Not in the paper; TF-ICON: 2.5 within a domain, 5.0 across; 1 is no guidance, at half the cost",
    )
    exceptional_token: int | None = _setting(
        None, "token id of the exceptional prompt; by default 7788, as TF-ICON, or its like in a small vocabulary"
    )

    # TF-ICON, hence the paper: "naive".
    inversion: str = _setting(
        "joint", "how scans are inverted; joint and defect are exact, as far as max_sweeps allows", TRAJECTORIES
    )
    tolerance: float = _setting(
        5e-2,
        "round-trip error, relative, at which an exact inversion may stop; on real scans 1e-3 takes four or five "
        "sweeps, and so a larger max_sweeps",
    )
    # At 5 % one scan of the benchmark's 800 took two. A sweep costs 2 T' rows, as the first measure does.
    max_sweeps: int = _setting(
        2, "sweeps that the inversion of a scan may take, which bounds what it costs; a small tolerance takes more"
    )
    on_failure: str = _setting(
        "return",
        "an exact inversion that misses the tolerance in so many sweeps: return the best it found, whose error the "
        "record tells, or raise an error",
        ("return", "raise"),
    )

    fit: str = _setting(
        "inside",
        "how large the object is placed: box enlarges or shrinks it until its bounding box fits the user mask's, and "
        "cuts off what lies outside (the paper); inside makes it smaller than that until its whole mask lies in the "
        "user mask; placed leaves it where it is on its own scan, which lies on the background's pixels already",
        ("inside", "box", "placed"),
    )
    size: str = _setting(
        "auto",
        "auto keeps the object's size in millimetres where both scans know theirs (DICOM, NIfTI) and it fits the user "
        "mask; region fills the user mask, whatever size that is (the paper)",
        ("auto", "region"),
    )
    match: str = _setting(
        "contrast",
        "how the object's grey values are matched to the tissue it goes into; none: they are not (the paper). Values "
        "in Hounsfield units, of CT read from DICOM, are never matched",
        MATCHES,
    )
    focus: str = _setting(
        "auto",
        "what of the background the network sees: scan is all of it (the paper), window the placed object with tissue "
        "around it, auto a window where the object spans too few latent cells of the whole scan",
        ("auto", "scan", "window"),
    )
    # Below 2 the window's edge would cut into the tissue that greys are matched to.
    focus_context: float = _setting(
        4.0,
        "the side of the window of `focus`, in multiples of the longer side of the placed object's box; 2 or more",
    )

    detail: bool | None = _setting(
        None,
        "give back what the autoencoder loses of background and object, at the scan's own resolution; by default "
        "only `ours` does, of the baselines none (nor does the paper)",
    )
    preserve: str = _setting(
        "latent",
        "latent: the decoded image, the paper's result; pixels: with the scan's own pixels outside the user mask",
        ("latent", "pixels"),
    )
    feather: int = _setting(
        4, "pixels of the canvas over which `preserve pixels` blends; they lie wholly inside the user mask"
    )

    max_batch: int | None = _setting(
        None, "rows in one call of the network at most; bounds memory and changes no equation"
    )

    def __post_init__(self):
        hints = get_type_hints(Settings)
        if isinstance(self.inversion, str) and self.inversion in INVERSIONS and self.inversion not in TRAJECTORIES:
            raise ValueError(
                f"inversion {self.inversion} gives states that do not follow one another as those of a run do, and a "
                f"composition reads such states; take one of {', '.join(TRAJECTORIES)}"
            )
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or type(None) not in get_args(hints[one.name]):
                object.__setattr__(self, one.name, _read(one.name, value, hints[one.name], one.metadata["choices"]))
        for name, (low, high) in BOUNDS.items():
            _in_range(self, name, low, high)
        _in_range(self, "start", 1, self.steps)

    @classmethod
    def paper(cls, **changes: object) -> Settings:
        """The paper's own method: every step beyond it is off, and scans are inverted as TF-ICON inverts them.

        changes: fields that are to have other values.
        """
        return cls(**PAPER | changes)

    def build_grid(self, schedule: NoiseSchedule) -> Grid:
        """The time grid that these settings name, for a model's noise schedule."""
        return GRIDS[self.grid](schedule, self.steps)

    def build_table(self, grid: Grid) -> StepTable:
        """The step table that these settings name, on a grid: a `solvers.Solver`."""
        return SOLVERS[self.solver](grid, lower_order_final=self.lower_order_final)


def _read(name: str, value: object, kind: type, choices: Collection[str]) -> object:
    """The value as Python's own number, bool or text. ValueError where it is of another kind, or not among choices."""
    if choices and isinstance(value, str) and value in choices:
        return str(value)
    is_bool, wants_bool = isinstance(value, bool | np.bool_), bool in (kind, *get_args(kind))
    if wants_bool and is_bool:
        return bool(value)
    if choices or wants_bool:
        raise ValueError(f"{name} is one of {', '.join(map(str, choices or (False, True)))}; got {shown(value)}")
    fractional = float in (kind, *get_args(kind))
    if is_bool or not isinstance(value, Real if fractional else Integral):
        expected = "a number" if fractional else "a whole number"
        raise ValueError(f"{name} is {expected}, got {shown(value)}, a {type(value).__name__}")
    # A whole number may be too large for a float. Infinity is beyond every bound.
    try:
        return float(value) if fractional else int(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _in_range(settings: Settings, name: str, low: float, high: float) -> None:
    value = getattr(settings, name)
    if value is not None and not low <= value <= high:  # nan is in no range
        kind = "a number" if isinstance(low, float) else "a whole number"
        raise ValueError(f"{name} is {kind} from {low} to {high}, got {shown(value)}")
