"""test_benchmark_command.py runs this script. It kills the benchmark before its first file is put in place, then in a
new run STRIDE files later, and so on.

    python kill_benchmark.py FOLDER STRIDE

FOLDER/k holds the result of a kill before the k-th file and of a second run. The last k is the run that finished before
its kill, and the script prints it. Even the first call is made in a fork, because torch's threads do not survive one.
"""

import os
import signal
import sys
from pathlib import Path

from benchmark_files import draw, run
from kill_at_every_moment import die_before


def forked(parts: dict, out: Path, kill_before: int | None) -> int:
    """The wait status of a benchmark in a process of its own."""
    if (child := os.fork()) != 0:
        return os.waitpid(child, 0)[1]
    status = 70
    try:
        die_before(kill_before)
        status = len(run(parts, out, "copy-paste", "ours"))
    finally:
        os._exit(status)  # without the clean-up, which is the parent's


def kill_everywhere(folder: Path, stride: int) -> int:
    parts = draw(folder / "data")
    for moment in range(1, 1000, stride):
        out = folder / str(moment)
        status = forked(parts, out, moment)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return moment
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert os.waitstatus_to_exitcode(forked(parts, out, None)) == 0
    raise AssertionError("the run never ended")


if __name__ == "__main__":
    print(kill_everywhere(Path(sys.argv[1]), int(sys.argv[2])))
