"""This module makes the whole experiment on BUSI or Br35H: scans, pairs, composites by every method, and trainings.

    python -m composition.utility.experiment --busi DIR --out WORK

    WORK/scans/real, tumour-free              what is learnt from, and composed
    WORK/scans/held-out, held-out-free        test scans that the small checkpoint was not trained on either
    WORK/scans/seen, seen-free                test scans that it was trained on, as pictures without labels
    WORK/drawn, WORK/pairs, WORK/composites   the scans that the seeds draw, manifests, and what `batch` made of them
    WORK/utility                              what `utility` writes
    WORK/commands.jsonl                       every command, its exit code, and the seconds that it took

Near-duplicates are on one side: the project's split holds whole groups of them out, and the other scans are shared out
by groups too. One scan of a group is taken. Each step is a command of this package that a user might type; the same
command resumes, as each of them does. Ours refuses labels that are not true, as `batch` does; the baselines, and the
paper's method, are used as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sd21.command import STEP, Parser, folder, guarded
from sd21.files import atomic, json_lines, read_json_lines, sha256, write_json, write_text
from sd21.folders import owned
from sd21.training import data

from ..datasets import DATASETS, Dataset, Labelled
from ..datasets.drawing import unsuitable
from ..datasets.folders import TABLE, read_folder
from ..datasets.rules import Rules
from ..mini.pairs import held_out_part
from ..runs import log, record
from ..scans.images import write_image
from ..settings import PAPER
from .training import Training

UNLIMITED = ["--min-contrast", "none", "--max-clipped", "none", "--min-cells", "none"]
# How `pair` varies an object: everything that it offers, at ranges that leave it a tumour.
VARIED = ["--place", "anywhere", "--size-jitter", "0.3", "--flip", "--rotate", "30", "--deform", "0.1"]
VARIED += ["--contrast", "0.3"]
COMPARED = ("ours", "copy-paste")
TUMOUR_FREE = 60  # groups of near-duplicate tumour-free scans to learn from; the rest are for the tests
POOL = {"busi": 160, "br35h": 112}  # groups of labelled scans to learn from


@dataclass(frozen=True)
class Kind:
    """A kind of composites: its pairs, "plain" or "varied", and the options of `batch`."""

    pairs: str
    options: list[str]


def _paper() -> list[str]:
    """`Settings.paper()` as options."""
    options = []
    for name, value in PAPER.items():
        option = name.replace("_", "-")
        options += (
            [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}={_text(value)}"]
        )
    return options


def _text(value: object) -> str:
    return "none" if value is None else str(value)


KINDS = {
    "ours": Kind("varied", []),
    "copy-paste": Kind("varied", ["--method", "copy-paste", *UNLIMITED]),
    "paper": Kind("varied", [*_paper(), *UNLIMITED]),
    "tf-icon": Kind("varied", ["--method", "tf-icon", *UNLIMITED]),
    "sdedit": Kind("varied", ["--method", "sdedit", *UNLIMITED]),
    "blended": Kind("varied", ["--method", "blended", *UNLIMITED]),
    "ours-unvaried": Kind("plain", []),  # what is left without the variation
}


def main(arguments: list[str] | None = None) -> int:
    options = _options_of(arguments)
    name = "busi" if options.busi else "br35h"
    dataset = DATASETS[name].read(options.busi or options.br35h)
    work = options.out
    with owned(work):
        log.read(work)  # for its errors
        record.hold_to(work / "experiment.json", _asked(options, name))
        _share_out(dataset, options.pool or POOL[name], work / "scans")
        made = _compose(dataset, options, work)
        _step(_utility(options, work, made), options.ranks, work)
    print((work / "utility" / "table.md").read_text(encoding="utf-8"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m composition.utility.experiment", description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    for name, published in DATASETS.items():
        which.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"the folder of {published.title}")
    parser.add_argument("--out", required=True, type=folder, help="folder for everything")
    parser.add_argument("--model", default="mini", help="as for batch (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="which composites")
    about = f"which of --kinds all sizes have, and not the first alone (default: {' and '.join(COMPARED)})"
    parser.add_argument("--compared", nargs="*", metavar="KIND", help=about)
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 8, 32], metavar="N", help="as for utility")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 3, 3], metavar="S", help="one for each size")
    parser.add_argument("--per-scan", type=int, default=8, metavar="K", help="composites for each drawn scan")
    parser.add_argument("--pool", type=int, metavar="P", help=f"groups of labelled scans to learn from ({POOL})")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--ranks", type=int, default=1, help="processes that share each command's work out")
    return parser


def _options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the default of --compared: those of COMPARED that are among --kinds. Raises ValueError for what
    `utility` would refuse when all is composed."""
    options = _parser().parse_args(arguments)
    if options.compared is None:
        options.compared = [name for name in COMPARED if name in options.kinds]
    if strange := [name for name in options.compared if name not in options.kinds]:
        raise ValueError(
            f"--compared names {strange[0]}, which is none of --kinds; got --kinds {' '.join(options.kinds)}"
        )
    Training(steps=options.steps)
    return options


def _asked(options: argparse.Namespace, name: str) -> dict:
    """What no later run on the same folder may change: its pairs or trainings would not fit. Kinds may be added."""
    asked = {"dataset": name, "pool": options.pool or POOL[name], "sizes": options.sizes, "seeds": options.seeds}
    asked |= {"per_scan": options.per_scan, "steps": options.steps, "model": options.model}
    return {**asked, "at_all_sizes": {kind: kind in options.compared for kind in options.kinds}}


def _share_out(dataset: Dataset, pool: int, scans: Path) -> None:
    """Write the scans of each part, once."""
    asked = {"dataset": dataset.name, "pool": pool}
    if record.read_kept(scans / "scans.json", asked) is not None:
        return
    held_out = held_out_part(dataset, data.held_out_names())
    out_of_it = {*held_out.backgrounds, *(one.path for one in held_out.objects)}
    labelled = _by_groups([one for one in dataset.objects if one.path not in out_of_it])
    free = _by_groups([path for path in dataset.backgrounds if path not in out_of_it])
    parts = {
        "real": labelled[:pool],
        "seen": labelled[pool:],
        "held-out": held_out.objects,
        "tumour-free": free[:TUMOUR_FREE],
        "seen-free": free[TUMOUR_FREE:],
        "held-out-free": held_out.backgrounds,
    }
    for name, some in parts.items():
        for one in some:
            path = _path(one)
            with atomic(scans / name / path.name) as temporary:
                shutil.copyfile(path, temporary)
            if isinstance(one, Labelled):
                write_image(scans / name / f"{path.stem}_mask.png", one.mask)
    counts = {name: len(some) for name, some in parts.items()}
    write_json(scans / "scans.json", {**asked, "scans": counts, "left_out": dataset.left_out.counts})


def _by_groups(items: list) -> list:
    """One item of each group of near-duplicates, in the order of the SHA-256 of their names."""
    kinds = [data.Scan(_path(one), _path(one).parent.name) for one in items]
    groups = data.twin_groups(data.load_pixels(kinds, 64))
    first = {}
    for number, group in sorted(enumerate(groups), key=lambda one: _rank(items[one[0]])):
        first.setdefault(group, items[number])
    return list(first.values())


def _path(item: Path | Labelled) -> Path:
    return item.path if isinstance(item, Labelled) else item


def _rank(item: Path | Labelled) -> bytes:
    return hashlib.sha256(_path(item).name.encode()).digest()


def _compose(dataset: Dataset, options: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Draw the pairs, and compose them in every kind. Returns the composites' folders by name."""
    real = ["--real", str(work / "scans" / "real"), "--test", str(work / "scans" / "held-out"), "--draw-only"]
    sets = {"all": (options.sizes, options.seeds), "first": (options.sizes[:1], options.seeds[:1])}
    for name, (sizes, seeds) in sets.items():
        place = work / "drawn" / name
        if not place.is_dir():
            with atomic(place) as temporary:
                command = ["utility", *real, "--sizes", *map(str, sizes), "--seeds", *map(str, seeds), "--quiet"]
                _step([*command, "--out", str(temporary)], 1, work, told=[*command, "--out", str(place)])
    drawn = read_folder(work / "drawn" / "all", name=dataset.name, prompt=dataset.prompt).objects
    first = {sha256(path) for path in (work / "drawn" / "first").iterdir()}
    suited = sum(unsuitable(one.mask, Rules()) is None for one in drawn)  # which `pair` makes rows of
    backgrounds, count = work / "scans" / "tumour-free", options.per_scan * suited
    each = -(-2 * count // sum(1 for _ in backgrounds.iterdir()))  # twice as often as needed, for objects of any size
    folders = {}
    for name in options.kinds:
        kind = KINDS[name]
        manifest = work / "pairs" / f"{kind.pairs}.jsonl"
        if not manifest.exists():
            # An object that has room in few backgrounds is made up for by others.
            limits = ["--count", str(count), "--per-object", str(options.per_scan + 2), "--per-background", str(each)]
            inputs = ["--backgrounds", str(backgrounds), "--objects", str(work / "drawn" / "all")]
            place = VARIED if kind.pairs == "varied" else ["--place", "anywhere"]
            command = ["pair", *inputs, *limits, *place, "--seed", "0", "--prompt", dataset.prompt]
            _step([*command, "--out", str(manifest)], 1, work)
        if name not in options.compared:
            manifest = _part(manifest, first)
        folders[name] = work / "composites" / name
        model = ["--model", options.model, "--cache", str(work / "inversions")]
        command = ["batch", str(manifest), "--out", str(folders[name]), *model, *kind.options]
        _step(command, options.ranks, work, done=folders[name] / TABLE)
    return folders


def _part(manifest: Path, objects: set[str]) -> Path:
    """Write the manifest of the rows whose object is one of these, beside the manifest; returns its path."""
    part = manifest.with_name(f"{manifest.stem}_first.jsonl")
    rows = (row for row in read_json_lines(manifest) if sha256(manifest.parent / row["object"]) in objects)
    write_text(part, json_lines(rows))
    return part


def _utility(options: argparse.Namespace, work: Path, folders: dict[str, Path]) -> list[str]:
    scans = work / "scans"
    command = ["utility", "--real", str(scans / "real"), "--tumour-free", str(scans / "tumour-free")]
    for option, suffix in (("--test", ""), ("--test-tumour-free", "-free")):
        folders_of = {name: scans / f"{name}{suffix}" for name in ("held-out", "seen")}
        command += [option, *(f"{name}={path}" for name, path in folders_of.items() if path.is_dir())]
    command += ["--composites", *(f"{name}={path}" for name, path in folders.items())]
    command += ["--compared", *(name for name in folders if name in options.compared)]
    command += ["--sizes", *map(str, options.sizes), "--seeds", *map(str, options.seeds)]
    command += ["--per-scan", str(options.per_scan), "--steps", str(options.steps)]
    return [*command, "--out", str(work / "utility")]


def _step(command: list[str], ranks: int, work: Path, done: Path | None = None, told: list[str] | None = None) -> None:
    """Run a command of this package, and write down how long it took. done: a file that tells that it came to its end,
    though some of its rows failed. told: the command as a user would type it, if that is another. Raises ValueError
    where it did not come to its end."""
    launch = ["torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "--"] if ranks > 1 else []
    begin = time.perf_counter()
    environment = os.environ | {STEP: "1"}
    code = subprocess.run([sys.executable, "-m", *launch, "composition", *command], env=environment).returncode
    line = log.line_of(command if told is None else told)
    log.add(work, {"command": line, "code": code, "seconds": round(time.perf_counter() - begin, 1)})
    if code and not (done is not None and done.exists()):
        raise ValueError(f"the step ended with the exit code {code}: {line}; mend it and run again")


if __name__ == "__main__":
    sys.exit(guarded(main, "the same command goes on where this one stopped"))
