"""This module measures what an inversion takes beside its rows: seconds, and memory at its peak.

Both depend on the machine, so that the tables show seconds as multiples of the naive inversion's, and the results keep
them apart from what the inputs determine.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

clock = time.perf_counter
PROC = Path("/proc/self")


@dataclass
class Cost:
    """What a block took. peak_bytes: memory at the peak, beyond what was in use before; None where nobody can tell."""

    seconds: float = 0.0
    peak_bytes: int | None = None


@contextmanager
def measured_cost(device: torch.device) -> Iterator[Cost]:
    """Measure the block. The Cost is filled in when it ends.

    On CUDA the peak is that of the allocated bytes. On Linux it is that of the resident memory of the process, where
    the system lets a process reset it. The allocator first gives back what it keeps for reuse, or the peak of whoever
    comes second would be hidden.
    """
    cost, cuda = Cost(), device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else _resident_from_here()
    begin = clock()
    yield cost
    if cuda:
        torch.cuda.synchronize(device)
    cost.seconds = clock() - begin
    after = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
    if before is not None and after is not None:
        cost.peak_bytes = max(0, after - before)


def _resident_from_here() -> int | None:
    """Let the peak of the resident memory begin anew; returns what is resident, or None where that cannot be done."""
    with suppress(AttributeError, OSError):  # glibc has it, other C libraries have not
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text("5")  # proc(5): it resets VmHWM
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    """A line of the process's status that is in kB, in bytes."""
    try:
        lines = (PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
