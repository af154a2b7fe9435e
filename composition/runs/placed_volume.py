"""This module places the tumour of one volume in another, as files name them, and cuts it into the background's slices.

It stands apart from `volume`, which composes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sd21.files import sha256

from .. import matching
from ..matching import Match
from ..placement import Sample, bounding_box, same_window, unmatched
from ..placement3d import Lesion, Move, cut_out, margin, move_into, sliced_mask, sliced_values
from ..scans.errors import PlacementError, ScanError
from ..scans.images import ROUNDING, Scan, has_label, stated_levels, values_of
from ..scans.volumes import Volume, on_grid_of, open_volume
from ..settings import Settings
from .request import asked_of
from .volume_files import digest_of_folder


@dataclass(frozen=True)
class VolumeRequest:
    """What is asked for: files, and the target as a volume of the background's voxels or as a box.

    user_box: first column, row and slice, and how many of each. label: the value of the tumour in object_mask; None for
    all that is not 0. window: (centre, width) of the grey window of both volumes, in their own values; None for what
    the files state.
    """

    background: Path
    object: Path
    object_mask: Path
    user_mask: Path | None
    user_box: tuple[int, int, int, int, int, int] | None
    prompt: str
    label: int | None = None
    window: tuple[float, float] | None = None

    @property
    def files(self) -> dict[str, Path]:
        named = {name: getattr(self, name) for name in ("background", "object", "object_mask", "user_mask")}
        return {name: path for name, path in named.items() if path is not None}

    def describe(self) -> dict:
        """The inputs as the record holds them: names and hashes of the files, the box, the prompt, the label."""
        files = {
            name: {"file": path.name, "sha256": digest_of_folder(path) if path.is_dir() else sha256(path)}
            for name, path in self.files.items()
        }
        return asked_of(self, files)


@dataclass(frozen=True, eq=False)
class Placed:
    """A lesion on its background. levels: the background's black and white. target: bool (H, W), all slices' masks
    together, around which the network's window lies. match: of the greys of all slices together. covered: the share of
    the object's volume that its mask covers."""

    background: Volume
    levels: tuple[float, float]
    lesion: Lesion
    move: Move
    region: np.ndarray
    corner: tuple[int, int, int]
    target: np.ndarray
    match: Match
    covered: float

    def mask(self, number: int) -> np.ndarray:
        """The label of a slice, bool (H, W)."""
        return self._mask(number) & self.user_mask(number)

    def _mask(self, number: int) -> np.ndarray:
        whole = np.zeros(self.background.size, dtype=bool)
        inside, box = sliced_mask(self.lesion, self.move.to_lesion, number)
        if inside is not None:
            _paste(whole, inside, box)
        return whole

    def user_mask(self, number: int) -> np.ndarray:
        """The target region of a slice, bool (H, W)."""
        whole = np.zeros(self.background.size, dtype=bool)
        depth = number - self.corner[0]
        if 0 <= depth < len(self.region):
            rows, columns = (slice(at, at + n) for at, n in zip(self.corner[1:], self.region.shape[1:], strict=True))
            whole[rows, columns] = self.region[depth]
        return whole

    def scan(self, number: int) -> Scan:
        """A slice of the background."""
        return Scan(self.background.plane(number), f"slice {number}", self.levels, self.background.meaning)

    def object_values(self, number: int, *, matched: bool = True) -> np.ndarray:
        """The moved object's values (H, W) in [-1, 1] in a slice; nan where its volume does not reach."""
        whole = np.full(self.background.size, np.nan, dtype=np.float32)
        _, box = sliced_mask(self.lesion, self.move.to_lesion, number)
        if box is not None:
            values = sliced_values(self.lesion, self.move.to_lesion, number, box)
            _paste(whole, self.match.apply(values) if matched else values, box)
        return whole

    def sample(self, number: int, prompt: str) -> Sample:
        """The slice's sample, whose object lies on the background's pixels already."""
        scan, values = self.scan(number), self.object_values(number)
        own = scan.values()[..., 0]
        obj = Scan(np.where(np.isnan(values), own, values), f"object in slice {number}", (-1.0, 1.0))
        obj = replace(obj, meaning=replace(self.background.meaning, slope=1.0, intercept=0.0, unit=None))
        return Sample(scan, obj, self._mask(number), self.user_mask(number), prompt)


def place_volume(request: VolumeRequest, settings: Settings) -> Placed:
    """Read headers, cut the tumour out, and place it. Raises ScanError and PlacementError for what does not fit."""
    if settings.fit == "placed":
        raise PlacementError("fit placed is for slices; a tumour is moved in three dimensions: use inside or box")
    background, obj = open_volume(request.background), open_volume(request.object)
    labels = _on_grid_of("the object mask", open_volume(request.object_mask), obj)
    if request.label == 0:
        raise PlacementError("label 0 is what is outside; name the value of the tumour")
    least = _least(labels)
    box = _box_of(labels, request.label, least, obj.affine)
    levels, own = _levels(request, background, obj)
    for name, volume, ends in ((request.background, background, levels), (request.object, obj, own)):
        if ends is None or all(_is_blank(volume.plane(k), ends) for k in range(len(volume))):
            raise ScanError(f"{name} is blank, or shows one grey in its window: there is nothing to compose")
    planes = (
        (values_of(obj.plane(k), own)[..., 0], _inside(labels.labels(k), request.label, least))
        for k in range(box[0].start, box[0].stop)
    )
    lesion = cut_out(planes, box, obj.affine)
    region, corner = _region(request, background)
    move = move_into(lesion, background.affine, region, corner, settings.fit, settings.size == "auto")
    covered = lesion.inside.sum() / (len(obj) * obj.size[0] * obj.size[1])
    empty = np.zeros(background.size, bool)
    placed = Placed(background, levels, lesion, move, region, corner, empty, Match("none"), float(covered))
    target = np.zeros(background.size, dtype=bool)
    for number in range(*move.slices):
        target |= placed.mask(number)
    placed = replace(placed, target=target)
    return replace(placed, match=_match(placed, unmatched(background.meaning, obj.meaning), settings.match))


def _is_blank(plane: np.ndarray, levels: tuple[float, float]) -> bool:
    """Whether a slice shows one grey between the stored values of black and white."""
    return bool(np.ptp(values_of(plane, levels)) == 0)


def _match(placed: Placed, why: str | None, how: str) -> Match:
    """The match of the greys in the rings of all slices together, by the rules of matching.MATCHES. why: why greys are
    not matched, if so."""
    if why is not None or how == "none":
        return Match("none", why=why if how != "none" else None)
    rings: dict[str, list[np.ndarray]] = {"background": [], "object": [], "tumour": []}
    for number in range(*placed.move.slices):
        mask = placed.mask(number)
        if not mask.any():
            continue
        ring, obj = matching.ring(mask), placed.object_values(number, matched=False)
        for name, values, where in (
            ("background", placed.scan(number).values()[..., 0], ring),
            ("object", obj, ring),
            ("tumour", obj, mask),
        ):
            greys = (values[where] + 1) / 2
            greys = greys[np.isfinite(greys)]
            rings[name].append(greys if name == "tumour" else greys[greys > matching.BLACK])
    target, own, tumour = (np.concatenate(each) if each else np.empty(0) for each in rings.values())
    for name, greys in (("background", target), ("object", own)):
        if greys.size < matching.LEAST_PIXELS:
            return Match(how, why=f"the ring around the tumour in the {name} is black or tiny: {greys.size} pixels")
    gain, offset = matching.MATCHES[how](target, own, tumour)
    return Match(how, gain, offset, float(np.median(target)), float(np.median(own)))


def _levels(request: VolumeRequest, background: Volume, obj: Volume) -> tuple:
    """The stored values of black and white of both volumes. In one physical unit they share a window."""
    if request.window is not None:
        return tuple(
            stated_levels(request.window, one.meaning, one.inverted, "the volume") for one in (background, obj)
        )
    levels, unit = background.levels(), background.meaning.unit
    if levels is None or unit is None or unit != obj.meaning.unit:
        return levels, obj.levels()
    return levels, same_window(levels, background.meaning, obj.meaning)


def _on_grid_of(what: str, labels: Volume, scan: Volume) -> Volume:
    """Labels on the slices of their scan: themselves, or the same voxels in its order. Raises ScanError for labels on
    other voxels."""
    turned = on_grid_of(labels, scan)
    if turned is None:
        same = (len(labels), labels.size) == (len(scan), scan.size)
        sizes = f"has {len(labels)} slices of {labels.size}, and its scan {len(scan)} of {scan.size}"
        raise ScanError(
            f"{what} {'lies elsewhere than its scan, or turned' if same else sizes}; expected a mask on the voxels of "
            "its scan: resample it onto them, or save it with the scan's geometry"
        )
    return turned


def _least(labels: Volume) -> float:
    """Inside is what is farther from 0 than this; see images.ROUNDING."""
    if labels.labels(0).dtype.kind != "f":
        return 0.0
    sizes = (np.abs(labels.labels(k)) for k in range(len(labels)))
    return ROUNDING * max(float(size.max(initial=0, where=np.isfinite(size))) for size in sizes)


def _inside(values: np.ndarray, label: int | None, least: float) -> np.ndarray:
    values = np.nan_to_num(values) if values.dtype.kind == "f" else values
    if label is not None:
        return has_label(values, label)
    return np.abs(values) > least if least else values != 0


def _box_of(labels: Volume, label: int | None, least: float, affine: np.ndarray) -> tuple[slice, slice, slice]:
    """The box (slice, row, column) around a tumour, with the tissue that is cut out with it."""
    used: set[float] = set()

    def inside(number: int) -> np.ndarray:
        values = labels.labels(number)
        used.update(np.unique(values)[:20].tolist() if len(used) < 20 else ())
        return _inside(values, label, least)

    box = _bounds(inside(number) for number in range(len(labels)))
    if box is None:
        found = ", ".join(f"{value:g}" for value in sorted(used)[:20])
        what = "nothing but 0" if label is None else f"no voxel of {label}; its values are {found}"
        raise PlacementError(f"the object mask holds {what}")
    around = margin(tuple(part.stop - part.start for part in box), np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    shape = len(labels), *labels.size
    return tuple(
        slice(max(0, part.start - room), min(length, part.stop + room))
        for part, room, length in zip(box, around, shape, strict=True)
    )


def _bounds(planes: Iterable[np.ndarray]) -> tuple[slice, slice, slice] | None:
    """The box (slice, row, column) of what is inside of masks (H, W), one after the other; None where nothing is."""
    boxes = [(number, bounding_box(inside)) for number, inside in enumerate(planes) if inside.any()]
    if not boxes:
        return None
    left, top, right, bottom = zip(*(box for _, box in boxes), strict=True)
    return slice(boxes[0][0], boxes[-1][0] + 1), slice(min(top), max(bottom)), slice(min(left), max(right))


def _region(request: VolumeRequest, background: Volume) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The target region in its box, bool (d, h, w), and the (slice, row, column) of the box's first voxel."""
    shape = len(background), *background.size
    if request.user_box is not None:
        x, y, z, width, height, depth = request.user_box
        corner, size = (z, y, x), (depth, height, width)
        if any(n < 1 or at < 0 or at + n > length for at, n, length in zip(corner, size, shape, strict=True)):
            raise ScanError(
                f"the box x,y,z,w,h,d = {request.user_box} does not lie on the volume of {shape[2]}x{shape[1]} pixels "
                f"and {shape[0]} slices"
            )
        return np.broadcast_to(np.True_, size), corner  # which takes no memory
    region = _on_grid_of("the target region", open_volume(request.user_mask), background)
    least = _least(region)
    box = _bounds(_inside(region.labels(number), None, least) for number in range(len(region)))
    if box is None:
        raise PlacementError("the target region holds nothing but 0")
    planes = [_inside(region.labels(number), None, least)[box[1:]] for number in range(box[0].start, box[0].stop)]
    return np.stack(planes), tuple(part.start for part in box)


def _paste(whole: np.ndarray, part: np.ndarray, box: tuple[slice, slice]) -> None:
    """Write a part into an array, as far as its rows and columns lie on it."""
    spans = [(max(0, one.start), min(length, one.stop)) for one, length in zip(box, whole.shape, strict=True)]
    if any(first >= last for first, last in spans):
        return
    inner = tuple(slice(first - one.start, last - one.start) for (first, last), one in zip(spans, box, strict=True))
    whole[tuple(slice(*span) for span in spans)] = part[inner]
