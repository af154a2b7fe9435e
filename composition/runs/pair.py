"""This module draws a user's own labelled data set from two folders, as a manifest that `batch` reads.

    OUT.jsonl               a pair per line: background, object, its mask, the target's box, the prompt, the object's
                            variation, the split, and columns that say where both come from; written after the masks
    OUT_masks/HASH.png      the objects' masks, named by their pixels; a mask of several files is their union
    OUT_left_out.json       what was not used, by reason

Files are named relative to the manifest's folder where that is possible. The seed and the content of the files decide
what is drawn, so that a copy of the data elsewhere gives the same manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from tqdm import tqdm

from sd21.files import json_lines, write_json, write_text
from sd21.folders import FolderError, check_untaken, owned

from ..datasets import Dataset, Labelled, LeftOut
from ..datasets.drawing import Keys, Pair, draw_pairs, mask_sha256, suitable
from ..datasets.grouping import components
from ..datasets.rules import Rules
from ..scans.dicom import is_dicom, read_header
from ..scans.errors import DatasetError, damage_named
from ..scans.images import write_image
from ..scans.slices import split_slice
from .columns import check_class
from .request import check_outside

SPLIT_BY = ("file", "patient")
HASH = 16  # digits of a hash that are enough to tell some thousands of things apart


@dataclass(frozen=True)
class PairRequest:
    """What is to be drawn, and where it goes.

    dataset: the scans. roots: the folders and files that they were read from. prompt: None takes the dataset's. split:
    names and shares, which sum up to 1; empty for no split. split_by: one of SPLIT_BY. patient: what finds the patient
    in a file's name, its first group or else the whole match.
    """

    dataset: Dataset
    roots: tuple[Path, ...]
    count: int
    seed: int
    out: Path
    prompt: str | None = None
    split: tuple[tuple[str, Fraction], ...] = ()
    split_by: str = "file"
    patient: re.Pattern | None = None


@dataclass(frozen=True)
class Drawn:
    """A manifest on disk, and the folder and the list that belong to it. left_out: what was not used. objects,
    backgrounds: how many different ones it has. splits: its rows by split."""

    manifest: Path
    masks: Path
    listed: Path
    rows: int
    objects: int
    backgrounds: int
    splits: dict[str, int]
    left_out: LeftOut

    def __str__(self) -> str:
        splits = ", ".join(f"{count} {name}" for name, count in self.splits.items())
        told = f"{self.manifest}: {self.rows} pairs; objects: {self.objects}, backgrounds: {self.backgrounds}"
        told += f"; splits: {splits}" if splits else ""
        told += f"\nmasks: {self.masks}"
        return told + (f"\nleft out, by name in {self.listed}:\n{self.left_out}" if self.left_out.names else "")


def bar(title: str, quiet: bool, **keywords) -> tqdm:
    """A progress bar, which goes when it is done, and shows on a terminal alone."""
    return tqdm(desc=title, disable=True if quiet else None, leave=False, **keywords)


def run_pair(request: PairRequest, rules: Rules, *, quiet: bool = True) -> Drawn:
    """Draw the pairs and write the manifest and what belongs to it. A manifest that is there already stays if it is the
    same. quiet: no progress bar.

    Raises DatasetError where fewer pairs can be drawn than were asked for, and FolderError where another manifest is
    there, a list that no `pair` has written, or where results would lie among the scans; nothing is written then.
    """
    if request.count < 1:
        raise ValueError(f"the count is a whole number of 1 or more, got {request.count}")
    prompt = request.dataset.prompt if request.prompt is None else request.prompt
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is no text: {error}; mend its encoding") from None
    masks, rest = (request.out.with_name(f"{request.out.stem}_{name}") for name in ("masks", "left_out.json"))
    _check_apart(request, masks, rest)
    keys = Keys(request.dataset, by_content=True)
    dataset = _named(_without_labelled(suitable(request.dataset, rules, keys), keys))
    patients = Patients(dataset, keys, request.patient)
    if request.patient is not None and not patients.known:
        warnings.warn(
            f"--patient {request.patient.pattern} matches no file's name, so no patient is known", stacklevel=2
        )
    with bar("drawing", quiet, total=request.count) as drawing:
        parts, left_out = _drawn(request, dataset, rules, keys, patients, drawing.update)
    rows, files = [], {}
    for split, pairs in parts:
        for pair in pairs:
            mask = masks / f"{mask_sha256(pair.obj.mask)[:HASH]}.png"
            files[mask] = pair.obj.mask
            number = f"{dataset.name}-{len(rows):05d}"
            rows.append(_row(number, pair, mask, prompt, split, patients, request.out.parent))
    text = json_lines(rows)
    if request.out.exists() and request.out.read_text(encoding="utf-8", errors="replace") != text:
        raise FolderError(f"{request.out} is there and holds other rows; name another file, or move that one away")
    with owned(masks):
        for path, mask in files.items():
            write_image(path, mask)
        write_text(request.out, text)
        write_json(rest, left_out.names)
    used = [{row[name] for row in rows} for name in ("object", "background")]
    splits = {name: len(pairs) for name, pairs in parts if name is not None}
    return Drawn(request.out, masks, rest, len(rows), *map(len, used), splits, left_out)


class Patients:
    """Whose scans are whose. What names a patient is never written: a DICOM file's patient is called by the least hash
    of that patient's files. What `pattern` finds in a file's name stays as it is, since that name is written too.

    Of a patient whom a file's name and its attributes do not say, None is known. Raises ScanError for a damaged file.
    """

    def __init__(self, dataset: Dataset, keys: Keys, pattern: re.Pattern | None):
        self._of: dict[Path, str | None] = {}
        least: dict[str, str] = {}
        for path in _paths(dataset):
            file = split_slice(path)[0]
            if pattern is not None:
                match = pattern.search(file.name)
                found = match and (match[1] if pattern.groups else match[0])
            elif (found := _dicom_patient(file)) is not None:
                least[found] = min(least.get(found, keys.file(path)), keys.file(path))
            self._of[path] = found
        self._of = {path: f"patient-{least[one][:HASH]}" if one in least else one for path, one in self._of.items()}

    def of(self, path: Path) -> str | None:
        return self._of[path]

    @property
    def known(self) -> bool:
        """Whether the patient of any scan is known."""
        return any(one is not None for one in self._of.values())


def _dicom_patient(file: Path) -> str | None:
    if not is_dicom(file):
        return None
    with damage_named(str(file), "DICOM"):
        return str(read_header(file, str(file))[0].get("PatientID") or "") or None


def _paths(dataset: Dataset) -> list[Path]:
    return [*dataset.backgrounds, *(obj.path for obj in dataset.objects)]


def _without_labelled(dataset: Dataset, keys: Keys) -> Dataset:
    """The dataset without backgrounds that are labelled scans too."""
    labelled = {keys.content(obj.path) for obj in dataset.objects}
    free = []
    for path in dataset.backgrounds:
        if keys.content(path) in labelled:
            dataset.left_out.add("background equal to a labelled scan", path.name)
        else:
            free.append(path)
    return replace(dataset, backgrounds=free)


def _named(dataset: Dataset) -> Dataset:
    """The dataset without scans that `batch` would refuse, for their names or classes are columns of its table."""

    def is_text(path: Path) -> bool:
        try:
            path.name.encode()
        except UnicodeEncodeError:
            dataset.left_out.add("file name that is no text in UTF-8", path.name)
            return False
        return True

    def has_class(obj: Labelled) -> bool:
        try:
            return obj.kind is None or bool(check_class(obj.kind))
        except ValueError:
            dataset.left_out.add("class that is no short text in one line", obj.path.name)
            return False

    objects = [obj for obj in dataset.objects if is_text(obj.path) and has_class(obj)]
    return replace(dataset, objects=objects, backgrounds=[path for path in dataset.backgrounds if is_text(path)])


def _drawn(
    request: PairRequest,
    dataset: Dataset,
    rules: Rules,
    keys: Keys,
    patients: Patients,
    tell: Callable[[], object],
) -> tuple[list[tuple[str | None, list[Pair]]], LeftOut]:
    """The pairs of each split, in the order of its names, and all that was left out."""
    if not request.split:
        pairs, left_out = draw_pairs(dataset, request.count, request.seed, rules, by_content=True, tell=tell)
        return [(None, pairs)], left_out
    counts = _counts(request.count, request.split)
    if 0 in counts.values():
        none = next(name for name, count in counts.items() if count == 0)
        raise DatasetError(
            f"the split {none} gets no row of {request.count}; ask for a larger --count, or give it a larger share"
        )
    group_of = _groups(request, dataset, keys, patients)
    split_of = _assigned(request, dataset, group_of)
    parts, merged = [], dataset.left_out
    for name, count in counts.items():
        part = replace(
            dataset,
            name=f"{dataset.name}, split {name}",
            objects=[obj for obj in dataset.objects if split_of[group_of[obj.path]] == name],
            backgrounds=[path for path in dataset.backgrounds if split_of[group_of[path]] == name],
            left_out=LeftOut(),
        )
        pairs, left_out = draw_pairs(part, count, request.seed, rules, by_content=True, tell=tell)
        merged.add_all(left_out)
        parts.append((name, pairs))
    return parts, merged


def _groups(request: PairRequest, dataset: Dataset, keys: Keys, patients: Patients) -> dict[Path, str]:
    """The source that each scan is of, by the least hash of its files: its file, or its patient with all that shares a
    file with that patient's. Raises DatasetError for scans whose patient nobody knows."""
    paths, tokens = _paths(dataset), []
    for path in paths:
        tokens.append({keys.file(path)})
        if request.split_by == "patient":
            patient = patients.of(path)
            if patient is None:
                raise DatasetError(
                    f"nobody knows whose scan {path.name} is, so it belongs to no split by patient; give --patient "
                    "a pattern that every file's name matches, or split by file"
                )
            tokens[-1].add(f"patient {patient}")
    numbers, least = components(tokens), {}
    for path, number in zip(paths, numbers, strict=True):
        least[number] = min(least.get(number, keys.file(path)), keys.file(path))
    return {path: least[number] for path, number in zip(paths, numbers, strict=True)}


def _assigned(request: PairRequest, dataset: Dataset, group_of: dict[Path, str]) -> dict[str, str]:
    """The split of each group: groups in the order of their ranks go where objects and backgrounds are missed most."""
    kinds = [[group_of[obj.path] for obj in dataset.objects], [group_of[path] for path in dataset.backgrounds]]
    members = [Counter(kind) for kind in kinds]
    have = {name: [Fraction(0), Fraction(0)] for name, _ in request.split}
    split_of = {}
    for group in sorted(
        set().union(*members), key=lambda one: hashlib.sha256(f"{request.seed}/split/{one}".encode()).digest()
    ):
        there = [kind for kind in (0, 1) if members[kind][group]]
        chosen = max(request.split, key=lambda one: sum(one[1] - have[one[0]][kind] for kind in there))[0]
        for kind in there:
            have[chosen][kind] += Fraction(members[kind][group], len(kinds[kind]))
        split_of[group] = chosen
    return split_of


def _counts(count: int, split: Iterable[tuple[str, Fraction]]) -> dict[str, int]:
    """How many rows each split gets: its share, rounded so that the sum is the count, by the largest remainders."""
    counts = {name: int(count * part) for name, part in split}
    rest = sorted(split, key=lambda one: -(count * one[1] - counts[one[0]]))
    for name, _ in rest[: count - sum(counts.values())]:
        counts[name] += 1
    return counts


def _row(
    number: str, pair: Pair, mask: Path, prompt: str, split: str | None, patients: Patients, folder: Path
) -> dict[str, object]:
    row = {
        "id": number,
        "background": _relative(pair.background, folder),
        "object": _relative(pair.obj.path, folder),
        "object_mask": _relative(mask, folder),
        "user_box": list(pair.user_box),
        "prompt": prompt,
        "variation": pair.variation.changed() or None,
        "split": split,
        "background_file": pair.background.name,
        "object_file": pair.obj.path.name,
        "class": pair.obj.kind,
        "background_patient": patients.of(pair.background),
        "object_patient": patients.of(pair.obj.path),
    }
    return {name: value for name, value in row.items() if value is not None}


def _relative(path: Path, folder: Path) -> str:
    """The path from a folder on; the whole path where there is no way, as between two drives of Windows."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _check_apart(request: PairRequest, masks: Path, rest: Path) -> None:
    """Raises FolderError where results would lie among the scans, since the next run would read them, or would take the
    place of an input or of a user's file, and where another manifest's results might have the same names."""
    if request.out.suffix != ".jsonl":
        name = request.out.with_suffix(".jsonl").name
        raise FolderError(f"the name of a manifest ends in .jsonl, got {request.out.name}; name it {name}")
    if request.out.exists() and not request.out.is_file():
        raise FolderError(f"{request.out} is no regular file; name a file for the manifest")
    for place in (request.out.parent, masks):
        check_outside(place, [root for root in request.roots if root.is_dir()])
    for root in request.roots:
        for file in (request.out, rest):
            if root.is_file() and file.exists() and root.samefile(file):
                raise FolderError(f"{file} is an input; name another file for the manifest")
    if not _is_list(rest):
        check_untaken([rest], "pair")


def _is_list(path: Path) -> bool:
    """Whether a file is what `pair` writes of what it has left out: names by reason."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return all(isinstance(name, str) for names in found.values() for name in names)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return False
