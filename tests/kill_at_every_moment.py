"""test_batch.py runs this script. It kills `batch` with signal 9 before its first file is put in place, then in a new
run before its second, and so on.

    python kill_at_every_moment.py FOLDER ARGUMENTS...      where ARGUMENTS are those of `batch` without --out

Each run is a fork, so that torch and the model are loaded once. After every kill the same command runs undisturbed.
FOLDER/k holds the result after a kill before the k-th file. The last k is the run that finished before its kill, and
the script prints it.
"""

import os
import signal
import sys
from pathlib import Path

import sd21
from composition.cli import build_parser, main
from sd21 import files


def run(arguments: list[str], kill_before: int | None) -> int:
    """The wait status of a forked run that kills itself before its file number `kill_before` gets its name."""
    if (child := os.fork()) != 0:
        return os.waitpid(child, 0)[1]
    die_before(kill_before)
    status = 70
    try:
        status = main(arguments)
    finally:
        os._exit(status)  # without the clean-up, which is the parent's


def die_before(number: int | None) -> None:
    """From now on, this process kills itself before its file number `number` gets its name."""
    placed, replace = 0, os.replace

    def counting(source, target):
        nonlocal placed
        placed += 1
        if placed == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = counting


def kill_everywhere(folder: Path, arguments: list[str]) -> int:
    model = sd21.load(build_parser("batch").parse_args(["batch", *arguments, "--out", "unused"]).model, device="cpu")
    sd21.load = lambda *_, **__: model
    for moment in range(1, 1000):
        command = ["batch", *arguments, "--out", str(folder / str(moment)), "-q"]
        status = run(command, moment)
        if not os.WIFSIGNALED(status):
            return moment
        assert os.WTERMSIG(status) == signal.SIGKILL
        # The status is 1 because of the bad rows; an undisturbed run ends in the same way.
        assert os.waitstatus_to_exitcode(run(command, None)) == 1
    raise AssertionError("the run never ended")


if __name__ == "__main__":
    print(kill_everywhere(Path(sys.argv[1]), sys.argv[2:]))
