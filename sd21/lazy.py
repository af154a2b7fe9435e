"""With this module a package imports its public names only when they are first used (PEP 562).

`import sd21.files` also runs `sd21/__init__.py`, and a command line's `--help` runs the `__init__.py` of every package
on the way. Importing networks takes seconds, so an `__init__.py` that offers networks must not import them at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module


def lazily(package: str, homes: dict[str, Sequence[str]]) -> tuple[Callable, Callable, list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package whose public names live in its modules.

    package: its `__name__`; homes: {module: the names in it}. A name is imported once, and is then an attribute like
    any other.
    """
    module_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{module_of[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names, sorted(module_of)
