"""This module reads PNG, JPEG, TIFF and what else Pillow opens, and says what their stored values mean. It is the
reader of all files that are neither DICOM nor NIfTI, and of Pillow's images in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import BlankError, ScanError, damage_named
from .slices import Slice, check_regular, check_size, slice_number

LOSSY_FORMATS = ("JPEG", "MPO", "AVIF")
FEW = 8  # values that a file of labels has at most, if nobody knows whether its compression is lossy
# TIFF's tag of the compression, and those that ring: JPEG, old and new, JPEG 2000 and WebP in several numbers.
COMPRESSION, LOSSY_COMPRESSIONS = 259, (6, 7, 33003, 33004, 33005, 34712, 34892, 50001)
# Pillow walks along the frames of a TIFF to count them, and takes ever longer for each. A stack of so many takes
# seconds, and no scanner writes one.
MOST_FRAMES = 2**13
# TIFF's tags and the value of PhotometricInterpretation that says that 0 is white (TIFF 6.0, pages 37 and 80).
PHOTOMETRIC, SAMPLE_FORMAT, BITS = 262, 339, 258
WHITE_IS_ZERO, UNSIGNED = 0, 1


def read_raster(source: Path | Image.Image, index: int | None, name: str, *, labels: bool = False) -> Slice:
    """An image, its orientation tag applied and its palette looked up. Gray of up to 8 bits is (H, W) uint8, gray of
    more is uint16, scaled from its own range where its values do not fit; colour is (H, W, 3) uint8.

    index: the frame's number, or None for the only one. name: the file's name in messages. labels: for a mask, whose
    palette must have black for its background. Raises ScanError for a file that cannot be used.
    """
    if isinstance(source, Path):
        check_regular(source, name)
    with damage_named(name, "an image"), _bombs_refused(), _opened(source, index, name) as opened:
        lossy = _is_lossy(opened, source)
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or image.mode[0] == "I":
            values = _white_is_bright(np.asarray(image), opened)
            if labels:
                return Slice(values, lossy=lossy)
            fits = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535
            return Slice(values.astype(np.uint16) if fits else _to_uint16(values, name))
        if labels and image.mode in ("P", "PA"):
            _check_palette(image, name)
        gray = image.mode in ("1", "L", "LA")
        levels = (0, 255) if gray else None  # what 8 bits show, however little of it the scan takes
        if image.has_transparency_data:
            channels = np.asarray(image.convert("RGBA"))
            shown = channels[..., 0] if gray else channels[..., :3]
            return Slice(shown, alpha=channels[..., 3], levels=levels, lossy=lossy)
        return Slice(np.asarray(image.convert("L" if gray else "RGB")), levels=levels, lossy=lossy)


@contextmanager
def _bombs_refused() -> Iterator[None]:
    """Within the block, Pillow's warning of a giant image is an error; it warns of what is larger than we read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(source: Path | Image.Image, index: int | None, name: str) -> Iterator[Image.Image]:
    """The frame that is meant, loaded, or the image itself."""
    if isinstance(source, Image.Image):
        check_size(source.height, source.width, name)
        yield source
        return
    with Image.open(source) as image:
        check_size(image.height, image.width, name)  # before frames are unpacked on the way to another
        image.seek(slice_number(_frames(image, name), index, name))
        check_size(image.height, image.width, name)  # frames may differ
        image.load()
        yield image


def _frames(image: Image.Image, name: str) -> int:
    """How many frames a file holds. Raises ScanError for a TIFF of more than MOST_FRAMES."""
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    for count in range(1, MOST_FRAMES + 1):
        try:
            image.seek(count)
        except EOFError:
            return count
    raise ScanError(f"{name} holds more than {MOST_FRAMES} frames; split it")


def _to_uint16(values: np.ndarray, name: str) -> np.ndarray:
    """Scale gray values to the whole range of 16 bits, from their own ends. What is not finite counts as the least."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise BlankError(f"{name} is blank: it holds no finite number")
    low, high = values.min(where=finite, initial=np.inf), values.max(where=finite, initial=-np.inf)
    values[~finite] = low
    values -= low  # in place, because a slice of MOST_PIXELS takes half a gigabyte
    values /= max(high - low, np.finfo(float).tiny)
    return np.rint(np.multiply(values, 65535, out=values), out=values).astype(np.uint16)


def _is_lossy(image: Image.Image, source: Path | Image.Image) -> bool:
    """Whether an image's compression may have changed its values, by what the file holds and not by its suffix."""
    if image.format == "TIFF":
        return image.tag_v2.get(COMPRESSION) in LOSSY_COMPRESSIONS
    if image.format == "JPEG2000":
        return _is_irreversible(source) or len(np.unique(np.asarray(image))) > FEW
    if image.format != "WEBP":
        return image.format in LOSSY_FORMATS
    if not isinstance(source, Path):  # its file may be gone
        return True
    return b"VP8L" not in _chunks(source.read_bytes())


def _is_irreversible(source: Path | Image.Image) -> bool:
    """Whether a JPEG 2000 file says that its wavelet loses something. One that says it does not may have lost code
    blocks all the same, of which the header tells nothing."""
    if not isinstance(source, Path):
        return True
    content = source.read_bytes()
    start = content.find(b"\xff\x52", content.find(b"\xff\x4f"))  # the coding style, in the codestream
    return content[start + 13 : start + 14] != b"\1"  # 1 is the reversible wavelet (ITU-T T.800, table A.20)


def _chunks(content: bytes) -> Iterator[bytes]:
    """The names of the chunks of a WebP file (RFC 9649), of which VP8L holds a lossless image."""
    place = 12
    while place + 8 <= len(content):
        yield content[place : place + 4]
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + length + length % 2


def _white_is_bright(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Values of more than 8 bits, inverted where a TIFF says that white is zero; Pillow inverts those of up to 8.

    White becomes the greatest value that the bits hold. Floats and signed numbers have none that could be meant, so the
    greatest value of the image counts there. A mask is inverted just so, and its inside is what is not black.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) != WHITE_IS_ZERO:
        return values
    bits, kind = tags.get(BITS, (32,))[0], tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0]
    if kind == UNSIGNED and bits <= 16:
        return (2**bits - 1 - values.astype(np.int32)).astype(np.uint16)
    finite = values[np.isfinite(values)]
    return finite.max(initial=0).astype(np.float64) - values


def _check_palette(image: Image.Image, name: str) -> None:
    """Raises ScanError for a mask in palette colours whose background is not black: in a colour map, all of its colours
    may be nonzero, and the inside cannot be told from them.

    The background is the commonest index on the border, or index 0 where that is black, since a large lesion may cover
    the border. A transparent background is outside by its alpha.
    """
    indices, colours = np.asarray(image.getchannel(0)), np.asarray(image.convert("RGBA"))

    def black(index: int) -> bool:
        used = colours[indices == index]
        return len(used) > 0 and (used[0, 3] == 0 or not used[0, :3].any())

    border = np.concatenate([indices[0], indices[-1], indices[:, 0], indices[:, -1]])
    commonest = int(np.bincount(border).argmax())
    if not black(commonest) and not black(0):
        colour = tuple(colours[indices == commonest][0, :3].tolist())
        raise ScanError(
            f"{name} is a mask in palette colours, and its background is not black: index {commonest}, the commonest "
            f"on its border, is RGB {colour}; save the mask in gray, 0 outside"
        )
