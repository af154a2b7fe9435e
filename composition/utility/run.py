"""This module runs the experiment from end to end: cases, arms, trainings, scores, tables and plots."""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from sd21.files import write_json, write_text
from sd21.folders import check_untaken, left_locked

from ..datasets import LeftOut
from ..runs import log, record
from ..runs.ranks import Ranks
from ..runs.request import check_outside
from ..scans.errors import DatasetError
from . import plots, table
from .arms import MORE, TUMOUR_FREE, Arm, Material, arms_of
from .data import Case, digest_of, read_composites, read_labelled, read_tumour_free, twins_of
from .scoring import score
from .training import Training, check_extra, train

RESULTS = ("results.csv", "table.md", "table.json", "bars.png", "curves.png", "drawn.json", "left_out.json")
LOOKS = 10  # how often in a training the first part of its test scans is scored, for the curves; the last look counts
LABELLED = "tumour-free scan that is a near-duplicate of a labelled one"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class UtilityRequest:
    """What is asked for; the fields are the options of the command. Raises ValueError for what cannot be asked for.

    composites, test, test_tumour_free: folders by name. seeds: how many for each of the sizes.
    """

    real: Path
    tumour_free: Path | None
    composites: dict[str, Path]
    test: dict[str, Path]
    test_tumour_free: dict[str, Path]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    compared: tuple[str, ...]
    alone: tuple[str, ...]
    per_scan: int
    training: Training

    def __post_init__(self):
        for name in (*self.composites, *self.test):
            if not re.fullmatch(NAME, name):
                raise ValueError(f"the name {name!r} names an arm and a folder: letters, digits, '.', '_' and '-' only")
            if f"+ {name}" in (MORE, "+ tumour-free"):
                raise ValueError(f"the name {name!r} is taken by an arm that is there anyway; give another")
        if self.composites and self.tumour_free is None:
            raise ValueError(
                "--composites takes --tumour-free too, the scans that they were made in, so that none of them is a "
                "near-duplicate of a test scan; name that folder"
            )
        for option, values in (("sizes", self.sizes), ("seeds", self.seeds), ("per-scan", (self.per_scan,))):
            if not values or min(values) < 1:
                raise ValueError(f"--{option}: expected whole numbers from 1 up, got {values}")
        if len(set(self.sizes)) < len(self.sizes) or len(self.seeds) != len(self.sizes):
            raise ValueError(
                f"every size has its number of seeds, and stands once; got --sizes {self.sizes} --seeds {self.seeds}"
            )
        for option in ("compared", "alone"):
            if strange := [name for name in getattr(self, option) if name not in self.composites]:
                raise ValueError(f"--{option} names {strange[0]}, which is none of --composites")
        if strange := [name for name in self.test_tumour_free if name not in self.test]:
            raise ValueError(f"--test-tumour-free names {strange[0]}, which is none of --test")

    @property
    def folders(self) -> list[Path]:
        """All folders of scans."""
        named = [*self.composites.values(), *self.test.values(), *self.test_tumour_free.values()]
        return [self.real, *([self.tumour_free] if self.tumour_free else []), *named]


@dataclass(frozen=True, eq=False)
class TestScan:
    """A test scan: its case, the name of its part, and the number of its group of near-duplicates."""

    case: Case
    part: str
    group: int


def run_utility(request: UtilityRequest, out: str | Path, command: str, *, quiet: bool = False) -> str | None:
    """Do what is not done yet of the experiment and write OUT as the package's docstring describes it.

    command: what asked for it, for the table to tell.
    Rank 0 returns the table as Markdown, other ranks None. Raises ValueError (DatasetError, FolderError), OSError or
    ImportError, before any training, for what cannot be done.
    """
    out, begin = Path(out), time.perf_counter()
    check_extra()
    check_outside(out, request.folders)
    if not (left_locked(out) or (out / "drawn.json").exists()):
        check_untaken((out / name for name in RESULTS), "utility")
    log.read(out)  # for its errors
    left_out = LeftOut()
    material, tests = read_all(request, left_out)
    ranks = Ranks(f"utility {out}")
    jobs, told = _jobs(request, material)
    asked = _asked(request, material, tests)
    with ranks.owning(out, prepare=lambda: record.hold_to(out / "asked.json", asked)):
        if ranks.rank == 0:
            write_json(out / "drawn.json", {"draws": told})
            write_json(out / "left_out.json", left_out.names)
        if ranks.rank == 0 and not quiet:
            steps = request.training.steps
            told_before = f"{len(jobs)} trainings of {steps} steps each; after the first, the bar tells the time left"
            print(told_before, file=sys.stderr)
        for arm, size, seed in ranks.share(jobs, title="trainings", quiet=quiet):
            _train_one(arm, size, seed, request.training, tests, out)
        ranks.finish()
        if ranks.rank > 0:
            return None
        found = [record.read_kept(_file_of(out, size, arm, seed), {}) for arm, size, seed in jobs]
        log.add(out, {"command": command, "seconds": round(time.perf_counter() - begin, 1)})
        return _summed_up(found, told, request, tests, left_out, out)


def read_all(request: UtilityRequest, left_out: LeftOut) -> tuple[Material, list[TestScan]]:
    """Everything that the folders hold, without what would be on both sides: test scans that are near-duplicates of
    scans to learn from, and composites in a background that is a test scan or none of the tumour-free scans. Left out,
    too, are tumour-free scans that are near-duplicates of labelled ones, as one of the two labels would be wrong."""
    side = request.training.side
    pool = read_labelled(request.real, side, left_out)
    free = read_tumour_free(request.tumour_free, side, left_out) if request.tumour_free else []
    parts = [(read_labelled, name, folder) for name, folder in request.test.items()]
    parts += [(read_tumour_free, name, folder) for name, folder in request.test_tumour_free.items()]
    tests = [(case, name) for read, name, folder in parts for case in read(folder, side, left_out)]
    groups = twins_of([*pool, *free, *(case for case, _ in tests)])
    learnt, of_tests = set(groups[: len(pool) + len(free)]), groups[len(pool) + len(free) :]
    free = _without_labelled(free, groups[len(pool) :], set(groups[: len(pool)]), left_out)
    if request.tumour_free and not free:
        raise DatasetError(f"{request.tumour_free}: every scan is a near-duplicate of a labelled one of {request.real}")
    kept = _kept_tests(tests, of_tests, learnt, request, left_out)
    allowed, tested, composites = {case.sha256 for case in free}, {test.case.sha256 for test in kept}, {}
    for name, folder in request.composites.items():
        composites[name] = []
        for case in read_composites(folder, side, left_out):
            if case.background_sha256 in tested:
                raise DatasetError(f"{folder}: {case.name} lies in a test scan; compose in other backgrounds")
            if case.background_sha256 not in allowed:
                left_out.add(f"{name}: composite in a scan that is none of --tumour-free", case.name)
            else:
                composites[name].append(case)
    # By the pool alone, as --draw-only has it: another scan may be a near-duplicate of two that are none of each other.
    return Material(pool, twins_of(pool), free, composites), kept


def _without_labelled(free: list[Case], groups: list[int], labelled: set[int], left_out: LeftOut) -> list[Case]:
    """The tumour-free scans whose group, in the order of the scans, is none of the labelled ones."""
    kept = []
    for case, group in zip(free, groups, strict=False):
        if group in labelled:
            left_out.add(LABELLED, case.name)
        else:
            kept.append(case)
    return kept


def _kept_tests(
    tests: list[tuple[Case, str]], groups: list[int], learnt: set[int], request: UtilityRequest, left_out: LeftOut
) -> list[TestScan]:
    """The test scans that can be used. Raises DatasetError where a part of them is left without a labelled one."""
    labelled = {group for (case, _), group in zip(tests, groups, strict=True) if case.mask.any()}
    kept, taken, why = [], set(), Counter()
    for (case, name), group in zip(tests, groups, strict=True):
        if group in learnt:
            reason = "test scan that is a near-duplicate of one to learn from"
        elif not case.mask.any() and group in labelled:
            reason = LABELLED
        elif case.content in taken:
            reason = "test scan of an earlier part"
        else:
            taken.add(case.content)
            kept.append(TestScan(case, name, group))
            continue
        left_out.add(reason, case.name)
        why[name, reason] += 1
    for name in request.test:
        if not any(test.part == name and test.case.mask.any() for test in kept):
            told = "; ".join(f"{count} x {reason}" for (part, reason), count in why.items() if part == name)
            raise DatasetError(f"no labelled scan of the test scans {name} is left: {told or 'there is none'}")
    return kept


def _asked(request: UtilityRequest, material: Material, tests: list[TestScan]) -> dict:
    """What all of a folder's results have in common: sizes, seeds and composites may be added later."""

    def told(parts: dict[str, list[Case]]) -> dict[str, list]:
        return {name: [len(some), digest_of(some)[:16]] for name, some in parts.items()}

    scans = {"real": material.pool, "tumour-free": material.tumour_free, "test": [test.case for test in tests]}
    asked = {**asdict(request.training), "per-scan": request.per_scan}
    return {**asked, "scans": told(scans), "composites": told(material.composites)}


def _jobs(request: UtilityRequest, material: Material) -> tuple[list[tuple[Arm, int, int]], list[dict]]:
    """Every training, as (arm, size, seed), and what the draws were. Raises DatasetError as `arms_of` does."""
    jobs, told = [], []
    for number, (size, seeds) in enumerate(zip(request.sizes, request.seeds, strict=True)):
        names = list(request.composites) if number == 0 else list(request.compared)
        for seed in range(seeds):
            arms, draw = arms_of(material, size, seed, request.per_scan, request.alone if number == 0 else (), names)
            told.append(draw)
            jobs += [(arm, size, seed) for arm in arms if number == 0 or arm.name != TUMOUR_FREE]
    # One seed of all arms first, so that a run that is stopped can be read.
    return sorted(jobs, key=lambda job: (job[2], request.sizes.index(job[1]))), told


def _file_of(out: Path, size: int, arm: Arm, seed: int) -> Path:
    name = arm.name.replace("+ ", "with-").replace(" ", "-")
    return out / "runs" / str(size) / name / f"{seed}.json"


def _train_one(arm: Arm, size: int, seed: int, training: Training, tests: list[TestScan], out: Path) -> None:
    """Train and score, unless an earlier run has done this very training."""
    cases = [test.case for test in tests]
    first = [test.case for test in tests if test.part == tests[0].part and test.case.mask.any()]  # the curve's
    asked = {
        "arm": arm.name,
        "size": size,
        "seed": seed,
        "training": asdict(training),
        "learnt": {name: [len(some), digest_of(some)] for name, some in _parts(arm).items()},
        "tests": digest_of(cases),
        "versions": _versions(),
    }
    path = _file_of(out, size, arm, seed)
    found = record.read_kept(path, asked)
    if found is not None and _is_whole(found, training, tests):
        return
    if found is not None:
        warnings.warn(f"{path} is damaged and will be made again", stacklevel=2)
    looks, losses, curve, scores = _looks(training), [], [], []
    begin = time.perf_counter()

    def look(step: int, loss: float, predict) -> None:
        losses.append(loss)
        if step not in looks:
            return
        last = step == training.steps
        some = cases if last else first
        found = [score(mask, case) for mask, case in zip(predict(some), some, strict=True)]
        dice = [one["dice"] for one, case in zip(found, some, strict=True) if case in first]
        recent = losses[-max(1, training.steps // LOOKS) :]
        curve.append({"step": step, "loss": sum(recent) / len(recent), "dice": sum(dice) / len(dice)})
        scores.extend(found if last else [])

    train(arm, training, seed, look)
    rows = [
        {"test": test.part, "file": test.case.name, "sha256": test.case.sha256, "group": test.group, **one}
        for test, one in zip(tests, scores, strict=True)
    ]
    write_json(path, {**asked, **_cost(begin), "curve": curve, "scores": rows})


def _looks(training: Training) -> list[int]:
    """The steps after which a training is looked at; the last of them all is one."""
    every = max(1, training.steps // LOOKS)
    return [step for step in range(1, training.steps + 1) if step % every == 0 or step == training.steps]


def _is_whole(found: dict, training: Training, tests: list[TestScan]) -> bool:
    """Whether the record of a training has all that tables and plots read of it."""
    try:
        numbers = [found["seconds"], found["threads"]]
        numbers += [point[name] for point in found["curve"] for name in ("loss", "dice")]
        for row, test in zip(found["scores"], tests, strict=True):
            names = ("dice", "lesions", "found") if test.case.mask.any() else ("false_area", "false_any")
            numbers += [row["group"], *(row[name] for name in names)]
            if (row["test"], row["file"]) != (test.part, test.case.name) or not row.keys() <= {*table.COLUMNS}:
                return False
        looked = [point["step"] for point in found["curve"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return looked == _looks(training) and all(type(number) in (int, float) for number in numbers)


def _cost(begin: float) -> dict[str, float | int]:
    import torch

    return {"seconds": round(time.perf_counter() - begin, 1), "threads": torch.get_num_threads()}


def _parts(arm: Arm) -> dict[str, list[Case]]:
    return {"base": arm.base, "added": arm.added, "negatives": arm.negatives}


def _versions() -> dict[str, str | None]:
    from importlib import metadata

    return {"torch": record.versions()["torch"], "monai": metadata.version("monai")}


def _summed_up(
    found: list[dict], told: list[dict], request: UtilityRequest, tests: list[TestScan], left_out: LeftOut, out: Path
) -> str:
    """Write the results, the tables and the plots; returns the table as Markdown."""
    write_text(out / "results.csv", table.csv_of(found))
    made = table.tabulate(found, told, [test.part for test in tests])
    write_json(out / "table.json", made)
    text = table.markdown(made, asdict(request.training), left_out, log.read(out))
    write_text(out / "table.md", text)
    plots.bars(made, out / "bars.png")
    plots.curves([one for one in found if one["size"] == request.sizes[0]], out / "curves.png")
    return text
