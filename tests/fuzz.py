"""The fuzzer: it throws inputs of every kind at the package, good ones, odd ones and damaged ones.

    python tests/fuzz.py --cases 20000 --seed 0
    python tests/fuzz.py --only dicom --numbers 17         one case again

Every outcome has to be a result or one clear error, within LIMIT_SECONDS and LIMIT_BYTES. Anything else is a finding: a
traceback, a hang, memory, a message of several lines, or a result that is wrong where the right one is known. The kinds
of inputs are in fuzz_inputs.py; a new one is a function there and an entry in its table. A case depends on the seed,
its kind and its number alone.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 2 << 30
ROOT = Path(__file__).parent.parent
SLIPS = (KeyError, IndexError, TypeError, AttributeError, AssertionError, NameError, ZeroDivisionError)
LONGEST_MESSAGE = 2000  # characters; a user reads no more


@dataclass(frozen=True)
class Finding:
    """A case whose outcome is neither a result nor a clear error."""

    kind: str
    number: int
    what: str


@dataclass
class Report:
    """outcomes: how often each was seen, by kind. worst_seconds, worst_bytes: of any case that ended, and which."""

    outcomes: Counter
    findings: list[Finding]
    worst_seconds: tuple[float, str] = (0.0, "")
    worst_bytes: tuple[int, str] = (0, "")

    def __str__(self) -> str:
        lines = [f"{kind}: {count}" for kind, count in sorted(self.outcomes.items())]
        lines.append(f"slowest: {self.worst_seconds[0]:.2f} s, {self.worst_seconds[1]}")
        lines.append(f"largest: {self.worst_bytes[0] / 2**20:.0f} MiB beyond the start, {self.worst_bytes[1]}")
        return "\n".join([*lines, f"{sum(self.outcomes.values())} cases, {len(self.findings)} findings"])


def fuzz(cases: Iterable[tuple[str, int]], seed: int, report: Report | None = None) -> Report:
    """Run cases, each a kind and a number, in a process of their own, which is replaced when it dies or hangs."""
    report = report or Report(Counter(), [])
    worker = None
    for kind, number in cases:
        worker = worker or Worker(seed)
        outcome, seconds, grown = worker.run(kind, number)
        name = f"{kind} {number}"
        report.worst_seconds = max(report.worst_seconds, (seconds, name))
        report.worst_bytes = max(report.worst_bytes, (grown, name))
        if outcome not in ("result", "error"):
            report.findings.append(Finding(kind, number, outcome))
            outcome = "finding"
        elif grown > LIMIT_BYTES:
            report.findings.append(Finding(kind, number, f"it took {grown >> 20} MiB"))
        report.outcomes[f"{kind}, {outcome}"] += 1
        if not worker.alive:
            worker = None
    if worker is not None:
        worker.stop()
    return report


class Worker:
    """The process that runs cases. It begins when it has imported what they need."""

    def __init__(self, seed: int):
        context = multiprocessing.get_context("spawn")
        self.ours, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, seed), daemon=True)
        self.process.start()
        theirs.close()
        if not self.ours.poll(300) or self.ours.recv() != "ready":
            raise RuntimeError("the fuzzer's process did not start")

    def run(self, kind: str, number: int) -> tuple[str, float, int]:
        """The outcome, the seconds it took, and the memory that it took beyond what the process had."""
        begin = time.monotonic()
        self.ours.send((kind, number))
        try:
            if self.ours.poll(LIMIT_SECONDS):
                outcome, grown = self.ours.recv()
                return outcome, time.monotonic() - begin, grown
            what = f"it was not done after {LIMIT_SECONDS:g} s"
        except EOFError:
            self.process.join(5)
            what = f"the process died with {self.process.exitcode}"
        self.stop()
        return what, time.monotonic() - begin, 0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()


def _serve(pipe, seed: int) -> None:
    import torch
    from fuzz_inputs import KINDS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # damaged files are warned of
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        kind, number = pipe.recv()
        before = _memory("VmRSS", reset=True)
        outcome = run_case(KINDS[kind], kind, number, seed)
        pipe.send((outcome, max(0, _memory("VmHWM") - before)))


def run_case(kind_of_input, kind: str, number: int, seed: int) -> str:
    """ "result", "error", or what is wrong with the outcome."""
    draw = random.Random(f"{seed} {kind} {number}")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # a name like "1" is a folder here
        try:
            kind_of_input.act(draw, Path(folder))
            return "result"
        except kind_of_input.clear as error:
            text = str(error)
            if not text or "\n" in text or len(text) > LONGEST_MESSAGE or "Traceback" in text:
                return f"no clear message: {type(error).__name__}: {text[:500]!r}"
            if slip := slip_behind(error):
                return f"{text[:300]!r} hides a slip of ours: {slip}"
            return "error"
        except Exception:
            return traceback.format_exc()[-2500:]
        finally:
            os.chdir("/")


def slip_behind(error: BaseException | None) -> str | None:
    """A slip of our own code that became a clear error on the way: one of SLIPS, raised in the package itself."""
    while error is not None:
        frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
        if isinstance(error, SLIPS) and frame and Path(frame.filename).is_relative_to(ROOT):
            return f"{type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        error = error.__cause__
    return None


def _memory(name: str, reset: bool = False) -> int:
    """VmRSS, what this process has now, or VmHWM, the most it has had since the reset; bytes. 0 outside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def spread(cases: int, kinds: list[str], first: int = 0) -> Iterator[tuple[str, int]]:
    """So many cases, shared out evenly among the kinds."""
    for case in range(cases):
        yield kinds[case % len(kinds)], first + case // len(kinds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--only", help="kinds, with commas between")
    parser.add_argument("--numbers", help="these cases alone, with commas between")
    parser.add_argument("--log", type=Path, help="append every finding to this file, as JSON lines, when it happens")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from fuzz_inputs import KINDS

    kinds = options.only.split(",") if options.only else list(KINDS)
    if options.numbers:
        cases = [(kind, int(number)) for kind in kinds for number in options.numbers.split(",")]
    else:
        cases = list(spread(options.cases, kinds, options.first))
    report, told = Report(Counter(), []), 0
    for begin in range(0, len(cases), 500):
        report = fuzz(cases[begin : begin + 500], options.seed, report)
        for finding in report.findings[told:]:
            print(f"{finding.kind} {finding.number}: {finding.what}", flush=True)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(vars(finding)) + "\n")
        told = len(report.findings)
    print(report)
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())
