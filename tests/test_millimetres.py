"""An object is placed in millimetres where both scans know theirs: what is round stays round on pixels that are no
squares, and what is 20 mm large stays it unless the user's region is smaller. The record says which."""

import json

import numpy as np
import pytest
from drawn_samples import box
from fake_model import FakeModel
from medical_files import dicom_file
from PIL import Image

from composition import Sample, Scan, Settings, cli, commands, compose
from composition.placement import in_common_terms, same_aspect, true_scale
from composition.scans.slices import Meaning

QUICK = Settings(steps=4, start=2, inversion="naive", match="none")
DISC = 20.0  # mm across


def drawn(size, spacing=None, measured=True, seed=0):
    """A scan of waves, whose pixels lie this far apart (down, across)."""
    y, x = np.mgrid[: size[0], : size[1]]
    pixels = np.rint(120 + 50 * np.sin(x / 9 + seed) * np.cos(y / 8)).astype(np.uint8)
    return Scan(pixels, meaning=Meaning(spacing=spacing, measured=measured and spacing is not None))


def disc(size, spacing, across=DISC):
    """A mask of a round lesion, so many millimetres across, in the middle."""
    y, x = (np.arange(n) - (n - 1) / 2 for n in size)
    return ((y[:, None] * spacing[0]) ** 2 + (x[None] * spacing[1]) ** 2) < (across / 2) ** 2


def composed(background, obj, mask, user_mask, **settings):
    own = Settings(**{name: getattr(QUICK, name) for name in ("steps", "start", "inversion", "match")} | settings)
    return compose(FakeModel(128), background, obj, mask, user_mask, "a lesion", own, method="copy-paste")


def extent(mask, spacing):
    """(down, across) in millimetres."""
    return tuple(float(mask.any(axis=axis).sum() * one) for axis, one in zip((1, 0), spacing, strict=True))


@pytest.mark.parametrize("own", [(1.0, 1.0), (0.5, 1.0), (2.0, 0.8)])
@pytest.mark.parametrize("other", [(1.0, 1.0), (0.8, 1.6), (1.25, 0.5)])
def test_a_round_lesion_of_20_mm_stays_both(own, other):
    mask, user_mask = disc((80, 80), own), box((120, 140), 20, 20, 90, 80)
    result = composed(drawn((120, 140), other), drawn((80, 80), own), mask, user_mask)
    # The object's edge is known to a pixel of its own, and drawn to a pixel of the background's.
    for found, a, b in zip(extent(result.mask, other), own, other, strict=True):
        assert found == pytest.approx(DISC, abs=a + b)
    assert result.true_size
    area = result.mask.sum() * other[0] * other[1]
    # Pixels of 2 mm2 at the edge, of which 314 mm2 have some forty; they are inside or outside by half.
    assert area == pytest.approx(np.pi * (DISC / 2) ** 2, rel=0.06)
    middle = np.argwhere(result.mask).mean(axis=0)
    np.testing.assert_allclose(middle, [20 + 79 / 2, 20 + 89 / 2], atol=1)  # a pixel


def test_a_smaller_region_makes_it_smaller_and_a_larger_one_leaves_it():
    own = other = (1.0, 1.0)
    for side, expected, true in ((12, 12, False), (40, 20, True)):
        user_mask = box((120, 140), 30, 30, side, side)
        result = composed(drawn((120, 140), other), drawn((80, 80), own), disc((80, 80), own), user_mask)
        assert extent(result.mask, other) == pytest.approx((expected, expected), abs=1)  # a pixel
        assert result.true_size == true and (result.scale == 1) == true


def test_region_fills_the_region_and_what_is_round_stays_round():
    own, other = (1.0, 0.5), (0.5, 1.0)
    user_mask = box((120, 140), 30, 20, 40, 80)  # 40 x 40 mm
    result = composed(drawn((120, 140), other), drawn((80, 80), own), disc((80, 80), own), user_mask, size="region")
    assert extent(result.mask, other) == pytest.approx(
        (40, 40), abs=2
    )  # two pixels of its own, which are twice as large
    assert not result.true_size and not (result.mask & ~user_mask).any()


@pytest.mark.parametrize("fit", ["box", "inside"])
def test_both_fits_keep_the_size(fit):
    own, other = (0.7, 0.7), (0.9, 0.9)
    user_mask = disc((120, 140), other, 60)
    result = composed(drawn((120, 140), other), drawn((80, 80), own), disc((80, 80), own), user_mask, fit=fit)
    assert result.true_size and result.scale == pytest.approx(0.7 / 0.9)
    assert extent(result.mask, other) == pytest.approx((DISC, DISC), abs=1.6)  # a pixel of both


def test_a_ratio_alone_counts_for_the_shape_and_not_for_the_size():
    own, other = (2.0, 1.0), (1.0, 1.0)
    user_mask = box((120, 140), 30, 30, 40, 40)
    scans = drawn((120, 140), other, measured=False), drawn((80, 80), own, measured=False)
    result = composed(*scans, disc((80, 80), own), user_mask)
    # A disc of 10 x 20 pixels becomes one of 40 x 40; a pixel of its own is twice as high here, and four in the end.
    assert extent(result.mask, other) == pytest.approx((40, 40), abs=4) and not result.true_size
    for known in (0, 1):  # the size is one of millimetres if both are
        mixed = [drawn((120, 140), other, measured=known == 0), drawn((80, 80), own, measured=known == 1)]
        again = composed(*mixed, disc((80, 80), own), user_mask)
        assert np.array_equal(again.mask, result.mask) and not again.true_size


@pytest.mark.parametrize("known", ["neither", "background", "object"])
def test_where_one_scan_says_nothing_all_is_as_before(known):
    own, other = (2.0, 1.0), (1.0, 1.5)
    mask, user_mask = disc((80, 80), own), box((120, 140), 30, 30, 40, 40)
    scans = (
        drawn((120, 140), other if known == "background" else None),
        drawn((80, 80), own if known == "object" else None),
    )
    result = composed(*scans, mask, user_mask)
    plain = composed(drawn((120, 140)), drawn((80, 80)), mask, user_mask)
    assert np.array_equal(result.mask, plain.mask) and np.array_equal(result.image, plain.image)
    assert result.scale == 40 / 20 and not result.true_size  # the mask is 20 pixels wide


def test_equal_shapes_are_left_alone():
    mask, user_mask = disc((80, 80), (1, 1)), box((120, 140), 30, 30, 40, 40)
    for own, other in (((1.0, 1.0), (3.0, 3.0)), ((1.0, 1.0005), (0.5, 0.5)), ((1.0, 2.0), None)):
        one = Sample(drawn((120, 140), other), drawn((80, 80), own), mask, user_mask, None)
        assert same_aspect(one) is one
    one = Sample(drawn((120, 140), (1, 1)), drawn((80, 80), (1, 2)), mask, user_mask, None)
    assert same_aspect(one).obj.size == same_aspect(one).object_mask.shape == (80, 160)
    assert same_aspect(one).obj.meaning.spacing == (1, 1) and same_aspect(one).obj.pixels.dtype == np.uint8
    assert true_scale(one.background, same_aspect(one).obj) == 1 and true_scale(drawn((9, 9)), one.obj) is None


def test_pixels_are_drawn_larger_and_never_fewer():
    """No row or column is left out; the window stays."""
    mask, user_mask = disc((80, 60), (1, 1)), box((120, 140), 30, 30, 40, 40)
    for own, expected in (((1.0, 0.25), (320, 60)), ((0.25, 1.0), (80, 240))):
        one = Sample(drawn((120, 140), (1, 1)), drawn((80, 60), own), mask, user_mask, None)
        obj = same_aspect(one).obj
        assert obj.size == expected and obj.window == one.obj.window
        assert obj.pixels.mean() == pytest.approx(one.obj.pixels.mean(), abs=0.5)  # rounding to whole numbers


def test_one_unit_is_one_window():
    """Equal values are equal greys, by whatever scale and window the files state them."""
    mask, user_mask = disc((80, 80), (1, 1)), box((120, 140), 30, 30, 40, 40)
    hounsfield = np.arange(80 * 80).reshape(80, 80) % 200
    background = Scan(np.zeros((120, 140), np.int16), levels=(-160, 240), meaning=Meaning(unit="HU"))
    obj = Scan((hounsfield + 1000) * 2, levels=(0, 9), meaning=Meaning(slope=0.5, intercept=-1000, unit="HU"))
    seen = in_common_terms(Sample(background, obj, mask, user_mask, None)).obj
    expected = (hounsfield + 160) / 200 - 1
    np.testing.assert_allclose(seen.values()[..., 0], expected, atol=1e-6)  # float32
    other = in_common_terms(Sample(background, Scan(obj.pixels, levels=(0, 9)), mask, user_mask, None)).obj
    assert other.levels == (0, 9)


def test_the_record_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: FakeModel(64))
    own, other = (0.5, 1.0), (1.0, 0.8)
    back, obj = drawn((120, 140)).pixels.astype(np.uint16), drawn((80, 80)).pixels.astype(np.uint16)
    files = {
        "background": dicom_file(tmp_path / "back.dcm", back, PixelSpacing=list(other), Modality="MR"),
        "object": dicom_file(tmp_path / "object.dcm", obj, PixelSpacing=list(own), Modality="MR"),
        "object-mask": tmp_path / "mask.png",
    }
    Image.fromarray(np.uint8(255) * disc((80, 80), own)).save(files["object-mask"])
    given = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    given += ["--user-box", "30,30,60,60", "--prompt", "a lesion", "--quiet", "--steps", "4", "--start", "2"]
    for size, true in (("auto", True), ("region", False)):
        assert cli.main(["run", *given, "--size", size, "--out", str(tmp_path / size)]) == 0
        record = json.loads((tmp_path / size / "record.json").read_text())
        mask = np.asarray(Image.open(tmp_path / size / "mask.png")) > 0
        assert record["true_size"] == true and record["settings"]["size"] == size
        # 60 x 60 pixels are 60 x 48 mm, which the disc fills to 48.
        assert extent(mask, other) == pytest.approx((DISC, DISC) if true else (48, 48), abs=2)  # a pixel of both
        assert (record["scan"]["spacing"], record["scan"]["measured"]) == (list(other), True)
