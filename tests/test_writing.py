"""These tests write results as DICOM, and hold by two readers that are not ours that values, scale, window, spacing and
place are those of the file that the result came from. Whom a result names is in test_written_identity."""

import numpy as np
import pytest
from medical_files import COLOUR, DEEP, HOUNSFIELD, RESCALED, dicom_file, item, shown, table, with_bytes
from written_files import PLACE, TURNED, by_simpleitk, check_place, ct_file, frames_file, rewritten, strictly_read

from composition.scans.images import read_scan

pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")

SIGNED = (DEEP.astype(int) - 1500).astype(np.int16)
WINDOW = {"WindowCenter": 300, "WindowWidth": 400}
# Half of a step of 16 bits over [-1, 1], and what float32 adds to it.
HALF_STEP = 1 / 65535 + 1e-7


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian"])
@pytest.mark.parametrize(
    ("stored", "bits"),
    [
        *((DEEP, 16), (DEEP, 12), (SIGNED, 16), (SIGNED // 2, 12), ((DEEP % 251).astype(np.uint8), 8)),
        *(((DEEP % 251 - 125).astype(np.int8), 8), (DEEP[:11, :19], 16), ((DEEP % 251).astype(np.uint8)[:11, :19], 8)),
        *((DEEP.astype(np.uint32) * 1000003, 32), (SIGNED.astype(np.int32) * 1000003, 32)),
    ],
    ids=["16", "12", "signed", "signed 12", "8", "signed 8", "odd 16", "odd 8", "32", "signed 32"],
)
def test_what_did_not_change_is_the_sources_own(tmp_path, stored, bits, syntax, kind):
    depth = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": kind}
    window = {"WindowCenter": float(stored[5, 5]) * 2 - 1024, "WindowWidth": 60}
    source = ct_file(tmp_path / "scan", stored, syntax=getattr(pydicom.uid, syntax), **depth, **RESCALED, **window)
    scan, path = rewritten(source, tmp_path)
    found = strictly_read(path)
    assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert found.pixel_array.dtype == stored.dtype and np.array_equal(found.pixel_array, stored)
    assert (found.BitsStored, found.HighBit, found.BitsAllocated) == (bits, bits - 1, stored.itemsize * 8)
    assert found.PixelRepresentation == (stored.dtype.kind == "i") and found.PhotometricInterpretation == kind
    for name, value in (PLACE | RESCALED | window).items():
        assert found[name].value == value, name
    again = read_scan(path)
    assert again.window == scan.window and again.meaning == scan.meaning and np.array_equal(again.pixels, stored)
    if kind == "MONOCHROME2":  # SimpleITK turns the other over, not in every type as the standard says
        image, values = by_simpleitk(path)
        assert np.array_equal(values[0], stored.astype(np.float64) * 2 - 1024)
        check_place(image, PLACE["ImagePositionPatient"], TURNED, PLACE["PixelSpacing"])


def test_what_changed_is_written_and_no_more(tmp_path):
    source = ct_file(tmp_path / "scan.dcm", SIGNED, BitsStored=12, HighBit=11, **RESCALED, **WINDOW)
    image = read_scan(source).pixels.copy()
    image[3:6, 4:9] = np.arange(15, dtype=np.int16).reshape(3, 5) - 7
    image[0, :2] = -3000, 3000  # 12 bits end at -2048 and 2047
    _, path = rewritten(source, tmp_path, image)
    expected = image.copy()
    expected[0, :2] = -2048, 2047
    assert np.array_equal(strictly_read(path).pixel_array, expected)
    assert np.array_equal(by_simpleitk(path)[1][0], expected * 2.0 - 1024)


def test_bits_above_the_stored_ones_are_no_values(tmp_path):
    dirty = DEEP % 4096 | np.uint16(0xA000)  # some programs hide an overlay there
    source = ct_file(tmp_path / "scan.dcm", dirty, BitsStored=12, HighBit=11)
    _, path = rewritten(source, tmp_path)
    assert np.array_equal(strictly_read(path).pixel_array, DEEP % 4096)


@pytest.mark.parametrize("padding", [{"PixelPaddingValue": -2000}, {"PixelPaddingValue": 5000}])
def test_padding_is_kept_with_the_values(tmp_path, padding):
    stored = SIGNED if padding["PixelPaddingValue"] < 0 else DEEP
    stored = stored.copy()
    stored[:, 0] = padding["PixelPaddingValue"]
    _, path = rewritten(ct_file(tmp_path / "scan.dcm", stored, **padding, **WINDOW), tmp_path)
    found = strictly_read(path)
    assert found.PixelPaddingValue == padding["PixelPaddingValue"] and np.array_equal(found.pixel_array, stored)


def test_a_window_of_the_users_leaves_the_values_and_the_files_own_window(tmp_path):
    for stated in ({}, {"VOILUTSequence": [table(np.arange(4096), 0, 16)]}):
        source = ct_file(tmp_path / "scan.dcm", **RESCALED, **WINDOW, **stated)
        scan, path = rewritten(source, tmp_path, window=(40, 80))
        assert scan.window == ((0 + 1024) / 2, (80 + 1024) / 2)
        found = strictly_read(path)
        assert np.array_equal(found.pixel_array, DEEP) and (found.WindowCenter, found.WindowWidth) == (300, 400)


SIGMOID = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}
STEP = {"WindowCenter": 2000, "WindowWidth": 1, "VOILUTFunction": "LINEAR"}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (SIGMOID, shown(1 / (1 + np.exp(-4 * (HOUNSFIELD - 2000) / 1000)), 0, 1)),
        (STEP, shown(HOUNSFIELD > 1999.5, 0, 1)),
        # What tables make of values is in test_medical_images.
        ({"VOILUTSequence": [table(255 - np.arange(3000) // 12, 0, 8)]}, None),
        ({"ModalityLUTSequence": [table(255 - np.arange(3000) // 12, 0, 8)]}, None),
    ],
    ids=["sigmoid", "step", "VOI table", "modality table"],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_what_went_through_a_table_is_written_as_it_is_shown(tmp_path, stated, expected, kind):
    scale = {} if "ModalityLUTSequence" in stated else RESCALED
    attributes = {"PhotometricInterpretation": kind, "PixelPaddingValue": 5, **scale, **stated}
    scan, path = rewritten(ct_file(tmp_path / "scan.dcm", **attributes), tmp_path)
    values = scan.values()[..., 0]
    if expected is not None:
        np.testing.assert_allclose(values, -expected if kind == "MONOCHROME1" else expected, atol=1e-7)  # float32
    assert len(np.unique(values)) > 1
    found = strictly_read(path)
    assert (found.PhotometricInterpretation, found.BitsStored, found.PixelRepresentation) == ("MONOCHROME2", 16, 0)
    np.testing.assert_allclose(shown(found.pixel_array, 0, 65535), values, rtol=0, atol=HALF_STEP)
    told = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelPaddingValue")
    assert not [name for name in told if name in found]
    assert np.array_equal(by_simpleitk(path)[1][0], found.pixel_array)
    assert found.PixelSpacing == PLACE["PixelSpacing"]


def test_floating_point_pixels_are_written_as_they_are_shown(tmp_path):
    source = ct_file(tmp_path / "scan.dcm", DEEP.astype(np.uint32))
    data = pydicom.dcmread(source)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(data, name)
    data.FloatPixelData = (DEEP / np.float32(7)).astype("<f4").tobytes()
    data.save_as(source)
    scan, path = rewritten(source, tmp_path)
    assert scan.pixels.dtype == np.float32
    np.testing.assert_allclose(
        shown(strictly_read(path).pixel_array, 0, 65535), scan.values()[..., 0], rtol=0, atol=HALF_STEP
    )


@pytest.mark.parametrize("number", [0, 2])
def test_a_frame_of_an_enhanced_file_keeps_its_own_place_scale_and_window(tmp_path, number):
    source = frames_file(tmp_path / "enhanced.dcm", np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]]), RescaleSlope=9)
    own = [DEEP, DEEP[::-1], DEEP[:, ::-1]][number]
    scan, path = rewritten(f"{source}#{number}", tmp_path)
    found = strictly_read(path)
    assert found.SOPClassUID == pydicom.uid.CTImageStorage and "NumberOfFrames" not in found
    assert np.array_equal(found.pixel_array, own)
    assert (found.RescaleSlope, found.RescaleIntercept) == (number + 1, -10 * number)
    assert (found.WindowCenter, found.WindowWidth, found.SliceThickness) == (1000 + 100 * number, 2000, 3)
    image, values = by_simpleitk(path)
    check_place(image, [-81.25, 12.5, 3 * number], TURNED, [0.75, 0.5])
    assert np.array_equal(values[0], own.astype(float) * (number + 1) - 10 * number)
    assert read_scan(path).window == scan.window


def test_private_elements_among_the_functional_groups_are_passed_over(tmp_path):
    group = item(PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5])])
    block = group.private_block(0x0021, "A VENDOR", create=True)
    block.add_new(1, "OB", b"abcd")
    block.add_new(2, "LO", "text")
    source = frames_file(tmp_path / "enhanced.dcm", np.stack([DEEP, DEEP]), SharedFunctionalGroupsSequence=[group])
    _, path = rewritten(f"{source}#1", tmp_path)
    assert strictly_read(path).PixelSpacing == [0.75, 0.5]


def test_a_frame_of_another_multi_frame_file_is_a_secondary_capture(tmp_path):
    frames = {"NumberOfFrames": 3, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1", "Modality": "XA"}
    source = ct_file(tmp_path / "run.dcm", np.stack([DEEP, DEEP[::-1], DEEP * 2]), **frames)
    _, path = rewritten(f"{source}#2", tmp_path)
    found = strictly_read(path)
    assert found.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage and found.ConversionType == "WSD"
    assert np.array_equal(found.pixel_array, DEEP * 2) and np.array_equal(by_simpleitk(path)[1][0], DEEP * 2)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("own", ["", "not one"])
def test_a_storage_class_that_is_none_becomes_secondary_capture(tmp_path, own):
    source = ct_file(tmp_path / "scan.dcm")
    data = pydicom.dcmread(source)
    data.SOPClassUID = own
    data.save_as(source, enforce_file_format=False)
    _, path = rewritten(source, tmp_path)
    assert strictly_read(path).SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage


@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_colour_is_written_in_rgb(tmp_path, kind):
    pixels = COLOUR if kind == "RGB" else pydicom.pixels.convert_color_space(COLOUR, "RGB", "YBR_FULL")
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": kind, **RESCALED, **WINDOW}
    source = ct_file(tmp_path / "scan.dcm", pixels, Modality="US", **colour)
    scan, path = rewritten(source, tmp_path)
    found = strictly_read(path)
    assert found.PhotometricInterpretation == "RGB" and np.array_equal(found.pixel_array, scan.pixels)
    assert "RescaleSlope" not in found and "WindowCenter" not in found
    assert np.array_equal(by_simpleitk(path)[1].squeeze(), scan.pixels)
    assert scan.meaning.spacing == (0.75, 0.5) and found.PixelSpacing == [0.75, 0.5] and scan.unit is None


def test_a_frame_in_colour_is_told_from_the_others(tmp_path):
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "NumberOfFrames": 2}
    frames = np.concatenate([COLOUR, COLOUR[::-1]])
    source = dicom_file(tmp_path / "film.dcm", frames, **colour)
    data = pydicom.dcmread(source)
    data.Rows = len(COLOUR)
    data.save_as(source)
    scan, path = rewritten(f"{source}#1", tmp_path)
    assert scan.meaning.slice == 1 and np.array_equal(strictly_read(path).pixel_array, COLOUR[::-1])
    identifier = strictly_read(path).SOPInstanceUID
    _, path = rewritten(f"{source}#0", tmp_path)
    assert strictly_read(path).SOPInstanceUID != identifier


def test_a_palette_is_written_in_its_colours(tmp_path):
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    steps = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2], axis=1).astype(np.uint8)
    for number, name in enumerate(("Red", "Green", "Blue")):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = steps[:, number].tobytes()
    indices = (DEEP % 251).astype(np.uint8)
    _, path = rewritten(dicom_file(tmp_path / "scan.dcm", indices, **palette), tmp_path)
    found = strictly_read(path)
    assert np.array_equal(found.pixel_array, steps[indices]) and "RedPaletteColorLookupTableData" not in found


def test_a_file_without_its_preamble_is_written_with_one(tmp_path):
    source = ct_file(tmp_path / "scan.dcm", **RESCALED)
    source.write_bytes(source.read_bytes()[132:])
    _, path = rewritten(source, tmp_path)
    assert np.array_equal(strictly_read(path).pixel_array, DEEP)


def test_numbers_of_too_many_digits_are_rounded_and_nonsense_is_left_out(tmp_path):
    """Programs write more than the 16 characters of a decimal string, and worse."""
    long = 0.12345678901234567
    source = ct_file(tmp_path / "scan.dcm", PixelSpacing=["0.12345678901234", "0.25000"], KVP="119.999999999999")
    content = source.read_bytes()
    for right, wrong in [
        (b"0.12345678901234\\0.25000", f"{long}\\0.25".encode()),
        (b"119.999999999999", b"a hundred volts "),
    ]:
        assert len(right) == len(wrong)
        source = with_bytes(source, content.index(right), wrong)
    scan, path = rewritten(source, tmp_path)
    found = strictly_read(path)
    # 16 characters hold 14 digits after the point.
    assert found.PixelSpacing[0] == pytest.approx(long, rel=0, abs=1e-14) and found.PixelSpacing[1] == 0.25
    assert found.PixelSpacing[0] != 0.12345678901234  # which is what stood there before
    assert "KVP" not in found and np.array_equal(found.pixel_array, scan.pixels)
