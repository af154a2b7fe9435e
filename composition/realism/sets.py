"""This module reads the sets of labelled scans that are compared. A folder is read as `pair` reads its objects."""

from __future__ import annotations

from pathlib import Path

from ..datasets import DATASETS, Labelled, LeftOut
from ..datasets.folders import TABLE, read_folder
from ..scans.errors import DatasetError


def read_set(folder: str | Path, left_out: LeftOut, kind: str = "folder") -> list[Labelled]:
    """The labelled scans of a folder, or of the dataset in DATASETS whose name `kind` is.

    What cannot be used is counted in left_out. Raises DatasetError for what is no such folder, and where nothing in it
    can be used.
    """
    folder = Path(folder)
    dataset = read_folder(folder, name="set", prompt="") if kind == "folder" else DATASETS[kind].read(folder)
    left_out.add_all(dataset.left_out)
    if not dataset.objects:
        why = f"; left out: {'; '.join(str(left_out).splitlines())}" if left_out.names else ""
        raise DatasetError(
            f"{folder} holds no labelled scan; expected {TABLE} with file_name and mask_file_name, as batch writes it, "
            f"or images NAME.png with masks NAME_mask.png beside them{why}"
        )
    return dataset.objects
