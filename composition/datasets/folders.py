"""This module reads a user's own folders into the form that all datasets have: scans with tumours, their masks, and
tumour-free scans.

Folders are read with all that lies below them; files and folders whose names begin with a dot are not. The masks of
tumours are found in one of these ways:

    beside their scans      NAME_mask.png, NAME_mask_1.png, ...: the mask of NAME.png is their union
    in a parallel folder    NAME.png or NAME_mask*.png, below the same subfolder as the scan or below none
    in a JSON file          of VGG Image Annotator or COCO, by the scan's name within the folder, or by its file name
    in a data set           that `batch` wrote: metadata.jsonl names scans and masks; one that names no masks, as other
                            programs write it, does not count

Nothing in a data set that `batch` wrote, or writes, is taken for a tumour-free scan.

DICOM files and NIfTI volumes are scans too. Of a volume with a tumour, the slice with the most tumour is taken, the
first of equals. Of a tumour-free one, slices are taken that show at least TISSUE of the greatest area of tissue in a
slice: SLICES of them at most, evenly spread. Neighbours are nearly one picture, so more would be little more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sd21.folders import left_locked

from ..scans.errors import DatasetError, ScanError
from ..scans.images import Scan, has_label
from ..scans.nifti import is_nifti, open_nifti
from ..scans.places import check_same_place
from .outlines import coco_images, coco_mask, is_coco, read_json, via_class, via_entries, via_mask
from .reading import MASK, Dataset, Labelled, LeftOut, mask_union, masks_beside, scan_size, stem_of
from .tissue import tissue_mask

TABLE = "metadata.jsonl"
SLICES = 5
TISSUE = 1 / 2


def read_folder(
    objects: Path | None,
    masks: Path | None = None,
    backgrounds: Path | None = None,
    *,
    name: str,
    prompt: str,
    label: int | None = None,
) -> Dataset:
    """Read folders of labelled and of tumour-free scans; either may be left out.

    masks: a parallel folder, or a VIA or COCO file; None where masks lie beside the objects, or `batch` wrote them.
    label: the value of the tumour in masks of several. What cannot be used is counted by reason in `left_out`. The
    class of a tumour is the annotation's, or else the subfolder that its scan lies in.
    Raises DatasetError for a folder or file that is not there, and ImportError for compressed RLE without pycocotools.
    """
    left_out, labelled, free = LeftOut(), [], []
    if objects is not None:
        files = files_below(objects)
        if masks is None and (entries := list(_entries(objects, left_out))):
            found = _from_table(objects, entries, left_out)
        elif masks is None:
            found = _by_files(masks_beside(_without(files, ".json", TABLE), left_out), left_out, label)
        elif masks.is_dir():
            found = _by_files(_masks_parallel(objects, files, masks, left_out), left_out, label)
        elif masks.is_file():
            found = _by_outlines(objects, [path for path in files if path != masks], masks, left_out)
        else:
            raise DatasetError(f"{masks} is not there; expected a folder of masks, or a VIA or COCO file")
        labelled = [one if one.kind else replace(one, kind=_folder_of(one.path, objects)) for one in found]
    if backgrounds is not None:
        free = list(_tumour_free(_no_composites(backgrounds, left_out), left_out))
    return Dataset(name, prompt, free, labelled, left_out)


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below it, without hidden ones, in the order of their paths. Raises DatasetError if it
    is no folder."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder; expected a folder of scans")
    found = ((path.relative_to(folder), path) for path in folder.rglob("*"))
    return [
        path
        for inner, path in sorted(found, key=lambda pair: pair[0].as_posix())
        if path.is_file() and not any(part.startswith(".") for part in inner.parts)
    ]


def is_labelled(folder: Path) -> bool:
    """Whether the folder has a table of scans and their masks, as `batch` writes it."""
    return any(True for _ in _entries(folder, LeftOut()))


def _without(files: list[Path], *endings: str) -> list[Path]:
    return [path for path in files if not path.name.lower().endswith(endings)]


def _folder_of(path: Path, root: Path) -> str | None:
    """The subfolder that a scan lies in; None in the folder itself."""
    inner = path.parent.relative_to(root).as_posix() if path.parent.is_relative_to(root) else "."
    return None if inner == "." else inner


def _masks_parallel(objects: Path, files: list[Path], masks: Path, left_out: LeftOut) -> list[tuple]:
    """Each scan with its masks in the parallel folder; None where it has none. Masks of no scan are counted."""
    within = masks.resolve()
    scans = [path for path in files if not path.resolve().is_relative_to(within)]  # the masks may lie below the objects
    found: dict[tuple[str, str], list[Path]] = {}
    for path in files_below(masks):
        match = MASK.fullmatch(stem_of(path))
        folder = path.parent.relative_to(masks).as_posix()
        found.setdefault((folder, match[1] if match else stem_of(path)), []).append(path)
    pairs, used = [], set()
    for path in scans:
        folder = path.parent.relative_to(objects).as_posix()
        key = next((key for key in ((folder, stem_of(path)), (".", stem_of(path))) if key in found), None)
        if key is not None and key in used:
            left_out.add("image named like an earlier one but for its suffix or folder", path.name)
            continue
        used.add(key)
        pairs.append((path, None if key is None else found[key]))
    for key in sorted(found.keys() - used):
        left_out.add("mask without image", found[key][0].name)
    return pairs


def _by_files(pairs: list[tuple[Path, list[Path] | None]], left_out: LeftOut, label: int | None) -> Iterator[Labelled]:
    """The scans whose mask files can be used."""
    for path, masks in pairs:
        if masks is None:
            left_out.add("image without mask", path.name)
            continue
        try:
            path, masks = _largest_slices(path, masks, label)
        except (ScanError, ImportError):
            left_out.add("volume or its mask cannot be read", path.name)
            continue
        yield from _labelled(path, lambda size, masks=masks: mask_union(masks, size, left_out, label), left_out, masks)


def _labelled(
    path: Path,
    draw: Callable[[tuple[int, int]], np.ndarray | None],
    left_out: LeftOut,
    masks: list[Path] = (),
    kind: str | None = None,
    sources: dict[str, str] | None = None,
) -> Iterator[Labelled]:
    """A scan with the mask that `draw` makes of its size, if both can be used. masks: the files of the mask."""
    size = scan_size(path, left_out)
    mask = None if size is None else draw(size)
    if mask is None:
        return
    if not mask.any():
        left_out.add("mask without lesion", path.name)
        return
    try:
        for one in masks:
            check_same_place("the mask", one, path)
    except (ScanError, ImportError):
        left_out.add("mask of another place than its image", path.name)
        return
    yield Labelled(path, mask, kind, sources or {})


def _largest_slices(path: Path, masks: list[Path], label: int | None) -> tuple[Path, list[Path]]:
    """Of volumes, the slice of scan and masks with the most tumour; other files as they are. Raises what reading the
    masks raises."""
    if not is_nifti(path) or not all(is_nifti(mask) for mask in masks):
        return path, masks
    volumes = [open_nifti(mask, str(mask)) for mask in masks]
    if len({len(volume) for volume in [*volumes, open_nifti(path, str(path))]}) > 1:
        raise ScanError(f"{path} has another number of slices than its mask")
    if len(volumes[0]) == 1:
        return path, masks
    areas = np.zeros(len(volumes[0]), dtype=np.int64)
    for volume in volumes:
        for number in range(len(volume)):
            values = volume.labels(number)
            areas[number] += (values != 0).sum() if label is None else has_label(values, label).sum()
    largest = int(areas.argmax())
    return _slice_of(path, largest), [_slice_of(mask, largest) for mask in masks]


def _slice_of(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}#{number}")


def _by_outlines(objects: Path, files: list[Path], outlines: Path, left_out: LeftOut) -> Iterator[Labelled]:
    """The scans that a VIA or COCO file outlines. Of several entries for one, the first that can be used counts."""
    content = read_json(outlines)
    entries: list[tuple[str, str | None, Callable]] = []
    if is_coco(content):
        for image in coco_images(content, outlines.name, left_out):
            entries.append((image.name, image.kind, lambda size, image=image: coco_mask(image.shapes, size)))
    else:
        for name, regions in via_entries(content, outlines.name, left_out):
            entries.append((name, via_class(regions), lambda size, regions=regions: via_mask(regions, size)))
    whole = {path.relative_to(objects).as_posix(): path for path in files}
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(path.name, []).append(path)
    done: dict[Path, bool] = {}  # whether an entry of it was used
    for name, kind, draw in entries:
        candidates = [whole[name]] if name in whole else named.get(name.rsplit("/", 1)[-1], [])
        if len(candidates) != 1:
            left_out.add("image is missing" if not candidates else "several images of the annotated name", name)
            continue
        if done.get(path := candidates[0]):
            left_out.add("annotated once more", path.name)
            continue
        found = list(_labelled(path, _drawn(draw, path, left_out), left_out, kind=kind))
        done[path] = bool(found)
        yield from found
    for path in _without(files, ".json", TABLE):
        if path not in done:
            left_out.add("image without annotation", path.name)


def _drawn(draw: Callable, path: Path, left_out: LeftOut) -> Callable[[tuple[int, int]], np.ndarray | None]:
    def drawn(size: tuple[int, int]) -> np.ndarray | None:
        try:
            return draw(size)
        except ValueError:
            left_out.add("outline cannot be drawn", path.name)
            return None

    return drawn


def _from_table(folder: Path, entries: list[dict], left_out: LeftOut) -> Iterator[Labelled]:
    """The composites and masks of a data set that `batch` wrote."""
    for entry in entries:
        scan, mask = folder / entry["file_name"], folder / entry["mask_file_name"]
        kind = entry["class"] if isinstance(entry.get("class"), str) else None
        sources = {role: digest for role in ("background", "object") if (digest := _source(entry, role)) is not None}
        yield from _labelled(
            scan, lambda size, mask=mask: mask_union([mask], size, left_out), left_out, kind=kind, sources=sources
        )


def _entries(folder: Path, left_out: LeftOut) -> Iterator[dict]:
    """The lines of a folder's table that name a scan and its mask; none where there is no table."""
    if not (folder / TABLE).is_file():
        return
    for line in (folder / TABLE).read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            named = all(isinstance(entry[name], str) for name in ("file_name", "mask_file_name"))
        except (ValueError, KeyError, TypeError, RecursionError):
            named = False
        if named:
            yield entry
        else:
            left_out.add("line without file_name and mask_file_name", TABLE)


def _source(entry: dict, role: str) -> str | None:
    """The SHA-256 of a scan that a line of `batch` names; None in tables of other makers."""
    found = entry
    for name in ("inputs", role, "sha256"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _no_composites(root: Path, left_out: LeftOut) -> list[Path]:
    """The files in a folder that lie in no data set that `batch` wrote, or that it was writing when it was killed."""
    written: dict[Path, bool] = {}

    def is_written(folder: Path) -> bool:
        if folder not in written:
            inside = folder != root and is_written(folder.parent)
            written[folder] = inside or left_locked(folder) or is_labelled(folder)
        return written[folder]

    kept = []
    for path in files_below(root):
        if is_written(path.parent):
            left_out.add("part of a data set that batch wrote", path.name)
        else:
            kept.append(path)
    return kept


def _tumour_free(files: list[Path], left_out: LeftOut) -> Iterator[Path]:
    """The scans that can be backgrounds, and the chosen slices of volumes. Masks beside them have to be empty."""
    for path, masks in masks_beside(_without(files, ".json", TABLE), left_out):
        if is_nifti(path):
            yield from _tissue_slices(path, left_out)
            continue
        size = scan_size(path, left_out)
        mask = None if size is None else mask_union(masks or [], size, left_out)
        if mask is not None and mask.any():
            left_out.add("tumour-free scan with a lesion in its mask", path.name)
        elif mask is not None:
            yield path


def _tissue_slices(path: Path, left_out: LeftOut) -> list[Path]:
    try:
        volume = open_nifti(path, str(path))
        if len(volume) == 1:
            return [path] if scan_size(path, left_out) is not None else []
        levels, meaning, areas = volume.levels(), volume.meaning, []
        if levels is None or volume.plane(0).dtype.names:
            raise ScanError(f"{path} is blank, or in colour")
        for number in range(len(volume)):
            areas.append(int(tissue_mask(Scan(volume.plane(number), str(path), levels, meaning)).sum()))
    except (ScanError, ImportError):
        left_out.add("volume cannot be read", path.name)
        return []
    good = [number for number, area in enumerate(areas) if area > 0 and area >= TISSUE * max(areas)]
    if len(good) > SLICES:
        good = [good[(2 * part + 1) * len(good) // (2 * SLICES)] for part in range(SLICES)]
    return [_slice_of(path, number) for number in good]
