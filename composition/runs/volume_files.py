"""This module writes the files of a composed volume, slice by slice, and draws its figure. It stands apart from
`volume`, which composes, because it knows the formats.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sd21.files import atomic, sha256

from ..figures import TUMOUR_COLOUR, eight_bit, outlined
from ..scans.images import Scan
from ..scans.nifti import NiftiVolume
from ..scans.volumes import DicomSeries
from ..scans.writing import save_header, write_dicom

if TYPE_CHECKING:
    from .placed_volume import Placed

PANEL = 320  # pixels of the longer side of a plane in the figure


def digest_of_folder(folder: Path) -> str:
    """One SHA-256 over the files of a folder, hidden ones left out, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != "."):
        digest.update(sha256(path).encode())
    return digest.hexdigest()


def write_volume(out: Path, source: Path, placed: Placed, pixels: Mapping, derivation: str) -> None:
    """Write the composed volume and its label. pixels: {slice: (stored values (H, W), mask (H, W))}, of the composed
    slices; the others are the background's own. derivation: what tells this result from others."""
    background = placed.background
    if isinstance(background, NiftiVolume):
        shutil.rmtree(out / "composite", ignore_errors=True)  # of an earlier run on DICOM slices
        _write_nifti(out / "composite.nii.gz", background, pixels)
        _write_label(out / "label.nii.gz", background, background.image.affine, pixels)
        return
    (out / "composite.nii.gz").unlink(missing_ok=True)  # of an earlier run on NIfTI
    _write_series(out / "composite", background, placed, pixels, derivation)
    _write_label(out / "label.nii.gz", background, background.affine, pixels)


def _write_nifti(path: Path, volume: NiftiVolume, pixels: Mapping) -> None:
    shape, dtype = volume.data.shape, volume.plane(0).dtype
    with _mapped(path, volume, shape, dtype, volume.image.affine) as whole:
        for last in range(shape[2]):
            whole[:, :, last] = np.asarray(volume.data[:, :, last])
        for number, (image, _) in pixels.items():
            volume.put(whole, number, image)


def _write_label(path: Path, background, affine: np.ndarray, pixels: Mapping) -> None:
    """0 and 1 on the background's voxels; of DICOM slices in their own order of columns, rows and slices."""
    nifti = background if isinstance(background, NiftiVolume) else None
    shape = nifti.data.shape if nifti else (background.size[1], background.size[0], len(background))
    with _mapped(path, nifti, shape, np.dtype(np.uint8), affine, label=True) as whole:
        for number, (_, mask) in pixels.items():
            if nifti:
                nifti.put(whole, number, mask.astype(np.uint8))
            else:
                whole[:, :, number] = mask.T


@contextmanager
def _mapped(
    path: Path, volume: NiftiVolume | None, shape: tuple, dtype: np.dtype, affine: np.ndarray, *, label: bool = False
) -> Iterator[np.ndarray]:
    """The values of a compressed file that is to be written, on the disk and not in memory; see `save_header`."""
    with atomic(path) as temporary:
        raw = temporary.with_name(f"{temporary.name}.raw")
        try:
            offset = save_header(raw, volume, shape, dtype, affine, label=label)
            whole = np.memmap(raw, dtype, "r+", offset, shape, order="F")
            yield whole
            whole.flush()
            del whole
            _packed(raw, temporary)
        finally:
            raw.unlink(missing_ok=True)


def _packed(raw: Path, path: Path) -> None:
    """Compress a file; equal files give equal bytes."""
    with raw.open("rb") as source, path.open("wb") as target:
        with gzip.GzipFile(filename="", fileobj=target, mode="wb", compresslevel=6, mtime=0) as packed:
            shutil.copyfileobj(source, packed, 1 << 20)


def _write_series(folder: Path, series: DicomSeries, placed: Placed, pixels: Mapping, derivation: str) -> None:
    for number, path in enumerate(series.paths):
        image = series.stored(number, pixels[number][0] if number in pixels else None)
        scan = Scan(image, str(path), placed.levels, series.meaning)
        write_dicom(folder / f"{number:05d}.dcm", path, scan, image, derivation)
    for path in folder.glob("[0-9][0-9][0-9][0-9][0-9].dcm"):  # of an earlier run on more slices
        if int(path.stem) >= len(series):
            path.unlink()


def figure_of(placed: Placed, pixels: Mapping) -> Image.Image:
    """Three planes through the middle of the tumour, before above and after below, with the outline of the label."""
    background, depth = placed.background, len(placed.background)
    numbers = sorted(pixels)
    middle = max(numbers, key=lambda number: (pixels[number][1].sum(), -abs(number - numbers[len(numbers) // 2])))
    rows, columns = (np.flatnonzero(pixels[middle][1].any(axis=axis)) for axis in (1, 0))
    row, column = int(rows[len(rows) // 2]), int(columns[len(columns) // 2])
    planes = {"before": [], "after": [], "mask": []}
    for number in range(depth):
        before = background.plane(number)
        after, mask = pixels.get(number, (before, np.zeros(before.shape, bool)))
        for name, plane in (("before", before), ("after", after), ("mask", mask)):
            planes[name].append((plane[row].copy(), plane[:, column].copy()))  # views would keep the planes
    across, down, deep = np.linalg.norm(background.affine[:3, :3], axis=0)
    figure = Image.new("RGB", (3 * (PANEL + 8) + 8, 2 * (PANEL + 8) + 8), "black")
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(size=14)
    for line, name in enumerate(("before", "after")):
        axial = pixels[middle][0] if name == "after" else background.plane(middle)
        views = [
            (axial, pixels[middle][1], (down, across)),
            *(
                (
                    np.stack([one[view] for one in planes[name]])[::-1],
                    np.stack([one[view] for one in planes["mask"]])[::-1],
                    (deep, spacing),
                )
                for view, spacing in ((0, across), (1, down))
            ),
        ]
        for place, (plane, mask, spacing) in enumerate(views):
            panel = _panel(plane, mask if name == "after" else None, placed.levels, spacing)
            x, y = 8 + place * (PANEL + 8), 8 + line * (PANEL + 8)
            figure.paste(panel, (x + (PANEL - panel.width) // 2, y))
            caption = (f"slice {middle}", f"row {row}", f"column {column}")[place]
            draw.text((x + PANEL // 2, y + PANEL - 4), f"{caption}, {name}", fill=TUMOUR_COLOUR, font=font, anchor="md")
    return figure


def _panel(plane: np.ndarray, mask: np.ndarray | None, levels, spacing: tuple[float, float]) -> Image.Image:
    """A plane in its true shape, with the outline of the mask inside it."""
    height, width = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    zoom = PANEL / max(height, width)
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    return outlined(eight_bit(plane, levels), mask, TUMOUR_COLOUR, size=size, line=1)
