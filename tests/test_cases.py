"""These tests read the small inputs of a folder beside the checkout, each of which stands for a kind that was once read
wrong. The kinds themselves are tested on drawn data in test_images and test_medical_images, which run everywhere."""

from pathlib import Path

import numpy as np
import pytest

from composition.scans.errors import ScanError
from composition.scans.images import read_mask, read_scan

CASES = Path(__file__).parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the inputs are not at {CASES}")
SHAPE = (24, 32)


def read_medical(read, name, package):
    pytest.importorskip(package, reason="the extra `medical` is not installed")
    return read(f"{CASES}/{name}")


def test_a_dicom_mask_with_an_intercept_is_its_stored_values():
    inside = read_medical(read_mask, "m_int.dcm", "pydicom")
    # The README's 32.4 %: half of its last digit.
    assert inside.shape == SHAPE and inside.mean() == pytest.approx(0.324, abs=0.0005)


def test_nan_in_a_mask_is_outside():
    pixels = np.frombuffer((CASES / "m_nan.tif").read_bytes()[-24 * 32 * 4 :], dtype="<f4").reshape(SHAPE)
    assert set(np.unique(pixels[~np.isnan(pixels)])) == {1}  # the whole image lies at the file's end
    assert np.array_equal(read_mask(CASES / "m_nan.tif"), pixels == 1)


def test_a_mask_in_a_colour_map_is_refused():
    with pytest.raises(ScanError, match=r"m_viridis\.png .*palette.*index 0,.*\(68, 1, 84\)"):
        read_mask(CASES / "m_viridis.png")


def test_a_palette_of_a_dicom_gives_the_colours():
    scan = read_medical(read_scan, "d_palette.dcm", "pydicom")
    stored = np.frombuffer((CASES / "d_palette.dcm").read_bytes()[-24 * 32 :], dtype=np.uint8).reshape(SHAPE)
    assert set(np.unique(stored)) == {0, 1, 2}  # the whole image lies at the file's end
    assert np.array_equal(scan.pixels, np.repeat(np.uint8([255, 0, 128])[stored][..., None], 3, axis=2))


def test_a_wide_window_keeps_close_values_close():
    scan = read_medical(read_scan, "d_widewin.dcm", "pydicom")
    # PS3.3, C.11.2.1.2.1: 40 and 400 are a window from -160 to 239.
    # Half a step of float32 near 1 is 6e-8.
    np.testing.assert_allclose(np.unique(scan.values()), [(hu + 160) / 399 * 2 - 1 for hu in (20, 60)], atol=1e-7)
    slope, intercept = scan.meaning.slope, scan.meaning.intercept
    assert (np.unique(scan.pixels) * slope + intercept).tolist() == [20, 60]
    assert [end * slope + intercept for end in scan.window] == [-160, 239]


def test_white_is_zero_in_16_bits_as_in_8():
    deep, eight = read_scan(CASES / "t_wz16.tif").pixels, read_scan(CASES / "t_wz8.tif").pixels
    assert np.unique(deep).tolist() == [65535 - 3000, 65535 - 100]
    assert np.array_equal(deep == deep.max(), eight == eight.max())


def test_a_nifti_in_colour_is_a_colour_slice():
    scan = read_medical(read_scan, "n_rgb.nii.gz#2", "nibabel")
    assert scan.pixels.shape == (20, 16, 3) and scan.pixels.dtype == np.uint8 and not scan.grayscale
    with pytest.raises(ScanError, match="holds 5 slices"):
        read_scan(CASES / "n_rgb.nii.gz")
