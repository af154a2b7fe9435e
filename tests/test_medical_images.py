"""These tests read scans and masks in DICOM and NIfTI, and hold what their stored values mean."""

import gzip
import struct
import sys

import numpy as np
import pytest

from composition.scans import dicom, nifti
from composition.scans.errors import BlankError, ScanError
from composition.scans.images import read_mask, read_scan
from composition.scans.nifti import read_nifti

DEEP = (np.arange(12 * 20).reshape(12, 20) * 13 + 100).astype(np.uint16)  # 12-bit values in 16 bits
HALF = np.zeros((12, 20), dtype=bool)
HALF[:, :7] = True
COLOUR = np.stack([DEEP % 251, DEEP % 7 * 30, 255 - DEEP % 200], axis=2).astype(np.uint8)
HOUNSFIELD = DEEP * 2.0 - 1024  # DEEP under RESCALED
RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1024}
RANGE = 65535
ROWS = 280  # the place of NIfTI's affine matrix, srow_x to srow_z


def dicom_file(path, pixels=DEEP, **attributes):
    """Write pixels (H, W), (frames, H, W) or, where the attributes say so, in colour, with these further attributes."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = attributes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = pixels.itemsize * 8
    image = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
    image |= {"Rows": 12, "Columns": 20, "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    for keyword, value in (image | attributes).items():
        setattr(data, keyword, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def table(entries, first, bits):
    """An item of a sequence of lookup tables."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.asarray(entries, dtype="<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


def item(**attributes):
    """An item of a sequence, which holds these attributes."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    made = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def scaled(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * RANGE)


def test_without_a_window_a_dicom_fills_the_range_and_bright_is_bright(tmp_path):
    expected = scaled(DEEP.astype(float), DEEP.min(), DEEP.max())
    scan = read_scan(dicom_file(tmp_path / "plain.dcm", **RESCALED))
    assert np.array_equal(scan.pixels, expected) and scan.window == (0, RANGE) and scan.unit is None
    inverted = read_scan(dicom_file(tmp_path / "no_suffix", PhotometricInterpretation="MONOCHROME1", Modality="CT"))
    np.testing.assert_allclose(inverted.pixels, RANGE - expected, atol=1)  # one rounding
    assert inverted.unit == "HU"


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
    assert np.array_equal(scan.pixels, scaled(HOUNSFIELD, low, high))
    assert scan.window == (0, RANGE) == scan.part(slice(0, 3), slice(0, 3)).window
    inverted = read_scan(
        dicom_file(tmp_path / "dark.dcm", PhotometricInterpretation="MONOCHROME1", **RESCALED, **window)
    )
    np.testing.assert_allclose(inverted.pixels, RANGE - scan.pixels.astype(int), atol=1)  # one rounding


def test_windows_of_other_shapes(tmp_path):
    window = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"}
    expected = RANGE / (1 + np.exp(-4 * (HOUNSFIELD - 2000) / 1000))
    # Half a step of rounding.
    np.testing.assert_allclose(read_scan(dicom_file(tmp_path / "s", **RESCALED, **window)).pixels, expected, atol=0.5)
    with np.errstate(all="raise"):  # no division by a range of nothing
        threshold = read_scan(dicom_file(tmp_path / "t", **RESCALED, WindowCenter=1984.5, WindowWidth=1))
    assert (HOUNSFIELD == 1984).any() and np.array_equal(threshold.pixels, (HOUNSFIELD > 1984) * RANGE)
    with pytest.raises(BlankError, match=r"white\.dcm is blank"):
        read_scan(dicom_file(tmp_path / "white.dcm", **RESCALED, WindowCenter=-5000, WindowWidth=100))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tables_are_looked_up_and_fill_their_own_range(tmp_path, bits):
    white = 2**bits - 1
    entries = np.linspace(white // 4, white // 2, 3000).astype(int)  # more entries than 8 bits count, half of the range
    expected = entries[np.clip(DEEP.astype(int) - 200, 0, 2999)]
    voi = dicom_file(tmp_path / "voi.dcm", VOILUTSequence=[table(entries, 200, bits)], WindowCenter=9, WindowWidth=3)
    assert np.array_equal(read_scan(voi).pixels, scaled(expected, 0, white))
    modality = dicom_file(tmp_path / "modality.dcm", ModalityLUTSequence=[table(entries, 200, bits)])
    assert np.array_equal(read_scan(modality).pixels, scaled(expected, entries[0], expected.max()))


def test_an_empty_attribute_counts_as_absent(tmp_path):
    empty = {"RescaleSlope": None, "RescaleIntercept": None, "WindowCenter": None, "WindowWidth": None}
    assert np.array_equal(
        read_scan(dicom_file(tmp_path / "empty.dcm", **empty)).pixels, read_scan(dicom_file(tmp_path / "none")).pixels
    )


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
        assert np.array_equal(read_scan(f"{path}#{number}").pixels, scaled(HOUNSFIELD, low, low + 1000))
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


def nifti_file(path, volume, affine=None):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def with_bytes(path, position, new):
    content = path.read_bytes()
    path.write_bytes(content[:position] + new + content[position + len(new) :])
    return path


def test_nifti_slices_are_radiological(tmp_path):
    volume = np.zeros((5, 7, 3))  # right, anterior, superior in the canonical orientation
    volume[4, 6, 1], volume[0, 0, 1] = 2.0, -1.0
    nifti_file(tmp_path / "volume.nii.gz", volume)
    pixels = read_scan(f"{tmp_path}/volume.nii.gz#1").pixels
    # The most right, most anterior voxel is shown at the upper left.
    assert pixels.shape == (7, 5) and pixels[0, 0] == 65535 and pixels[6, 4] == 0 and pixels[3, 3] == 21845
    # The same volume stored left to right is the same picture.
    nifti_file(tmp_path / "flipped.nii", volume[::-1], np.diag([-1, 1, 1, 1]))
    assert np.array_equal(read_scan(f"{tmp_path}/flipped.nii#1").pixels, pixels)
    assert read_mask(f"{tmp_path}/volume.nii.gz#1").sum() == 2
    with pytest.raises(ScanError, match="holds 3 slices"):
        read_scan(tmp_path / "volume.nii.gz")


@pytest.mark.parametrize("code", ["RAS", "LPI", "ASR", "SLA", "PIR", "IRP"])
def test_a_slice_is_the_same_however_the_volume_is_stored(tmp_path, code):
    """We read one plane of the file; nibabel itself turns the whole volume here."""
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    volume = np.random.default_rng(0).integers(0, 1000, (5, 7, 3)).astype(np.int16)
    canonical = nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(canonical.affine), nibabel.orientations.axcodes2ornt(code)
    )
    nibabel.save(canonical.as_reoriented(turn), tmp_path / "turned.nii.gz")
    for number in range(3):
        plane = volume[::-1, ::-1, number].T.astype(float)
        pixels = read_scan(f"{tmp_path}/turned.nii.gz#{number}").pixels
        assert np.array_equal(pixels, scaled(plane, plane.min(), plane.max()))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 1, 1), (5, 7, 1, 1, 1)])
def test_further_axes_of_length_one_are_none(tmp_path, shape):
    volume = np.arange(35, dtype=np.int16)
    pixels = read_scan(nifti_file(tmp_path / "volume.nii", volume.reshape(shape))).pixels
    assert np.array_equal(pixels, scaled(volume.reshape(5, 7)[::-1, ::-1].T.astype(float), 0, 34))


def test_a_nifti_mask_is_its_scaled_values_without_their_rounding(tmp_path):
    inside = np.zeros((5, 7, 1), dtype=bool)
    inside[1:3, 2:5] = True
    expected = inside[::-1, ::-1, 0].T
    # As programs store 0 and 0.9 in 16 bits: the outside is stored as -32768, and a trace is left of it.
    path = nifti_file(tmp_path / "scaled.nii", np.where(inside, 32767, -32768).astype(np.int16))
    slope = np.float32(0.9 / 65535)
    with_bytes(path, 112, struct.pack("<2f", slope, slope * 32768 * (1 + 1e-7)))  # scl_slope and scl_inter
    assert 0 < abs(read_nifti(path, None, "scaled", labels=True).values[0, 0]) < 1e-6
    assert np.array_equal(read_mask(path), expected)
    assert np.array_equal(read_mask(nifti_file(tmp_path / "nan.nii.gz", np.where(inside, 1, np.nan))), expected)
    # Whole numbers are exact: class 1 is inside beside any other.
    many = np.where(inside, 1, 0).astype(np.int32)
    many[1, 2] = 2_000_000
    assert np.array_equal(read_mask(nifti_file(tmp_path / "many.nii", many)), expected)


def test_what_is_no_number_in_a_nifti_scan_is_as_dark_as_the_darkest(tmp_path):
    volume = np.arange(1.0, 36).reshape(5, 7, 1)
    expected = scaled(volume[::-1, ::-1, 0].T, 1, 35)
    volume[0, 0] = np.nan  # it was the least
    volume[0, 1] = 1
    expected[-1, -1], expected[-2, -1] = 0, 0
    assert np.array_equal(read_scan(nifti_file(tmp_path / "head.nii", volume)).pixels, expected)
    with pytest.raises(ScanError, match=r"none\.nii is blank: it holds no finite number"):
        read_scan(nifti_file(tmp_path / "none.nii", volume * np.nan))


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_nifti_in_colour_is_read_in_colour(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 2, len(channels))).astype(np.uint8)
    if channels == "RGBA":
        pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    volume = np.ascontiguousarray(pixels).view([(channel, "u1") for channel in channels])[..., 0]
    nifti_file(tmp_path / "colour.nii.gz", volume)
    plane = pixels[::-1, ::-1, 1].transpose(1, 0, 2)
    expected = plane if channels == "RGB" else plane[..., :3] * (plane[..., 3:] > 0)
    scan = read_scan(f"{tmp_path}/colour.nii.gz#1")
    assert scan.pixels.dtype == np.uint8 and np.array_equal(scan.pixels, expected)
    assert np.array_equal(read_mask(f"{tmp_path}/colour.nii.gz#1"), expected.any(axis=2))


def test_nifti_that_cannot_be_meant_is_refused(tmp_path):
    volume = np.random.default_rng(0).normal(size=(5, 7, 3))
    for name, made, message in [
        ("complex", volume.astype(np.complex64), "complex numbers.*magnitude"),
        ("four", np.stack([volume, volume], axis=3), "has 4 dimensions"),
        ("line", volume[0, 0], "has 1 dimensions"),
    ]:
        with pytest.raises(ScanError, match=rf"{name}\.nii .*{message}"):
            read_scan(nifti_file(tmp_path / f"{name}.nii", made))
    flat = with_bytes(nifti_file(tmp_path / "flat.nii", volume), ROWS, struct.pack("<12f", *[1, 0, 0, 0] * 3))
    with pytest.raises(ScanError, match=r"flat\.nii.*affine"):
        read_scan(flat)


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("shape", [(30000, 30000, 30000), (30000, 30000, 1), (30000, 1, 30000)])
def test_a_giant_nifti_is_refused_by_its_header(tmp_path, suffix, shape):
    path = nifti_file(tmp_path / "giant.nii", np.ones((5, 7, 3), dtype=np.uint8))
    with_bytes(path, 42, struct.pack("<3H", *shape))  # dim[1] to dim[3]
    with_bytes(path, ROWS, struct.pack("<12f", 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0))  # the second axis points up
    content = path.read_bytes()
    path = tmp_path / f"giant.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "nii.gz" else content)
    with pytest.raises(ScanError, match=rf"giant\.{suffix}#0 is 30000x30000 pixels by its header; at most"):
        read_scan(f"{path}#0")


def test_a_compressed_nifti_is_read_to_its_end(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).normal(size=(40, 40, 2))
    path = nifti_file(tmp_path / "volume.nii.gz", volume)
    whole = path.read_bytes()
    read_scan(f"{path}#0")
    damaged = bytearray(whole)
    damaged[len(whole) // 2 :: 7] = bytes(len(damaged[len(whole) // 2 :: 7]))
    checksum = bytes([whole[-8] ^ 1])
    for content in (damaged, whole[:-8] + checksum + whole[-7:], whole[:-8], whole[:-100]):
        path.write_bytes(content)
        for read in (read_scan, read_mask):
            with pytest.raises(ScanError, match=r"volume\.nii\.gz#0 cannot be read as NIfTI"):
                read(f"{path}#0")  # the first slice itself may be whole
    path.write_bytes(whole)
    monkeypatch.setattr(nifti, "MOST_UNPACKED", 20_000)
    with pytest.raises(ScanError, match=r"volume\.nii\.gz#0 unpacks to more than 20000 bytes"):
        read_scan(f"{path}#0")


@pytest.mark.parametrize(("package", "name"), [("pydicom", "scan.dcm"), ("nibabel", "scan.nii.gz")])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} takes {package}.*tumour-composition\[medical\]"):
        read_scan(tmp_path / name)
