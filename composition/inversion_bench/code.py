"""This module tells the code of one inversion from any other, so that a cell is of the code that measured it.

Compositions key their inversions by all of `solvers`. The bench does not: a new method, or an edit of one, is to cost
the cells of that method alone.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import sd21
import solvers
from solvers import INVERSIONS, denoise, invert
from solvers.prediction import data_prediction

from ..inversions import code_of, digest_of
from .measure import DEFAULT, UNIT

# We raise it whenever a cell holds other measures, or measures in another way.
VERSION = 1
NETWORKS = digest_of(Path(sd21.__file__).parent.glob("*.py"))


@functools.cache
def digest(method: str) -> str:
    """A SHA-256 over the modules of `solvers` that an inversion runs, the code of a method from elsewhere, and sd21."""
    entries = [INVERSIONS[name] for name in dict.fromkeys((method, UNIT, DEFAULT))]
    functions: list[Callable] = [invert, denoise, data_prediction, *(entry.solve for entry in entries)]
    for sampler in (entry.sampler for entry in entries):
        functions += [] if sampler is None else [one for one in (sampler.denoise, sampler.from_one_state) if one]
    own = [code_of(function) for function in functions]
    files = sorted(_modules(_home(function) for function in functions))
    return hashlib.sha256(repr((VERSION, NETWORKS, own, digest_of(map(Path, files)))).encode()).hexdigest()


def _home(function: Callable) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function).__module__ or ""


def _modules(names: Iterable[str]) -> set[str]:
    """The files of these modules of `solvers`, and of those whose functions and classes they use."""
    waiting, seen = set(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen or not name.startswith(f"{solvers.__name__}.") or name not in sys.modules:
            continue
        seen.add(name)
        waiting |= {getattr(one, "__module__", None) or "" for one in vars(sys.modules[name]).values()}
    return {sys.modules[name].__file__ for name in seen}
