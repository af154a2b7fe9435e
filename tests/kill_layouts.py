"""test_layouts.py runs this script: kill_at_every_moment.py with a layout, a good exit code, and two runs before the
kill, so that one folder takes another's place.

    python kill_layouts.py FOLDER LAYOUT

Every run is a fork, on a model without weights. Each folder FOLDER/k begins with a batch of other columns, undisturbed;
then the command is killed before its k-th file or folder gets its name, and runs again. The last k is the run that
ended before its kill, and the script prints it.
"""

import os
import signal
import sys
from pathlib import Path

from composition_files import FAST, row, write_manifest, write_scans
from fake_model import FakeModel
from kill_at_every_moment import run

import sd21


def kill_everywhere(folder: Path, layout: str) -> int:
    sd21.load = lambda *_, **__: FakeModel(64)
    scans = write_scans(folder / "scans")
    earlier = write_manifest(scans / "earlier.jsonl", [row(n, age=n, split="train") for n in range(2)])
    manifest = write_manifest(scans / "manifest.jsonl", [row(0, split="train"), row(1, split="test"), row(2)])
    options = ["--min-contrast", "none", *FAST, "--layout", layout, "-q"]

    def command(name: str, rows: Path) -> list[str]:
        return ["batch", str(rows), "--out", str(folder / name), *options, "--dataset-name", "kills"]

    assert run(command("undisturbed", manifest), None) == 0
    for moment in range(1, 1000):
        assert run(command(str(moment), earlier), None) == 0
        status = run(command(str(moment), manifest), moment)
        if not os.WIFSIGNALED(status):
            return moment
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert run(command(str(moment), manifest), None) == 0, f"the run after kill {moment}"
    raise AssertionError("the run never ended")


if __name__ == "__main__":
    print(kill_everywhere(Path(sys.argv[1]), sys.argv[2]))
