"""These tests read slices of NIfTI files, and hold what their stored values mean. Whole volumes are in
test_nifti_volumes."""

import gzip
import struct

import numpy as np
import pytest
from medical_files import check_values, nifti_file, shown, with_bytes

from composition.scans import nifti
from composition.scans.errors import BlankError, ScanError
from composition.scans.images import read_mask, read_scan
from composition.scans.nifti import read_nifti
from composition.scans.slices import Meaning

SCALE = 112  # the place of scl_slope and scl_inter in a header, of cal_max and cal_min, and of the affine matrix
CALIBRATION = 124
ROWS = 280


def test_nifti_slices_are_radiological(tmp_path):
    volume = np.zeros((5, 7, 3))  # right, anterior, superior in the canonical orientation
    volume[4, 6, 1], volume[0, 0, 1] = 2.0, -1.0
    nifti_file(tmp_path / "volume.nii.gz", volume)
    scan = read_scan(f"{tmp_path}/volume.nii.gz#1")
    pixels = scan.pixels
    # The most right, most anterior voxel is shown at the upper left.
    assert pixels.shape == (7, 5) and pixels[0, 0] == 2 and pixels[6, 4] == -1 and pixels[3, 3] == 0
    check_values(scan, shown(pixels, -1, 2))
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
        scan = read_scan(f"{tmp_path}/turned.nii.gz#{number}")
        assert scan.pixels.dtype == np.int16 and np.array_equal(scan.pixels, volume[::-1, ::-1, number].T)
        # The window is the volume's, and rows are 2 mm apart, columns 1 mm.
        assert scan.window == (volume.min(), volume.max())
        assert scan.meaning == Meaning(spacing=(2, 1), measured=True, slice=number)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 1, 1), (5, 7, 1, 1, 1)])
def test_further_axes_of_length_one_are_none(tmp_path, shape):
    volume = np.arange(35, dtype=np.int16)
    scan = read_scan(nifti_file(tmp_path / "volume.nii", volume.reshape(shape)))
    assert np.array_equal(scan.pixels, volume.reshape(5, 7)[::-1, ::-1].T) and scan.meaning.slice is None


STORED = np.arange(5 * 7 * 3).reshape(5, 7, 3)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "u1", "<i4", "<f4", ">f4", "<f8"])
def test_a_nifti_keeps_its_stored_values_and_their_type(tmp_path, dtype):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    volume = (STORED if dtype == "u1" else STORED * 20 - 1000).astype(dtype)  # as Hounsfield units are
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4), header, dtype=volume.dtype), tmp_path / "volume.nii.gz")
    scan = read_scan(f"{tmp_path}/volume.nii.gz#1")
    assert scan.pixels.dtype == volume.dtype.newbyteorder("=") and scan.pixels.dtype.isnative
    assert np.array_equal(scan.pixels, volume[::-1, ::-1, 1].T)
    check_values(scan, shown(scan.pixels, volume.min(), volume.max()))


@pytest.mark.parametrize("slope", [0.5, -0.5])
def test_a_scaled_nifti_keeps_its_stored_values_and_says_its_scale(tmp_path, slope):
    path = nifti_file(tmp_path / "scaled.nii", STORED.astype(np.int16))
    with_bytes(path, SCALE, struct.pack("<2f", slope, -20))
    scan = read_scan(f"{path}#1")
    assert np.array_equal(scan.pixels, STORED[::-1, ::-1, 1].T) and scan.pixels.dtype == np.int16
    assert (scan.meaning.slope, scan.meaning.intercept) == (slope, -20)
    assert scan.window == ((0, 104) if slope > 0 else (104, 0))
    values = scan.pixels * slope - 20
    check_values(scan, shown(values, *sorted((-20, 104 * slope - 20))))
    # A mask's values are those of the scale: here the stored 40 is 0.
    if slope > 0:
        assert np.array_equal(read_mask(f"{path}#1"), scan.pixels != 40)


@pytest.mark.parametrize("slope", [1, 0.5, -0.5])
def test_the_header_of_a_nifti_may_state_its_window(tmp_path, slope):
    path = nifti_file(tmp_path / "volume.nii", STORED.astype(np.int16))
    if slope != 1:
        with_bytes(path, SCALE, struct.pack("<2f", slope, 8))
    intercept = 0 if slope == 1 else 8
    values = STORED[::-1, ::-1, 1].T * slope + intercept
    low, high = np.quantile(values, [0.25, 0.75]).round()
    scan = read_scan(f"{with_bytes(path, CALIBRATION, struct.pack('<2f', high, low))}#1")
    assert scan.window == ((low - intercept) / slope, (high - intercept) / slope)
    check_values(scan, shown(values, low, high))
    ends = (0, 104) if slope > 0 else (104, 0)
    for low, high in ((0, 0), (5, 5), (9, 1), (np.nan, 3), (0, np.inf)):  # states none
        assert read_scan(f"{with_bytes(path, CALIBRATION, struct.pack('<2f', high, low))}#1").window == ends


def test_a_slice_of_one_value_is_blank_beside_others(tmp_path):
    volume = STORED.astype(np.int16)
    volume[..., 2] = 50
    path = nifti_file(tmp_path / "volume.nii", volume)
    with pytest.raises(BlankError, match=r"volume\.nii#2 is blank in its window, the stored values 0 to 103"):
        read_scan(f"{path}#2")
    with pytest.raises(BlankError, match=r"one\.nii#1 is blank"):
        read_scan(f"{nifti_file(tmp_path / 'one.nii', volume * 0)}#1")


def test_a_nifti_mask_is_its_scaled_values_without_their_rounding(tmp_path):
    inside = np.zeros((5, 7, 1), dtype=bool)
    inside[1:3, 2:5] = True
    expected = inside[::-1, ::-1, 0].T
    # As programs store 0 and 0.9 in 16 bits: the outside is stored as -32768, and a trace is left of it.
    path = nifti_file(tmp_path / "scaled.nii", np.where(inside, 32767, -32768).astype(np.int16))
    slope = np.float32(0.9 / 65535)
    with_bytes(path, SCALE, struct.pack("<2f", slope, slope * 32768 * (1 + 1e-7)))
    assert 0 < abs(read_nifti(path, None, "scaled", labels=True).values[0, 0]) < 1e-6
    assert np.array_equal(read_mask(path), expected)
    assert np.array_equal(read_mask(nifti_file(tmp_path / "nan.nii.gz", np.where(inside, 1, np.nan))), expected)
    # Whole numbers are exact: class 1 is inside beside any other.
    many = np.where(inside, 1, 0).astype(np.int32)
    many[1, 2] = 2_000_000
    assert np.array_equal(read_mask(nifti_file(tmp_path / "many.nii", many)), expected)


def test_what_is_no_number_in_a_nifti_scan_is_black(tmp_path):
    volume = np.arange(1.0, 36).reshape(5, 7, 1)
    expected = shown(volume[::-1, ::-1, 0].T, 4, 34)
    volume[0, :3, 0] = np.nan, np.inf, -np.inf  # they were the least, and the greatest finite one is 34
    volume[4, 6] = np.inf
    expected[-2, -1], expected[0, 0] = 1, 1
    scan = read_scan(nifti_file(tmp_path / "head.nii", volume))
    check_values(scan, expected)
    assert scan.window == (4, 34) and np.array_equal(scan.pixels, volume[::-1, ::-1, 0].T, equal_nan=True)
    # A part of the air around the head is a part of a scan.
    assert (scan.part(slice(6, 7), slice(4, 5)).values() == -1).all()
    two = np.concatenate([volume, volume * np.nan], axis=2)
    with pytest.raises(BlankError, match=r"two\.nii#1 is blank in its window"):
        read_scan(f"{nifti_file(tmp_path / 'two.nii', two)}#1")
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
