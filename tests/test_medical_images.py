"""These tests read scans and masks in DICOM, and hold what their stored values mean. Windows that a user states, and
what is written within a window, are in test_windows."""

import struct
import sys

import numpy as np
import pytest
from medical_files import COLOUR, DEEP, HALF, HOUNSFIELD, RESCALED, check_values, dicom_file, item, shown, table

from composition.scans import dicom
from composition.scans.errors import BlankError, ScanError
from composition.scans.images import read_mask, read_scan
from composition.scans.slices import Meaning

# 12-bit values in 16 bits, Hounsfield units with those below 0 stored as such, and 8 bits.
STORED = [DEEP, (DEEP.astype(int) - 1500).astype(np.int16), (DEEP % 251).astype(np.uint8), DEEP.astype(np.int32) * 5000]


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"])
@pytest.mark.parametrize("stored", STORED, ids=[str(stored.dtype) for stored in STORED])
def test_a_dicom_keeps_its_stored_values_and_their_type(tmp_path, stored, syntax):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    scan = read_scan(dicom_file(tmp_path / "scan.dcm", stored, syntax=getattr(pydicom.uid, syntax), **RESCALED))
    assert scan.pixels.dtype == stored.dtype and scan.pixels.dtype.isnative and np.array_equal(scan.pixels, stored)
    assert scan.meaning == Meaning(slope=2, intercept=-1024)
    # Without a window, and of fewer than 10000 pixels, the ends are the least and the greatest.
    assert scan.window == (stored.min(), stored.max())
    check_values(scan, shown(stored, stored.min(), stored.max()))


def test_signed_values_of_12_bits_keep_their_sign(tmp_path):
    stored = (DEEP.astype(int) // 2 - 800).astype(np.int16)
    bits = {"BitsStored": 12, "HighBit": 11}
    # A file may have anything in the four bits above; here they do not repeat the sign.
    path = dicom_file(tmp_path / "scan.dcm", stored & np.int16(0x0FFF), PixelRepresentation=1, **bits)
    scan = read_scan(path)
    assert stored.min() < 0 and np.array_equal(scan.pixels, stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("slope", [1, -1])
def test_without_a_window_bright_is_bright(tmp_path, dtype, slope):
    stored = (DEEP % 120).astype(dtype)
    ends = stored.min(), stored.max()
    for kind, backwards in (("MONOCHROME2", slope < 0), ("MONOCHROME1", slope > 0)):
        scale = {"RescaleSlope": slope, "RescaleIntercept": 10, "Modality": "CT"}
        scan = read_scan(dicom_file(tmp_path / "no_suffix", stored, PhotometricInterpretation=kind, **scale))
        assert scan.window == (ends[::-1] if backwards else ends) and scan.unit == "HU"
        check_values(scan, shown(stored, *scan.window))
        assert np.array_equal(scan.pixels, stored)
        # The file states none, and a series takes one of all its slices.
        assert dicom.read_dicom(tmp_path / "no_suffix", None, "scan").levels is None


# The ends of each window by PS3.3, C.11.2.1.2 and C.11.2.1.3; the second is wider than the data, -824 to 5390.
@pytest.mark.parametrize(
    ("window", "low", "high"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 1000}, 1500, 2499),
        ({"WindowCenter": 2000, "WindowWidth": 20001}, -8000.5, 11999.5),
        ({"WindowCenter": [2000, 40], "WindowWidth": [1000, 400]}, 1500, 2499),
        ({"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}, 1500, 2500),
    ],
    ids=["narrow", "wide", "the first of two", "exact"],
)
def test_a_dicom_is_read_over_its_window(tmp_path, window, low, high):
    scan = read_scan(dicom_file(tmp_path / "window.dcm", **RESCALED, **window))
    check_values(scan, shown(HOUNSFIELD, low, high))
    # The levels are stored values: 2 * stored - 1024. Both are sums of a few halves, which are exact.
    levels = (low + 1024) / 2, (high + 1024) / 2
    assert scan.window == levels == scan.part(slice(0, 3), slice(0, 3)).window
    dark = read_scan(dicom_file(tmp_path / "dark", PhotometricInterpretation="MONOCHROME1", **RESCALED, **window))
    assert dark.window == levels[::-1]
    check_values(dark, -shown(HOUNSFIELD, low, high))
    # Where the slope is negative, the greater stored value is the darker one.
    scale = {"RescaleSlope": -2, "RescaleIntercept": 5000}
    negative = read_scan(dicom_file(tmp_path / "negative.dcm", **scale, **window))
    assert negative.window == ((5000 - low) / 2, (5000 - high) / 2)
    check_values(negative, shown(5000 - 2.0 * DEEP, low, high))
    assert np.array_equal(negative.pixels, DEEP)


def test_windows_of_other_shapes(tmp_path):
    window = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}
    expected = shown(1 / (1 + np.exp(-4 * (HOUNSFIELD - 2000) / 1000)), 0, 1)
    scan = read_scan(dicom_file(tmp_path / "s", Modality="CT", **RESCALED, **window))
    check_values(scan, expected)
    # These values are no longer those of the file, so that its scale is not theirs.
    assert (scan.meaning.slope, scan.meaning.intercept, scan.unit) == (1, 0, None)
    dark = read_scan(dicom_file(tmp_path / "d", PhotometricInterpretation="MONOCHROME1", **RESCALED, **window))
    check_values(dark, -expected)
    with np.errstate(all="raise"):  # no division by a range of nothing
        threshold = read_scan(dicom_file(tmp_path / "t", **RESCALED, WindowCenter=1984.5, WindowWidth=1))
    assert (HOUNSFIELD == 1984).any()
    check_values(threshold, shown(HOUNSFIELD > 1984, 0, 1))


def test_what_shows_nothing_in_its_window_is_blank(tmp_path):
    for name, center in (("white", -5000), ("black", 9000)):
        with pytest.raises(BlankError, match=rf"{name}\.dcm is blank in its window"):
            read_scan(dicom_file(tmp_path / f"{name}.dcm", **RESCALED, WindowCenter=center, WindowWidth=100))
    for pixels in (DEEP * 0 + 7, (DEEP * 0 + 7).astype(np.uint8)):
        for window in ({}, {"WindowCenter": 7, "WindowWidth": 100}):
            with pytest.raises(BlankError, match=r"one\.dcm is blank"):
                read_scan(dicom_file(tmp_path / "one.dcm", pixels, **window))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tables_are_looked_up_and_fill_their_own_range(tmp_path, bits):
    white = 2**bits - 1
    entries = np.linspace(white // 4, white // 2, 3000).astype(int)  # more entries than 8 bits count, half of the range
    expected = entries[np.clip(DEEP.astype(int) - 200, 0, 2999)]
    voi = dicom_file(tmp_path / "voi.dcm", VOILUTSequence=[table(entries, 200, bits)], WindowCenter=9, WindowWidth=3)
    check_values(read_scan(voi), shown(expected, 0, white))
    modality = dicom_file(tmp_path / "modality.dcm", ModalityLUTSequence=[table(entries, 200, bits)])
    check_values(read_scan(modality), shown(expected, entries[0], expected.max()))


def test_an_empty_attribute_counts_as_absent(tmp_path):
    empty = {"RescaleSlope": None, "RescaleIntercept": None, "WindowCenter": None, "WindowWidth": None}
    scan = read_scan(dicom_file(tmp_path / "empty.dcm", **empty, PixelSpacing=None))
    assert scan.meaning == Meaning() and scan.window == (DEEP.min(), DEEP.max())
    check_values(scan, shown(DEEP, DEEP.min(), DEEP.max()))
    # A slope of 0 would make one value of all; it counts as absent with its intercept.
    flat = read_scan(dicom_file(tmp_path / "flat.dcm", RescaleSlope=0, RescaleIntercept=5))
    assert flat.meaning == Meaning() and flat.window == scan.window
    # One of the two numbers of a window is none.
    assert read_scan(dicom_file(tmp_path / "half.dcm", WindowCenter=1000)).window == scan.window


def test_enhanced_files_state_a_scale_and_a_window_for_each_frame(tmp_path):
    scale = [item(RescaleSlope=2, RescaleIntercept=-1024)]
    windows = [[item(WindowCenter=center, WindowWidth=1001)] for center in (1000.5, 2000.5)]
    path = dicom_file(
        tmp_path / "enhanced.dcm",
        np.stack([DEEP, DEEP]),
        NumberOfFrames=2,
        SharedFunctionalGroupsSequence=[item(PixelValueTransformationSequence=scale)],
        PerFrameFunctionalGroupsSequence=[item(FrameVOILUTSequence=window) for window in windows],
    )
    for number, low in ((0, 500), (1, 1500)):
        scan = read_scan(f"{path}#{number}")
        check_values(scan, shown(HOUNSFIELD, low, low + 1000))
        assert (scan.meaning.slope, scan.meaning.intercept, scan.meaning.slice) == (2, -1024, number)
    with pytest.raises(ScanError, match="holds 2 slices"):
        read_scan(path)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"])
def test_a_dicom_mask_is_its_stored_values(tmp_path, kind):
    window = {"WindowCenter": 500, "WindowWidth": 0}  # not even a window that cannot be used is looked at
    path = dicom_file(tmp_path / "mask.dcm", HALF * np.uint16(1), PhotometricInterpretation=kind, **RESCALED, **window)
    assert np.array_equal(read_mask(path), HALF)


def test_colour_dicom_is_read_in_rgb(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    rgb = dicom_file(tmp_path / "rgb.dcm", COLOUR, PhotometricInterpretation="RGB", **colour)
    scan = read_scan(rgb)
    assert np.array_equal(scan.pixels, COLOUR) and scan.window == (0, 255)
    ybr = pydicom.pixels.convert_color_space(COLOUR, "RGB", "YBR_FULL")
    path = dicom_file(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL", **colour)
    # Both ways round to whole levels: half a level in Y, and in Cb half of 1.772 more.
    np.testing.assert_allclose(read_scan(path).pixels.astype(int), COLOUR, atol=2)
    lesion = np.where(HALF[..., None], np.uint8([0, 9, 0]), np.uint8(0))
    assert np.array_equal(
        read_mask(dicom_file(tmp_path / "mask", lesion, PhotometricInterpretation="RGB", **colour)), HALF
    )
    deep = dicom_file(tmp_path / "deep.dcm", COLOUR.astype(np.uint16), PhotometricInterpretation="RGB", **colour)
    with pytest.raises(ScanError, match=r"deep\.dcm is a colour DICOM, RGB in 16 bits.*PNG"):
        read_scan(deep)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_palette_of_a_dicom_is_looked_up(tmp_path, dtype):
    steps = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1)  # index 0 is green
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for number, name in enumerate(("Red", "Green", "Blue")):
        entries = (steps[:, number] * 256 + 77 if dtype == np.uint16 else steps[:, number]).astype(dtype)
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 10, entries.itemsize * 8]
        palette[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    stored = np.clip(DEEP // 10, 0, 300)  # beyond both ends of 10 to 265
    scan = read_scan(dicom_file(tmp_path / "palette.dcm", stored, **palette))
    assert np.array_equal(scan.pixels, steps[np.clip(stored.astype(int) - 10, 0, 255)])


def test_a_deflated_dicom_is_unpacked_within_a_limit(tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    path = dicom_file(tmp_path / "small.dcm", syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    assert np.array_equal(read_scan(path).pixels, read_scan(dicom_file(tmp_path / "plain.dcm")).pixels)
    monkeypatch.setattr(dicom, "MOST_UNPACKED", DEEP.nbytes)  # the pixels alone, without their header
    with pytest.raises(ScanError, match=rf"small\.dcm cannot be read as DICOM: it unpacks to more than {DEEP.nbytes}"):
        read_scan(path)


def without_preamble(path, meta=True):
    """Cut off the preamble of a file, and its meta information unless `meta`."""
    content = path.read_bytes()
    start = 132 if meta else 144 + struct.unpack("<I", content[140:144])[0]
    path.write_bytes(content[start:])
    return path


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"])
@pytest.mark.parametrize("meta", [True, False])
def test_a_dicom_without_its_preamble_is_read(tmp_path, syntax, meta):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    options = {"syntax": getattr(pydicom.uid, syntax), "WindowCenter": 2000, "WindowWidth": 1000, **RESCALED}
    path = without_preamble(dicom_file(tmp_path / "bare.DCM", **options), meta)
    scan = read_scan(path)
    assert np.array_equal(scan.pixels, DEEP)
    check_values(scan, shown(HOUNSFIELD, 1500, 2499))
    frames = np.stack([DEEP, DEEP[::-1]])
    path = without_preamble(dicom_file(tmp_path / "bare.dicom", frames, NumberOfFrames=2, **options), meta)
    assert np.array_equal(read_scan(f"{path}#1").pixels, DEEP[::-1])
    assert np.array_equal(read_mask(without_preamble(dicom_file(tmp_path / "m.dcm", HALF * np.uint8(1)), meta)), HALF)


def test_what_is_no_dicom_without_a_preamble_is_named(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    deflated = dicom_file(tmp_path / "deflated.dcm", syntax=pydicom.uid.DeflatedExplicitVRLittleEndian)
    no_image = dicom_file(tmp_path / "no_image.dcm", Rows=None)
    for name, content, message in [
        ("text", b"a scan of a brain, but only in words\n" * 20, "expected a scan: export it anew, as DICOM or PNG"),
        ("empty", b"", "export it anew, as DICOM or PNG"),
        ("zeros", bytes(1000), "export it anew, as DICOM or PNG"),
        ("no_image", without_preamble(no_image).read_bytes(), "export it anew, as DICOM or PNG"),
        ("deflated", without_preamble(deflated).read_bytes(), "it is deflated .*save it without compression"),
    ]:
        (tmp_path / f"{name}.dcm").write_bytes(content)
        for read in (read_scan, read_mask):
            with pytest.raises(ScanError, match=rf"{name}\.dcm .*{message}"):
                read(tmp_path / f"{name}.dcm")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 0}, r"cannot be read as DICOM: .*Window Width is 0"),
        ({"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "ODD"}, "VOI LUT Function is ODD"),
        ({"RescaleSlope": "1e999", "RescaleIntercept": 0}, "RescaleSlope is .*finite"),
        ({"Rows": 60000, "Columns": 60000}, "60000x60000 pixels by its header; at most"),
        ({"Rows": 13}, "cannot be read as DICOM"),  # one row less than it says
        ({"Rows": None}, "without an image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "cannot be read as DICOM"),  # without the palette
    ],
)
def test_damaged_dicom_is_named(tmp_path, attributes, message):
    with pytest.raises(ScanError, match=rf"odd\.dcm .*{message}"):
        read_scan(dicom_file(tmp_path / "odd.dcm", **attributes))


@pytest.mark.parametrize(("package", "name"), [("pydicom", "scan.dcm"), ("nibabel", "scan.nii.gz")])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} takes {package}.*tumour-composition\[medical\]"):
        read_scan(tmp_path / name)
