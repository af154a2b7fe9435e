"""This module measures sets of composites against real scans, part by part; a killed run goes on from the parts that
are there."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sd21.files import atomic, write_json, write_text
from sd21.folders import check_untaken, left_locked, owned
from sd21.words import shown

from ..datasets.reading import LeftOut
from ..metrics.intervals import ends
from ..metrics.lpips import LPIPS, shift_tolerant_lpips
from ..runs.record import read_kept
from ..runs.request import check_outside
from ..scans.errors import DatasetError, WeightsError
from . import classifier, groups, mmd, radiomics, study, table
from .choices import Choices
from .crops import cut
from .groups import REAL, Contest, Placed
from .names import KEY, STUDY
from .sets import read_set

SPLITS = 200  # of the real scans into halves, by which the floor of what is quick to measure is known
FILES = ("realism.md", "realism.csv", "crops.png", "left_out.json")


@dataclass(frozen=True)
class RealismRequest:
    """What is compared. real: the folders of real labelled scans, each with the name of its reader in DATASETS, or
    "folder" for any other. composites: the folder of each set, by the name that the table calls it.

    Raises DatasetError for names that no table and no file can bear.
    """

    real: tuple[tuple[str, Path], ...]
    composites: dict[str, Path]

    def __post_init__(self):
        if not self.real or not self.composites:
            raise DatasetError(
                "name real scans (--real, --br35h or --busi), and one set or more (--composites NAME=DIR)"
            )
        for name in self.composites:
            if not 0 < len(name) <= 40 or not all(one.isascii() and (one.isalnum() or one in "-_.") for one in name):
                raise DatasetError(
                    f"the name of a set has 1 to 40 letters, digits or any of - _ . and no others; got {shown(name)}"
                )
        names = {name.casefold() for name in self.composites}
        if len(names) < len(self.composites) or names & {"real", REAL.replace(" ", "_")}:
            raise DatasetError(f"the names of the sets differ, and none is 'real'; got {', '.join(self.composites)}")


def run_realism(
    request: RealismRequest,
    out: str | Path,
    choices: Choices = Choices(),  # noqa: B008 (it is frozen)
    *,
    reader_study: bool = False,
    quiet: bool = False,
) -> str:
    """Measure every set and write the files that the package's docstring names. Returns the table, in Markdown.

    The same request goes on where a killed one stopped. Raises DatasetError for a folder that is not what it was named
    as and for too few scans, FolderError for a folder of results that cannot be used; nothing is changed then.
    """
    out = Path(out)
    check_outside(out, [*(folder for _, folder in request.real), *request.composites.values()])
    if not left_locked(out) and not (out / "parts").is_dir():
        check_untaken((out / name for name in (*FILES, STUDY, KEY)), "realism")
    left_out = {name: LeftOut() for name in ("real", *request.composites)}
    with owned(out):
        real, composites = _placed(request, choices, left_out)
        contests = groups.contests(real, composites, choices.seed)
        for contest in contests:
            groups.folds(contest, choices.folds, choices.seed)  # for its errors
        write_json(out / "left_out.json", {name: some.names for name, some in left_out.items()})
        if reader_study:
            study.write(out, contests, real, choices)
        parts = Parts(out / "parts", _asked(contests, real, choices))
        found = _measured(contests, real, choices, parts, quiet)
        text = table.markdown(found, choices, {name: some.counts for name, some in left_out.items()})
        write_text(out / "realism.csv", table.figures_csv(found))
        with atomic(out / "crops.png") as temporary:
            table.sheet(contests).save(temporary)
        write_text(out / "realism.md", text)
        return text


def _placed(
    request: RealismRequest, choices: Choices, left_out: dict[str, LeftOut]
) -> tuple[list[Placed], dict[str, list[Placed]]]:
    """The crops that can be used, of near-duplicate real scans one."""
    scans = [scan for kind, folder in request.real for scan in read_set(folder, left_out["real"], kind)]
    composites = {
        name: cut(read_set(folder, left_out[name]), choices, left_out[name])
        for name, folder in request.composites.items()
    }
    real = cut(scans, choices, left_out["real"])
    groups.check_enough(real, composites, left_out)
    placed, of_sets = groups.placed(real, composites)
    stay = {id(one.crop) for one in placed}
    for crop in real:
        if id(crop) not in stay:
            left_out["real"].add("near-duplicate of another real scan", crop.name)
    groups.check_enough(placed, of_sets, left_out)
    return placed, of_sets


def _asked(contests: list[Contest], real: list[Placed], choices: Choices) -> dict:
    """What the figures depend on."""
    everything = [*real, *(one for contest in contests for one in contest.others)]
    text = "".join(f"{one.crop.digest} {one.group} {one.background} {sorted(one.tokens)}\n" for one in everything)
    asked = {name: value for name, value in asdict(choices).items() if name not in ("seeds", "reader_crops")}
    return {"choices": asked, "crops": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class Parts:
    """What is measured already: one file for each part, which holds what it depends on, its figures and its seconds."""

    folder: Path
    asked: dict

    def get(self, name: str, measure: Callable[[], dict]) -> dict:
        """The figures of a part, from its file or measured now: {"figures": ..., "seconds": ...}."""
        path = self.folder / f"{name.replace(' ', '_')}.json"
        asked = {"part": name, "asked": self.asked}
        kept = read_kept(path, asked)
        if kept is not None and isinstance(kept.get("figures"), dict) and "seconds" in kept:
            return kept
        begin = time.perf_counter()
        figures = measure()
        made = {**asked, "figures": figures, "seconds": round(time.perf_counter() - begin, 1)}
        write_json(path, made)
        return made


def _measured(
    contests: list[Contest], real: list[Placed], choices: Choices, parts: Parts, quiet: bool
) -> dict[str, dict]:
    """By the name of each set, and REAL: {"crops": ..., "objects": ..., "backgrounds": ..., "own_objects": ...,
    "seconds": ..., "figures": {measure: ...}}. objects, backgrounds: how many the crops of the set are of.

    The floor is another split of the real scans for each seed, and for the quick measures SPLITS of them.
    """
    count, network, found = len(contests[0].others), _network(), {}
    seeds = range(choices.seed, choices.seed + choices.seeds)
    quick = {"grey": partial(_grey, real, count, choices)}
    if network is not None:
        quick["features"] = partial(_features, network, real, count, choices)
    with tqdm(total=(len(contests) + 1) * (len(seeds) + len(quick)), desc="realism", disable=quiet) as bar:

        def part(name: str, measure: Callable[[], dict]) -> dict:
            done = parts.get(name, measure)
            bar.update()
            return done

        for contest in (*contests, None):
            name = REAL if contest is None else contest.name
            tried = [contest or groups.floor(real, count, seed) for seed in seeds]
            done = [
                part(f"classifier {name} {seed}", partial(classifier.scores, one, choices.folds, choices.steps, seed))
                for seed, one in zip(seeds, tried, strict=True)
            ]
            figures = classifier.accuracy_and_auc(
                [one["figures"] for one in done], [one.labels for one in tried], [one.crops for one in tried]
            )
            done += [part(f"{kind} {name}", partial(measure, contest)) for kind, measure in quick.items()]
            for one in done[len(seeds) :]:
                figures |= one["figures"]
            found[name] = {
                "crops": count,
                **_counts(tried[0].others),
                "own_objects": contest is not None and contest.own_objects,
                "seconds": sum(one["seconds"] for one in done),
                "figures": {**figures, "size": {"value": _told_by_size(tried)}},
            }
    return found


def _counts(crops: list[Placed]) -> dict[str, int]:
    backgrounds = len({one.background or one.group for one in crops})
    return {"objects": len({one.group for one in crops}), "backgrounds": backgrounds}


def _told_by_size(tried: list[Contest]) -> float:
    """The AUC of the sides of crops in their scans alone: 0.5 where the scale tells nothing."""
    found = []
    for contest in tried:
        real, others = (np.array([one.crop.side for one in some]) for some in (contest.real, contest.others))
        found.append(classifier.above(real, others).mean())
    return float(np.mean(found))


def _grey(real: list[Placed], count: int, choices: Choices, contest: Contest | None) -> dict:
    """The radiomics of a contest; without one, of SPLITS of the real scans."""
    if contest is not None:
        return radiomics.radiomics(contest)
    of = radiomics.measure([one.crop for one in real])
    labels = np.repeat([0, 1], count)
    found = [radiomics.distances(of.of(which), labels, np.ones(2 * count)) for which in _splits(real, count, choices)]
    return {name: _range([one[place] for one in found]) for name, place in radiomics.MEASURES.items()}


def _features(network: LPIPS, real: list[Placed], count: int, choices: Choices, contest: Contest | None) -> dict:
    """The MMD of a contest; without one, of SPLITS of the real scans."""
    features = mmd.features_of([one.crop for one in (real if contest is None else contest.crops)], network)
    if contest is not None:
        tested = mmd.permutation_test(contest, mmd.kernel(features))
        return {} if tested is None else {"mmd": tested}
    labels = np.repeat([0, 1], count)
    found = [float(mmd.mmd(mmd.kernel(features[which]), labels)) for which in _splits(real, count, choices)]
    return {"mmd": _range(found)}


def _range(values: list[float]) -> dict[str, float]:
    """The mean of a figure over many draws of the data, and the ends between which LEVEL of them lie."""
    low, high = ends(values)
    return {"value": float(np.mean(values)), "low": low, "high": high}


def _network() -> LPIPS | None:
    try:
        return shift_tolerant_lpips()
    except WeightsError as error:
        warnings.warn(f"MMD is left out: {error}", stacklevel=2)
        return None


def _splits(real: list[Placed], count: int, choices: Choices) -> Iterator[np.ndarray]:
    """The indices, in `real`, of the crops of SPLITS floors."""
    at = {id(one): index for index, one in enumerate(real)}
    for number in range(SPLITS):
        yield np.array([at[id(one)] for one in groups.floor(real, count, choices.seed + number).crops])
