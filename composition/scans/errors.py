"""All of `composition` raises the exceptions of this module for what goes wrong with a user's files and requests.

They stand in one place, below everything that raises them, so that any part can raise and catch any of them. Each is a
ValueError, and its message says what was got, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sd21.words import one_line


class ScanError(ValueError):
    """A file that cannot be used as a scan or as a mask; the message names it."""


class BlankError(ScanError):
    """A scan that shows nothing: all of its pixels have one value, or it has none."""


class EmptyError(ScanError):
    """A mask in which nothing is inside."""


class PlacementError(ValueError):
    """An object that cannot be placed where it was asked to be."""


class RowError(ValueError):
    """A row of a manifest that does not say what to compose."""


class DatasetError(ValueError):
    """A folder that is not the dataset it was given for, or a dataset with too few samples."""


class WeightsError(ValueError):
    """A metric's weights that are absent, or are not those of the network they were given for."""


class SheetError(ValueError):
    """A reader study's sheet or key that cannot be scored."""


class DemoError(ValueError):
    """The demo's own files are missing."""


@contextmanager
def damage_named(name: str, kind: str) -> Iterator[None]:
    """Within the block, whatever a reader raises for a damaged file becomes a ScanError that names the file.

    name: the file's name, as the user gave it. kind: what it was read as.
    """
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # Pillow, pydicom and nibabel raise a dozen types for damaged files
        raise ScanError(f"{name} cannot be read as {kind}: {one_line(str(error)) or type(error).__name__}") from error


@contextmanager
def extra_needed(package: str, name: str, extra: str = "medical") -> Iterator[None]:
    """Within the block, an ImportError says that reading the file takes a package of an optional extra.

    package: what the block imports. name: the file's name, as the user gave it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f'reading {name} takes {package}; install the extra: pip install "tumour-composition[{extra}]"'
        ) from error
