"""This module makes one composition of files, and writes its results. `batch` makes many.

OUT/composite.png       the result; of DICOM and NIfTI a preview in 8 bits, over the window
OUT/composite.dcm       the result as DICOM, where the background is; OUT/composite.nii.gz where that is NIfTI
OUT/mask.png            the tumour; beside NIfTI also OUT/label.nii.gz
OUT/figure.png          before and after
OUT/record.json         what made it
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sd21.files import atomic, write_json
from sd21.folders import FolderError, check_untaken, left_locked, owned

from ..figures import before_after, eight_bit
from ..inversions import Trajectory
from ..methods import Composition, compose
from ..scans.images import write_image
from ..scans.slices import split_slice
from ..scans.writing import suffix_like, write_label_like, write_like
from ..settings import Settings
from . import record
from .request import Request, check_apart

STORED = ("composite.dcm", "composite.nii.gz", "label.nii.gz")


def run_single(
    request: Request,
    out: Path,
    load_model: Callable,
    settings: Settings,
    *,
    method: str = "ours",
    inversions: MutableMapping[str, Trajectory] | None = None,
    cache: Path | None = None,
    quiet: bool = False,
) -> tuple[Composition, list[Path]]:
    """Compose what is asked for; returns the composition and the files of it.

    load_model: takes nothing, returns what sd21.load returns; called when the inputs are read. inversions: as `compose`
    takes them; cache: the folder where they lie, if any. Raises ScanError, PlacementError, FolderError and OSError for
    what cannot be met, and what `compose` raises.
    """
    sample = request.read(settings.fit, settings.size)
    files = results_of(request, out)
    _check_results(request, files)
    with owned(out, cache=cache):
        begin = time.perf_counter()
        model = load_model()
        seconds = {"load": time.perf_counter() - begin}
        progress = None if quiet else partial(tqdm, leave=False)
        composition = compose(model, *sample, settings, method=method, inversions=inversions, progress=progress)
        asked = {**request.describe(), "method": method, **record.provenance(model, settings)}
        told = {
            **record.results(composition),
            "stored": [path.name for path in files.values() if path.name in STORED],
            "reused": composition.reused,
            **record.environment(model),
            "seconds": seconds | composition.seconds,
        }
        _write(request, files, composition, asked, told)
    return composition, list(files.values())


def results_of(request: Request, out: Path) -> dict[str, Path]:
    """The files that a request's results go to, by what they hold."""
    suffix = suffix_like(request.files["background"])
    stored = {"stored": out / f"composite{suffix}"} if suffix else {}
    label = {"label": out / "label.nii.gz"} if suffix == ".nii.gz" else {}
    pictures = {name: out / f"{name}.png" for name in ("composite", "mask", "figure")}
    return {**pictures, **stored, **label, "record": out / "record.json"}


def write_images(
    request: Request,
    composition: Composition,
    asked: dict,
    image: Path,
    mask: Path,
    stored: Path | None = None,
    label: Path | None = None,
) -> None:
    """Write a composite and its mask: as images, and, where there are paths for them, in the background's own kind.

    asked: what tells this composition from others. image: takes the composite's own pixels, or, beside `stored`, a
    preview in 8 bits over the background's window.
    """
    background, source, pixels = composition.sample.background, request.files["background"], composition.image
    if stored is not None:
        write_like(source, background, pixels, stored, json.dumps(asked, sort_keys=True))
        shown = eight_bit(pixels, background.window)
        pixels = np.asarray(shown if pixels.ndim == 3 else shown.convert("L"))
    write_image(image, pixels)
    write_image(mask, composition.mask)
    if label is not None:
        write_label_like(source, background, composition.mask, label)


def _check_results(request: Request, files: dict[str, Path]) -> None:
    """Raises FolderError where a result would take the place of an input, or of a file that no `run` has made: a run
    that ends well leaves its record, one that fails leaves nothing, and one that is killed its lock."""
    check_apart(request.files.values(), files.values())
    entry, source = files["record"], split_slice(request.files["background"])[0]
    if "stored" in files and "label" not in files and entry.parent.resolve() == source.parent.resolve():
        raise FolderError(
            f"{entry.parent} holds the slices of the background, and a synthetic one must not lie among them; name "
            "another folder for the results"
        )
    if not left_locked(entry.parent) and not entry.exists():
        check_untaken(files.values(), "run")


def _write(request: Request, files: dict[str, Path], composition: Composition, asked: dict, told: dict) -> None:
    drawn = before_after(composition.sample, composition.image, composition.mask)
    earlier = record.read_kept(files["record"], {})
    # First: a run that ends on the way leaves no record beside others' pictures.
    files["record"].unlink(missing_ok=True)
    try:
        for name in STORED:  # an earlier run's, of a background of another kind
            if earlier is not None and name in (earlier.get("stored") or ()):
                files["record"].with_name(name).unlink(missing_ok=True)
        paths = (files.get(name) for name in ("composite", "mask", "stored", "label"))
        write_images(request, composition, asked, *paths)
        with atomic(files["figure"]) as temporary:
            drawn.save(temporary)
        write_json(files["record"], {**asked, **told})
    except BaseException:
        for path in files.values():
            path.unlink(missing_ok=True)
        raise
