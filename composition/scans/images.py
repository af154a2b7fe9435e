"""This module turns the files that medical users have into arrays of scans and masks, and writes such arrays back to
files. The readers of the formats say what the stored values of a file are; what they mean as a scan and as a mask is
decided here, once for all formats.

It reads PNG, JPEG and TIFF in 8 and 16 bits, anything else that Pillow opens, and DICOM and NIfTI with the extra
`medical`. A number after a "#" names one slice of a stack (NIfTI, multi-frame TIFF or DICOM): `brain.nii.gz#42`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sd21.files import atomic

from .dicom import is_dicom, read_dicom
from .errors import BlankError, EmptyError, ScanError
from .nifti import is_nifti, read_nifti
from .raster import read_raster
from .slices import Meaning, Slice, robust_ends, split_slice

# A lossy file rings around its edges, so that "nonzero" would grow a mask by several pixels. In such a file, the inside
# of a mask starts at this value.
LOSSY_THRESHOLD = 128
# Resampling and scales in float32 (24 bits, 6e-8) leave zeros of a float mask as traces, relative to its largest value.
# The smallest share that is meant as inside is far larger: 1 of 65535 classes is 1.5e-5.
ROUNDING = 1e-6
LEAST_SPAN = 8 / 255  # of a window that a user states; what spans less is black or white to the network
NEAR_LABEL = 0.05  # labels in 8 bits with a scale are off by 0.01 and less
MOST_LABELS = 10  # values that a mask of labels has at most, which is told from one with soft edges
# As many as 16 bits have, and finer than what 8 bits show.
STEPS = 65535


@dataclass(frozen=True)
class Scan:
    """An image as it was stored: pixels (H, W) grayscale, of any type of number, or (H, W, 3) RGB, uint8 or uint16.

    `window` is the pair of stored values that stand for black and white; black may be the greater. `levels` states it:
    DICOM and NIfTI files often do, and a part of a scan has that of the whole. Without, it is 0 and 255 in 8 bits, and
    `robust_ends` else, since other files use a small part of their range. meaning: what the stored values stand for.

    Raises TypeError for pixels that are no numpy array, and ScanError for an array that is no such image or is blank.
    """

    pixels: np.ndarray
    name: str = "scan"
    levels: tuple[float, float] | None = None
    meaning: Meaning = Meaning()  # noqa: RUF009 (it is frozen)

    def __post_init__(self):
        p = self.pixels
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"{self.name}: expected its pixels as a numpy array, got {type(p).__name__}; read_scan takes a file or "
                "a Pillow image, and numpy.asarray makes arrays of others"
            )
        gray = p.ndim == 2 and p.dtype.kind in "uif"
        if not gray and not (p.ndim == 3 and p.shape[2] == 3 and p.dtype in (np.uint8, np.uint16)):
            raise ScanError(
                f"{self.name}: expected numbers (H, W), or uint8 or uint16 (H, W, 3), got {p.dtype} {p.shape}"
            )
        if self.levels is not None and not (np.isfinite(self.levels).all() and self.levels[0] != self.levels[1]):
            raise ScanError(f"{self.name}: levels are the values of black and white, got {self.levels}")
        finite = p[np.isfinite(p)] if p.dtype.kind == "f" else p
        if p.size == 0 or (self.levels is None and (finite.size == 0 or finite.min() == finite.max())):
            raise BlankError(f"{self.name} is blank (one value, or no pixel at all): there is nothing to compose")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[:2]

    @property
    def unit(self) -> str | None:
        """Of the values where they have a physical scale, as "HU"."""
        return self.meaning.unit

    @property
    def grayscale(self) -> bool:
        """One channel, or three equal ones, as grayscale scans saved as RGB have."""
        return self.pixels.ndim == 2 or bool((self.pixels == self.pixels[..., :1]).all())

    @property
    def window(self) -> tuple[float, float]:
        if self.levels is not None:
            return self.levels
        return (0, 255) if self.pixels.dtype == np.uint8 else robust_ends(self.pixels)

    def part(self, rows: slice, columns: slice) -> Scan:
        """The pixels of these rows and columns, in the whole scan's window."""
        return replace(self, pixels=self.pixels[rows, columns], levels=self.window)

    def values(self) -> np.ndarray:
        """The pixels as float32 (H, W, 3) in [-1, 1], the network's range; see `values_of`."""
        return values_of(self.pixels, self.window)

    def render(self, values: np.ndarray, *, grayscale: bool) -> np.ndarray:
        """Float values (H, W, 3) in [-1, 1] as pixels of this scan's type, within its window.

        A pixel that has this scan's own value, to one of STEPS between black and white, stays as it is stored: so what
        lies outside the window comes back. grayscale=True averages the channels and keeps this scan's number of them.
        False gives three channels, except for a scan of (H, W) that is not uint8: no file that we write has them.
        """
        black, white = self.window
        stored, dtype = self.pixels, self.pixels.dtype
        values, own = values.astype(np.float64), self.values()
        if grayscale or (dtype != np.uint8 and stored.ndim == 2) or dtype == np.uint16:
            values, own = (each.mean(axis=2, dtype=np.float64) for each in (values, own))
        values = np.clip(values, -1, 1)
        pixels = (values + 1) * ((white - black) / 2) + black
        pixels = stored_as(pixels, dtype)
        if pixels.ndim < stored.ndim:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
            values, own = values[..., None], own[..., None]
        kept = np.rint((values + 1) * (STEPS / 2)) == np.rint((own.astype(np.float64) + 1) * (STEPS / 2))
        return np.where(kept, stored if stored.ndim == pixels.ndim else stored[..., None], pixels)


def stored_as(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers as those of another type; to one of integers they are rounded, and stay within its ends.

    The greatest of 64 bits is no float, and the last is below it.
    """
    if dtype.kind not in "ui":
        return numbers.astype(dtype)
    least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
    end = float(greatest) if float(greatest) <= greatest else np.nextafter(float(greatest), 0)
    return np.rint(numbers).clip(float(least), end).astype(dtype)


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


def values_of(pixels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Stored pixels (H, W) or (H, W, 3) as float32 (H, W, 3) in [-1, 1], the window's black and white at the two ends.

    What lies outside the window is black or white; what is no number, as around a head, is black.
    """
    black, white = window
    values = (pixels.astype(np.float64) - black) * (2 / (white - black)) - 1
    values = np.nan_to_num(np.clip(values, -1, 1, out=values), copy=False, nan=-1.0)
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    return rgb.astype(np.float32)


def read_scan(source: str | Path | Image.Image, window: tuple[float, float] | None = None) -> Scan:
    """Read a scan from a file, or take a Pillow image. The file's orientation tag is applied.

    Transparency is laid on black, palettes are looked up, and CMYK and the like become RGB. An image's grayscale of
    more than 8 bits becomes 16 bits: values that fit stay as stored, others are scaled from their own range to
    0..65535. (Pillow reads 16-bit *colour* in 8 bits.) The values of DICOM and NIfTI stay as they are stored, over the
    window that the file states, or else over the robust ends of the whole volume; in colour they are 8-bit RGB.

    window: (centre, width) in the file's own values, in place of what the file states, for gray alone.
    Raises ScanError for what is unreadable, blank, too large, or a stack without "#slice", and ImportError if the extra
    is missing.
    """
    name = str(source) if isinstance(source, str | Path) else "image"
    read = _read(source, name, labels=False, windowed=window is None)
    scan = scan_of(read, name, window)
    low, high = sorted(scan.window)
    finite = scan.pixels[np.isfinite(scan.pixels)]
    if finite.size == 0 or finite.min() == finite.max() or finite.max() <= low or finite.min() >= high:
        raise BlankError(
            f"{name} is blank in its window, the stored values {low:g} to {high:g}: there is nothing to compose"
        )
    if window is not None and np.ptp(np.clip(finite, low, high).astype(np.float64)) < LEAST_SPAN * (high - low):
        least, most = (scan.meaning.value_of(float(end)) for end in (finite.min(), finite.max()))
        raise ScanError(
            f"{name} shows hardly a grey over the window {window[0]:g},{window[1]:g}: its values are {least:g} to "
            f"{most:g}; give a window that they span"
        )
    return scan


def scan_of(read: Slice, name: str, window: tuple[float, float] | None = None) -> Scan:
    """The scan that a reader's slice is. name, window: as for `read_scan`."""
    pixels, levels = read.values, read.levels
    if read.alpha is not None:
        pixels = _on_black(pixels, read.alpha)
    if pixels.ndim == 2 and levels is None:
        try:
            levels = robust_ends(pixels)
        except ValueError as error:
            raise BlankError(f"{name} is blank: {error}") from None
        levels = levels[::-1] if read.inverted else levels
        if levels[0] == levels[1]:
            levels = None  # the scan says that it is blank
    if window is not None:
        if pixels.ndim == 3:
            raise ScanError(f"{name} is in colour; a window is for gray")
        levels = stated_levels(window, read.meaning, read.inverted, name)
    return Scan(pixels, name, levels, read.meaning)


def stated_levels(window: tuple[float, float], meaning: Meaning, inverted: bool, name: str) -> tuple[float, float]:
    """The stored values of black and white of a window (centre, width) in the file's own values, whose ends are centre
    and half of the width to each side. inverted: whether the lesser stored value is white. Raises ScanError for a
    window of no width."""
    centre, width = window
    if not (np.isfinite(window).all() and width > 0):
        raise ScanError(f"{name}: a window is a centre and a width above 0, got {centre:g},{width:g}")
    low, high = sorted(meaning.stored_of(end) for end in (centre - width / 2, centre + width / 2))
    return (high, low) if inverted else (low, high)


def read_mask(source: str | Path | Image.Image, label: int | None = None) -> np.ndarray:
    """Read a mask of any mode as a bool array (H, W), by the same readers as a scan: inside is where it is nonzero.

    In DICOM, the stored values count. In colour, any nonzero channel is inside; fully transparent pixels are outside;
    an image that is all black under its alpha channel is read by the alpha alone. In lossy files (JPEG), inside is half
    of the range or more. Among floats, what is no number is outside, and so is what is no more than ROUNDING of the
    mask's largest value.

    label: the value whose pixels are inside, of a mask of several labels, in place of all that.
    Raises ScanError for a file that is unreadable or too large, for a mask that is empty, and for one in palette
    colours whose background is not black; ImportError if the extra is missing.
    """
    name = str(source) if isinstance(source, str | Path) else "mask"
    read = _read(source, name, labels=True)
    if label is not None:
        if read.lossy:
            raise ScanError(f"{name} is compressed with loss, so that nobody knows its labels; save it as PNG")
        return _labelled(read.values, label, name)
    if read.lossy:
        inside = read.values >= (LOSSY_THRESHOLD if read.values.dtype == np.uint8 else read.values.max() / 2)
    elif read.values.dtype.kind == "f":
        size = np.abs(read.values)
        inside = size > ROUNDING * size.max(initial=0, where=np.isfinite(size))  # no comparison holds for a nan
    else:
        inside = read.values != 0
    if inside.ndim == 2 and not read.lossy:
        _warn_of_labels(read.values[inside], name)
    inside = inside.any(axis=2) if inside.ndim == 3 else inside
    if read.alpha is not None:
        inside = inside & (read.alpha > 0) if inside.any() else read.alpha > 0
    if not inside.any():
        least = f"{LOSSY_THRESHOLD} or more, since its compression is lossy" if read.lossy else "nonzero"
        raise EmptyError(f"{name}: the mask is empty; inside is where it is {least}")
    return inside


def has_label(values: np.ndarray, label: int) -> np.ndarray:
    """Where values are those of a label, bool. Scales and resampling in float move them a little."""
    return values == label if values.dtype.kind in "ui" else np.abs(values - label) < NEAR_LABEL


def _warn_of_labels(values: np.ndarray, name: str) -> None:
    """Warn of a mask that holds several labels, since all of them count as inside."""
    found = np.unique(values)
    if 2 <= len(found) <= MOST_LABELS:
        there = ", ".join(f"{value:g}" for value in found)
        warnings.warn(f"{name} holds the values {there}: all are inside; --label N takes one", stacklevel=3)


def _labelled(values: np.ndarray, label: int, name: str) -> np.ndarray:
    """The pixels of one value. Raises ScanError for a mask in colour, and for one that lacks the value."""
    if values.ndim == 3:
        raise ScanError(f"{name} is in colour, and label {label} is a value of gray; save the labels in gray")
    if label == 0:
        raise ScanError(f"{name}: label 0 is what is outside; name the value of the tumour")
    try:
        inside = has_label(values, label)
    except OverflowError:  # a number that no float is
        inside = np.zeros(values.shape, dtype=bool)
    if not inside.any():
        there = ", ".join(f"{value:g}" for value in np.unique(values[np.isfinite(values)])[:10])
        raise EmptyError(f"{name} holds no label {label}; its values are {there}")
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


def _read(source: str | Path | Image.Image, name: str, labels: bool, windowed: bool = True) -> Slice:
    """The slice that is meant, by its format's reader. labels: whether it is a mask. windowed: whether the window
    counts that the file states."""
    if isinstance(source, Image.Image):
        return read_raster(source, None, name, labels=labels)
    path, index = split_slice(source)
    if is_nifti(path):
        return read_nifti(path, index, name, labels=labels)
    if is_dicom(path):
        return read_dicom(path, index, name, labels=labels, windowed=windowed)
    return read_raster(path, index, name, labels=labels)


def _on_black(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 values (H, W) or (H, W, 3) under their alpha (H, W), laid on black."""
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    image = Image.fromarray(np.dstack([rgb, alpha]))
    laid = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image))
    return laid[..., :3] if values.ndim == 3 else laid[..., 0]
