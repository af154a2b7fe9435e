"""These tests hold what a scan's window does: which values stand for black and white, and that what a composition
leaves as it is comes back as it was stored, inside the window and outside."""

import numpy as np
import pytest
from medical_files import (
    DEEP,
    FLOAT32,
    HOUNSFIELD,
    RESCALED,
    check_values,
    dicom_file,
    nifti_file,
    shown,
    table,
)
from PIL import Image

from composition.blending import blend_pixels
from composition.scans.errors import BlankError, ScanError
from composition.scans.images import Scan, read_scan
from composition.scans.slices import robust_ends

RNG = np.random.default_rng(0)
INSIDE = np.zeros((12, 20), dtype=bool)
INSIDE[4:8, 5:15] = True


def stored_in(dtype):
    """Values all over the range of a type, with its extremes, and 100 to 200 in the middle."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        values = RNG.normal(0, 1e4, (12, 20)).astype(dtype)
        values[0, :6] = np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).min, -0.0
    else:
        values = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (12, 20), dtype, endpoint=True)
        values[0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    values[6] = np.linspace(100, 200, 20).astype(dtype)
    return values


@pytest.mark.parametrize("levels", [(100, 200), (200, 100)], ids=["bright", "dark"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "i8", "u8", "f4", "f8"])
def test_what_is_not_changed_comes_back_to_the_bit(dtype, levels):
    if dtype == "i1":
        levels = tuple(level - 100 for level in levels)
    scan = Scan(stored_in(dtype), levels=levels)
    values = scan.values()
    assert values.min() == -1 and values.max() == 1 and np.isfinite(values).all()
    assert scan.render(values, grayscale=True).tobytes() == scan.pixels.tobytes()
    changed = np.where(INSIDE[..., None], np.float32(0.5), values)
    image = scan.render(changed, grayscale=True)
    assert image.dtype == scan.pixels.dtype and image[~INSIDE].tobytes() == scan.pixels[~INSIDE].tobytes()
    # Three quarters of the way from black to white.
    assert (image[INSIDE] == levels[0] + 0.75 * (levels[1] - levels[0])).all()
    # Other numbers of the same value, as a trace of float32 arithmetic leaves them, are this scan's own still.
    noise = values + np.float32(1e-7) * RNG.uniform(-1, 1, values.shape).astype(np.float32)
    unmoved = (np.abs(values) == 1).all(axis=2)
    assert unmoved.sum() > 100
    assert scan.render(noise, grayscale=True)[unmoved].tobytes() == scan.pixels[unmoved].tobytes()


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4", "u4", "i2"])
def test_a_window_beyond_the_type_is_cut_at_its_extremes(dtype):
    least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
    scan = Scan(np.array([[0, 100]], dtype=dtype), levels=(float(least) * 2 - 10, float(greatest) * 2))
    values = np.stack([np.float32([[-1, 1]])] * 3, axis=2)
    black, white = scan.render(values, grayscale=True)[0].tolist()
    # The greatest value of 64 bits is no float64, whose 53 bits end 1024 below (2048 for unsigned ones).
    assert black == least and greatest - 2048 < white <= greatest


def test_what_is_composed_stays_within_the_window():
    scan = Scan(np.array([[-500, 150, 900]], dtype=np.int16), levels=(100, 200))
    values = np.stack([np.float32([[7, -7, 0.5]])] * 3, axis=2)
    assert scan.render(values, grayscale=True).tolist() == [[200, 100, 175]]
    # The darkest and the brightest that the window shows are what lies beyond it, where the scan has that itself.
    assert scan.render(-values, grayscale=True).tolist() == [[-500, 200, 125]]


def test_a_narrow_window_costs_no_levels_inside_it():
    stored = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)  # every level of 12 bits
    scan, other = (Scan(pixels, levels=(-160, 239)) for pixels in (stored, stored[::-1, ::-1].copy()))
    within = (stored >= -160) & (stored <= 239)
    assert len(np.unique(scan.values()[within])) == 400
    # Rendered by a scan that has other values everywhere, each level inside is found again.
    assert np.array_equal(other.render(scan.values(), grayscale=True)[within], stored[within])


@pytest.mark.parametrize("slope", [2, -2])
def test_a_window_in_the_files_own_values(tmp_path, slope):
    values = DEEP * float(slope) - 1024
    centre = float(values.mean().round())
    window, low, high = (centre, 1000), centre - 500, centre + 500
    scale = {"RescaleSlope": slope, "RescaleIntercept": -1024, "WindowCenter": 9, "WindowWidth": 3}
    scan = read_scan(dicom_file(tmp_path / "scan.dcm", **scale), window)
    assert scan.window == ((low + 1024) / slope, (high + 1024) / slope)
    check_values(scan, shown(values, low, high))
    dark = read_scan(dicom_file(tmp_path / "dark.dcm", PhotometricInterpretation="MONOCHROME1", **scale), window)
    check_values(dark, -shown(values, low, high))
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    image = nibabel.Nifti1Image(DEEP[::-1, ::-1].T[..., None], np.eye(4))
    image.header.set_slope_inter(slope, -1024)
    image.header["cal_max"] = 3
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_scan(tmp_path / "scan.nii.gz", window)
    assert np.array_equal(volume.pixels, DEEP)
    check_values(volume, shown(values, low, high))


def test_a_window_replaces_a_table_and_a_sigmoid(tmp_path):
    sigmoid = {"WindowCenter": 9, "WindowWidth": 3, "VOILUTFunction": "SIGMOID"}
    unusable = {"WindowCenter": 9, "WindowWidth": 0}
    for stated in (sigmoid, unusable, {"VOILUTSequence": [table(np.arange(300), 0, 16)]}):
        scan = read_scan(dicom_file(tmp_path / "scan.dcm", Modality="CT", **RESCALED, **stated), (2000, 1000))
        check_values(scan, shown(HOUNSFIELD, 1500, 2500))
        assert np.array_equal(scan.pixels, DEEP) and scan.meaning.slope == 2 and scan.unit == "HU"


def test_a_window_of_an_image_counts_in_its_stored_values(tmp_path):
    for pixels in (DEEP, (DEEP % 251).astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "scan.png")
        scan = read_scan(tmp_path / "scan.png", (120, 60))
        assert scan.window == (90, 150)
        check_values(scan, shown(pixels, 90, 150))


@pytest.mark.parametrize("window", [(100, 0), (100, -5), (float("nan"), 5), (100, float("inf"))])
def test_a_window_that_is_none_is_named(tmp_path, window):
    Image.fromarray(DEEP).save(tmp_path / "scan.png")
    with pytest.raises(ScanError, match=r"scan\.png: a window is a centre and a width above 0, got"):
        read_scan(tmp_path / "scan.png", window)


def test_a_window_that_shows_nothing_is_blank(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "scan.png")
    for centre in (-500, 60000):
        with pytest.raises(BlankError, match=r"scan\.png is blank in its window, the stored values"):
            read_scan(tmp_path / "scan.png", (centre, 100))


def test_the_robust_ends_leave_a_share_beyond_them():
    ramp = RNG.permutation(np.arange(100 * 400)).reshape(100, 400)
    assert robust_ends(ramp) == (10, 39989)  # of 40000 values, 10 beyond each end
    assert robust_ends(np.where(ramp < 3, np.nan, ramp)) == (12, 39990)  # of 39997, 9 beyond each
    # Below 4000 values the share is no whole value. One hot pixel is left out all the same, but not of a few values.
    assert robust_ends(RNG.permutation(np.arange(2000))) == (1, 1998)
    assert robust_ends(RNG.permutation(np.arange(1999))) == (0, 1998)
    # An image of one value but for less than the share still has two ends.
    sparse = np.zeros(40000)
    sparse[5] = 7
    assert robust_ends(sparse) == (0, 7)
    with pytest.raises(ValueError, match="no finite number"):
        robust_ends(np.full(5, np.nan))


def tissue(height=200, width=200, dtype=np.uint16):
    """Values from 1000 to 1999, of which every level is there, and a hot and a dead pixel."""
    values = (np.arange(height * width) % 1000 + 1000).reshape(height, width).astype(dtype)
    values[7, 7], values[9, 9] = 30000, 0
    return values


def check_tissue(scan, hot):
    """That what is no hot pixel takes the whole range, but for two of 1000 levels at each end."""
    values = scan.values()[~hot]
    assert np.quantile(values, 0.002) < -0.99 and np.quantile(values, 0.998) > 0.99
    assert abs(np.median(values)) < 0.01
    assert scan.render(scan.values(), grayscale=True).tobytes() == scan.pixels.tobytes()


def test_a_hot_pixel_does_not_darken_the_tissue(tmp_path):
    stored = tissue()
    hot = np.zeros(stored.shape, dtype=bool)
    hot[7, 7] = hot[9, 9] = True
    Image.fromarray(stored).save(tmp_path / "scan.png")
    check_tissue(read_scan(tmp_path / "scan.png"), hot)
    check_tissue(Scan(stored), hot)
    check_tissue(read_scan(dicom_file(tmp_path / "scan.dcm", stored)), hot)
    check_tissue(read_scan(dicom_file(tmp_path / "ct.dcm", stored.astype(np.int16), **RESCALED)), hot)
    check_tissue(read_scan(nifti_file(tmp_path / "scan.nii", stored[::-1, ::-1].T.astype(np.int16))), hot)
    check_tissue(read_scan(nifti_file(tmp_path / "float.nii", stored[::-1, ::-1].T.astype(np.float32))), hot)


def test_a_hot_pixel_of_another_slice_does_not_darken_this_one(tmp_path):
    volume = np.stack([tissue(100, 150), tissue(100, 150)], axis=2).astype(np.int16)
    volume[7, 7, 0], volume[9, 9, 0] = 1500, 1500  # the first slice has none
    path = nifti_file(tmp_path / "volume.nii.gz", volume)
    scans = [read_scan(f"{path}#{number}") for number in (0, 1)]
    hot = scans[1].pixels > 2000
    assert hot.sum() == 1
    for scan in scans:
        check_tissue(scan, hot | (scan.pixels == 0))
    assert scans[0].window == scans[1].window


def test_all_slices_of_a_volume_have_one_window(tmp_path):
    volume = np.stack([np.arange(35).reshape(5, 7) + 100 * number for number in range(3)], axis=2).astype(np.int16)
    path = nifti_file(tmp_path / "volume.nii", volume)
    for number in range(3):
        scan = read_scan(f"{path}#{number}")
        assert scan.window == (0, 234)
        check_values(scan, shown(scan.pixels, 0, 234))


def test_a_part_has_the_window_of_the_whole_whatever_it_shows():
    scan = Scan(np.where(INSIDE, DEEP, np.nan), levels=None)
    part = scan.part(slice(4, 8), slice(5, 15))
    assert part.window == scan.window == (DEEP[INSIDE].min(), DEEP[INSIDE].max())
    np.testing.assert_allclose(part.values(), scan.values()[4:8, 5:15], rtol=0, atol=FLOAT32)
    assert (scan.part(slice(0, 2), slice(0, 2)).values() == -1).all()  # of no finite number
    with pytest.raises(BlankError):
        Scan(scan.pixels[:2, :2])


@pytest.mark.parametrize("dtype", ["i2", "i8", "f4"])
def test_a_seam_mixes_what_the_window_shows(dtype):
    """Metal of 3000 beside a new value of 120 is white that falls to it, and is no metal of 1560."""
    stored = np.array([[3000, 3000, 3000, -900, 100, 100]], dtype=dtype)
    new = np.array([[120, 3000, 180, 100, -900, 200]], dtype=dtype)
    weight = np.array([[0.5, 0.5, 0, 0.5, 0.25, 1]])
    mixed = blend_pixels(new, stored, weight, (200, 100))
    # Halfway from white; as bright as it was; nothing of the new; black is black; a quarter of the way to black; all.
    assert mixed.dtype == dtype and mixed.tolist() == [[160, 3000, 3000, -900, 100, 200]]
    assert blend_pixels(new, stored, weight * 0 + 1, (200, 100)).tolist() == new.tolist()
