"""These tests check how an object is varied: by maps worked out by hand, and by what must hold for any."""

import math

import numpy as np
import pytest
from medical_files import dicom_file, nifti_file

from composition.matching import ring
from composition.placement import bounding_box
from composition.scans.errors import ScanError
from composition.scans.images import Scan, read_scan
from composition.scans.slices import Meaning
from composition.variation import CYCLES, MOST_DEFORMED, Variation, _Map, chance, share, varied_mask, vary

SIZE = (70, 90)
# A smooth scan: cubic convolution reproduces quadratics, and its error on these waves is below a level of 255.
Y, X = np.mgrid[: SIZE[0], : SIZE[1]]
WAVES = 120 + 50 * np.sin(X / 9) + 40 * np.cos(Y / 8)
MASK = ((X - 50) / 14) ** 2 + ((Y - 30) / 8) ** 2 <= 1


def scan_of(dtype=np.uint8, **changes):
    return Scan((WAVES * (1 if dtype == np.uint8 else 100)).astype(dtype), **changes)


def test_nothing_asked_for_changes_nothing():
    scan = scan_of()
    varied, mask = vary(scan, MASK, Variation())
    assert np.array_equal(varied.pixels, scan.pixels) and np.array_equal(mask, MASK)
    assert varied.window == scan.window and Variation().changed() == {}


def test_a_flip_exchanges_left_and_right():
    varied, mask = vary(scan_of(), MASK, Variation(flip=True))
    assert np.array_equal(varied.pixels, scan_of().pixels[:, ::-1]) and np.array_equal(mask, MASK[:, ::-1])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_right_angles_move_pixels_onto_pixels(quarters):
    """About the middle of the box, counter-clockwise as numpy's rot90 of a picture is."""
    varied, mask = vary(scan_of(), MASK, Variation(rotation=90.0 * quarters - 360 * (quarters == 3)))
    boxes = [bounding_box(one) for one in (MASK, mask)]
    parts = [
        pixels[y0:y1, x0:x1] for pixels, (x0, y0, x1, y1) in zip((scan_of().pixels, varied.pixels), boxes, strict=True)
    ]
    assert np.array_equal(np.rot90(parts[0], quarters), parts[1])
    assert mask.sum() == MASK.sum()


def test_a_rotation_is_the_one_by_hand():
    """At each pixel of the varied mask, the scan's formula at the place that it came from."""
    angle = 30.0
    varied, mask = vary(scan_of(np.float64), MASK, Variation(rotation=angle))
    x0, y0, x1, y1 = bounding_box(MASK)
    cx, cy = (x0 + x1 - 1) // 2, (y0 + y1 - 1) // 2
    left, top = _Map.of(MASK, Variation(rotation=angle), 1.0).origin
    rows, columns = np.nonzero(mask)
    u, v = columns + left - cx, rows + top - cy
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = cx + u * c - v * s, cy + u * s + v * c
    expected = 100 * (120 + 50 * np.sin(x / 9) + 40 * np.cos(y / 8))
    # Keys' error is of third order: 1/9 of a radian a pixel, so (1/9)^3 * 5000 / 10 or so.
    assert np.abs(varied.pixels[rows, columns] - expected).max() < 2
    # A mask of radii 14 and 8 has an outline of 70 pixels; each may fall to either side.
    assert abs(int(mask.sum()) - int(MASK.sum())) < 7
    # What was to the right of the middle, above which it now is: counter-clockwise.
    far = columns.argmax()
    assert rows[far] + top < cy


@pytest.mark.parametrize("aspect", [0.5, 2.0])
def test_what_is_round_in_millimetres_stays_round(aspect):
    """A disc in millimetres, whose pixels are longer or wider than square, turned by any angle stays what it is."""
    disc = (X - 45) ** 2 + ((Y - 35) * aspect) ** 2 <= 15**2
    turned = varied_mask(disc, Variation(rotation=37.0), aspect)
    left, top = _Map.of(disc, Variation(rotation=37.0), aspect).origin
    back = turned[-top : -top + SIZE[0], -left : -left + SIZE[1]]
    # Pixels of the outline alone may differ, one in four of them; without the aspect some hundreds do.
    assert (back ^ disc).sum() < 0.25 * 2 * math.pi * 15 / min(aspect, 1)
    assert turned.sum() == back.sum()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rotation", [0.0, 65.0])
def test_nothing_of_a_mask_is_cut_off_and_nothing_folds(seed, rotation):
    """A mask in a corner keeps its area but for what the deformation makes of it, and stays one piece."""
    from composition.datasets.tissue import largest_piece

    corner = np.zeros(SIZE, dtype=bool)
    corner[:25, :40] = True
    change = Variation(rotation=rotation, deformation=MOST_DEFORMED, seed=seed)
    varied, mask = vary(scan_of(), corner, change)
    assert mask.shape == varied.size and mask.shape >= SIZE
    assert largest_piece(mask).sum() == mask.sum()
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    moved = _Map.of(corner, change, 1.0)
    ((_, x, y),) = moved.blocks()
    # The map's determinant is that of a rotation, plus a matrix whose norm is below 1 (variation.py): it is above 0.
    down, across = (np.gradient(one) for one in (y, x))
    assert (across[1] * down[0] - across[0] * down[1] > 0).all()
    assert 2 * math.pi * CYCLES[1] * MOST_DEFORMED * math.sqrt(2) < 1


def test_a_deformation_moves_no_point_farther_than_it_says():
    change = Variation(deformation=0.1, seed=3)
    ((_, x, y),) = _Map.of(MASK, change, 1.0).blocks()
    left, top = _Map.of(MASK, change, 1.0).origin
    away = [np.abs(x - X.min() - np.arange(x.shape[1]) - left), np.abs(y - np.arange(y.shape[0])[:, None] - top)]
    longer = 29  # columns 36 to 64
    assert all(1 < one.max() <= 0.1 * longer + 1e-9 for one in away)  # 1e-9: float64


def test_a_deformation_depends_on_its_seed_alone():
    one, again, other = (vary(scan_of(), MASK, Variation(deformation=0.1, seed=seed))[1] for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_contrast_multiplies_the_difference_from_the_ring():
    pixels = np.full(SIZE, 100, dtype=np.uint8)
    pixels[MASK] = 140
    varied, mask = vary(Scan(pixels), MASK, Variation(contrast=1.5))
    assert np.array_equal(mask, MASK) and varied.pixels[30, 50] == 100 + 60
    assert (varied.pixels[ring(MASK)] == 100).all()
    darker, _ = vary(Scan(pixels), MASK, Variation(contrast=0.5))
    assert darker.pixels[30, 50] == 120


def test_contrast_follows_the_mask_that_is_flipped():
    pixels = np.full(SIZE, 100, dtype=np.uint8)
    pixels[MASK] = 140
    varied, mask = vary(Scan(pixels), MASK, Variation(flip=True, contrast=1.5))
    assert varied.pixels[mask].max() == 160 and (varied.pixels[~mask] <= 140).all()


def test_a_contrast_of_hounsfield_units_is_refused():
    scan = scan_of(np.int16, meaning=Meaning(unit="HU"))
    with pytest.raises(ScanError, match="values are in HU"):
        vary(scan, MASK, Variation(contrast=1.2))
    vary(scan, MASK, Variation(rotation=10.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_a_scan_keeps_its_type_window_and_range(dtype):
    scan = scan_of(dtype, levels=(20, 9000) if dtype != np.uint8 else None)
    varied, _ = vary(scan, MASK, Variation(True, 33.0, 0.1, seed=4))
    assert varied.pixels.dtype == dtype and varied.window == scan.window
    assert scan.pixels.min() <= varied.pixels.min() and varied.pixels.max() <= scan.pixels.max()


def test_the_window_of_a_deep_scan_is_that_of_its_own_pixels():
    scan = scan_of(np.uint16)
    assert vary(scan, MASK, Variation(rotation=20.0))[0].window == scan.window


def test_colour_stays_colour_and_gray_stays_gray():
    gray = Scan(np.repeat(scan_of().pixels[..., None], 3, axis=2))
    assert vary(gray, MASK, Variation(True, 20.0, 0.1, 1.3, seed=1))[0].grayscale
    assert vary(gray, MASK, Variation(rotation=20.0))[0].pixels.shape[2] == 3


def test_what_is_no_number_does_not_spread():
    pixels = WAVES.astype(np.float32)
    pixels[:10] = np.nan
    varied, _ = vary(Scan(pixels), MASK, Variation(rotation=-90.0))
    # A quarter turn moves pixels onto pixels, and mirrors what lies beyond the border: nothing between may turn to nan.
    finite = np.isfinite(varied.pixels)
    assert 0 < (~finite).sum() and (np.diff(finite.astype(int), axis=1) != 0).sum() % varied.size[0] == 0


def test_dicom_and_nifti_keep_their_spacing_but_for_the_size(tmp_path):
    pixels = (WAVES * 10).astype(np.uint16)
    files = [
        dicom_file(tmp_path / "a.dcm", pixels, PixelSpacing=[0.5, 0.7]),
        nifti_file(tmp_path / "a.nii.gz", pixels.astype(np.int16)[..., None], np.diag([0.7, 0.5, 3, 1])),
    ]
    for path in files:
        scan = read_scan(path)
        mask = np.zeros(scan.size, dtype=bool)
        mask[20:40, 30:60] = True
        turned, _ = vary(scan, mask, Variation(rotation=15.0))
        assert turned.meaning == scan.meaning and turned.pixels.dtype == scan.pixels.dtype
        larger, _ = vary(scan, mask, Variation(size=1.5))
        assert scan.meaning.measured and np.array_equal(larger.pixels, scan.pixels)
        assert larger.meaning.spacing == tuple(1.5 * side for side in scan.meaning.spacing)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", 1),
        ("rotation", 181),
        ("rotation", math.nan),
        ("rotation", True),
        ("deformation", -0.01),
        ("deformation", 0.2),
        ("contrast", 0),
        ("size", "2"),
        ("seed", 1.5),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        Variation(**{name: value})


def test_numpy_numbers_become_pythons_own():
    made = Variation(np.bool_(True), np.float32(2), seed=np.int64(3))
    assert made == Variation(True, 2.0, seed=3) and type(made.rotation) is float and type(made.seed) is int
    assert made.changed() == {"flip": True, "rotation": 2.0, "seed": 3}


def test_chance_is_a_sha256_of_words():
    """The first 53 bits of `printf 0/size | sha256sum`: another rule would be another data set."""
    import hashlib

    assert chance(0, "size") == int(hashlib.sha256(b"0/size").hexdigest()[:16], 16) >> 11
    drawn = [share("test", number) for number in range(2000)]
    # The mean of 2000 even numbers is 0.5 to 0.0065, one standard deviation.
    assert 0 <= min(drawn) and max(drawn) < 1 and abs(np.mean(drawn) - 0.5) < 0.03
