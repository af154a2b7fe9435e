"""The crash campaign, by hand: it ends batches in every way that a machine knows, and starts the same command again.

    python tests/crash_campaign.py FOLDER [--kills 50] [--seed 0]

A batch of rows on a small random checkpoint, with a cache of inversions, is run undisturbed. Then in turn, each on a
new folder: one process is killed with signal 9, at a moment that is spread evenly over all files that it writes; of two
ranks under torchrun one is killed, or torchrun itself; kept inversions are damaged; the disk is full. After each the
same command runs to its end. Every file of the results and of the cache must then have the bytes of the undisturbed
run.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from composition_files import row, tree, write_manifest, write_scans, write_tiny_model

ROOT = Path(__file__).parent.parent
ROWS = 20
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "composition")
ALONE = ("-m", "composition")


class Campaign:
    """The inputs of the batch, in `folder`, and the bytes that it has to come to."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw, self.number = folder, random.Random(seed), 0
        write_scans(folder)
        rows = [row(n, id=f"case{n}", user_box=[5 + 2 * (n % 10), 8 + n % 5, 40, 32]) for n in range(ROWS)]
        write_manifest(folder / "manifest.jsonl", [*rows, "{bad"])
        write_tiny_model(folder / "model")
        self.out, self.cache = self._new()
        self.finish(ALONE)
        self.expected = self.trees()
        self.files = sum(map(len, self.expected))
        self.sizes = sorted(path.stat().st_size for top in (self.out, self.cache) for path in top.rglob("*.*"))

    def _new(self) -> tuple[Path, Path]:
        self.number += 1
        return self.folder / f"out{self.number}", self.folder / f"cache{self.number}"

    def anew(self) -> None:
        """Go on with a new folder for the results, and a new cache; the old ones are gone."""
        shutil.rmtree(self.out)
        shutil.rmtree(self.cache)
        self.out, self.cache = self._new()

    def trees(self) -> tuple[dict, dict]:
        return tree(self.out), tree(self.cache)

    def start(self, launcher: tuple[str, ...], **keywords) -> subprocess.Popen:
        command = [sys.executable, *launcher, "batch", self.folder / "manifest.jsonl", "--out", self.out]
        command += ["--cache", self.cache, "--model", self.folder / "model", "--device", "cpu", "-q"]
        command += ["--steps", "6", "--start", "3", "--min-contrast", "none", "--max-clipped", "none"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **keywords,
        )

    def finish(self, launcher: tuple[str, ...], **keywords) -> str:
        """Run to the end, and return what was said. The bad row makes the code 1; another run at work is waited for."""
        for _ in range(60):
            process = self.start(launcher, **keywords)
            told = process.communicate(timeout=900)[1]
            if "another run is at work" not in told:
                break
            time.sleep(1)
        assert process.returncode == 1 and "rows failed or were refused" in told, told
        return told

    def placed(self) -> int:
        """How many files have their names by now."""
        return sum(1 for top in (self.out, self.cache) for path in top.rglob("*.*") if not path.name.startswith("."))

    def killed(self, process: subprocess.Popen, files: int, victims: Callable[[], list[int]]) -> bool:
        """Wait until so many files and a victim are there, and some milliseconds more, and kill one of the victims.
        False where the process had ended by then."""
        while process.poll() is None and (self.placed() < files or not victims()):
            time.sleep(0.002)
        time.sleep(self.draw.uniform(0, 0.05))
        if process.poll() is not None or not (found := victims()):
            return False
        try:
            os.kill(self.draw.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def same(self) -> bool:
        return self.trees() == self.expected


def ranks_of(torchrun: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started."""
    found = []
    for children in Path(f"/proc/{torchrun.pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            for child in children.read_text().split():
                if b"composition" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def kill_alone(campaign: Campaign, moment: int) -> str | None:
    """One process, killed; now and then the one that resumes it as well, at a later moment."""
    moments = [moment, *([campaign.draw.randrange(moment, campaign.files)] if campaign.draw.random() < 0.3 else [])]
    told = []
    for each in moments:
        process = campaign.start(ALONE)
        if campaign.killed(process, each, lambda process=process: [process.pid]):
            told.append(str(each))
        process.communicate()
    campaign.finish(ALONE)
    return f"killed at file {' and '.join(told)} of {campaign.files}" if told else None


def kill_a_rank(campaign: Campaign, moment: int) -> str | None:
    process = campaign.start(TORCHRUN)
    killed = campaign.killed(process, moment, lambda: ranks_of(process))
    process.communicate(timeout=900)
    campaign.finish(campaign.draw.choice((TORCHRUN, ALONE)))
    return f"a rank killed at file {moment}" if killed else None


def kill_torchrun(campaign: Campaign, moment: int) -> str | None:
    """The ranks outlive it for a while. A new run must be turned away as long as they write."""
    process = campaign.start(TORCHRUN)
    killed = campaign.killed(process, moment, lambda: [process.pid])
    process.wait()
    campaign.finish(ALONE)
    return f"torchrun killed at file {moment}" if killed else None


def damage_the_cache(campaign: Campaign, _: int) -> str:
    campaign.finish(ALONE)
    shutil.rmtree(campaign.out)
    kept = sorted(campaign.cache.iterdir())
    for path in campaign.draw.sample(kept, len(kept) // 2):
        content = bytearray(path.read_bytes())
        way = campaign.draw.randrange(3)
        if way == 0:
            content = content[: campaign.draw.randrange(len(content))]
        else:
            content[campaign.draw.randrange(len(content) if way == 1 else 200)] ^= 1 << campaign.draw.randrange(8)
        path.write_bytes(content)
    told = campaign.finish(ALONE)
    assert "unusable and will be made again" in told
    return f"{len(kept) // 2} of {len(kept)} kept inversions damaged"


def fill_the_disk(campaign: Campaign, _: int) -> str:
    limit = campaign.draw.choice(campaign.sizes) - 1

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = campaign.start(ALONE, preexec_fn=full)
    told = process.communicate(timeout=900)[1]
    assert process.returncode in (1, 2) and "Traceback" not in told, told
    campaign.finish(ALONE)
    return f"no file beyond {limit} bytes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50, help="of one process (default: %(default)s); the rest follows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="events, with commas between (default: all)")
    options = parser.parse_args()
    campaign = Campaign(options.folder, options.seed)
    others = (kill_a_rank, kill_torchrun, damage_the_cache, fill_the_disk)
    # The moments of each kind of kill are spread evenly over the files that a batch writes.
    events = [(kill_alone, options.kills)] + [(other, max(1, options.kills // 5)) for other in others]
    wanted = options.only.split(",") if options.only else [event.__name__ for event, _ in events]
    outcomes = Counter()
    for event, count in ((event, count) for event, count in events if event.__name__ in wanted):
        for number in range(count):
            what = None
            while what is None:  # the process had ended before its moment
                campaign.anew()
                what = event(campaign, (number * campaign.files) // count)
            same = campaign.same()
            outcomes[event.__name__, same] += 1
            print(f"{event.__name__}: {what}: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
    for (name, same), count in sorted(outcomes.items()):
        print(f"{name}: {count} times {'the same bytes' if same else 'OTHER BYTES'}")
    return any(not same for _, same in outcomes)


if __name__ == "__main__":
    sys.exit(main())
