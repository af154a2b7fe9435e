"""This module writes the blinded reader study: crops that readers call real or synthetic, a page and a sheet for their
answers, and, in a folder of its own, the key.

Nothing but the pixels may tell what a crop is. Names are numbers, in an order that the seed and the crops' content
decide. Pictures are uncompressed PNG of one size without metadata, so that their files are equally long, and all bear
one date. No two crops of a study have a scan in common.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from importlib import resources
from pathlib import Path

from PIL import Image

from sd21.files import atomic, write_text
from sd21.folders import FolderError

from ..scans.errors import DatasetError
from ..tables import csv_text
from .choices import Choices
from .crops import at_size, grey_view
from .groups import Contest, Placed, matched, ranked
from .names import HEADINGS, KEY, KEY_COLUMNS, REAL, STUDY

SIDE = 256  # pixels; crops are enlarged to it or shrunk, all by one filter
DATE = 946_684_800  # of all files, in seconds: the first of January 2000
PAGE = "page.html"


def write(out: Path, contests: list[Contest], real: list[Placed], choices: Choices) -> None:
    """Write OUT/reader_study and OUT/reader_study_key. What is there of this study stays, as it may be filled in.

    Raises DatasetError where not one composite of each set has scans of its own, and FolderError where the folder holds
    another study.
    """
    chosen = choose(contests, real, choices)
    order = sorted(chosen, key=lambda one: hashlib.sha256(f"{choices.seed}/{one[1].crop.digest}".encode()).digest())
    names = [f"{number:04d}" for number in range(1, len(order) + 1)]
    rows = [(name, kind, one.crop.name, one.crop.digest) for name, (kind, one) in zip(names, order, strict=True)]
    key, path = csv_text(KEY_COLUMNS, rows), out / KEY / "key.csv"
    if path.exists() and path.read_text(encoding="utf-8") != key:
        raise FolderError(f"{out} holds another reader study, which may be filled in already; name another folder")
    write_text(path, key)
    if (out / STUDY).exists():
        return
    with atomic(out / STUDY) as folder:
        (folder / "crops").mkdir(parents=True)
        for name, (_, one) in zip(names, order, strict=True):
            crop = at_size(grey_view(one.crop.path), one.crop.box, SIDE)
            Image.frombytes("L", crop.size, crop.tobytes()).save(folder / "crops" / f"{name}.png", compress_level=0)
        (folder / "sheet.csv").write_text(csv_text(HEADINGS, [("", name, "", "") for name in names]), encoding="utf-8")
        (folder / "index.html").write_text(page(names), encoding="utf-8")
        for one in (*folder.rglob("*"), folder):
            os.utime(one, (DATE, DATE))


def told(out: Path) -> str:
    """What one does with a study that lies in OUT."""
    key = out / KEY / "key.csv"
    return (
        f"Reader study: give readers the folder {out / STUDY} alone (they open index.html, or fill in sheet.csv), and "
        f"keep {key} from them. Score what they send back: python -m composition realism --score sheet.csv --key "
        f"{shlex.quote(str(key))}"
    )


def choose(contests: list[Contest], real: list[Placed], choices: Choices) -> list[tuple[str, Placed]]:
    """The crops of a study with the names of their sets: reader_crops of each set, or as many as there are; and as many
    real ones as of all sets together, of sizes that match. No two have a scan in common."""
    rest = {contest.name: ranked(contest.others, choices.seed, "reader study") for contest in contests}
    taken: set = set()
    turns: list[list[tuple[str, Placed]]] = []  # a composite of each set: sets of unequal numbers would be a hint
    while len(turns) < choices.reader_crops:
        turn = []
        for name, some in rest.items():
            one = next((one for one in some if not one.tokens & taken), None)
            if one is not None:
                taken |= one.tokens
                turn.append((name, one))
        if len(turn) < len(rest):
            break
        turns.append(turn)
    fresh = [one for one in real if not one.tokens & taken]
    turns = turns[: len(fresh) // len(rest)]
    if not turns:
        raise DatasetError(
            f"a reader study needs a composite of each of the sets {', '.join(rest)} and as many real tumours, none "
            "with a scan in common; there are too few scans for it. Name fewer sets, or give more scans"
        )
    composites = [one for turn in turns for one in turn]
    partners = matched(fresh, [one for _, one in composites], choices.seed)
    return composites + [(REAL, one) for one in partners]


def page(names: list[str]) -> str:
    """The page that shows the crops and keeps the answers: one file, which loads nothing but the crops."""
    return resources.files(__package__).joinpath(PAGE).read_text(encoding="utf-8").replace("[/*NAMES*/]", str(names))
