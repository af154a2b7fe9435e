"""This module places a tumour in three dimensions: its volume is moved as a whole, in millimetres, and cut into the
slices of the background.

It stands beside `placement`, which does the same in one slice, and knows neither files nor networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .matching import GAP, WIDTH
from .placement import SHARE_OUTSIDE, largest_smaller
from .scans.errors import PlacementError

# A voxel of the background is averaged over so many points of the object along each axis at most.
MOST_POINTS = 4
# Of a pixel, with room for the rounding of float32, so that a moved edge between two pixels does not come and go.
HALF = 0.5 - 1e-4


@dataclass(frozen=True, eq=False)
class Lesion:
    """A tumour cut out of its volume with the tissue around it.

    values: float32 (d, h, w) in [-1, 1]. inside: bool, the same shape. affine: (4, 4), from (column, row, slice) of
    this part to millimetres.
    """

    values: np.ndarray
    inside: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Move:
    """Where a lesion goes. to_lesion: (4, 4), from (column, row, slice) of the background to those of the lesion.

    scale: of its size in millimetres. clipped: the share of the moved mask that lies outside the region and is cut.
    slices: the numbers of the background's slices that it meets, from the first to one past the last.
    """

    to_lesion: np.ndarray
    scale: float
    clipped: float
    slices: tuple[int, int]


def cut_out(
    planes: Iterable[tuple[np.ndarray, np.ndarray]], box: tuple[slice, slice, slice], affine: np.ndarray
) -> Lesion:
    """The Lesion in a box (slice, row, column) of a volume. planes: values (H, W) and masks (H, W) of the box's slices,
    one after the other."""
    parts = [(values[box[1:]], inside[box[1:]]) for values, inside in planes]
    moved = affine.copy()
    moved[:3, 3] = affine[:3] @ (box[2].start, box[1].start, box[0].start, 1)
    values, inside = (np.stack(each) for each in zip(*parts, strict=True))
    return Lesion(values.astype(np.float32), inside, moved)


def margin(extent: tuple[int, int, int], spacing: np.ndarray) -> tuple[int, ...]:
    """The voxels of tissue around a tumour of so many slices, rows and columns that are cut out with it, along each
    axis: as far as a ring reaches in any direction, since a slice of the background may cut it in any.

    spacing: (3,), millimetres between slices, rows and columns.
    """
    reach = WIDTH * (np.array(extent) * spacing).max() + 3 * GAP * spacing.max()
    return tuple(int(np.ceil(reach / length)) for length in spacing)


def move_into(
    lesion: Lesion, affine: np.ndarray, region: np.ndarray, corner: tuple[int, int, int], how: str, true_size: bool
) -> Move:
    """Move a lesion into the middle of a region of the background, in millimetres, its axes kept; where it would lie
    larger there, as in a region shaped like an L, to where the region is deepest.

    affine: the background's. region: bool (d, h, w), the box of it that holds the region; corner: (slice, row, column)
    of that box's first voxel. how: "inside" makes the lesion smaller until its whole mask lies in the region, but for
    SHARE_OUTSIDE; "box" until its box does. true_size: whether it keeps its size in millimetres where it fits; else it
    fills the region.
    Raises PlacementError where nothing of it is left inside the region.
    """
    forward = np.linalg.inv(affine) @ lesion.affine  # lesion's indices to the background's
    points = _ends(lesion.inside)
    corners = points[:, None, :] + np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    moved = corners.reshape(-1, 3) @ forward[:3, :3].T + forward[:3, 3]
    low, high = moved.min(axis=0), moved.max(axis=0)
    first = np.array(corner[::-1]) - 0.5
    spans = [np.flatnonzero(region.any(axis=axes))[[0, -1]] for axes in ((0, 1), (0, 2), (1, 2))]
    near, far = np.array(spans).T
    far = far + 1
    largest = float(((far - near) / (high - low)).min())
    scale = min(largest, 1.0) if true_size else largest
    centre = first + (near + far) / 2

    def at(scale: float, centre: np.ndarray = centre) -> Move:
        # index_background = centre + scale * (forward(index) - middle)
        placed = np.eye(4)
        placed[:3, :3] *= scale
        placed[:3, 3] = centre - scale * (low + high) / 2
        to_lesion = np.linalg.inv(placed @ forward)
        total, kept, met = 0, 0, []
        for number in _numbers(lesion, to_lesion):
            inside, box = sliced_mask(lesion, to_lesion, number)
            if inside is None:
                continue
            own = inside & _cut(region, corner, number, box)
            total, kept = total + inside.sum(), kept + own.sum()
            met += [number] * bool(own.any())
        clipped = 1 - float(kept / total) if total else 1.0
        return Move(to_lesion, scale, clipped, (met[0], met[-1] + 1) if met else (0, 0))

    def fitting(scale: float, centre: np.ndarray = centre) -> Move | None:
        move = at(scale, centre)
        return move if move.clipped <= SHARE_OUTSIDE else None

    move = at(scale)
    if how == "inside" and move.clipped > SHARE_OUTSIDE:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        deepest = partial(fitting, centre=first + _deepest(region, spacing) + 0.5)
        there = deepest(scale)
        if there is None:
            found = [largest_smaller(one, scale) for one in (fitting, deepest)]
            there = max((one for _, one in filter(None, found)), key=lambda one: one.scale, default=None)
        move = there or move
    if move.slices[0] == move.slices[1]:
        raise PlacementError(
            f"nothing of the tumour is left inside the target region: scaled by {move.scale:.3g} it covers half of no "
            "voxel there; use a larger region, or a tumour that is thicker than the background's slices"
        )
    return move


def sliced_mask(
    lesion: Lesion, to_lesion: np.ndarray, number: int
) -> tuple[np.ndarray | None, tuple[slice, slice] | None]:
    """The lesion's mask in a slice of the background, where it covers half of a pixel or more, and the rows and columns
    that it is given for; None where the lesion does not reach the slice."""
    box = _reach(lesion, to_lesion, number)
    if box is None:
        return None, None
    inside = _sampled(lesion.inside.astype(np.float32), to_lesion, number, box) >= HALF
    return (inside, box) if inside.any() else (None, None)


def sliced_values(lesion: Lesion, to_lesion: np.ndarray, number: int, box: tuple[slice, slice]) -> np.ndarray:
    """The lesion's values (h, w) in rows and columns of a slice of the background; nan where its part of the volume
    does not reach. Its outermost voxels reach to their ends, as far as its mask does."""
    there = _sampled(np.ones_like(lesion.values), to_lesion, number, box)
    values = _sampled(lesion.values, to_lesion, number, box, beyond="border")
    return np.where(there >= HALF, values, np.nan).astype(np.float32)


def _deepest(region: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The (column, row, slice) of the voxel of a region (slice, row, column) that lies farthest from its edge, along
    the axis where it lies nearest, in millimetres; of several, the nearest to the middle of the region's box."""
    left, done, steps = np.pad(region, 1), [0, 0, 0], 0
    while True:
        inner, steps = left, steps + 1
        for axis, length in enumerate(spacing[::-1]):
            if round(steps * spacing.min() / length) > done[axis]:
                done[axis] += 1
                inner = inner & np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
        if not inner.any():
            break
        left = inner
    found = (np.argwhere(left) - 1)[:, ::-1]
    middle = (np.array(region.shape[::-1]) - 1) / 2
    return found[(((found - middle) * spacing) ** 2).sum(axis=1).argmin()]


def _reach(lesion: Lesion, to_lesion: np.ndarray, number: int) -> tuple[slice, slice] | None:
    """The rows and columns of a slice that the lesion's part of its volume may reach; they may lie beyond the scan."""
    corners = _corners(lesion, to_lesion)
    if not corners[2].min() - 0.5 < number < corners[2].max() + 0.5:
        return None
    return tuple(slice(math.floor(corners[axis].min()), math.ceil(corners[axis].max()) + 1) for axis in (1, 0))


def _ends(inside: np.ndarray) -> np.ndarray:
    """The first and the last voxel of every row of a mask (d, h, w), as (column, row, slice): among them are those that
    reach farthest in any direction, and they are few."""
    deep, down = np.nonzero(inside.any(axis=2))
    rows = inside[deep, down]
    first, last = rows.argmax(axis=1), inside.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([columns, down, deep], axis=1) for columns in (first, last)])


def _sampled(
    volume: np.ndarray, to_lesion: np.ndarray, number: int, box: tuple[slice, slice], beyond: str = "zeros"
) -> np.ndarray:
    """A volume (d, h, w) at the pixels of a slice, by linear interpolation, averaged over each voxel of the background
    where the volume is finer. beyond: "zeros", or "border" for the volume's outermost values."""
    step = np.linalg.norm(to_lesion[:3, :3], axis=0)  # voxels of the lesion along an edge of one of the background's
    counts = [min(MOST_POINTS, max(1, math.ceil(length - 1e-6))) for length in step]
    offsets = [(np.arange(count) + 0.5) / count - 0.5 for count in counts]
    rows, columns = (np.arange(part.start, part.stop) for part in box)
    source = torch.from_numpy(volume)[None, None]
    size = torch.tensor(volume.shape[::-1], dtype=torch.float32)
    total = np.zeros((len(rows), len(columns)))
    for down in offsets[1]:
        for across in offsets[0]:
            for deep in offsets[2]:
                y, x = np.meshgrid(rows + down, columns + across, indexing="ij")
                points = np.stack([x, y, np.full_like(x, number + deep)], axis=-1)
                index = torch.from_numpy(points @ to_lesion[:3, :3].T + to_lesion[:3, 3]).float()
                grid = (2 * index + 1) / size - 1
                moved = F.grid_sample(source, grid[None, None], padding_mode=beyond, align_corners=False)
                total += moved[0, 0, 0].numpy()
    return total / math.prod(counts)


def _cut(region: np.ndarray, corner: tuple[int, int, int], number: int, box: tuple[slice, slice]) -> np.ndarray:
    """The region's part in rows and columns of a slice, bool; False beyond its box."""
    cut = np.zeros([part.stop - part.start for part in box], dtype=bool)
    depth = number - corner[0]
    if not 0 <= depth < len(region):
        return cut
    here, there = [], []
    for part, start, length in zip(box, corner[1:], region.shape[1:], strict=True):
        first, last = max(part.start, start), max(part.start, start, min(part.stop, start + length))
        here.append(slice(first - part.start, last - part.start))
        there.append(slice(first - start, last - start))
    cut[tuple(here)] = region[depth][tuple(there)]
    return cut


def _numbers(lesion: Lesion, to_lesion: np.ndarray) -> range:
    """The numbers of the background's slices that the lesion's part of its volume reaches."""
    deep = _corners(lesion, to_lesion)[2]
    return range(math.ceil(deep.min() - 0.5), math.floor(deep.max() + 0.5) + 1)


def _corners(lesion: Lesion, to_lesion: np.ndarray) -> np.ndarray:
    """The corners (3, 8) of the lesion's part of its volume: columns, rows and slices of the background."""
    depth, height, width = lesion.values.shape
    ends = np.array(np.meshgrid((-0.5, width - 0.5), (-0.5, height - 0.5), (-0.5, depth - 0.5))).reshape(3, -1)
    back = np.linalg.inv(to_lesion)
    return back[:3, :3] @ ends + back[:3, 3:]
