"""This module makes the system refuse what is written beyond a size, as a full disk does. The tests of all writers
share it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(bytes_per_file: int) -> Iterator[None]:
    """Within the block this process can write so many bytes of a file; the system refuses what lies beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, before[1]))  # Python ignores the signal for it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
