"""This module runs the bench from end to end: scans, cells, results, table and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from sd21.files import write_json, write_text
from sd21.folders import check_untaken, left_locked
from sd21.words import one_line, shown
from solvers import INVERSIONS

from ..datasets import LeftOut
from ..model import Model
from ..plotting import check_matplotlib
from ..runs import log, record
from ..runs.ranks import Ranks
from ..runs.request import check_outside
from ..scans.errors import DatasetError
from . import code, cost, plots, table
from .choices import Choices
from .measure import DEFAULT, FIGURES, Bench, Problem
from .problems import PROMPTS, Item, Maker, items_of
from .scans import FOLDER, as_text, choose

RESULTS = ("results.csv", "table.md", "pareto.png", "states.png", "commands.jsonl", "errors.jsonl", "left_out.json")
MOST = 100_000  # of scans, which is more than anybody has time for


@dataclass(frozen=True)
class InversionRequest:
    """What is asked for; the fields are the options of the command. Raises ValueError (DatasetError) for what cannot be
    asked for.

    folders: of real scans, by a name in DATASETS or FOLDER. text, swap: the text prompt, and that of the prompt swap;
    None where the scans' own is meant.
    """

    folders: dict[str, Path]
    count: int
    generated: int
    methods: tuple[str, ...]
    scales: tuple[float, ...]
    starts: tuple[int, ...]
    tolerances: tuple[float, ...]
    prompts: tuple[str, ...]
    text: str | None
    swap: str | None
    choices: Choices

    def __post_init__(self):
        for option, names, known in (("methods", self.methods, INVERSIONS), ("prompts", self.prompts, PROMPTS)):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"--{option}: {shown(unknown[0])} is not one of {', '.join(known)}")
        if odd := [name for name in self.methods if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)]:
            raise ValueError(f"the method {shown(odd[0])} names a file: letters, digits, '.', '_' and '-' only")
        for option in ("methods", "scales", "starts", "tolerances", "prompts"):
            if not getattr(self, option):
                raise ValueError(f"--{option} names nothing; name one or more")
        for option, known_as in (("starts", "start"), ("scales", "guidance_scale"), ("tolerances", "tolerance")):
            for value in getattr(self, option):
                self.choices.settings(**{known_as: value})
        if not 0 <= self.generated <= MOST or not 1 <= self.count <= MOST:
            raise ValueError(
                f"--count is a whole number from 1 to {MOST}, and --generated one from 0 to {MOST}; got {self.count} "
                f"and {self.generated}"
            )
        if not self.folders and not self.generated:
            raise DatasetError("name scans (--scans, --br35h or --busi), or generate some (--generated N)")
        for option, text in (("prompt", self.text), ("swap-prompt", self.swap)):
            if text is not None and (not text.strip() or as_text(text) != text):
                raise ValueError(
                    f"--{option}: expected a text in UTF-8, as 'An MRI scan of a brain', got {shown(text)}; for the "
                    "empty text there is --prompts null"
                )
        if "text" in self.prompts and self.text is None and set(self.folders) <= {FOLDER}:
            raise ValueError('the prompt "text" takes a text for these scans: --prompt "An MRI scan of a brain"')
        if self.prompts == ("null",) and 1 not in self.scales:
            raise ValueError(
                f"guidance between the null prompt and itself changes nothing, so --prompts null takes --scales 1; "
                f"got {', '.join(f'{scale:g}' for scale in self.scales)}"
            )


@dataclass(frozen=True, eq=False)
class Task:
    """One problem, what its cells depend on, and how it is made; whoever has problems of his own makes tasks of them.

    identity: as Item.identity, for the tables. place: the folder of its cells. asked: what tells its cells from others
    that bear the same name; it may raise what reading a scan raises.
    """

    identity: dict
    place: str
    asked: Callable[[], dict]
    make: Callable[[], Problem]


@dataclass(frozen=True, eq=False)
class Work:
    """All cells: these tasks by these methods at these tolerances, kept in `folder`."""

    folder: Path
    tasks: list[Task]
    methods: tuple[str, ...]
    tolerances: tuple[float, ...]
    max_sweeps: int
    reference: float | None

    @cached_property
    def cells(self) -> list[tuple[str, float]]:
        """Method by method, since one that solves nothing needs no second run for another tolerance."""
        return [(method, tolerance) for method in self.methods for tolerance in self.tolerances]

    def path(self, task: Task, method: str, tolerance: float) -> Path:
        return self.folder / task.place / f"{method}-tol{tolerance:g}.json"

    def do(self, task: Task) -> None:
        """Measure what is not measured yet of a task, one file for each cell. What fails is told in its file."""
        try:
            asked = self._asked(task)
            lacking = [cell for cell in self.cells if not whole(self._kept(task, asked, *cell))]
            bench = Bench(task.make(), self.tolerances, self.max_sweeps, self.reference) if lacking else None
        except Exception as error:  # as in batch: the others go on, whatever is wrong with one
            for cell in self.cells:
                write_json(self.path(task, *cell), {**self._of(task, *cell), "error": record.told(error)})
            return
        for method, tolerance in lacking:
            about = {**self._of(task, method, tolerance), **asked, "code": code.digest(method)}
            try:
                made = {"figures": bench.cell(method, tolerance)}
            except Exception as error:
                made = {"error": record.told(error)}
            write_json(self.path(task, method, tolerance), {**about, **made})

    def found(self) -> tuple[list[dict], list[dict]]:
        """What all cells hold, and the errors."""
        cells, errors = [], []
        for task in self.tasks:
            for method, tolerance in self.cells:
                of = self._of(task, method, tolerance)
                kept = record.read_kept(self.path(task, method, tolerance), of)
                if whole(kept):
                    cells.append({**of, **kept["figures"]})
                else:
                    errors.append({**of, "error": (kept or {}).get("error", "the cell is damaged; run again")})
        return cells, errors

    def _of(self, task: Task, method: str, tolerance: float) -> dict:
        return {**task.identity, "method": method, "tolerance": tolerance}

    def _asked(self, task: Task) -> dict:
        return {"max_sweeps": self.max_sweeps, "reference_tolerance": self.reference, **task.asked()}

    def _kept(self, task: Task, asked: dict, method: str, tolerance: float) -> dict:
        of = {**self._of(task, method, tolerance), **asked, "code": code.digest(method)}
        return record.read_kept(self.path(task, method, tolerance), of) or {}


def whole(cell: dict | None) -> bool:
    """Whether a cell's file holds figures, all of them."""
    figures = (cell or {}).get("figures")
    return isinstance(figures, dict) and set(figures) == set(FIGURES)


def run_inversions(
    request: InversionRequest, out: str | Path, load_model: Callable[[], Model], command: str, *, quiet: bool = False
) -> tuple[str, list[dict]] | None:
    """Do what is not done yet of the bench, and write OUT as the package's docstring describes it.

    load_model: takes nothing, returns what sd21.load returns. command: what asked for it, for the table to tell. Under
    torchrun the processes share the problems out.
    Rank 0 returns the table as Markdown and the cells that failed; the other ranks return None. Raises ValueError
    (DatasetError, FolderError), OSError or ImportError, before the model is loaded, for what cannot be done.
    """
    out, left_out = Path(out), LeftOut()
    check_matplotlib("the plots of the bench")
    check_outside(out, request.folders.values())
    check_ours(out)
    chosen = choose(request.folders, request.count, request.text, left_out)
    items = items_of(
        *(chosen, request.generated, request.prompts, request.scales, request.starts, request.text, request.swap)
    )
    return bench(
        lambda: tasks_of(items, load_model(), request.choices),
        out,
        command,
        methods=request.methods,
        tolerances=request.tolerances,
        max_sweeps=request.choices.max_sweeps,
        reference=request.choices.reference,
        left_out=left_out,
        quiet=quiet,
    )


def tasks_of(items: Iterable[Item], model: Model, choices: Choices) -> list[Task]:
    """The tasks of these items with this model."""
    maker = Maker(model, choices)
    limits = ("max_sweeps", "reference", "seed")  # which Work and the items tell
    run = {name: value for name, value in asdict(choices).items() if name not in limits}
    about = {"run": run, "model": model.identity, "prediction_type": model.prediction_type}
    about |= {"dtype": str(model.dtype).removeprefix("torch."), "device": torch.device(model.device).type}
    return [
        Task(
            item.identity,
            item.place,
            lambda item=item: {**about, **maker.asked(item)},
            lambda item=item: maker.make(item),
        )
        for item in items
    ]


def check_ours(out: Path) -> None:
    """Raises FolderError where OUT holds such results that no bench has made."""
    if not left_locked(out) and not (out / "cells").is_dir():
        check_untaken((out / name for name in RESULTS), "inversions")


def bench(
    make_tasks: Callable[[], list[Task]],
    out: Path,
    command: str,
    *,
    methods: tuple[str, ...],
    tolerances: tuple[float, ...],
    max_sweeps: int,
    reference: float | None,
    left_out: LeftOut = LeftOut(),  # noqa: B008 (nobody adds to it)
    quiet: bool = False,
) -> tuple[str, list[dict]] | None:
    """Measure all tasks and write the files of the bench, on a folder of its own. Returns what run_inversions does."""
    begin, ranks = cost.clock(), Ranks(f"inversions {out}")
    with ranks.owning(out):
        work = Work(out / "cells", make_tasks(), methods, tolerances, max_sweeps, reference)
        for task in ranks.share(work.tasks, title="problems", quiet=quiet):
            work.do(task)
        ranks.finish()
        if ranks.rank > 0:
            return None
        told = as_text(one_line(command, 5000))
        log.add(out, {"command": told, "seconds": round(cost.clock() - begin, 1)})
        write_json(out / "left_out.json", left_out.names)
        return _summed_up(work, out, left_out)


def _summed_up(work: Work, out: Path, left_out: LeftOut) -> tuple[str, list[dict]]:
    """Write results, table, plots and errors; returns the table and the errors."""
    cells, errors = work.found()
    record.write_errors(out / "errors.jsonl", errors)
    write_text(out / "results.csv", table.csv_of(cells))
    blocks = table.tabulate(cells, errors, DEFAULT)
    text = table.markdown(blocks, DEFAULT, left_out, log.read(out))
    write_text(out / "table.md", text)
    plots.pareto(cells, DEFAULT, out / "pareto.png")
    plots.states(cells, DEFAULT, out / "states.png")
    return text, errors
