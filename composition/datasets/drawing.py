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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from sd21.files import atomic, json_lines, sha256, write_json, write_text

from ..placement import bounding_box
from ..scans.errors import DatasetError
from ..scans.images import box_mask, read_scan, write_image
from .reading import Dataset, Labelled, LeftOut
from .tissue import tissue_mask

# A box shorter than 1/16 of its scan is shorter than 4 cells of a 64 x 64 latent; one longer than 2/3 of it carries
# more of its own scan than is left of the background.
SMALLEST, LARGEST = (1, 16), (2, 3)


@dataclass(frozen=True)
class Pair:
    """A background and a labelled object of one dataset, and where the object goes: what becomes one sample.

    user_box: x, y, width, height in the background's pixels; size: the background's (H, W).
    """

    id: str
    dataset: Dataset
    background: Path
    obj: Labelled
    user_box: tuple[int, int, int, int]
    size: tuple[int, int]


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


def draw_pairs(dataset: Dataset, count: int, seed: int) -> tuple[list[Pair], LeftOut]:
    """`count` pairs, and all that was left out on the way, the dataset's own report included.

    Backgrounds and objects are ranked by the SHA-256 of seed, dataset, role and file name. Each background in turn gets
    the first object not yet taken that has room in its tissue. No scan is used twice, and of equal files only the first
    is used.
    Raises DatasetError if there are fewer than `count`.
    """
    left_out = LeftOut({reason: list(names) for reason, names in dataset.left_out.names.items()})
    objects = []
    for obj in _distinct(dataset.objects, lambda obj: obj.path, left_out):
        reason = unsuitable(obj.mask)
        if reason is None:
            objects.append(obj)
        else:
            left_out.add(reason, obj.path.name)
    objects.sort(key=lambda obj: _rank(seed, dataset, "object", obj.path))
    backgrounds = _distinct(dataset.backgrounds, lambda path: path, left_out)
    backgrounds.sort(key=lambda path: _rank(seed, dataset, "background", path))
    pairs: list[Pair] = []
    for background in backgrounds:
        if len(pairs) == count or not objects:
            break
        tissue = tissue_mask(read_scan(background))
        if not tissue.any():
            left_out.add("background without tissue", background.name)
            continue
        for obj in objects:
            box = user_box(tissue, obj.mask)
            if box is not None:
                pairs.append(Pair(f"{dataset.name}-{len(pairs):03d}", dataset, background, obj, box, tissue.shape))
                objects.remove(obj)
                break
        else:
            left_out.add("background without room in its tissue for any object left", background.name)
    if len(pairs) < count:
        raise DatasetError(
            f"{dataset.name}: {len(pairs)} samples can be drawn, {count} were asked for; left out:\n{left_out}"
        )
    return pairs, left_out


def unsuitable(mask: np.ndarray) -> str | None:
    """The reason why an object cannot be in a benchmark, or None. mask: the object's, bool (H, W).

    There are three reasons: the object touches the border of its scan, so that a part may be cut off; its bounding box
    is shorter than 1/16 of the scan along either axis; or the box is longer than 2/3 of it.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = bounding_box(mask)
    if x0 == 0 or y0 == 0 or x1 == width or y1 == height:
        return "object touches the border of its scan"
    sides = ((x1 - x0, width), (y1 - y0, height))
    if any(side * SMALLEST[1] < SMALLEST[0] * length for side, length in sides):
        return "object is too small"
    if any(side * LARGEST[1] > LARGEST[0] * length for side, length in sides):
        return "object covers most of its scan"
    return None


def user_box(tissue: np.ndarray, object_mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The user's box x, y, width, height on a background, or None if its tissue has no room for it.

    Size: the object's bounding box is scaled by the factor that fits its scan into the background, so the tumour keeps
    its share. Place: the whole box lies in tissue, as near as possible to where the object lay in its own scan,
    relative to the size of the scans. The distance is squared, in pixels; of equal ones the topmost wins, then the
    leftmost.
    """
    height, width = tissue.shape
    object_height, object_width = object_mask.shape
    x0, y0, x1, y1 = bounding_box(object_mask)
    across = width * object_height <= height * object_width  # whether the widths decide how the scan would fit
    scale, unit = (width, object_width) if across else (height, object_height)
    w, h = max(1, (x1 - x0) * scale // unit), max(1, (y1 - y0) * scale // unit)

    sums = np.zeros((height + 1, width + 1), dtype=np.int64)
    sums[1:, 1:] = tissue.cumsum(axis=0).cumsum(axis=1)
    covered = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    rows, columns = np.nonzero(covered == w * h)
    if len(rows) == 0:
        return None
    x = ((x0 + x1) * width - w * object_width) // (2 * object_width)
    y = ((y0 + y1) * height - h * object_height) // (2 * object_height)
    nearest = ((columns - x) ** 2 + (rows - y) ** 2).argmin()
    return int(columns[nearest]), int(rows[nearest]), w, h


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


def _rank(seed: int, dataset: Dataset, role: str, path: Path) -> bytes:
    return hashlib.sha256(f"{seed}/{dataset.name}/{role}/{path.name}".encode()).digest()


def _distinct(items: list, path_of, left_out: LeftOut) -> list:
    """The items whose files differ. Of items with equal files, the first stays."""
    first = {}
    for item in items:
        if first.setdefault(sha256(path_of(item)), item) is not item:
            left_out.add("file equal to an earlier one", path_of(item).name)
    return list(first.values())


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
