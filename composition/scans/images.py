"""This module turns the files that medical users have into arrays of scans and masks, and writes such arrays back to
files. The readers of the formats say what the stored values of a file are; what they mean as a scan and as a mask is
decided here, once for all formats.

It reads PNG, JPEG and TIFF in 8 and 16 bits, anything else that Pillow opens, and DICOM and NIfTI with the extra
`medical`. A number after a "#" names one slice of a stack (NIfTI, multi-frame TIFF or DICOM): `brain.nii.gz#42`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sd21.files import atomic

from .dicom import is_dicom, read_dicom
from .errors import BlankError, ScanError
from .nifti import is_nifti, read_nifti
from .raster import read_raster
from .slices import Slice, split_slice

# A lossy file rings around its edges, so that "nonzero" would grow a mask by several pixels. In such a file, the inside
# of a mask starts at this value.
LOSSY_THRESHOLD = 128
# Resampling and scales in float32 (24 bits, 6e-8) leave zeros of a float mask as traces, relative to its largest value.
# The smallest share that is meant as inside is far larger: 1 of 65535 classes is 1.5e-5.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Scan:
    """An image as it was stored: pixels (H, W) grayscale or (H, W, 3) RGB, uint8 or uint16.

    `window` is the pair of stored values that stand for black and white: 0 and 255 in 8 bits, and in 16 bits the scan's
    own least and greatest value, since 16-bit files often use a small part of their range (12-bit detectors). `levels`
    is another such pair: a part of a scan has that of the whole, and a DICOM that of its window. unit: of the values
    where they have a physical scale, as "HU"; None where grey means nothing by itself.

    Raises TypeError for pixels that are no numpy array, and ScanError for an array that is no such image or is blank.
    """

    pixels: np.ndarray
    name: str = "scan"
    unit: str | None = None
    levels: tuple[int, int] | None = None

    def __post_init__(self):
        p = self.pixels
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"{self.name}: expected its pixels as a numpy array, got {type(p).__name__}; read_scan takes a file or "
                "a Pillow image, and numpy.asarray makes arrays of others"
            )
        if p.dtype not in (np.uint8, np.uint16) or p.ndim not in (2, 3) or (p.ndim == 3 and p.shape[2] != 3):
            raise ScanError(f"{self.name}: expected uint8 or uint16 (H, W) or (H, W, 3), got {p.dtype} {p.shape}")
        if self.levels is not None and not self.levels[0] < self.levels[1]:
            raise ScanError(f"{self.name}: levels are the values of black and white, got {self.levels}")
        if p.size == 0 or (self.levels is None and p.min() == p.max()):
            raise BlankError(f"{self.name} is blank (one value, or no pixel at all): there is nothing to compose")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[:2]

    @property
    def grayscale(self) -> bool:
        """One channel, or three equal ones, as grayscale scans saved as RGB have."""
        return self.pixels.ndim == 2 or bool((self.pixels == self.pixels[..., :1]).all())

    @property
    def window(self) -> tuple[int, int]:
        if self.levels is not None:
            return self.levels
        if self.pixels.dtype == np.uint8:
            return 0, 255
        return int(self.pixels.min()), int(self.pixels.max())

    def part(self, rows: slice, columns: slice) -> Scan:
        """The pixels of these rows and columns, in the whole scan's window."""
        return replace(self, pixels=self.pixels[rows, columns], levels=self.window)

    def values(self) -> np.ndarray:
        """The pixels as float32 (H, W, 3) in [-1, 1], the network's range."""
        return values_of(self.pixels, self.window)

    def render(self, values: np.ndarray, *, grayscale: bool) -> np.ndarray:
        """Float values (H, W, 3) in [-1, 1] as pixels in this scan's bit depth and window; values outside are clipped.

        grayscale=True averages the channels and keeps this scan's number of them. False gives three channels, except in
        16 bits: Pillow writes no 16-bit colour, so a 16-bit scan stays grayscale.
        """
        low, high = self.window
        values = values.astype(np.float64)
        if grayscale or self.pixels.dtype == np.uint16:
            values = values.mean(axis=2)
        pixels = np.rint((np.clip(values, -1, 1) + 1) * ((high - low) / 2) + low).astype(self.pixels.dtype)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim < self.pixels.ndim else pixels


def check_scan(name: str, value: object) -> None:
    """Raises TypeError, which says how to get one, for an argument that is no Scan."""
    if not isinstance(value, Scan):
        raise TypeError(
            f"{name} is {described(value)}; expected a Scan: read_scan(path) reads one from a file, Scan(pixels) makes "
            "one of an array"
        )


def described(value: object) -> str:
    """What a caller gave, in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array, {value.dtype} {value.shape}"
    return f"{value!r}, a {type(value).__name__}" if isinstance(value, str) else f"a {type(value).__name__}"


def values_of(pixels: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Stored pixels (H, W) or (H, W, 3) as float32 (H, W, 3), the window's two ends at -1 and 1."""
    low, high = window
    values = (pixels.astype(np.float64) - low) * (2 / (high - low)) - 1
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    return rgb.astype(np.float32)


def read_scan(source: str | Path | Image.Image) -> Scan:
    """Read a scan from a file, or take a Pillow image. The file's orientation tag is applied.

    Transparency is laid on black, palettes are looked up, and CMYK and the like become RGB. Grayscale of more than 8
    bits, integer or float, becomes 16 bits: values that fit stay as stored, others are scaled from their own range to
    0..65535. (Pillow reads 16-bit *colour* in 8 bits.) DICOM and NIfTI become 16 bits over the window that the file
    states, whose ends are then the scan's levels, or else over their own range; in colour they become 8-bit RGB. Values
    that are not finite, as around a head, count as the least finite one.

    Raises ScanError for what is unreadable, blank, too large, or a stack without "#slice", and ImportError if the extra
    is missing.
    """
    name = str(source) if isinstance(source, str | Path) else "image"
    read = _read(source, name, labels=False)
    pixels = read.values if read.alpha is None else _on_black(read.values, read.alpha)
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = _to_uint16(pixels, read.levels, name)
    scan = Scan(pixels, name, read.unit)
    return scan if read.levels is None else replace(scan, levels=(0, 65535))


def read_mask(source: str | Path | Image.Image) -> np.ndarray:
    """Read a mask of any mode as a bool array (H, W), by the same readers as a scan: inside is where it is nonzero.

    In DICOM, the stored values count. In colour, any nonzero channel is inside; fully transparent pixels are outside;
    an image that is all black under its alpha channel is read by the alpha alone. In lossy files (JPEG), inside is half
    of the range or more. Among floats, what is no number is outside, and so is what is no more than ROUNDING of the
    mask's largest value.

    Raises ScanError for a file that is unreadable or too large, for a mask that is empty, and for one in palette
    colours whose background is not black; ImportError if the extra is missing.
    """
    name = str(source) if isinstance(source, str | Path) else "mask"
    read = _read(source, name, labels=True)
    if read.lossy:
        inside = read.values >= (LOSSY_THRESHOLD if read.values.dtype == np.uint8 else read.values.max() / 2)
    elif read.values.dtype.kind == "f":
        size = np.abs(read.values)
        inside = size > ROUNDING * size.max(initial=0, where=np.isfinite(size))  # no comparison holds for a nan
    else:
        inside = read.values != 0
    inside = inside.any(axis=2) if inside.ndim == 3 else inside
    if read.alpha is not None:
        inside = inside & (read.alpha > 0) if inside.any() else read.alpha > 0
    if not inside.any():
        least = f"{LOSSY_THRESHOLD} or more, since its compression is lossy" if read.lossy else "nonzero"
        raise ScanError(f"{name}: the mask is empty; inside is where it is {least}")
    return inside


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """The bool mask (H, W) of a box x, y, width, height in pixels, on a scan of size (height, width)."""
    x, y, width, height = box
    rows, columns = size
    if width < 1 or height < 1:
        raise ScanError(f"the box x, y, width, height = {box} holds no pixel; expected a width and height of 1 or more")
    if x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise ScanError(f"the box x, y, width, height = {box} does not lie wholly on the {columns}x{rows} scan")
    mask = np.zeros(size, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def write_image(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 or uint16 pixels, or a bool mask as 0 and 255, to PNG or TIFF, under another name until complete."""
    path = Path(path)
    image = Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels)
    with atomic(path) as temporary:
        image.save(temporary)


def _read(source: str | Path | Image.Image, name: str, labels: bool) -> Slice:
    """The slice that is meant, by its format's reader. labels: whether it is a mask."""
    if isinstance(source, Image.Image):
        return read_raster(source, None, name, labels=labels)
    path, index = split_slice(source)
    reader = read_nifti if is_nifti(path) else read_dicom if is_dicom(path) else read_raster
    return reader(path, index, name, labels=labels)


def _on_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 values (H, W) or (H, W, 3) under their alpha (H, W), laid on black."""
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    image = Image.fromarray(np.dstack([rgb, alpha]))
    laid = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image))
    return laid[..., :3] if values.ndim == 3 else laid[..., 0]


def _to_uint16(values: np.ndarray, levels: tuple[float, float] | None, name: str) -> np.ndarray:
    """Scale grayscale values to the whole range of 16 bits, from the levels of black and white or their own ends."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BlankError(f"{name} is blank: it holds no finite number")
    if not finite.all():
        values[~finite] = values.min(where=finite, initial=np.inf)
    low, high = levels or (values.min(), values.max())
    values -= low  # in place, because a slice of MOST_PIXELS takes half a gigabyte
    values *= 65535 / max(high - low, np.finfo(float).tiny)
    return np.rint(np.clip(values, 0, 65535, out=values), out=values).astype(np.uint16)
