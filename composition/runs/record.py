"""This module makes the record of a composition, which tells what made it and is enough to make it again.

`run`, `batch` and the evidence write and read their records here, so that every field of a record has one home.
"""

from __future__ import annotations

import json
import os
import platform
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from sd21.command import REFUSED, memory_told, out_of_memory
from sd21.files import irregular, json_lines, write_json, write_text
from sd21.folders import FolderError
from sd21.words import one_line, shown
from solvers import InversionError

from ..methods import Composition
from ..metrics.label_truth import LabelTruth
from ..model import Model
from ..settings import Settings

LONGEST_MESSAGE = 1000  # characters
# The fields of a row's record in `batch`, beside its columns (runs/columns.py). A column of a user's has none of these
# names.
FIELDS = (
    *("id", "file_name", "mask_file_name", "stored", "prompt", "user_box", "grey_window", "label_value", "inputs"),
    *("method", "settings", "model", "dtype", "sha256", "canvas", "decoded", "size", "scale", "true_size", "scan"),
    *("solver", "exceptional_token", "label", "match", "window", "inversion", "rows", "versions", "device"),
)
PACKAGES = ("tumour-composition", "torch", "transformers", "numpy", "pillow")


def provenance(model: Model, settings: Settings) -> dict:
    """What a composition depends on beside its inputs: settings, model (source, revision, file hashes), dtype."""
    return {"settings": asdict(settings), "model": model.identity, "dtype": str(model.dtype).removeprefix("torch.")}


def results(composition: Composition) -> dict:
    """What the run reported of itself, as far as the inputs and `provenance` determine it.

    Rows are counted at their full price even where a stored inversion was reused: a record says what its sample is, not
    in which order samples were made.
    """
    window = composition.window
    reports = {name: asdict(report) for name, report in composition.inversion.items()}
    return {
        "canvas": list(composition.canvas),
        "decoded": composition.decoded,
        "size": list(composition.mask.shape),
        "scale": composition.scale,
        "true_size": composition.true_size,
        "scan": asdict(composition.sample.background.meaning)
        | {"levels": list(composition.sample.background.window), "dtype": str(composition.image.dtype)},
        "solver": composition.solver,
        "exceptional_token": composition.exceptional_token,
        "label": asdict(composition.label),
        "match": asdict(composition.match),
        "window": asdict(window) | {"rows": list(window.rows), "columns": list(window.columns)},
        "inversion": {name: report | {"residuals": list(report["residuals"])} for name, report in reports.items()},
        "rows": {
            "inversion": sum(report["rows"] for report in reports.values()),
            "composition": composition.rows["composition"],
        },
    }


def environment(model: Model) -> dict:
    """The software and the device."""
    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"versions": versions(), "device": {"type": device.type, "name": name}}


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that results depend on; None for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def label_of(entry: dict) -> LabelTruth | None:
    """The measures of a record's label; None where it has none, or those of another version."""
    try:
        return LabelTruth(**entry["label"])
    except (KeyError, TypeError):
        return None


def write_errors(path: Path, errors: Sequence[dict]) -> None:
    """Write what failed as JSON lines. Where nothing failed there is no such file, and that of an earlier run goes."""
    if errors:
        write_text(path, json_lines(errors))
    else:
        path.unlink(missing_ok=True)


def told(error: Exception) -> str:
    """What went wrong, in a line. Our checks of files and values raise a few types; for any other the place is told."""
    text = memory_told(error) if out_of_memory(error) else str(error)
    text = one_line(f"{type(error).__name__}: {text}", LONGEST_MESSAGE)
    if not isinstance(error, (*REFUSED, FloatingPointError, InversionError)):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{text} ({frame.name} in {frame.filename}, line {frame.lineno})"
    return text.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text


def read_kept(path: Path, asked: dict) -> dict | None:
    """The object that an earlier run left in a JSON file, if all of `asked` is in it; else None.

    None, too, where there is no file, or a damaged one, which is warned of.
    """
    if not os.path.lexists(path):
        return None
    try:
        if what := irregular(path):  # to open a pipe would wait for ever
            raise OSError(what)
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        warnings.warn(f"{path} is damaged and will be made again: {error}", stacklevel=2)
        return None
    same = isinstance(found, dict) and all(name in found and found[name] == value for name, value in asked.items())
    return found if same else None


def hold_to(path: Path, asked: dict) -> None:
    """Write down what the results in a file's folder depend on, and compare it with what an earlier run has written.

    asked: JSON values. To one that is an object a later run may add names, and those of earlier runs stay. Raises
    FolderError, naming what differs, for another request than the earlier one.
    """
    both = read_kept(path, {}) or {}
    for name, value in asked.items():
        if isinstance(value, dict) and isinstance(both.get(name), dict):
            _check_held(path, both[name], value, f"{name}: ")
            both[name] |= value
        else:
            _check_held(path, both, {name: value})
            both[name] = value
    write_json(path, both)


def _check_held(path: Path, old: dict, new: dict, of: str = "") -> None:
    for name in new:
        if name in old and new[name] != old[name]:
            raise FolderError(
                f"{path.parent} holds another experiment, see {path.name} in it: {of}{name} was {shown(old[name])} and "
                f"is {shown(new[name])} now; name another folder"
            )
