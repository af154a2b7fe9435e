"""This module reads DICOM, one frame at a time, through pydicom, and says what its stored values mean. It is apart
because pydicom comes with the optional extra `medical` only.

Stored values become grey in the two steps of PS3.3: C.11.1, the modality's, to a physical scale such as Hounsfield
units, and C.11.2, the values of interest (VOI), to black and white.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import ScanError, damage_named, extra_needed
from .slices import Meaning, Slice, check_regular, check_size, slice_number

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
PREAMBLE, MAGIC = 128, b"DICM"  # a DICOM file starts with so many bytes of any kind, and then with these
BEGINNING = 1024  # bytes of a file, of which its meta information takes a few hundred
GROUP_LENGTH = 12  # bytes of the element after these, which says how long the rest of the file's meta information is
# What a deflated file may unpack to. pydicom unpacks it whole, and a small file can hold terabytes of zeros.
MOST_UNPACKED = 2**28
# The colours that pydicom's decoders return as RGB.
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or, because many have no suffix, by its first bytes."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:  # a file that may not be read: the reader says so
        return False


def read_dicom(path: Path, index: int | None, name: str, *, labels: bool = False, windowed: bool = True) -> Slice:
    """One frame. Grey (H, W) is as stored, its levels the ends of the window that the file states; through a table or a
    sigmoid it is float64. Colour, by palette too, is (H, W, 3) uint8.

    index: the frame's number, or None for the only one. name: the file's name in messages. labels: for a mask, whose
    values are numbers of classes: they are taken as stored, because neither a physical scale nor a window is meant for
    them. windowed=False leaves out the window, and what the file has in its place, for a caller who has another.
    Raises ScanError for a file that cannot be used, and ImportError if pydicom is not installed.
    """
    with extra_needed("pydicom", name):
        import pydicom.pixels.utils
    check_regular(path, name)
    with damage_named(name, "DICOM"):
        header, whole = read_header(path, name)
    _check_decoder(header, name)
    with damage_named(name, "DICOM"):
        if header.get("Rows") is None or header.get("Columns") is None:
            raise ScanError(f"{name} is a DICOM file without an image; name the file of a scan")
        check_size(header.Rows, header.Columns, name)
        kind = header.PhotometricInterpretation
        colour = header.get("SamplesPerPixel", 1) != 1
        if colour and (kind not in COLOURS or header.BitsStored != 8 or header.BitsAllocated != 8):
            raise ScanError(
                f"{name} is a colour DICOM, {kind} in {header.BitsStored} bits; expected RGB or YBR in 8 bits: export "
                "it as PNG"
            )
        number = slice_number(pydicom.pixels.utils.get_nr_frames(header), index, name)
        # From a path, pydicom reads the bytes of this frame alone.
        stored = pydicom.pixels.pixel_array(header if whole else path, index=number)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        if labels:
            return Slice(stored, lossy=is_lossy(header))
        if colour or kind == "PALETTE COLOR":
            meaning = Meaning(modality=header.get("Modality") or None, **_place(header, number))
            return replace(Slice(stored) if colour else _palette_colours(stored, header), meaning=meaning)
        return _grey(stored, header, number, invert=kind == "MONOCHROME1", windowed=windowed)


def read_header(path: Path, name: str) -> tuple[Dataset, bool]:
    """A file's attributes, and whether its pixels are among them, as where they are compressed. Raises ScanError for a
    file that holds no DICOM, and what `read_dicom` names besides.

    Some programs leave out the preamble and what follows it; pydicom guesses the encoding of such a file.
    """
    import pydicom
    from pydicom import uid

    with path.open("rb") as file:
        start = file.read(BEGINNING)
    if start[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC:
        whole = _is_compressed(path)
        return pydicom.dcmread(path, stop_before_pixels=not whole), whole
    if uid.DeflatedExplicitVRLittleEndian.encode() in start:  # it would be unpacked here without a limit
        raise ValueError("it is deflated and has no preamble; save it without compression")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of what is no DICOM
        header = pydicom.dcmread(path, force=True)
        if any(header.get(keyword) is None for keyword in ("Rows", "Columns", "PixelData")):
            raise ScanError(
                f"{name} lacks the preamble of a DICOM file, and read without it, it shows no image; expected a scan: "
                "export it anew, as DICOM or PNG"
            )
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return header, True


def _check_decoder(header: Dataset, name: str) -> None:
    """Raises ImportError for a compression that the extra decodes and is not installed, and ScanError for one that
    nothing here decodes."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        if syntax is None or not syntax.is_encapsulated:
            return
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError):  # a film, or a compression that nobody knows
        decoder = None
    if decoder is not None and decoder.is_available:
        return
    if decoder is not None and any(one.startswith("gdcm") for one in decoder.missing_dependencies):
        with extra_needed("python-gdcm", name):
            raise ImportError(f"{syntax.name} takes a decoder")
    raise ScanError(f"{name} is compressed as {syntax.name}, which nothing here decodes; save it without compression")


def is_lossy(header: Dataset) -> bool:
    """Whether a file's compression is, or once was, of a lossy kind, which rings around edges."""
    from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

    kinds = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
    return header.get("LossyImageCompression") == "01" or header.file_meta.get("TransferSyntaxUID") in kinds


def _grey(stored: np.ndarray, header: Dataset, number: int, *, invert: bool, windowed: bool) -> Slice:
    little = header.original_encoding[1]
    scale, voi = (_module(header, number, name) for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"))
    meaning = _meaning(header, scale, number)
    values = stored
    if scale.get("ModalityLUTSequence"):
        values = _looked_up(stored, scale.ModalityLUTSequence[0], little)[0]
    backwards = invert != (meaning.slope < 0)
    seen, levels = _voi(values, meaning, voi, little) if windowed else (values, None)
    if seen is not values:  # the file's scale is not theirs
        meaning = replace(meaning, slope=1.0, intercept=0.0, unit=None)
    return Slice(seen, levels=levels[::-1] if levels and invert else levels, inverted=backwards, meaning=meaning)


def _meaning(header: Dataset, scale: Dataset, number: int) -> Meaning:
    """What a frame's stored values and pixels stand for. A table of the modality has no slope."""
    slope, intercept = _first_number(scale, "RescaleSlope", 1), _first_number(scale, "RescaleIntercept", 0)
    if scale.get("ModalityLUTSequence") or slope == 0:
        slope, intercept = 1, 0
    modality = header.get("Modality") or None
    return Meaning(
        slope,
        intercept,
        # The values of computed tomography are Hounsfield units (PS3.3, C.8.2.1).
        unit="HU" if modality == "CT" else None,
        modality=modality,
        **_place(header, number),
    )


def _place(header: Dataset, number: int) -> dict:
    """Meaning's slice, spacing and measured: of the patient, else of the detector or the film, else the ratio alone."""
    found = {"slice": number if header.get("NumberOfFrames") else None, "spacing": None, "measured": False}
    measures = _module(header, number, "PixelMeasuresSequence")
    for module, keyword, measured in (
        (measures, "PixelSpacing", True),
        (header, "ImagerPixelSpacing", True),
        (header, "NominalScannedPixelSpacing", True),
        (header, "PixelAspectRatio", False),
    ):
        try:
            down, across = (float(number) for number in module.get(keyword))
        except (TypeError, ValueError):  # absent, empty, or not two numbers
            continue
        if 0 < down < math.inf and 0 < across < math.inf:
            return found | {"spacing": (down, across), "measured": measured}
    return found


def _functional_groups(header: Dataset, number: int) -> list[Dataset]:
    """A frame's own functional group, and that of all frames, as far as the file has them (PS3.3, C.7.6.16)."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return [*own[number : number + 1], *shared[:1]]


def _module(header: Dataset, number: int, functional_group: str) -> Dataset:
    """Where a frame's attributes stand: in its own functional group, in that of all frames, as enhanced files have
    them, or in the file itself."""
    for group in _functional_groups(header, number):
        if group.get(functional_group):
            return group.get(functional_group)[0]
    return header


def _voi(
    values: np.ndarray, meaning: Meaning, module: Dataset, little: bool
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Stored values and the two of them that stand for black and white, None where the file states none
    (PS3.3, C.11.2).

    Where it states several, the first counts, and a table before a window. A table and a sigmoid change the values.
    """
    if module.get("VOILUTSequence"):
        return _looked_up(_scaled(values, meaning), module.VOILUTSequence[0], little)
    center, width = (_first_number(module, keyword, None) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return values, None
    function = str(module.get("VOILUTFunction") or "LINEAR").upper()
    least = 1 if function == "LINEAR" else math.ulp(0)
    if width < least:
        raise ValueError(f"the Window Width is {width:g}; expected {'1 or more' if least == 1 else 'more than 0'}")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window, exp is inf and the value 0
            return 1 / (1 + np.exp(-4 * (_scaled(values, meaning) - center) / width)), (0, 1)
    if function == "LINEAR":
        low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    elif function == "LINEAR_EXACT":
        low, high = center - width / 2, center + width / 2
    else:
        raise ValueError(f"the VOI LUT Function is {function}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    if low == high:  # a linear window of width 1 is a threshold
        return (_scaled(values, meaning) > low).astype(np.float64), (0, 1)
    return values, tuple((end - meaning.intercept) / meaning.slope for end in (low, high))


def _scaled(values: np.ndarray, meaning: Meaning) -> np.ndarray:
    return values.astype(np.float64) * meaning.slope + meaning.intercept


def _looked_up(values: np.ndarray, item: Dataset, little: bool) -> tuple[np.ndarray, tuple[float, float]]:
    """What a lookup table makes of values, float64, and the ends of the table's range (PS3.3, C.11.1.1 and C.11.2.1.1).

    Values before its first and after its last entry are looked up there. We do not use pydicom's own function: it
    counts entries in the type of the table, so that those beyond 255 of a table in 8 bits come out wrong.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16  # PS3.3: 0 says 65536, which does not fit 16 bits
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "u1" if len(table) < 2 * entries else "<u2" if little else ">u2")
    table = np.asarray(table, dtype=np.float64)[:entries]
    index = np.clip(values - np.float64(first), 0, len(table) - 1).astype(np.intp)
    return table[index], (0, 2**bits - 1)


def attributes_of(header: Dataset, number: int, names: Iterable[str]) -> Dataset:
    """Those of these attributes that a file has, for one of its frames: an enhanced file holds most of them in its
    functional groups, which count before the file itself, as for `_module`. One whose value cannot be read counts as
    absent."""
    from pydicom import Dataset

    found = Dataset()
    groups = _functional_groups(header, number)
    sequences = (element.value for group in groups for element in group if element.VR == "SQ")
    modules = [*(item for items in sequences for item in items[:1]), header]
    for module in reversed(modules):
        for name in names:
            try:
                element = module[name]
            except (KeyError, ValueError, TypeError, OverflowError):  # absent, or a value that its kind cannot have
                continue
            if element.value not in (None, ""):
                found.add(element)
    return found


def _palette_colours(stored: np.ndarray, header: Dataset) -> Slice:
    """The colours (H, W, 3) uint8 of a palette's indices (PS3.3, C.7.6.3.1.5)."""
    from pydicom.pixels import apply_color_lut

    entries, first, bits = header.RedPaletteColorLookupTableDescriptor
    entries = entries or 2**16
    if bits == 8 and entries > 256:
        raise ValueError(f"its palette has {entries} entries in 8 bits; expected at most 256: export it as PNG")
    # pydicom counts the entries in the type of the table, where indices beyond its ends would wrap around.
    colours = apply_color_lut(np.clip(stored.astype(np.int32), first, first + entries - 1), header)
    if colours.max(initial=0) > 255:  # some files hold 8-bit colours in tables of 16 bits
        colours = colours >> 8
    colours = colours.astype(np.uint8)
    return Slice(colours[..., :3], alpha=colours[..., 3] if colours.shape[2] == 4 else None)


def _first_number(module: Dataset, keyword: str, absent: float | None) -> float | None:
    """The first of an attribute's numbers; an attribute that is there and empty counts as absent."""
    value = module.get(keyword)
    if isinstance(value, (list, tuple)) or hasattr(value, "append"):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return absent
    if not math.isfinite(float(value)):
        raise ValueError(f"its {keyword} is {value}; expected a finite number")
    return float(value)


def _is_compressed(path: Path) -> bool:
    """Whether a file or its frames are compressed. Raises ValueError for a deflated file, one that is compressed as a
    whole, that unpacks to more than MOST_UNPACKED bytes."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    syntax = meta.get("TransferSyntaxUID")
    if syntax != DeflatedExplicitVRLittleEndian:
        return syntax is not None and syntax.is_encapsulated
    inflater, unpacked = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(PREAMBLE + len(MAGIC) + GROUP_LENGTH + meta.FileMetaInformationGroupLength)
        while block := file.read(1 << 16):
            unpacked += len(inflater.decompress(block))
            if unpacked > MOST_UNPACKED:
                raise ValueError(f"it unpacks to more than {MOST_UNPACKED} bytes; save it without compression")
    return True
