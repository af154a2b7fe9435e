"""Crops for the tests of what `realism` counts as independent. They have scans and next to no pixels; what would be
measured of them is drawn by the tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from composition.realism.crops import Crop
from composition.realism.groups import Placed

NOTHING = np.zeros((1, 1), dtype=np.uint8)


def drawn_crop(name: str, obj: str | None = None, background: str | None = None) -> Placed:
    """A crop of a real scan `name`, or a composite `name` of an object in a background."""
    thumbnail = np.frombuffer(name.encode(), dtype=np.uint8)  # which the digest knows it by
    crop = Crop(Path(name), NOTHING, NOTHING > 0, NOTHING > 0, (0, 0, 64), thumbnail)
    if obj is None:
        return Placed(crop, name, tokens=frozenset([name]))
    return Placed(crop, obj, background, frozenset([obj, background]))


def drawn_reals(count: int) -> list[Placed]:
    return [drawn_crop(f"real {number}") for number in range(count)]


def drawn_composites(count: int, obj: Callable[[int], int], background: Callable[[int], int]) -> list[Placed]:
    """Composites by their numbers, with the numbers of their objects and backgrounds."""
    return [drawn_crop(f"made {n}", f"object {obj(n)}", f"background {background(n)}") for n in range(count)]


def drawn_values(crops: list[Placed], of_object: float, of_background: float, rng: np.random.Generator) -> np.ndarray:
    """A normal number of mean 0 and variance 1 for each crop. Composites share the named parts of the variance with
    those of their object and of their background; real crops share nothing."""
    names = {name for one in crops for name in (one.group, one.background)} - {None}
    of = dict(zip(sorted(names), rng.normal(size=len(names)), strict=True))
    found = []
    for one, own in zip(crops, rng.normal(size=len(crops)), strict=True):
        if one.background is not None:
            own = np.sqrt(1 - of_object - of_background) * own
            own += np.sqrt(of_object) * of[one.group] + np.sqrt(of_background) * of[one.background]
        found.append(own)
    return np.array(found)
