"""Benchmark samples are drawn here as the paper describes them (section 5.1), from any dataset that was read. The
module knows no dataset by name, so that a new one is drawn by the same rules.

The name of a benchmark determines its samples: "300 from Br35H and 100 from BUSI, seed 0" is the same benchmark for
everyone who has the published datasets. The SHA-256 of the seed and the file names decides which scans are drawn, and
boxes are computed in integers, shrunk ones too. If the data differ (a part is missing), the benchmark differs too, and
so does its hash.

    FOLDER/manifest.jsonl        one sample per line, as `python -m composition batch` reads it
    FOLDER/hashes.jsonl          its hashes: of the scans' bytes, and of the masks' pixels, as PNG bytes vary with zlib
    FOLDER/left_out.json         what was not used, by dataset and reason
    FOLDER/DATASET/{backgrounds,objects}/NAME           copies of the scans
    FOLDER/DATASET/{object_masks,user_masks}/ID.png
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from sd21.files import atomic, json_lines, sha256, write_json, write_text

from ..scans.errors import DatasetError
from ..scans.images import box_mask, read_scan, write_image
from ..scans.slices import Meaning, split_slice
from ..variation import Variation
from .reading import Dataset, Labelled, LeftOut
from .rules import BENCHMARK, Place, Rules, place_object, unsuitable
from .tissue import tissue_mask

TRIES = 4  # how often a varied object is drawn for a place: one that is too large once may be smaller the next time


@dataclass(frozen=True)
class Pair:
    """A background and a labelled object of one dataset, and where the object goes: what becomes one sample.

    user_box: x, y, width, height in the background's pixels; size: the background's (H, W). variation: of the object.
    """

    id: str
    dataset: Dataset
    background: Path
    obj: Labelled
    user_box: tuple[int, int, int, int]
    size: tuple[int, int]
    variation: Variation = Variation()  # noqa: RUF009 (it is frozen)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark on disk. sha256: its identity, the hash of manifest and hashes together. left_out: by name of
    dataset."""

    manifest: Path
    sha256: str
    left_out: dict[str, LeftOut]


def build_benchmark(
    folder: str | Path,
    parts: Sequence[tuple[Dataset, int]],
    seed: int = 0,
    target_scale: Fraction = Fraction(1),
) -> Benchmark:
    """Draw `count` samples from each (dataset, count) and write them to `folder`.

    target_scale: the user boxes that were drawn are shrunk by it, see `shrunk`. The same scans are drawn at any scale.

    The hashes are written first and the manifest last. So the folder belongs to one benchmark from the first file on,
    and it is whole when the manifest is there. A folder that already holds this benchmark, or part of it, is written
    again with the same content.
    Raises DatasetError if a dataset yields fewer samples, if the scale is out of range, or if the folder holds another
    benchmark, even one of the same names with other scans or masks.
    """
    folder = Path(folder)
    drawn = [draw_pairs(dataset, count, seed) for dataset, count in parts]
    pairs = [replace(pair, user_box=shrunk(pair.user_box, target_scale)) for part, _ in drawn for pair in part]
    rows, hashes = json_lines(map(_row, pairs)), json_lines(map(_hashes, pairs))
    manifest, contents = folder / "manifest.jsonl", folder / "hashes.jsonl"
    for file, text, differs in ((manifest, rows, "samples"), (contents, hashes, "scans or masks")):
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise DatasetError(
                f"{folder} holds another benchmark: its {file.name} lists other {differs}; choose an empty folder"
            )
    left_out = {dataset.name: rest for (dataset, _), (_, rest) in zip(parts, drawn, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(contents, hashes)
    for pair in pairs:
        _write(pair, folder)
    write_json(folder / "left_out.json", {name: rest.names for name, rest in left_out.items()})
    write_text(manifest, rows)
    return Benchmark(manifest, hashlib.sha256((rows + hashes).encode()).hexdigest(), left_out)


def draw_pairs(
    dataset: Dataset,
    count: int,
    seed: int,
    rules: Rules = BENCHMARK,
    *,
    by_content: bool = False,
    tell: Callable[[], object] = lambda: None,
) -> tuple[list[Pair], LeftOut]:
    """`count` pairs, and all that was left out on the way, the dataset's own report included.

    Backgrounds and objects are ranked by the SHA-256 of seed, role and a key: dataset and file name, or, `by_content`,
    the content of the file. Each background in turn gets the first object of a queue that has room in its tissue. Then
    the object goes to the end of the queue, or leaves it where `per_object` rows have it; and when all backgrounds had
    their turn, the next round begins, `per_background` in all. A background gets an object again only when it has had
    all others that it has room for, and only if another place or variation is drawn. Of equal files only the first is
    used. A smaller count gives the beginning of a larger one. `tell` is called for each pair.
    Raises DatasetError if there are fewer than `count`.
    """
    keys = Keys(dataset, by_content)
    dataset = suitable(dataset, rules, keys)
    left_out, objects, backgrounds = dataset.left_out, dataset.objects, dataset.backgrounds
    objects.sort(key=lambda obj: keys.rank(seed, "object", obj.path))
    backgrounds.sort(key=lambda path: keys.rank(seed, "background", path))
    pairs: list[Pair] = []
    used: Counter[Path] = Counter()
    taken: defaultdict[tuple[Path, Path], list[Place]] = defaultdict(list)
    tissues: dict[Path, _Tissue | None] = {}
    meanings: dict[Path, Meaning] = {}
    lacking = " and ".join(name for name, some in (("object", objects), ("background", backgrounds)) if not some)
    full = 0  # backgrounds that have had each object at each place, and in each variation, that the rules draw
    for turn in range(rules.per_background):
        if not backgrounds:
            break
        for background in list(backgrounds):
            if len(pairs) == count or not objects:
                break
            if background not in tissues:
                tissues[background] = _Tissue.of(background)
            if (there := tissues[background]) is None:
                left_out.add("background without tissue", background.name)
                backgrounds.remove(background)
                continue
            tissue = there.mask()
            for obj in sorted(objects, key=lambda obj: len(taken[background, obj.path])):
                earlier = taken[background, obj.path]
                if obj.path not in meanings:
                    meanings[obj.path] = read_scan(obj.path).meaning
                words = seed, keys.of(background), keys.of(obj.path), len(earlier)
                place = _place_of(tissue, obj.mask, there.meaning, meanings[obj.path], rules, words)
                if place is not None and place not in earlier:
                    number = f"{dataset.name}-{len(pairs):03d}"
                    pairs.append(Pair(number, dataset, background, obj, place.box, tissue.shape, place.variation))
                    tell()
                    used[obj.path] += 1
                    earlier.append(place)
                    objects.remove(obj)
                    objects += [obj] if used[obj.path] < rules.per_object else []
                    break
            else:
                backgrounds.remove(background)  # the queue only loses objects, so it will have room for none later
                full += turn > 0
                if turn == 0:
                    left_out.add("background without room in its tissue for any object left", background.name)
    if len(pairs) < count:
        why = f"; there is no {lacking}" if lacking else ""
        if full:
            why += (
                f"; backgrounds without a further place or variation for an object: {full}; take --place anywhere, "
                "--size-jitter, --flip, --rotate, --deform, --contrast, or a smaller --count"
            )
        raise DatasetError(
            f"{dataset.name}: {len(pairs)} samples can be drawn, {count} were asked for; a background has "
            f"{rules.per_background} at most, an object {rules.per_object}{why}"
            + (f"; left out:\n{left_out}" if left_out.names else "")
        )
    return pairs, left_out


def _place_of(
    tissue: np.ndarray, mask: np.ndarray, there: Meaning, own: Meaning, rules: Rules, words: tuple
) -> Place | None:
    """`place_object`, drawn again where the variation that it drew first has no room. None after TRIES of them."""
    for attempt in range(TRIES if rules.vary else 1):
        place = place_object(tissue, mask, there, own, rules, (*words, attempt) if attempt else words)
        if place is not None:
            return place
    return None


def suitable(dataset: Dataset, rules: Rules, keys: Keys) -> Dataset:
    """The dataset without equal files and without objects that the rules leave out, which its report counts."""
    left_out = LeftOut()
    left_out.add_all(dataset.left_out)
    objects = []
    for obj in keys.distinct(dataset.objects, lambda obj: obj.path, left_out):
        reason = unsuitable(obj.mask, rules)
        if reason is None:
            objects.append(obj)
        else:
            left_out.add(reason, obj.path.name)
    backgrounds = keys.distinct(dataset.backgrounds, lambda path: path, left_out)
    return replace(dataset, objects=objects, backgrounds=backgrounds, left_out=left_out)


@dataclass(frozen=True, eq=False)
class _Tissue:
    """A background's tissue, a bit a pixel, and what its pixels stand for."""

    bits: np.ndarray
    size: tuple[int, int]
    meaning: Meaning

    @classmethod
    def of(cls, background: Path) -> _Tissue | None:
        scan = read_scan(background)
        tissue = tissue_mask(scan)
        return cls(np.packbits(tissue), tissue.shape, scan.meaning) if tissue.any() else None

    def mask(self) -> np.ndarray:
        height, width = self.size
        return np.unpackbits(self.bits, count=height * width).reshape(self.size).astype(bool)


class Keys:
    """What tells scans from each other where pairs are drawn: their content, or, for the benchmark, the names of
    dataset and file. Files are hashed once."""

    def __init__(self, dataset: Dataset, by_content: bool):
        self.name = None if by_content else dataset.name
        self._hashes: dict[Path, str] = {}

    def content(self, path: Path) -> str:
        """The SHA-256 of a scan's file, and of a stack the number of the slice."""
        number = split_slice(path)[1]
        return self.file(path) + ("" if number is None else f"#{number}")

    def file(self, path: Path) -> str:
        """The SHA-256 of a scan's file."""
        file = split_slice(path)[0]
        if file not in self._hashes:
            self._hashes[file] = sha256(file)
        return self._hashes[file]

    def of(self, path: Path) -> str:
        return self.content(path) if self.name is None else path.name

    def rank(self, seed: int, role: str, path: Path) -> bytes:
        words = (str(seed), *([] if self.name is None else [self.name]), role, self.of(path))
        return hashlib.sha256("/".join(words).encode()).digest()

    def distinct(self, items: list, path_of: Callable[[object], Path], left_out: LeftOut) -> list:
        """The items whose files differ. Of items with equal files, the first stays."""
        first = {}
        for item in items:
            if first.setdefault(self.content(path_of(item)), item) is not item:
                left_out.add("file equal to an earlier one", path_of(item).name)
        return list(first.values())


def shrunk(box: tuple[int, int, int, int], scale: Fraction) -> tuple[int, int, int, int]:
    """The box x, y, width, height with its sides times scale, in whole pixels, rounded down and at least 1.

    Its centre is the box's; where that falls between two pixels, it takes the left and the upper one. Raises
    DatasetError for a scale that is not above 0, or above 1: a larger box could leave the tissue.
    """
    if not 0 < scale <= 1:
        raise DatasetError(f"the scale of the targets is a number above 0 and at most 1, got {scale}")
    x, y, width, height = box
    w, h = (max(1, side * scale.numerator // scale.denominator) for side in (width, height))
    return x + (width - w) // 2, y + (height - h) // 2, w, h


def _row(pair: Pair) -> dict[str, str]:
    """The pair's line of the manifest, with file names relative to the benchmark's folder."""
    name = pair.dataset.name
    return {
        "id": pair.id,
        "background": f"{name}/backgrounds/{pair.background.name}",
        "object": f"{name}/objects/{pair.obj.path.name}",
        "object_mask": f"{name}/object_masks/{pair.id}.png",
        "user_mask": f"{name}/user_masks/{pair.id}.png",
        "prompt": pair.dataset.prompt,
    }


def _hashes(pair: Pair) -> dict[str, str]:
    return {
        "id": pair.id,
        "background": sha256(pair.background),
        "object": sha256(pair.obj.path),
        "object_mask": mask_sha256(pair.obj.mask),
        "user_mask": mask_sha256(box_mask(pair.user_box, pair.size)),
    }


def mask_sha256(mask: np.ndarray) -> str:
    """The hash of a mask's pixels: its height and width as text, "HxW ", then its bits, row by row, packed in bytes."""
    return hashlib.sha256(f"{mask.shape[0]}x{mask.shape[1]} ".encode() + np.packbits(mask).tobytes()).hexdigest()


def _write(pair: Pair, folder: Path) -> None:
    targets = {name: folder / file for name, file in _row(pair).items()}
    for role in ("background", "object", "object_mask", "user_mask"):
        targets[role].parent.mkdir(parents=True, exist_ok=True)
    for role, source in (("background", pair.background), ("object", pair.obj.path)):
        with atomic(targets[role]) as temporary:
            shutil.copyfile(source, temporary)
    write_image(targets["object_mask"], pair.obj.mask)
    write_image(targets["user_mask"], box_mask(pair.user_box, pair.size))
