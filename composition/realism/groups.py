"""This module says which crops may not be parted, and which real crops a set of composites is compared with.

A classifier that has seen a scan knows it again. So every crop has tokens: one for its scan and the near-duplicates of
it, one for the scan that a composite's object is from and its near-duplicates, and one for the composite's background.
A composite shows its background, so the near-duplicates of backgrounds are found as well. No crop is trained on that
shares a token with one of the test.

Crops that share a token are not independent either, and a set of few scans differs from others by chance as much as few
scans do. So of each object one composite is taken, as of real near-duplicates one scan is, and backgrounds are shared
as little as can be.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sd21.files import sha256
from sd21.training.data import twin_groups

from ..datasets.grouping import components
from ..datasets.reading import LeftOut
from ..scans.errors import DatasetError
from ..scans.images import split_slice
from .crops import Crop

LEAST_CROPS = 10  # of a set; fewer train and test nothing
REAL = "real against real"


@dataclass(frozen=True, eq=False)
class Placed:
    """A crop and its tokens.

    group: its scan, or, of a composite, its object's. background: of a composite, the group of its background and the
    near-duplicates of it; None of a real crop, and where the object is not known.
    """

    crop: Crop
    group: Hashable
    background: Hashable | None = None
    tokens: frozenset = field(default_factory=frozenset)


def placed(real: Sequence[Crop], composites: dict[str, Sequence[Crop]]) -> tuple[list[Placed], dict[str, list[Placed]]]:
    """The crops with their tokens. Of real scans that are near-duplicates of each other only the first one stays, so
    that real crops are independent."""
    crops = [*real, *(crop for some in composites.values() for crop in some)]
    twins = twin_groups(torch.from_numpy(np.stack([crop.thumbnail for crop in crops])))
    of_scan = {id(crop): f"scan {twin}" for crop, twin in zip(crops, twins, strict=True)}
    of_file = {sha256(split_slice(crop.path)[0]): of_scan[id(crop)] for crop in real}
    first: dict[str, Placed] = {}
    for crop in real:
        group = of_scan[id(crop)]
        first.setdefault(group, Placed(crop, group, tokens=frozenset([group])))

    def token(crop: Crop, role: str) -> str:
        """Of the file of this role, or of the scan where it is not known."""
        name = crop.sources.get(role)
        return of_scan[id(crop)] if name is None else of_file.get(name, f"file {name}")

    every = [crop for some in composites.values() for crop in some]
    shown = components([{of_scan[id(crop)], token(crop, "background")} for crop in every])
    background = {id(crop): f"background {number}" for crop, number in zip(every, shown, strict=True)}

    def of_composite(crop: Crop) -> Placed:
        tokens = frozenset({of_scan[id(crop)], token(crop, "object"), token(crop, "background")})
        if "object" in crop.sources:
            return Placed(crop, token(crop, "object"), background[id(crop)], tokens)
        return Placed(crop, background[id(crop)], None, tokens)

    return list(first.values()), {name: [of_composite(crop) for crop in some] for name, some in composites.items()}


def drawn_by(crops: Sequence[Placed]) -> list[list[Hashable]]:
    """By what crops are drawn in a bootstrap, as intervals.drawn_weights takes it.

    By their components, where every background has its own objects or every object its own backgrounds: that is exact
    for many groups. Where objects and backgrounds cross, components would be few and huge, so it is by both.
    """
    made = [one for one in crops if one.background is not None]
    objects, backgrounds = {one.group for one in made}, {one.background for one in made}
    if len(set(components([one.tokens for one in made]))) < min(len(objects), len(backgrounds)):
        return [[one.group for one in crops], [one.background for one in crops]]
    return [components([one.tokens for one in crops])]


@dataclass(frozen=True, eq=False)
class Contest:
    """Two sets of as many crops each, of about the same sizes: composites, and the real crops they are compared with.

    own_objects: whether the real crops hold the composites' own objects, as too few others were there.
    """

    name: str
    real: list[Placed]
    others: list[Placed]
    own_objects: bool = False

    @property
    def crops(self) -> list[Placed]:
        return [*self.real, *self.others]

    @property
    def labels(self) -> np.ndarray:
        """(2 n,): 0 for the real crops, which come first, and 1."""
        return np.repeat([0, 1], [len(self.real), len(self.others)])

    @property
    def apart(self) -> np.ndarray:
        """Whether each crop has no token in common with each other, bool (2 n, 2 n)."""
        crops = self.crops
        return np.array([[not one.tokens & other.tokens for other in crops] for one in crops])


def check_enough(real: Sequence, composites: dict[str, Sequence], left_out: dict[str, LeftOut]) -> None:
    """Raises DatasetError, which says what was left out, unless there are LEAST_CROPS of each set, and of real ones
    twice as many. left_out: by the name of the set, and "real"."""
    for name, some in {"real": real, **composites}.items():
        least = LEAST_CROPS * (2 if name == "real" else 1)
        if len(some) < least:
            reasons = "; ".join(str(left_out[name]).splitlines()) or "nothing"
            raise DatasetError(
                f"{name}: {len(some)} crops can be used, expected {least} or more; give more scans, or make crops that "
                f"leave out fewer, by --size or --margin; left out: {reasons}"
            )


def contests(real: list[Placed], composites: dict[str, list[Placed]], seed: int) -> list[Contest]:
    """One contest for each set of composites. All have the same number of crops, as far as the objects of the least set
    and half of the real crops reach, so that the floor has as many.

    Where a set has fewer than LEAST_CROPS objects, it has LEAST_CROPS composites of them nevertheless. Real crops whose
    scan is in no composite are taken where there are enough of them for the floor too.
    """
    objects = [len({one.group for one in some}) for some in composites.values()]
    enough_of_each = [min(len(some), max(LEAST_CROPS, n)) for some, n in zip(composites.values(), objects, strict=True)]
    count = min(len(real) // 2, *enough_of_each)
    taken = {token for some in composites.values() for one in some for token in one.tokens}
    fresh = [one for one in real if one.group not in taken]
    enough = len(fresh) >= 2 * count
    pool = fresh if enough else real
    return [
        Contest(name, matched(pool, others, seed), others, not enough)
        for name, some in composites.items()
        for others in [in_turn(ranked(some, seed, name), count)]
    ]


def floor(real: list[Placed], count: int, seed: int) -> Contest:
    """Real crops against real crops: two halves without a scan in common, `count` crops each."""
    order = ranked(real, seed, REAL)
    half = len(order) // 2
    others = order[half:][:count]
    return Contest(REAL, matched(order[:half], others, seed), others)


def ranked(some: Sequence[Placed], seed: int, role: str) -> list[Placed]:
    """Crops in an order that the seed and their content decide."""
    return sorted(some, key=lambda one: hashlib.sha256(f"{seed}/{role}/{one.crop.digest}".encode()).digest())


def in_turn(some: Sequence[Placed], count: int) -> list[Placed]:
    """The first `count` of composites: no object comes again before all others have come, and of those whose turn it is
    the first one whose scans have come least often."""
    rest, taken, come = list(some), [], Counter()
    while len(taken) < count:
        one = min(rest, key=lambda one: (come[one.group], sum(come[token] for token in one.tokens)))
        rest.remove(one)
        taken.append(one)
        come.update({one.group, *one.tokens})
    return taken


def matched(pool: list[Placed], others: list[Placed], seed: int) -> list[Placed]:
    """For each of the others in turn, the crop of the pool not yet taken whose side in its scan's pixels is nearest by
    its logarithm: so the scale of the texture does not tell the sets apart. Of equal ones the first by `ranked`."""
    rest, found = ranked(pool, seed, "match"), []
    for one in others:
        nearest = min(rest, key=lambda other: abs(math.log(other.crop.side / one.crop.side)))
        rest.remove(nearest)
        found.append(nearest)
    return found


def folds(contest: Contest, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training crops, test crops) by their index in contest.crops, for each part of a cross-validation.

    The parts are made of whole groups and have about as many crops of each kind. A crop that shares a token with one of
    the test is in neither. Raises DatasetError where there are too few groups, or where a training part has none of a
    kind left.
    """
    crops, labels = contest.crops, contest.labels
    members: dict[Hashable, list[int]] = {}
    for index, one in enumerate(crops):
        members.setdefault(one.group, []).append(index)
    parts: list[list[int]] = [[] for _ in range(count)]
    name = {group: f"{seed}/{min(crops[i].crop.digest for i in some)}" for group, some in members.items()}
    digest = {group: hashlib.sha256(text.encode()).digest() for group, text in name.items()}
    for group in sorted(members, key=lambda group: (-len(members[group]), digest[group])):
        kinds = set(labels[members[group]])
        least = min(parts, key=lambda part: (sum(labels[index] in kinds for index in part), len(part)))
        least.extend(members[group])
    found = []
    for part in parts:
        tokens = {token for index in part for token in crops[index].tokens}
        training = [i for i, one in enumerate(crops) if not one.tokens & tokens]
        if len(set(labels[training])) < 2 or not part:
            raise DatasetError(
                f"{contest.name}: its {len(crops)} crops are {len(members)} groups of common scans, too few for "
                f"{count} parts of a cross-validation; give more scans, or fewer --folds"
            )
        found.append((np.array(training), np.array(sorted(part))))
    return found
