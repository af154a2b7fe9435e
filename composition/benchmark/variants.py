"""This module says what the benchmark runs and compares: the methods of Tab. 1, the ablations over T' (Tab. 2, Fig. 8)
and tau (Fig. 9), and that of the steps beyond the paper. The paper's values for them stand only here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..settings import PAPER, Settings

# The paper's values (Tab. 2 and Fig. 9).
STARTS = (18, 12, 6)
TAUS = (1, 3, 5)
# The columns of the paper's Fig. 7; its Tab. 1 has another order.
ORDER = ("copy-paste", "sdedit", "blended", "tf-icon", "published", "ours")
OURS = "ours"  # the variant of our method with the settings that were given
TABLE = "table"  # the name of the lineup of methods
PAPERS, MATCHED = "ours, Settings.paper()", ", matched"  # what the labels of its lines say
WITHOUT_OBJECT = ("blended",)  # methods that do not look at the object: matched or not, they give the same composite
# The steps beyond the paper, by the setting that turns each off.
STEPS = {
    "background held": "preserve_background_until",
    "object held": "preserve_object_until",
    "detail": "detail",
    "match": "match",
    "focus": "focus",
}


@dataclass(frozen=True)
class Variant:
    """One way to compose all samples. name: the name of its folder; method: a name in methods.METHODS."""

    name: str
    method: str
    settings: Settings


@dataclass(frozen=True)
class Line:
    """A variant as one line of a lineup. value: what an ablation varies, None for a line that stands beside it;
    series: the curve its plot belongs to."""

    label: str
    variant: Variant
    value: int | None = None
    series: str = ""


@dataclass(frozen=True)
class Lineup:
    """Lines side by side: one table, one grid and, if `varied` names what the lines' values are, one plot.

    columns: the lines that the grid shows, in its order; by default all. notes: what a reader of the table has to know.
    """

    name: str
    title: str
    lines: tuple[Line, ...]
    varied: str | None = None
    columns: tuple[Line, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "columns", self.columns or self.lines)


def methods(names: Sequence[str], settings: Settings) -> Lineup:
    """Tab. 1 and Fig. 7. Baselines are as published, with the user's numbers; each that looks at the object has a
    second line, with the object that ours is given. Ours stands beside itself without the steps beyond the paper.

    The grid has the paper's columns first, then methods that the paper does not have, then Settings.paper(); the lines
    with the matched object stand in the table alone.
    """
    as_published = replace(settings, **PAPER)
    matched = replace(as_published, fit=settings.fit, match=settings.match)
    lines, columns = [], []
    for name in names:
        if name == OURS:
            columns.append(Line(name, Variant(OURS, OURS, settings)))
            lines += [line for line in (_paper(settings),) if line.variant != columns[-1].variant]
            lines.append(columns[-1])
            continue
        columns.append(Line(name, Variant(name, name, as_published)))
        lines.append(columns[-1])
        if name not in WITHOUT_OBJECT and matched != as_published:
            lines.append(Line(f"{name}{MATCHED}", Variant(f"{name}_matched", name, matched)))
    columns.sort(key=lambda line: ORDER.index(line.label) if line.label in ORDER else len(ORDER))
    columns += [line for line in lines if line.label == PAPERS]
    notes = []
    if any(line.label.endswith(MATCHED) for line in lines):
        notes.append("A baseline's line is as published; `matched` gives it the object that `ours` is given.")
        notes += [
            f"{name} does not look at the object and gives the same composite with the matched one; it is measured "
            "against the other."
            for name in names
            if name in WITHOUT_OBJECT
        ]
    return Lineup(TABLE, "Methods (the paper's Tab. 1)", tuple(lines), columns=tuple(columns), notes=tuple(notes))


def start_ablation(settings: Settings) -> Lineup:
    """Tab. 2 and Fig. 8. Raises ValueError if the grid has fewer steps than the greatest T'."""
    _check("start", "steps", settings.steps, max(STARTS), f"runs T' = {', '.join(map(str, STARTS))}")
    lines = [Line(f"T' = {start}", _ours(settings, start=start), start) for start in STARTS]
    return Lineup(
        "ablation_start", "Selection of T' (the paper's Tab. 2)", _beside_the_papers(lines, settings), varied="T'"
    )


def tau_ablation(settings: Settings) -> Lineup:
    """Fig. 9, in both of its readings.

    The paper contradicts itself. By Eq. 9 the background is put back on the states tau to T', so that tau = 1 keeps it
    longest; its Fig. 9 says that tau = 1 keeps it least and tau = 5 most. The second reading is the mirrored window,
    T' - tau to T'. At T' = 6 the two agree on tau = 3 and swap 1 and 5, so the second reading costs no further run.
    Raises ValueError if T' is below the greatest tau.
    """
    _check("tau", "start", settings.start, max(TAUS), f"runs tau = {', '.join(map(str, TAUS))} and their mirrors in T'")
    readings = (("Eq. 9", lambda tau: tau), ("Fig. 9, mirrored", lambda tau: settings.start - tau))
    lines = [
        Line(f"tau = {tau} ({reading})", _ours(settings, preserve_background_until=last(tau)), tau, reading)
        for reading, last in readings
        for tau in TAUS
    ]
    return Lineup(
        "ablation_tau", "Selection of tau (the paper's Fig. 9)", _beside_the_papers(lines, settings), varied="tau"
    )


def steps_ablation(settings: Settings) -> Lineup:
    """Each of STEPS added alone to the paper's own method, and taken away alone from ours."""
    paper = replace(settings, **PAPER)
    lines = [_published(settings), Line("paper", _paper(settings).variant)]
    for step, name in STEPS.items():
        added = replace(paper, **{name: getattr(settings, name)})
        lines.append(Line(f"paper + {step}", _named(f"paper_with_{step}".replace(" ", "_"), added, settings)))
    lines.append(Line("ours", Variant(OURS, OURS, settings)))
    for step, name in STEPS.items():
        taken = replace(settings, **{name: PAPER[name]})
        lines.append(Line(f"ours - {step}", _named(f"ours_without_{step}".replace(" ", "_"), taken, settings)))
    notes = (
        f"`paper` is {PAPERS}. A composite is compared with the object that it was given, matched or not.",
        f"The lines of `paper` invert scans by the method {paper.inversion}, those of `ours` by {settings.inversion}.",
    )
    return Lineup("ablation_steps", "The steps beyond the paper, added and taken away", tuple(lines), notes=notes)


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


def _published(settings: Settings) -> Line:
    return Line("published", Variant("published", "published", replace(settings, **PAPER)))


def _paper(settings: Settings) -> Line:
    """Our method without the steps beyond the paper, with the user's numbers."""
    return Line(PAPERS, _named("paper", replace(settings, **PAPER), settings))


def _beside_the_papers(lines: Sequence[Line], settings: Settings) -> tuple[Line, ...]:
    """An ablation's lines, and after them the paper's own method, as published and by Settings.paper()."""
    known = [line.variant for line in lines]
    return (*lines, *(line for line in (_published(settings), _paper(settings)) if line.variant not in known))


def _ours(settings: Settings, **change: int) -> Variant:
    """Our method with one setting changed."""
    ((name, value),) = change.items()
    return _named(f"{OURS}_{name}_{value}", replace(settings, **change), settings)


def _named(name: str, changed: Settings, settings: Settings) -> Variant:
    """Our method with changed settings. If they are ours, or the paper's, it has their name, so that it runs once."""
    if changed == settings:
        name = OURS
    elif changed == replace(settings, **PAPER):
        name = "paper"
    return Variant(name, OURS, changed)


ABLATIONS = {"start": start_ablation, "tau": tau_ablation, "steps": steps_ablation}
