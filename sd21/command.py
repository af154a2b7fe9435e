"""This module is the one rule of the command lines: a traceback is for a bug of ours, and anything else is one line.

`python -m composition` and `python -m sd21.training` both take their options with Parser and run inside `guarded`.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TextIO

from .words import one_line, shown

# What our own checks raise: CheckpointError, ScanError, FolderError, ... The request cannot be met as it stands.
REFUSED = (ValueError, OSError, ImportError)
STEP = "COMPOSITION_STEP"  # an environment variable, which a command sets for the commands that it runs as its steps
INTERRUPTED = 130  # as shells report a process that ended by Ctrl-C
# Of an OSError: the disk, and not the request, is at fault.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it. Numbers with commas may begin with a minus."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self._negative_number_matcher = re.compile(r"-[0-9.][0-9.,eE+-]*")  # argparse's own knows no commas

    def error(self, message: str) -> NoReturn:
        print(f"error: {one_line(message, 500)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def folder(text: str) -> Path:
    """The path of a folder. An empty one is an unset variable, and not the folder one is in."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty text; '.' is the one you are in")
    return Path(text)


def named_folder(text: str) -> tuple[str, Path]:
    """A name and the path of a folder, of NAME=DIR."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, as ours=results/ours, got {shown(text)}")
    return name, Path(path)


def guarded(run: Callable[[], int], interrupted: str, tell: Callable[[Exception], str | None] = lambda _: None) -> int:
    """The exit code of a command: 0, 1 for what failed on the way, 2 for a request that cannot be met, 130 for Ctrl-C.

    interrupted: what a user who has pressed Ctrl-C should know. tell: the line for an error that may happen on the way,
        beside numbers that are not finite and memory that gives out; None for one that it does not know.
    """
    with _forgiving_streams(), _short_warnings():
        return _guarded(run, interrupted, tell)


def _guarded(run: Callable[[], int], interrupted: str, tell: Callable[[Exception], str | None]) -> int:
    try:
        return run()
    except KeyboardInterrupt:
        # Of several processes one speaks, and of a command and its steps the command.
        if os.environ.get("RANK", "0") == "0" and STEP not in os.environ:
            print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except REFUSED as error:
        return _told(str(error) or type(error).__name__, 1 if getattr(error, "errno", None) in DISK else 2)
    except Exception as error:
        failed = isinstance(error, FloatingPointError)
        line = str(error) if failed else memory_told(error) if out_of_memory(error) else tell(error)
        if line is None:
            raise
        return _told(line, 1)


@contextmanager
def _forgiving_streams() -> Iterator[None]:
    """Within the block, what cannot be shown costs nothing: a file's name that is no text, and a terminal, a pipe or a
    disk that takes no more."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Forgiving(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Forgiving:
    """A stream whose writes never fail."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._tried(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, act: Callable, *arguments: object) -> None:
        try:
            act(*arguments)
        except (OSError, ValueError):  # ValueError: it is closed
            with suppress(OSError, ValueError, io.UnsupportedOperation):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # Python flushes it at the end, too


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Within the block, a warning is a line, without the place in the code that gave it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {one_line(str(message), 500)}", file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory gave out. On the CPU torch's is a RuntimeError like any other."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "allocate memory" in said)
    )


def memory_told(error: BaseException) -> str:
    """The line for it."""
    return (
        f"out of memory ({one_line(str(error)) or 'the system gives no more'}); take a smaller batch (--max-batch 1 "
        "in a composition, --batch in training), a smaller model or a smaller scan"
    )


def _told(text: str, code: int) -> int:
    print(f"error: {one_line(text, 5000)}", file=sys.stderr)
    return code
