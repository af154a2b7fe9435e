"""This module shares work out among the processes that torchrun starts; without torchrun there is one.

Everything that is long enough to be shared goes through one `Ranks`, so that no other module knows of torchrun.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from tqdm import tqdm

from sd21.command import INTERRUPTED
from sd21.folders import owned

Item = TypeVar("Item")
FOREVER = timedelta(days=365)  # where a rank dies torchrun ends the others, so nobody waits in vain
PAUSE = 0.2  # seconds between two looks at what the other ranks have finished


class Ranks:
    """The processes that work on one task together. name: of the task; all ranks give the same, and every task has one.

    store: a key-value store with atomic counters that all ranks share. rank: of this process. count: of all.
    """

    def __init__(self, name: str):
        if not dist.is_torchelastic_launched():
            self.store, self.rank, self.count = dist.HashStore(), 0, 1
            return
        signal.signal(signal.SIGINT, _interrupt_once)
        store, self.rank, self.count = next(dist.rendezvous("env://", timeout=FOREVER))
        # torchrun --max-restarts hands the restarted ranks the store of those that died, with their counts in it.
        name = f"{os.environ['TORCHELASTIC_RESTART_COUNT']} {name}"
        self.store = dist.PrefixStore(name.encode("utf-8", "backslashreplace").decode(), store)

    def begin(self) -> None:
        """Rank 0 comes here when it has prepared what the others need; they wait for it. Once for every Ranks: `owning`
        does it too."""
        if self.rank == 0:
            self.store.set("ready", "")
        self.store.wait(["ready"])

    @contextmanager
    def owning(
        self, folder: Path, *, cache: str | Path | None = None, prepare: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Within the block these processes alone write to the folder, as `sd21.folders.owned` says. Rank 0 enters
        first, and calls `prepare` before the others enter."""
        if self.rank > 0:
            self.begin()
        with owned(folder, cache=cache, rank=self.rank):
            if self.rank == 0:
                prepare()
                self.begin()
            yield

    def share(self, items: Sequence[Item], *, title: str, quiet: bool) -> Iterator[Item]:
        """The items that this rank is to do. All ranks pass the same items, and each takes the next when it is free.
        Rank 0, whose bar tells of all, stays until the others have finished theirs."""
        with tqdm(total=len(items), desc=title, disable=quiet or self.rank > 0) as bar:
            while (number := self.store.add("taken", 1) - 1) < len(items):
                yield items[number]
                bar.update(self.store.add("finished", 1) - bar.n)
            while self.rank == 0 and (finished := self.store.add("finished", 0)) < len(items):
                bar.update(finished - bar.n)
                time.sleep(PAUSE)
            bar.update(len(items) - bar.n)

    def finish(self) -> None:
        """Rank 0 waits here until the others have come. The others go on at once."""
        self.store.set(f"left {self.rank}", "")
        if self.rank == 0:
            self.store.wait([f"left {other}" for other in range(self.count)])


def _interrupt_once(*_: object) -> None:
    """Ctrl-C reaches a process twice, from the terminal and from torchrun, and the second must not disturb its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def launch(arguments: list[str], processes: int) -> int:
    """Run a command of `composition` in so many processes, as torchrun does. Returns the exit code that the first of
    them to end badly had, 0 where none did, or 130 after Ctrl-C. Torchrun itself would end in a traceback."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable()  # of what torchrun says, as the processes speak for themselves
    given = ["--standalone", "--nproc-per-node", str(processes), "-m", "--", "composition", *arguments]
    try:
        run.run(run.parse_args(given))
    except SignalException as stopped:
        return INTERRUPTED if stopped.sigval == signal.SIGINT else 128 + stopped.sigval
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    finally:
        logging.disable(logging.NOTSET)
    return 0
