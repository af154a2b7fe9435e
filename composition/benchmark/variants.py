"""This module says what the benchmark runs and compares: the methods of Tab. 1, and the ablations over T'
(Tab. 2, Fig. 8) and tau (Fig. 9). The paper's values for them stand only here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..settings import Settings

# The paper's values (Tab. 2 and Fig. 9).
STARTS = (18, 12, 6)
TAUS = (1, 3, 5)
OURS = "ours"  # the variant of our method with the settings that were given


@dataclass(frozen=True)
class Variant:
    """One way to compose all samples. name: the name of its folder; method: a name in methods.METHODS."""

    name: str
    method: str
    settings: Settings


@dataclass(frozen=True)
class Line:
    """A variant as one line of a lineup. value: what an ablation varies; series: the curve its plot belongs to."""

    label: str
    variant: Variant
    value: int | None = None
    series: str = ""


@dataclass(frozen=True)
class Lineup:
    """Lines side by side: one table, one grid and, if `varied` names what the lines' values are, one plot."""

    name: str
    title: str
    lines: tuple[Line, ...]
    varied: str | None = None


def methods(names: Sequence[str], settings: Settings) -> Lineup:
    """Tab. 1 and Fig. 7: methods under the same settings."""
    lines = tuple(Line(name, Variant(name, name, settings)) for name in names)
    return Lineup("table", "Methods (the paper's Tab. 1)", lines)


def start_ablation(settings: Settings) -> Lineup:
    """Tab. 2 and Fig. 8. Raises ValueError if the grid has fewer steps than the greatest T'."""
    _check("start", "steps", settings.steps, max(STARTS), f"runs T' = {', '.join(map(str, STARTS))}")
    lines = tuple(Line(f"T' = {start}", _ours(settings, start=start), start) for start in STARTS)
    return Lineup("ablation_start", "Selection of T' (the paper's Tab. 2)", lines, varied="T'")


def tau_ablation(settings: Settings) -> Lineup:
    """Fig. 9, in both of its readings.

    The paper contradicts itself. By Eq. 9 the background is put back on the states tau to T', so that tau = 1 keeps it
    longest; its Fig. 9 says that tau = 1 keeps it least and tau = 5 most. The second reading is the mirrored window,
    T' - tau to T'. At T' = 6 the two agree on tau = 3 and swap 1 and 5, so the second reading costs no further run.
    Raises ValueError if T' is below the greatest tau.
    """
    _check("tau", "start", settings.start, max(TAUS), f"runs tau = {', '.join(map(str, TAUS))} and their mirrors in T'")
    readings = (("Eq. 9", lambda tau: tau), ("Fig. 9, mirrored", lambda tau: settings.start - tau))
    lines = tuple(
        Line(f"tau = {tau} ({reading})", _ours(settings, preserve_background_until=last(tau)), tau, reading)
        for reading, last in readings
        for tau in TAUS
    )
    return Lineup("ablation_tau", "Selection of tau (the paper's Fig. 9)", lines, varied="tau")


def all_of(lineups: Sequence[Lineup]) -> list[Variant]:
    """The variants of all lineups, each once. Raises ValueError where two have one name, and so one folder."""
    found: dict[str, Variant] = {}
    for variant in (line.variant for lineup in lineups for line in lineup.lines):
        if found.setdefault(variant.name, variant) != variant:
            raise ValueError(
                f"the method {variant.name!r} has the name of a variant of an ablation; give the method another name, "
                "or leave the ablation out"
            )
    return list(found.values())


def _check(ablation: str, option: str, value: int, least: int, runs: str) -> None:
    """Refuse what the user chose, before Settings refuses a value of the ablation that the user never saw."""
    if value < least:
        raise ValueError(
            f"the ablation {ablation} {runs} and needs --{option} {least} or more, got {value}: raise --{option}, or "
            f"leave {ablation} out of --ablations"
        )


def _ours(settings: Settings, **change: int) -> Variant:
    """Our method with one setting changed. It has its plain name if that changes nothing, so that it runs once."""
    changed = replace(settings, **change)
    ((name, value),) = change.items()
    return Variant(OURS if changed == settings else f"{OURS}_{name}_{value}", OURS, changed)


ABLATIONS = {"start": start_ablation, "tau": tau_ablation}
