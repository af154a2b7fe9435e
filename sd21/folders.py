"""This module makes a command the only one that writes to a folder, and cleans up after one that was killed.

It stands beside `files`, which writes single files, because a lock is a matter of a whole run. `composition` and the
training use it alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .files import remove_partial, temporaries_of

LOCK = ".composition-lock"


def left_locked(folder: Path) -> bool:
    """Whether a run on this folder was killed, or is at work now."""
    return (folder / LOCK).exists()


class FolderError(ValueError):
    """A folder that a run cannot have for itself."""


def check_untaken(results: Iterable[Path], maker: str) -> None:
    """Raises FolderError if one of the results is there already. maker: what makes them, and has not made it."""
    for path in results:
        if path.exists():
            raise FolderError(f"{path} is there, and no {maker} has made it; name another folder for the results")


@contextmanager
def owned(folder: str | Path, *, cache: str | Path | None = None, rank: int = 0) -> Iterator[None]:
    """Within the block, this run alone writes to `folder`, which is made if it is not there.

    What a killed run on the same folder left unfinished, in it or in the cache, is removed first: such temporaries bear
    the folder's own id, which is that of its path and its place on the disk. (In a cache they stay where the folder was
    moved since.) The operating system frees the lock of a process that ends in any way. A folder that the block makes,
    and leaves empty because it fails, is gone again.

    cache: a folder that other runs may use at the same time. rank: of this process where several share one run; rank 0
        enters first. Each has a lock of its own, so that a rank that outlives the others keeps new runs away.
    Raises FolderError where another run is at work on the folder, where it is no folder, and where it cannot be locked.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FolderError(f"{folder} is a file, or lies under one; name a folder for the results") from None
    try:
        with _locked(folder, f"{LOCK}{rank or ''}"):
            if rank == 0:
                for left in (path for path in folder.glob(f"{LOCK}*") if re.fullmatch(LOCK + "[0-9]+", path.name)):
                    with _locked(folder, left.name):
                        pass
                for place in (folder, *([Path(cache)] if cache is not None else [])):
                    remove_partial(place, _id_of(folder))
            with temporaries_of(_id_of(folder)):
                yield
    except BaseException:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # something is in it
                break
        raise


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock file of this name in the folder. It is gone afterwards."""
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
        while not (folder / name).exists():  # its last holder has removed it between our opening and locking it
            lock.release()
            lock.acquire(timeout=0)
    except Timeout:
        raise FolderError(
            f"another run is at work on {folder}; wait for its end, stop it, or name another folder for the results"
        ) from None
    except NotImplementedError:
        raise FolderError(
            f"the disk of {folder} knows no locks; name a folder on another disk for the results"
        ) from None
    try:
        yield
    finally:
        (folder / name).unlink(missing_ok=True)
        lock.release()


def _id_of(folder: Path) -> str:
    """What tells a folder from others, on this machine and on those that share a cache with it."""
    path = folder.resolve()
    return hashlib.sha256(f"{path.stat().st_ino} {path}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
