"""This module composes a tumour into a volume: it places it in three dimensions, composes every slice that it meets,
and writes the volume and its label.

    OUT/composite.nii.gz    the volume (of DICOM slices a folder, OUT/composite/)
    OUT/label.nii.gz        1 where the tumour is, on the same voxels
    OUT/figure.png          three planes through the tumour, before and after
    OUT/record.json         what made it, and what it measures
    OUT/slices/             the composed slices, by which a killed run resumes

A slice that the tumour does not meet is the input's, bit for bit. Of the volumes, a few slices are in memory at a time.
All slices share what would else differ from one to the next: the match of greys, which is of all their rings together,
and the window that the network sees. The method draws no noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from sd21.files import atomic, sha256, write_json
from sd21.folders import FolderError, check_untaken, left_locked

from ..methods import compose
from ..model import Model
from ..scans.images import values_of
from ..settings import Settings
from . import record
from .placed_volume import Placed, VolumeRequest, place_volume
from .ranks import Ranks
from .request import check_apart
from .volume_files import figure_of, write_volume

RESULTS = ("composite.nii.gz", "composite", "label.nii.gz", "figure.png", "record.json")
# Below this step, in grey levels of 255, the object is nearly uniform, and the ratio would measure noise alone.
LEAST_STEP = 1.0


def run_volume(
    request: VolumeRequest, out: Path, load_model: Callable, settings: Settings, *, method: str = "ours", quiet: bool
) -> dict | None:
    """Compose the volume, or what is not done of it yet, and write OUT. Under torchrun the slices are shared out.

    load_model: takes nothing, returns what sd21.load returns; called after all inputs were read.
    Rank 0 returns the record, others None. Raises ScanError, PlacementError, FolderError and OSError for what cannot be
    met, and what `compose` raises.
    """
    ranks, placed = Ranks(f"volume {out}"), place_volume(request, settings)
    _check_nothing_is_lost(request, out)
    numbers = [number for number in range(*placed.move.slices) if placed.mask(number).any()]
    with ranks.owning(out):
        model = load_model()
        asked = {**request.describe(), "method": method, **record.provenance(model, settings)}
        asked = json.loads(json.dumps(asked))
        for number in ranks.share(numbers, title=out.name, quiet=quiet):
            if _kept(out, number, asked) is None:
                _compose_slice(placed, number, request.prompt, out, model, settings, method, asked)
        ranks.finish()
        if ranks.rank > 0:
            return None
        entries = [_kept(out, number, asked) for number in numbers]
        with_pixels = ComposedSlices(out, numbers)
        (out / "record.json").unlink(missing_ok=True)  # that of an earlier run is none of these files
        write_volume(out, request.background, placed, with_pixels, json.dumps(asked))
        figure = figure_of(placed, with_pixels)
        with atomic(out / "figure.png") as temporary:
            figure.save(temporary)
        told = _told(placed, entries, with_pixels)
        write_json(out / "record.json", {**asked, **told, **record.environment(model)})
        return told


def _check_nothing_is_lost(request: VolumeRequest, out: Path) -> None:
    """Raises FolderError where a result would take the place of an input, or of a file that no run has made, and where
    it would lie among the slices of an input."""
    check_apart(request.files.values(), [out / name for name in RESULTS])
    for path in request.files.values():
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise FolderError(f"{out} lies in the input {path}; name another folder for the results")
    made = left_locked(out) or any((out / "slices").glob("[0-9]*.json"))
    if not made:
        check_untaken((out / name for name in (*RESULTS, "slices")), "run")


class ComposedSlices(Mapping[int, tuple[np.ndarray, np.ndarray]]):
    """The stored values and the mask (H, W) of every composed slice, by its number, read when they are asked for."""

    def __init__(self, out: Path, numbers: Sequence[int]):
        self.out, self.numbers = out, list(numbers)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in self.numbers:
            raise KeyError(number)
        with np.load(_files_of(self.out, number)[0]) as held:
            return held["image"], held["mask"]

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _compose_slice(
    placed: Placed,
    number: int,
    prompt: str,
    out: Path,
    model: Model,
    settings: Settings,
    method: str,
    asked: dict,
) -> None:
    own = replace(settings, fit="placed", match="none", size="region")
    sample = placed.sample(number, prompt)
    result = compose(model, *sample, own, method=method, around=placed.target)
    pixels, entry = _files_of(out, number)
    pixels.parent.mkdir(exist_ok=True)
    with atomic(pixels) as temporary:
        np.savez_compressed(temporary, image=result.image, mask=result.mask)
    write_json(entry, {**asked, "slice": number, "sha256": sha256(pixels), **record.results(result)})


def _told(placed: Placed, entries: list[dict], pixels: Mapping) -> dict:
    """What the record says of the volume beside what was asked for."""
    voxel = abs(float(np.linalg.det(placed.background.affine[:3, :3])))
    voxels = sum(int(mask.sum()) for _, mask in pixels.values())
    return {
        "scan": asdict(placed.background.meaning)
        | {"levels": list(placed.levels), "affine": placed.background.affine.tolist()},
        "size": [len(placed.background), *placed.background.size],
        "scale": placed.move.scale,
        "true_size": placed.move.scale == 1.0,
        "clipped": placed.move.clipped,
        "covered": placed.covered,
        "slices": sorted(pixels),
        "voxels": voxels,
        "millilitres": voxels * voxel / 1000,
        "match": asdict(placed.match),
        "steps": consistency(placed, pixels),
        "labels": {str(entry["slice"]): entry["label"] for entry in entries},
        "rows": sum(sum(entry["rows"].values()) for entry in entries),
    }


def consistency(placed: Placed, pixels: Mapping) -> dict[str, float | None]:
    """How greys step from slice to slice inside the tumour, in grey levels of 255: the mean absolute difference of
    neighbouring slices in the voxels that both masks hold, in the composite and in the object as it was placed, and
    the quotient of the two; None for a tumour of one slice, and where the object's steps are below LEAST_STEP."""
    composite, own, count = 0.0, 0.0, 0
    for number in sorted(pixels):
        if number + 1 not in pixels:
            continue
        both = pixels[number][1] & pixels[number + 1][1]
        images = [values_of(pixels[n][0], placed.levels)[..., 0][both] for n in (number, number + 1)]
        objects = [placed.object_values(n)[both] for n in (number, number + 1)]
        composite += float(np.abs(images[1] - images[0]).sum())
        own += float(np.abs(objects[1] - objects[0]).sum())
        count += int(both.sum())
    if count == 0:
        return {"composite": None, "object": None, "ratio": None}
    steps = 127.5 * composite / count, 127.5 * own / count
    return {"composite": steps[0], "object": steps[1], "ratio": steps[0] / steps[1] if steps[1] >= LEAST_STEP else None}


def _files_of(out: Path, number: int) -> tuple[Path, Path]:
    return out / "slices" / f"{number:05d}.npz", out / "slices" / f"{number:05d}.json"


def _kept(out: Path, number: int, asked: dict) -> dict | None:
    """The record of a slice that was composed of the same inputs, if its pixels are whole."""
    pixels, entry = _files_of(out, number)
    found = record.read_kept(entry, {**asked, "slice": number})
    return found if found and pixels.is_file() and sha256(pixels) == found.get("sha256") else None
