"""These tests read scans and masks as users have them in PNG, JPEG and TIFF, and write them back to files."""

import os
import struct
import warnings
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from composition.scans import raster
from composition.scans.errors import ScanError, damage_named
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
    if pixels.dtype == np.uint16:  # of so few values, the window is the scan's own range: dim 12-bit data is not black
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
    with pytest.raises(ScanError, match="holds no pixel"):
        box_mask((0, 0, 0, 4), (12, 20))
    for box in [(-1, 0, 4, 4), (18, 0, 4, 4), (0, 9, 4, 4)]:
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
    for wrong in (COLOUR.astype(np.float32), GRAY.astype(complex), GRAY > 3, GRAY[0]):
        with pytest.raises(ScanError, match=rf"expected numbers \(H, W\).*{wrong.dtype}"):
            Scan(wrong)


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


@pytest.mark.parametrize("suffix", ["png", "dcm", "nii", "nii.gz"])
@pytest.mark.parametrize("read", [read_scan, read_mask])
def test_what_is_no_regular_file_is_never_opened(tmp_path, read, suffix):
    os.mkfifo(tmp_path / f"pipe.{suffix}")  # opening it would wait for ever for somebody who writes
    (tmp_path / f"folder.{suffix}").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ScanError, match=rf"{name}\.{suffix}: this is no regular file"):
            read(tmp_path / f"{name}.{suffix}")
    for absent in (f"absent.{suffix}", f"absent.{suffix}#1", f"{'x' * 5000}.{suffix}", f"nu\0ll.{suffix}"):
        with pytest.raises(ScanError, match="there is no such file"):
            read(tmp_path / absent)


def test_a_librarys_message_becomes_one_short_line():
    for text in ("two\nlines\u2028and\x1b[31m three", "long " * 1000, ""):
        with pytest.raises(ScanError) as error, damage_named("scan.png", "an image"):
            raise ValueError(text)
        assert str(error.value).isprintable()
        assert len(str(error.value)) <= 300 + len("...") + len("scan.png cannot be read as an image: ")
    assert str(error.value).endswith("image: ValueError")  # an error without words is named by its type


@pytest.mark.parametrize("error", [KeyError("tag"), RecursionError("maximum recursion depth exceeded")])
def test_whatever_a_library_raises_is_a_damaged_file(error):
    with (
        pytest.raises(ScanError, match=r"scan\.png cannot be read as an image: ['\w]"),
        damage_named("scan.png", "an image"),
    ):
        raise error


# 8200 x 8200 is the first that is too large, and Pillow says nothing; it warns of 10000, and refuses 60000 itself.
@pytest.mark.parametrize("side", [8200, 10000, 60000])
@pytest.mark.parametrize("read", [read_scan, read_mask])
def test_a_header_of_a_giant_image_is_refused_without_a_warning(tmp_path, read, side):
    write_image(tmp_path / "giant.png", GRAY)
    content = (tmp_path / "giant.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    (tmp_path / "giant.png").write_bytes(content[:12] + header + struct.pack(">I", crc32(header)) + content[33:])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(ScanError, match=rf"giant\.png .*({side}x{side} pixels|decompression bomb)"):
            read(tmp_path / "giant.png")
    assert not said


def tiff(values, photometric, bits, kind=1, directories=1, following=None):
    """The bytes of a TIFF whose directories all show the same values; the last of them names the next one."""
    height, width = values.shape
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    entries += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, values.nbytes), (339, 3, kind)]
    content = values.tobytes() + bytes(values.nbytes % 2)
    length, start = 2 + 12 * len(entries) + 4, 8 + len(content)
    for number in range(directories):
        last = number == directories - 1
        content += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, f, 1, v) for t, f, v in entries)
        content += struct.pack("<I", (following or 0) if last else start + (number + 1) * length)
    return b"II*\0" + struct.pack("<I", start) + content


@pytest.mark.parametrize(
    ("bits", "kind", "stored", "white"),
    [
        (1, 1, np.packbits(HALF, axis=1), None),
        (8, 1, GRAY, 255),
        (16, 1, DEEP, 65535),
        (32, 3, DEEP.astype(np.float32), DEEP.max()),  # floats have no greatest value but their own
    ],
    ids=["1 bit", "8 bits", "16 bits", "float"],
)
def test_where_white_is_zero_a_tiff_is_inverted(tmp_path, bits, kind, stored, white):
    content = tiff(stored, 0, bits, kind)
    if white is None:
        content = content.replace(struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 20))
        expected = ~HALF * np.uint8(255)
    else:
        expected = white - stored
    (tmp_path / "white.tif").write_bytes(content)
    pixels = read_scan(tmp_path / "white.tif").pixels
    if kind == 3:  # floats are scaled to 16 bits
        expected = np.rint(expected.astype(float) * (65535 / expected.max()))
    assert np.array_equal(pixels, expected)
    # A mask means the same: what is shown black is outside.
    assert np.array_equal(read_mask(tmp_path / "white.tif"), expected != 0)


def test_the_frames_of_a_tiff_may_loop_but_not_go_on_for_ever(tmp_path, monkeypatch):
    loop = tiff(GRAY, 1, 8, directories=3, following=8 + GRAY.nbytes)  # the last goes on to the first
    (tmp_path / "loop.tif").write_bytes(loop)
    with pytest.raises(ScanError, match=r"loop\.tif holds 3 slices"):
        read_scan(tmp_path / "loop.tif")
    assert np.array_equal(read_scan(f"{tmp_path}/loop.tif#2").pixels, GRAY)
    monkeypatch.setattr(raster, "MOST_FRAMES", 4)
    (tmp_path / "four.tif").write_bytes(tiff(GRAY, 1, 8, directories=4))
    assert np.array_equal(read_scan(f"{tmp_path}/four.tif#3").pixels, GRAY)
    (tmp_path / "five.tif").write_bytes(tiff(GRAY, 1, 8, directories=5))
    with pytest.raises(ScanError, match=r"five\.tif#3 holds more than 4 frames"):
        read_scan(f"{tmp_path}/five.tif#3")


def test_in_a_float_mask_nan_and_rounding_are_outside():
    mask = np.where(HALF, 3, np.nan).astype(np.float32)
    mask[0, :3] = 3e-3, -3, np.inf  # a thousandth is meant, a sign and infinity too
    assert np.array_equal(read_mask(Image.fromarray(mask)), HALF)
    traces = np.where(HALF, 3, 3e-15).astype(np.float32)
    assert np.array_equal(read_mask(Image.fromarray(traces)), HALF)
    assert np.array_equal(read_mask(Image.fromarray(traces * np.float32(1e-9))), HALF)  # the scale itself is free
    with pytest.raises(ScanError, match="the mask is empty"):
        read_mask(Image.fromarray(mask * np.float32(np.nan)))
    classes = HALF.astype(np.int32)
    classes[0, 0] = 2_000_000  # whole numbers are exact: class 1 is inside beside any other
    assert np.array_equal(read_mask(Image.fromarray(classes)), HALF)


def test_in_a_float_scan_what_is_no_number_counts_as_the_least():
    floats = DEEP.astype(np.float32)
    floats[0, :4] = np.nan, np.inf, -np.inf, DEEP.min()
    pixels = read_scan(Image.fromarray(floats)).pixels
    assert not pixels[0, :4].any() and pixels[0, 4:].all() and pixels[1:].all() and pixels.max() == 65535
    with pytest.raises(ScanError, match="holds no finite number"):
        read_scan(Image.fromarray(floats * np.float32(np.nan)))


VIOLET, YELLOW, BLACK = (68, 1, 84), (253, 231, 37), (0, 0, 0)
COVERING = np.ones((12, 20), dtype=bool)  # a lesion that covers the border
COVERING[4:8, 4:8] = False


def palette_mask(indices, *colours):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.array(colours, dtype=np.uint8).tobytes())
    return image


def test_a_palette_mask_is_refused_unless_its_background_is_black(tmp_path):
    assert np.array_equal(read_mask(palette_mask(HALF, BLACK, YELLOW)), HALF)
    assert np.array_equal(read_mask(palette_mask(~HALF, YELLOW, BLACK)), HALF)  # whichever index is black
    assert np.array_equal(read_mask(palette_mask(COVERING, BLACK, YELLOW)), COVERING)
    palette_mask(HALF, VIOLET, YELLOW).save(tmp_path / "clear.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "clear.png"), HALF)
    for image, index in [(palette_mask(HALF, VIOLET, YELLOW), 0), (palette_mask(HALF + 1, BLACK, VIOLET, YELLOW), 1)]:
        image.save(tmp_path / "map.png")
        with pytest.raises(
            ScanError, match=rf"map\.png .*palette.*index {index},.*\(68, 1, 84\).*save the mask in gray"
        ):
            read_mask(tmp_path / "map.png")
        assert read_scan(tmp_path / "map.png").pixels[0, -1].tolist() == list(VIOLET)  # a scan may be coloured
