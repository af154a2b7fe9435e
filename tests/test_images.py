"""These tests read scans and masks as users have them, and write them back to files."""

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from composition.scans.errors import ScanError
from composition.scans.images import Scan, box_mask, read_mask, read_scan, write_image

GRAY = (np.arange(12 * 20).reshape(12, 20) % 251).astype(np.uint8)
DEEP = (np.arange(12 * 20).reshape(12, 20) * 13 + 100).astype(np.uint16)  # 12-bit values in 16 bits
COLOUR = np.stack([GRAY, 255 - GRAY, GRAY // 2], axis=2)
HALF = np.zeros((12, 20), dtype=bool)
HALF[:, :7] = True


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("pixels", [GRAY, DEEP, COLOUR], ids=["gray8", "gray16", "rgb8"])
def test_a_written_image_is_read_back_to_the_bit(tmp_path, pixels, suffix):
    write_image(tmp_path / f"scan.{suffix}", pixels)
    read = read_scan(tmp_path / f"scan.{suffix}").pixels
    assert read.dtype == pixels.dtype and np.array_equal(read, pixels)
    assert [path.name for path in tmp_path.iterdir()] == [f"scan.{suffix}"]  # the temporary name is gone


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_image(tmp_path / "scan.png", GRAY)
    with pytest.raises(TypeError):
        write_image(tmp_path / "scan.png", COLOUR.astype(np.uint16))  # 16-bit colour, which Pillow cannot write
    assert np.array_equal(read_scan(tmp_path / "scan.png").pixels, GRAY)
    assert len(list(tmp_path.iterdir())) == 1


def test_jpeg_is_read_and_turned_as_its_orientation_says(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None], 16, axis=0)  # brighter to the right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the right edge becomes the bottom
    Image.fromarray(ramp).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_scan(tmp_path / "turned.jpg").pixels
    # 3 grey levels: what quality 95 may cost on a ramp.
    np.testing.assert_allclose(turned.astype(int), np.repeat(ramp[:1].T, 16, axis=1), atol=3)
    Image.fromarray(ramp >= 128).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.repeat((ramp[:1] >= 128).T, 16, axis=1))


def test_every_mode_of_pillow_becomes_grayscale_or_rgb():
    binary = Image.fromarray(GRAY > 100)
    assert np.array_equal(read_scan(binary).pixels, (GRAY > 100) * np.uint8(255))
    palette = Image.fromarray(COLOUR).quantize(256)
    assert np.array_equal(read_scan(palette).pixels, np.asarray(palette.convert("RGB")))
    assert np.array_equal(read_scan(Image.fromarray(COLOUR).convert("CMYK")).pixels, COLOUR)
    floats = Image.fromarray((DEEP / 7 - 3).astype(np.float32))
    low, high = int(DEEP.min()), int(DEEP.max())
    expected = (DEEP.astype(float) - low) / (high - low) * 65535
    # Half a step of rounding, and as much again for float32's 24 bits.
    np.testing.assert_allclose(read_scan(floats).pixels, expected, atol=1)


@pytest.mark.parametrize(("mode", "pixels"), [("RGBA", COLOUR), ("LA", GRAY)])
def test_transparency_is_laid_on_black(mode, pixels):
    image = Image.fromarray(pixels).convert(mode)
    image.putalpha(Image.fromarray(HALF * np.uint8(255)))
    read = read_scan(image).pixels
    assert read.shape == pixels.shape
    assert np.array_equal(read[HALF], pixels[HALF]) and not read[~HALF].any()


def test_grayscale_is_one_channel_or_three_equal_ones():
    assert Scan(GRAY).grayscale and Scan(np.repeat(GRAY[..., None], 3, 2)).grayscale and not Scan(COLOUR).grayscale


@pytest.mark.parametrize("pixels", [GRAY, DEEP, COLOUR], ids=["gray8", "gray16", "rgb8"])
def test_values_fill_the_networks_range_and_render_back_to_the_bit(pixels):
    scan = Scan(pixels)
    values = scan.values()
    assert values.shape == (12, 20, 3) and values.dtype == np.float32
    assert values.min() >= -1 and values.max() <= 1
    if pixels.dtype == np.uint16:  # the window is the scan's own range, so dim 12-bit data is not black to the network
        assert values.min() == -1 and values.max() == 1
    assert np.array_equal(scan.render(values, grayscale=scan.grayscale), pixels)


def test_rendering_clips_averages_and_keeps_the_number_of_channels():
    scan = Scan(np.repeat(GRAY[..., None], 3, 2))
    values = np.zeros((12, 20, 3), dtype=np.float32)
    values[..., 0], values[..., 1] = 9, -9
    assert scan.render(values, grayscale=False)[0, 0].tolist() == [255, 0, 128]
    assert scan.render(values + 0.2, grayscale=True)[0, 0].tolist() == [153, 153, 153]  # (0.2 + 1) * 127.5
    assert Scan(GRAY).render(values, grayscale=False).shape == (12, 20, 3)
    assert Scan(DEEP).render(values, grayscale=False).shape == (12, 20)


def mask_files():
    white = HALF * np.uint8(255)
    alpha_only = np.zeros((12, 20, 4), np.uint8)
    alpha_only[..., 3] = white
    opaque = np.dstack([white, white, white, np.full_like(white, 255)])
    palette = Image.fromarray(white).convert("P")
    yield "1-bit", "png", Image.fromarray(HALF)
    yield "gray, faint", "png", Image.fromarray(HALF * np.uint8(1))
    yield "16-bit, faint", "png", Image.fromarray(HALF * np.uint16(1))
    yield "rgb, one channel", "png", Image.fromarray(np.dstack([white * 0, white, white * 0]))
    yield "rgba, opaque", "png", Image.fromarray(opaque)
    yield "rgba, alpha alone", "png", Image.fromarray(alpha_only)
    yield "palette", "png", palette
    yield "jpeg", "jpg", Image.fromarray(white)
    yield "tiff", "tif", Image.fromarray(HALF)
    yield "float tiff", "tif", Image.fromarray(HALF.astype(np.float32))


@pytest.mark.parametrize(("suffix", "image"), [p[1:] for p in mask_files()], ids=[p[0] for p in mask_files()])
def test_a_mask_is_inside_where_it_is_nonzero(tmp_path, suffix, image):
    image.save(tmp_path / f"mask.{suffix}")
    assert np.array_equal(read_mask(tmp_path / f"mask.{suffix}"), HALF)


def test_jpeg_noise_does_not_grow_a_mask(tmp_path):
    y, x = np.mgrid[:64, :64]
    disc = (x - 30) ** 2 + (y - 33) ** 2 < 20**2
    Image.fromarray(disc * np.uint8(255)).save(tmp_path / "mask.jpg", quality=75)
    assert ((np.asarray(Image.open(tmp_path / "mask.jpg")) > 0) & ~disc).sum() > 100  # the noise to ignore
    assert (read_mask(tmp_path / "mask.jpg") != disc).sum() <= 4  # pixels of the edge may fall on either side


def test_a_box_is_a_mask():
    mask = box_mask((2, 3, 5, 4), (12, 20))
    assert mask.sum() == 20 and mask[3:7, 2:7].all()
    for box in [(0, 0, 0, 4), (-1, 0, 4, 4), (18, 0, 4, 4), (0, 9, 4, 4)]:
        with pytest.raises(ScanError, match="20x12"):
            box_mask(box, (12, 20))


def test_bad_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(GRAY * 0).save(tmp_path / "blank.png")
    Image.fromarray(GRAY).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    for name, message in [
        ("missing.png", "no such file"),
        ("text.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        ("blank.png", "blank"),
    ]:
        with pytest.raises(ScanError, match=message) as error:
            read_scan(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ScanError, match=r"blank\.png: the mask is empty"):
        read_mask(tmp_path / "blank.png")
    with pytest.raises(ScanError, match="float32"):
        Scan(GRAY.astype(np.float32))


@pytest.mark.parametrize("pixels", [Image.fromarray(GRAY), GRAY.tolist(), "scan.png", None])
def test_a_scan_of_no_array_says_what_to_do(pixels):
    with pytest.raises(TypeError, match=f"numpy array, got {type(pixels).__name__}; read_scan takes a file"):
        Scan(pixels)


def swap_last(path, old, new):
    before, after = path.read_bytes().rsplit(old, 1)
    path.write_bytes(before + new + after)


def damaged_exif(path):
    """Write a JPEG to be turned, one of whose tags holds text where a number belongs."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a scan"
    Image.fromarray(GRAY).save(path, "JPEG", exif=exif)
    swap_last(path, b"\x01\x0e\x00\x02", b"\x01\x03\x00\x02")  # ImageDescription becomes Compression, in ASCII still


def frame_without_width(path):
    """Write a TIFF whose second frame lacks its width."""
    Image.fromarray(GRAY).save(path, "TIFF", save_all=True, append_images=[Image.fromarray(GRAY)])
    swap_last(path, b"\x00\x01\x04\x00\x01", b"\x00\x70\x04\x00\x01")  # ImageWidth becomes a tag that nobody knows


@pytest.mark.parametrize(("write", "raised"), [(damaged_exif, struct.error), (frame_without_width, TypeError)])
@pytest.mark.parametrize("read", [read_scan, read_mask])
def test_whatever_pillow_raises_for_damage_names_the_file(tmp_path, read, write, raised):
    write(tmp_path / "odd.img")  # Pillow goes by content
    with pytest.raises(ScanError, match=r"odd\.img cannot be read as an image") as error:
        read(tmp_path / "odd.img")
    assert type(error.value.__cause__) is raised  # the damage that was meant


def test_too_many_pixels_are_named(tmp_path, monkeypatch):
    write_image(tmp_path / "bomb.png", GRAY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GRAY.size // 2 - 1)  # Pillow's error begins at twice as many
    for read in (read_scan, read_mask):
        with pytest.raises(ScanError, match=r"bomb\.png cannot be read as an image: .*decompression bomb"):
            read(tmp_path / "bomb.png")


def test_one_slice_of_a_stack_is_named_by_its_number(tmp_path):
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1])]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_scan(f"{tmp_path}/stack.tif#1").pixels, GRAY[::-1])
    with pytest.raises(ScanError, match=r"holds 2 slices.*stack\.tif#1"):
        read_scan(tmp_path / "stack.tif")
    with pytest.raises(ScanError, match="numbered 0 to 1"):
        read_scan(f"{tmp_path}/stack.tif#2")
    Image.fromarray(GRAY).save(tmp_path / "odd#3.png", format="PNG")
    assert np.array_equal(read_scan(tmp_path / "odd#3.png").pixels, GRAY)  # a file of that very name comes first


def test_nifti_slices_are_radiological(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    volume = np.zeros((5, 7, 3))  # right, anterior, superior in the canonical orientation
    volume[4, 6, 1], volume[0, 0, 1] = 2.0, -1.0
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    pixels = read_scan(f"{tmp_path}/volume.nii.gz#1").pixels
    # The most right, most anterior voxel is shown at the upper left.
    assert pixels.shape == (7, 5) and pixels[0, 0] == 65535 and pixels[6, 4] == 0 and pixels[3, 3] == 21845
    # The same volume stored left to right is the same picture.
    nibabel.save(nibabel.Nifti1Image(volume[::-1], np.diag([-1, 1, 1, 1])), tmp_path / "flipped.nii")
    assert np.array_equal(read_scan(f"{tmp_path}/flipped.nii#1").pixels, pixels)
    assert read_mask(f"{tmp_path}/volume.nii.gz#1").sum() == 2
    with pytest.raises(ScanError, match="holds 3 slices"):
        read_scan(tmp_path / "volume.nii.gz")


def dicom_file(path, photometric="MONOCHROME2", window=None):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 12, 20, 1, photometric
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleIntercept, data.RescaleSlope = -1024, 2
    if window:
        data.WindowCenter, data.WindowWidth = window
    data.PixelData = DEEP.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_is_read_over_its_window_and_bright_is_bright(tmp_path):
    scaled = np.rint((DEEP.astype(float) - DEEP.min()) / (DEEP.max() - DEEP.min()) * 65535)
    dicom_file(tmp_path / "plain.dcm")
    assert np.array_equal(read_scan(tmp_path / "plain.dcm").pixels, scaled)
    dicom_file(tmp_path / "no_suffix", photometric="MONOCHROME1")
    np.testing.assert_allclose(read_scan(tmp_path / "no_suffix").pixels, 65535 - scaled, atol=1)  # one rounding
    dicom_file(tmp_path / "window.dcm", window=(2000, 1000))
    pixels, hounsfield = read_scan(tmp_path / "window.dcm").pixels, DEEP * 2.0 - 1024
    assert (pixels[hounsfield <= 1500] == 0).all() and (pixels[hounsfield >= 2500] == 65535).all()
    between = (hounsfield > 1510) & (hounsfield < 2490)
    # DICOM's own window is one unit narrower than its width: 1 in 1000 of the range.
    np.testing.assert_allclose(pixels[between], (hounsfield[between] - 1500) / 1000 * 65535, atol=66)


def test_damaged_medical_files_are_named(tmp_path):
    dicom_file(tmp_path / "window.dcm", window=(2000, 0))
    with pytest.raises(ScanError, match=r"window\.dcm cannot be read as DICOM: .*Window Width"):
        read_scan(tmp_path / "window.dcm")
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    volume = np.random.default_rng(0).normal(size=(40, 40, 1))
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    content = bytearray((tmp_path / "volume.nii.gz").read_bytes())
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    (tmp_path / "volume.nii.gz").write_bytes(content)
    with pytest.raises(ScanError, match=r"volume\.nii\.gz cannot be read as NIfTI"):
        read_scan(tmp_path / "volume.nii.gz")


@pytest.mark.parametrize(("package", "name"), [("pydicom", "scan.dcm"), ("nibabel", "scan.nii.gz")])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} takes {package}.*tumour-composition\[medical\]"):
        read_scan(tmp_path / name)
