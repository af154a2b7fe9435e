"""This module writes a batch in the raw format of nnU-Net v2 (F. Isensee et al., Nature Methods 2021):

    imagesTr/ID_0000.png     the composites for training; imagesTs/ those of the split "test"
    labelsTr/ID.png          their masks, 0 and the numbers of the classes; labelsTs/ likewise
    dataset.json             channels, classes, the number of training cases, the file ending
    splits_final.json        where rows have the split "val": which cases are for training and which for validation

The rules are those of documentation/dataset_format.md in the repository MIC-DKFZ/nnUNet, version 2, and of
documentation/manual_data_splits.md: nnU-Net reads splits_final.json from its folder of preprocessed data, and else
draws five folds of all cases in imagesTr. All files of a data set have one ending: .png for images, and .nii.gz with
the stored values for DICOM and NIfTI.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from sd21.files import write_json

from ..scans.converting import channels_of
from ..scans.errors import RowError
from ..scans.images import read_mask, write_image
from ..scans.writing import suffix_like

RESERVED = ("background", "ignore")  # names of classes that mean something to nnU-Net
MOST_CLASSES = 255  # beside the background, in 8 bits
PNG, NIFTI = ".png", ".nii.gz"
VALIDATION = ("val", "validation")


def check(backgrounds: Iterable[Path], classes: set[str]) -> None:
    """Raises RowError for backgrounds of which some are images and some DICOM or NIfTI, and for reserved names."""
    kinds = {}
    for path in backgrounds:
        kinds.setdefault(NIFTI if suffix_like(path) else PNG, path)
    if len(kinds) > 1:
        raise RowError(
            f"nnU-Net wants one kind of file, and {kinds[PNG].name} is an image and {kinds[NIFTI].name} is not; make a "
            "batch of each"
        )
    if len(classes) > MOST_CLASSES:
        raise RowError(f"the rows have {len(classes)} classes, expected {MOST_CLASSES} at most: labels are in 8 bits")
    if wrong := sorted(classes.intersection(RESERVED)):
        raise RowError(f"the class {wrong[0]!r} means something else to nnU-Net; give it another name")


def write(
    table: Iterable[dict], out: Path, place: Path, classes: dict[str, int], link: Callable[[Path, Path], None]
) -> bool:
    """Write the data set into the folder `place`. Returns whether there is a splits_final.json.

    table: the records; it is read several times. out: the batch's folder. classes: name -> number, from 1. link: puts a
    file under a further name.
    """
    ending = NIFTI if any(record["stored"] for record in table) else PNG
    colour = any(_is_colour(out, record) for record in table)
    parts, modalities = Counter(), set()
    for record in table:
        part, name, value = "Ts" if record.get("split") == "test" else "Tr", record["id"], classes[record["class"]]
        images, labels = place / f"images{part}", place / f"labels{part}"
        if ending == PNG:
            _write_png(out / record["file_name"], images / f"{name}_0000{PNG}", colour, link)
            write_image(labels / f"{name}{PNG}", _label(out, record, value))
        else:
            _write_nifti(out, record, images / name, labels / f"{name}{NIFTI}", colour, value, link)
        parts[part] += 1
        modalities.add(record["scan"]["modality"])
    (place / "imagesTr").mkdir(parents=True, exist_ok=True)
    (place / "labelsTr").mkdir(exist_ok=True)
    grey = modalities.pop() if len(modalities) == 1 else None  # nnU-Net normalises by the name "CT" in another way
    told = {
        "channel_names": dict(zip("012", "RGB", strict=True)) if colour else {"0": grey or "grey"},
        "labels": {"background": 0, **classes},
        "numTraining": parts["Tr"],
        "file_ending": ending,
        "name": place.name,
        "description": "SYNTHETIC: tumours composed into scans",
    }
    write_json(place / "dataset.json", told)
    return _write_splits(table, place / "splits_final.json")


def _write_splits(table: Iterable[dict], path: Path) -> bool:
    """Write the one fold of nnU-Net's that the rows ask for, unless all are for training or all for validation."""
    fold: dict[str, list[str]] = {"train": [], "val": []}
    for record in table:
        if record.get("split") != "test":
            fold["val" if record.get("split") in VALIDATION else "train"].append(record["id"])
    if not all(fold.values()):
        return False
    write_json(path, [fold])
    return True


def _is_colour(out: Path, record: dict) -> bool:
    with Image.open(out / record["file_name"]) as image:  # which has as many channels as what is stored
        return image.mode == "RGB"


def _write_png(source: Path, target: Path, colour: bool, link: Callable) -> None:
    """A composite as one PNG: in colour where any of the data set is."""
    with Image.open(source) as image:
        if not colour or image.mode == "RGB":
            return link(source, target)
        pixels = np.asarray(image)
    if pixels.dtype != np.uint8:  # no PNG of ours holds colour in 16 bits
        pixels = np.rint(pixels / 257).astype(np.uint8)
    write_image(target, np.repeat(pixels[..., None], 3, axis=2))


def _write_nifti(out: Path, record: dict, image: Path, label: Path, colour: bool, value: int, link: Callable) -> None:
    """A composite as one volume of one slice for each channel, with the values that are stored, and its label."""
    stored = [out / name for name in record["stored"]]
    if stored[0].name.endswith(NIFTI) and not colour and value == 1:
        link(stored[0], image.with_name(f"{image.name}_0000{NIFTI}"))
        return link(stored[1], label)
    planes, save = channels_of(stored[0], 3 if colour else 1)
    for number, plane in enumerate(planes):
        save(image.with_name(f"{image.name}_{number:04d}{NIFTI}"), plane)
    save(label, _label(out, record, value), label=True)


def _label(out: Path, record: dict, value: int) -> np.ndarray:
    """The mask (H, W), uint8: 0 and the number of its class."""
    return read_mask(out / record["mask_file_name"]).astype(np.uint8) * np.uint8(value)
