"""This module decides what each arm of the experiment learns from: which real scans a seed draws, which composites are
of those scans, and what a batch holds.

The SHA-256 of the seed and of a scan's file decides, so that the draw does not depend on names, folders or machines. A
smaller N is the beginning of a larger one, and no two drawn scans are near-duplicates.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..scans.errors import DatasetError
from .data import Case

REAL, TUMOUR_FREE, MORE, ALONE = "real", "real + tumour-free", "+ more real", "{} alone"
LEAST_SHARE = 1 / 2  # of the composites asked for; with fewer an arm would not be what it is called


@dataclass(frozen=True, eq=False)
class Arm:
    """What one training learns from.

    base: the cases of one part of every batch; added: those of the other part, or none, and then base fills the batch.
    negatives: tumour-free scans for `Training.negatives` places of the added part.
    """

    name: str
    base: list[Case]
    added: list[Case]
    negatives: list[Case]


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to learn from. pool: real labelled scans, with the number of the group of near-duplicates of each;
    tumour_free: scans without a tumour; composites: by name, those of any of the pool's scans."""

    pool: list[Case]
    groups: list[int]
    tumour_free: list[Case]
    composites: dict[str, list[Case]]


def ranked(material: Material, seed: int) -> list[Case]:
    """The pool in the order in which this seed draws it, with one scan of every group of near-duplicates."""
    drawn, taken = [], set()
    order = sorted(zip(material.pool, material.groups, strict=True), key=lambda one: _rank(seed, one[0].sha256))
    for case, group in order:
        if group not in taken:
            taken.add(group)
            drawn.append(case)
    return drawn


def arms_of(
    material: Material, size: int, seed: int, per_scan: int, alone: Sequence[str], names: Sequence[str]
) -> tuple[list[Arm], dict]:
    """The arms for N = size and this seed, and a description of them for the record.

    per_scan: how many composites an arm has for each real scan, at most. All arms with composites have them of the same
    of these scans, and as many of each, which is what all of `names`, the composites that are to be used, can give.
    alone: names of composites that are also learnt from alone.
    Raises DatasetError if the pool has fewer than `size` scans, or a name too few composites of those drawn.
    """
    drawn = ranked(material, seed)
    if len(drawn) < size:
        raise DatasetError(
            f"{size} real scans are to be drawn, and there are {len(drawn)}, near-duplicates counted once; add scans, "
            "or ask for a smaller size"
        )
    real, rest = drawn[:size], drawn[size:]
    of_drawn = {name: composites_of(material.composites[name], real) for name in names}
    shared = Counter({case.sha256: per_scan * size for case in real})
    for composites in of_drawn.values():
        shared &= Counter(case.object_sha256 for case in composites)  # the lesser number of each
    found = {name: composites_of(composites, real, shared) for name, composites in of_drawn.items()}
    wanted = per_scan * size
    for name, composites in of_drawn.items():
        if min(len(composites), shared.total()) < LEAST_SHARE * wanted:
            raise DatasetError(
                f"{name} has {len(composites)} composites of the {size} scans that seed {seed} draws, of which all "
                f"have {shared.total()} in common, and {wanted} are asked for ({per_scan} for each); compose more of "
                "the scans in drawn.json, or lower --per-scan"
            )
    count = min(wanted, shared.total())
    chosen = {name: composites[:count] for name, composites in found.items()}
    free, more = material.tumour_free, rest[:count]
    arms = [Arm(REAL, real, [], [])]
    arms += [Arm(TUMOUR_FREE, real, free, [])] if free else []
    arms += [Arm(f"+ {name}", real, composites, free) for name, composites in chosen.items()]
    arms += [Arm(MORE, real + more, [], [])] if more else []
    arms += [Arm(ALONE.format(name), chosen[name], [], []) for name in alone if name in chosen]
    told = {
        "size": size,
        "seed": seed,
        "real": [{"file": case.name, "sha256": case.sha256} for case in real],
        "more_real": len(more),
        "composites_of_them": {name: len(composites) for name, composites in of_drawn.items()},
        "composed": len(+shared) if names else 0,
        "composites_used": count if names else 0,
    }
    return arms, told


def composites_of(composites: list[Case], real: list[Case], at_most: Counter | None = None) -> list[Case]:
    """The composites whose object comes from one of these scans: the first of each scan, then the second of each, and
    so on, so that the beginning of the list has all scans equally often.

    at_most: how many of each scan, by the hash of its file; None for all.
    """
    place = {case.sha256: number for number, case in enumerate(real)}
    seen, order = Counter(), []
    for case in composites:
        if case.object_sha256 in place and (at_most is None or seen[case.object_sha256] < at_most[case.object_sha256]):
            order.append((seen[case.object_sha256], place[case.object_sha256], case))
            seen[case.object_sha256] += 1
    return [case for _, _, case in sorted(order, key=lambda one: one[:2])]


def _rank(seed: int, digest: str) -> bytes:
    return hashlib.sha256(f"{seed}/{digest}".encode()).digest()
