"""This module reads Br35H, Brain Tumor Detection 2020 (Ahmed Hamada), from its folders `no/`, `yes/` and
`Br35H-Mask-RCNN/{TRAIN,VAL}`. Each dataset has a module of its own, because each labels its tumours in another way.

The tumour-free scans are in `no/`. VGG Image Annotator (VIA) JSON files outline the tumours and lie beside copies of
their scans; one file of all annotations may lie above the folders.
"""

from __future__ import annotations

from pathlib import Path

from .outlines import read_json, via_entries, via_mask
from .reading import Dataset, Labelled, LeftOut, files_of, scan_size

PROMPT = "An MRI scan of a cancerous brain"
OUTLINES = "Br35H-Mask-RCNN"


def read_br35h(root: str | Path) -> Dataset:
    """Read Br35H as published. What cannot be used is counted by reason in `left_out`.

    Annotation files are read in the order of their names, and all of them identify an image by its file name. An image
    takes its first annotation that can be used. A further annotation is counted as "annotated once more" if its regions
    differ, and ignored if they are the same. An image without annotation is counted if an annotation file lies in its
    folder or in the folder above.
    Raises DatasetError if `no/` or the folder of outlines is not there.
    """
    root, left_out = Path(root), LeftOut()
    backgrounds = [path for path in files_of(root / "no", "Br35H") if scan_size(path, left_out) is not None]
    files_of(root / OUTLINES, "Br35H")  # raises DatasetError if it is not there
    annotations: dict[str, list[tuple[Path, list]]] = {}  # by file name: the image's path, and its regions
    folders: dict[Path, None] = {}  # a set that keeps the order
    for file in sorted((root / OUTLINES).rglob("*.json"), key=lambda path: path.relative_to(root).as_posix()):
        covered = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
        folders |= dict.fromkeys(covered)
        for name, regions in via_entries(read_json(file), file.name, left_out):
            annotations.setdefault(name, []).append((_image_of(name, [*covered, root / "yes"]), regions))
    objects = []
    for name in sorted(annotations):
        labelled = _first_usable(name, annotations[name], left_out)
        if labelled is not None:
            objects.append(labelled)
    annotated = {path for found in annotations.values() for path, _ in found}
    for path in [path for folder in folders for path in files_of(folder, "Br35H")]:
        if path.suffix != ".json" and path not in annotated:
            left_out.add("image without annotation", path.name)
    return Dataset("br35h", PROMPT, backgrounds, objects, left_out)


def _image_of(name: str, folders: list[Path]) -> Path:
    """The path of an entry's image in the first of the folders that has it, or else in the first folder."""
    places = [folder / name for folder in folders]
    return next((path for path in places if path.is_file()), places[0])


def _first_usable(name: str, annotations: list[tuple[Path, list]], left_out: LeftOut) -> Labelled | None:
    """An image with the first of its annotations (path, regions) that can be used, or None and a count for each reason.

    Further annotations are counted if their regions differ from those taken.
    """
    failures = LeftOut()
    for path, regions in annotations:
        labelled = _labelled(path, regions, failures)
        if labelled is not None:
            for _, other in annotations:
                if other != regions:
                    left_out.add("annotated once more", name)
            return labelled
    for reason in failures.names:
        left_out.add(reason, name)
    return None


def _labelled(path: Path, regions: list, left_out: LeftOut) -> Labelled | None:
    size = scan_size(path, left_out)
    if size is None:
        return None
    try:
        mask = via_mask(regions, size)
    except ValueError:
        left_out.add("outline cannot be drawn", path.name)
        return None
    if not mask.any():
        left_out.add("mask without lesion", path.name)
        return None
    return Labelled(path, mask)
