"""This module holds the request of one composition: the files that a user names on the command line or in a manifest.

A request knows files, and checks them before any model is loaded. The Sample that it reads knows arrays alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sd21.files import irregular, sha256
from sd21.folders import FolderError

from ..placement import Sample, check_masks, fit_object, in_common_terms, true_scale
from ..scans.errors import ScanError
from ..scans.images import box_mask, read_mask, read_scan, split_slice
from ..scans.places import check_same_place
from ..variation import Variation, vary

FILES = ("background", "object", "object_mask", "user_mask")


@dataclass(frozen=True)
class Request:
    """One composition's files, by the names in FILES, and its prompt. The target is files["user_mask"] or user_box."""

    files: dict[str, Path]
    user_box: tuple[int, int, int, int] | None  # x, y, width, height in the background's pixels
    prompt: str
    window: tuple[float, float] | None = None  # centre and width, of both scans, in their own values
    label: int | None = None  # the value of the tumour in the object's mask
    variation: Variation = Variation()  # noqa: RUF009 (it is frozen); of the object's scan and mask, after they are read

    def check_files(self) -> None:
        """What can be checked without opening an image. Raises ScanError."""
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:  # half a character, which JSON can spell and no tokenizer reads
            raise ScanError(f"the prompt is no text: {error}; mend its encoding") from None
        if ("user_mask" in self.files) == (self.user_box is not None):
            raise ScanError("the target region is given either as a user mask or as a user box, and not as both")
        for name, path in self.files.items():
            if what := irregular(split_slice(path)[0]):
                folder = "; name one file of it, or use the command volume" if os.path.isdir(path) else ""
                raise ScanError(f"{name}: {what}: {path}{folder}")

    def read(self, fit: str = "inside", size: str = "region") -> Sample:
        """Read and check everything that can be checked without a model, the placement too. fit, size: as Settings has
        them.

        Raises ScanError (a file), PlacementError (files that do not fit each other) or ImportError (a missing extra).
        """
        self.check_files()
        background, obj = (read_scan(self.files[name], self.window) for name in ("background", "object"))
        object_mask = read_mask(self.files["object_mask"], self.label)
        box = self.user_box
        user_mask = read_mask(self.files["user_mask"]) if box is None else box_mask(box, background.size)
        check_masks(background, obj, object_mask, user_mask)
        for mask, scan in (("object_mask", "object"), ("user_mask", "background")):
            if mask in self.files:
                check_same_place(mask, self.files[mask], self.files[scan])
        if self.variation.changed():
            obj, object_mask = vary(obj, object_mask, self.variation)
        sample = Sample(background, obj, object_mask, user_mask, self.prompt)
        common = in_common_terms(sample)
        true = true_scale(common.background, common.obj, size)
        fit_object(common.object_mask, user_mask, fit, true)  # for its errors
        return sample

    def describe(self) -> dict:
        """The inputs as a record holds them: names and hashes of the files, and all else that was asked for."""
        files = {name: None for name in FILES}
        for name, path in self.files.items():
            files[name] = {"file": path.name, "sha256": sha256(split_slice(path)[0])}
        if changed := self.variation.changed():  # told where there is one, so that older records stay as they are
            files["object"]["variation"] = changed
        return asked_of(self, files)


def asked_of(request, inputs: dict[str, dict | None]) -> dict:
    """What was asked for as a record holds it. request: has a prompt, a user_box, a window and a label. inputs: the
    names and hashes of its files."""
    return {
        "prompt": request.prompt,
        "user_box": request.user_box and list(request.user_box),
        "grey_window": request.window and list(request.window),
        "label_value": request.label,
        "inputs": inputs,
    }


def check_apart(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Raises FolderError if an output, where a file lies already, is one of the inputs, under whatever name."""
    taken = {_identity(path): path for path in outputs if os.path.exists(path)}
    for path in inputs:
        file = split_slice(path)[0]
        if os.path.exists(file) and (output := taken.get(_identity(file))) is not None:
            raise FolderError(
                f"the result {output} would take the place of the input {path}; name another folder for the results"
            )


def check_outside(results: Path, folders: Iterable[Path]) -> None:
    """Raises FolderError where results would lie in a folder of scans or below it: the next run would read them, as
    folders are read with all that lies below them."""
    for folder in folders:
        if results.resolve().is_relative_to(folder.resolve()):
            raise FolderError(f"the results in {results} would lie among the scans of {folder}; name another folder")


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
