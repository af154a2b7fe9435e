"""Placement is one affine map for the object, its tissue and its mask. These tests check it, and then the canvas and
the latent grid."""

import numpy as np
import pytest
import torch
from drawn_samples import box

from composition import PlacementError, Scan
from composition.canvas import canvas_size, from_canvas, to_canvas, to_latent_mask
from composition.placement import ONE_UNIT, SHARE_OUTSIDE, bounding_box, place
from composition.scans.slices import Meaning

RNG = np.random.default_rng(0)


def noise(height, width):
    return Scan(RNG.integers(0, 256, (height, width), dtype=np.uint8))


def smooth(height, width):
    """A scan of long waves, which resampling keeps."""
    y, x = np.mgrid[:height, :width]
    return Scan(np.rint(127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 11)).astype(np.uint8))


def disc(shape, x, y, radius):
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def test_an_object_that_is_the_backgrounds_own_region_stays_where_it_is():
    scan, mask = noise(60, 80), disc((60, 80), 30, 20, 9)
    placement = place(scan, scan, mask, mask)
    assert (placement.scale, placement.shift, placement.clipped) == (1, (0, 0), 0)
    assert np.array_equal(placement.image, scan.values()) and np.array_equal(placement.object_mask, mask)


def test_moving_by_whole_pixels_copies_the_tissue_and_goes_on_with_the_background():
    background, obj = noise(60, 80), noise(30, 30)
    placement = place(background, obj, box((30, 30), 8, 10, 6, 5), box((60, 80), 50, 3, 6, 5))
    assert placement.shift == (42, -7)
    expected = background.values()
    expected[0:23, 42:72] = obj.values()[7:30]  # the rows above the background's edge are cropped
    assert np.array_equal(placement.image, expected)
    assert np.array_equal(placement.object_mask, box((60, 80), 50, 3, 6, 5))


@pytest.mark.parametrize(("width", "height"), [(30, 90), (90, 30), (36, 36), (9, 40)])
def test_the_mask_fits_the_users_box_with_its_aspect_kept_and_centred(width, height):
    object_mask = disc((100, 100), 50, 50, 18)
    placement = place(noise(120, 120), noise(100, 100), object_mask, box((120, 120), 7, 11, width, height))
    x0, y0, x1, y1 = bounding_box(placement.object_mask)
    side = min(width, height)
    assert placement.scale == side / 36 and placement.clipped == 0
    # Within one pixel: the edge pixels of a scaled disc are covered by more than half, or not.
    assert abs(x1 - x0 - side) <= 1 and abs(y1 - y0 - side) <= 1
    assert abs((x0 + x1) / 2 - (7 + width / 2)) <= 0.5 and abs((y0 + y1) / 2 - (11 + height / 2)) <= 0.5
    # A disc's edge crosses some 3 * side pixels, and about as many of them fall inside as outside.
    assert abs(placement.object_mask.sum() - np.pi * (side / 2) ** 2) < side


@pytest.mark.parametrize("side", [12, 47, 61])
def test_image_and_mask_move_by_the_same_map(side):
    """The mask, drawn as an image, moves exactly as the image does; and a smooth image goes where the map says."""
    obj, mask = smooth(100, 100), disc((100, 100), 40, 55, 20)
    user = box((150, 150), 31, 42, side, side)
    placement = place(noise(150, 150), obj, mask, user)
    drawn = place(noise(150, 150), Scan(mask * np.uint8(255)), mask, user)
    assert np.array_equal(drawn.image[user].mean(axis=1) >= 0, placement.object_mask[user])

    y, x = (np.argwhere(placement.object_mask) + 0.5).T
    sx, sy = (x - placement.shift[0]) / placement.scale - 0.5, (y - placement.shift[1]) / placement.scale - 0.5
    wave = (127 + 60 * np.sin(sx / 9) + 60 * np.cos(sy / 11)) / 127.5 - 1
    # 0.03: 8-bit rounding, and bilinear interpolation and averaging of waves of some 60 pixels.
    np.testing.assert_allclose(placement.image[placement.object_mask][:, 0], wave, atol=0.03)


def test_an_object_larger_than_the_background_is_scaled_into_the_user_mask_and_cropped():
    background, obj = noise(50, 50), smooth(400, 300)
    placement = place(background, obj, box((400, 300), 100, 100, 160, 160), box((50, 50), 5, 5, 40, 40))
    assert placement.scale == 0.25 and np.array_equal(placement.object_mask, placement.user_mask)
    assert placement.image.shape == (50, 50, 3)


def test_the_object_is_cut_to_a_user_mask_that_is_no_box():
    user = disc((100, 100), 50, 50, 30)
    placement = place(noise(100, 100), noise(40, 40), box((40, 40), 5, 5, 30, 30), user)
    assert np.array_equal(placement.object_mask, user)  # the square circumscribes the disc
    assert placement.clipped == pytest.approx(1 - user.sum() / 60**2)


def test_bad_masks_are_told_before_any_work():
    scan, mask = noise(40, 50), box((40, 50), 5, 5, 10, 10)
    corners = box((40, 50), 5, 5, 2, 2) | box((40, 50), 35, 35, 2, 2)
    for object_mask, user_mask, message in [
        (mask.T, mask, r"the object mask has \(height, width\) \(50, 40\), but its scan .* has \(40, 50\)"),
        (mask, mask[:, :-1], "the user mask has"),
        (mask & False, mask, "object mask of scan is empty"),
        (mask, mask & False, "user mask of scan is empty"),
        (mask.astype(int), mask, r"int64 \(40, 50\); expected a bool array"),
        (box((40, 50), 10, 4, 1, 30), corners, "nothing of the object is left inside the user mask"),
    ]:
        with pytest.raises(PlacementError, match=message):
            place(scan, scan, object_mask, user_mask)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (512, 512)), ((225, 225), (512, 512)), ((375, 448), (472, 560)), ((168, 300), (384, 688))],
)
def test_the_canvas_has_the_scans_aspect_and_the_networks_area(size, expected):
    assert canvas_size(size, 512, 8) == expected
    assert abs(expected[0] * expected[1] / 512**2 - 1) < 0.02  # half a latent of rounding on either side


def test_the_canvas_is_left_as_it_was_entered():
    values = smooth(150, 210).values()
    canvas = canvas_size((150, 210), 256, 8)
    there = to_canvas(values, canvas)
    assert there.shape == (3, *canvas)
    # 0.02 of a range of 2: bicubic resampling of long waves, at the border too.
    np.testing.assert_allclose(from_canvas(there, (150, 210)), values, atol=0.02)
    assert torch.equal(to_canvas(values, (150, 210)), torch.from_numpy(values).permute(2, 0, 1))


def test_a_latent_cell_is_inside_if_half_of_it_is():
    mask = np.zeros((16, 24), dtype=bool)
    mask[:8, :12] = True  # one cell, and half of the next
    mask[8:11, 16:24] = True  # three eighths of one
    assert to_latent_mask(mask, (2, 3)).tolist() == [[[1, 1, 0], [0, 0, 0]]]
    # A grid that does not divide the scan: cells of 2.5 columns; the mask covers 2 of the first's.
    assert to_latent_mask(np.repeat([[1, 1, 0, 0, 0]], 4, 0).astype(bool), (4, 2))[0, 0].tolist() == [1, 0]


def test_masks_inside_one_another_stay_so_on_the_latent_grid():
    for seed in range(20):
        user = np.random.default_rng(seed).random((37, 53)) < 0.7
        inner = user & (np.random.default_rng(seed + 100).random((37, 53)) < 0.8)
        assert (to_latent_mask(inner, (9, 11)) <= to_latent_mask(user, (9, 11))).all()


def test_inside_is_the_boxs_fit_where_that_cuts_nothing_off():
    background, obj = smooth(100, 120), smooth(60, 60)
    user_mask = np.zeros((100, 120), dtype=bool)
    user_mask[20:60, 30:90] = True
    by_box, inside = (
        place(background, obj, disc((60, 60), 30, 30, 20), user_mask, fit=fit) for fit in ("box", "inside")
    )
    assert inside.scale == by_box.scale and inside.shift == by_box.shift and inside.clipped == 0


def test_inside_makes_the_object_as_large_as_its_whole_mask_fits():
    """A square object in a round target: the largest square in a disc has a side of radius times the root of two.

    Pixels are whole, and so is the place on the background: a pixel on each side.
    """
    square = np.zeros((60, 60), dtype=bool)
    square[10:50, 10:50] = True
    background, obj, target = smooth(120, 120), smooth(60, 60), disc((120, 120), 60, 60, 40)
    by_box = place(background, obj, square, target, fit="box")
    inside = place(background, obj, square, target, fit="inside")
    assert by_box.clipped > 0.2 and inside.clipped <= SHARE_OUTSIDE
    assert not inside.object_mask[~target].any()
    # Four corners that lose a hundredth of the square's area in all are a fourteenth of its side.
    assert 40 * np.sqrt(2) - 1 < inside.scale * 40 < 40 * np.sqrt(2) * (1 + 1 / 14) + 1
    middle = [np.flatnonzero(inside.object_mask.any(axis=axis)).mean() for axis in (0, 1)]
    assert middle == pytest.approx([59.5, 59.5], abs=1)


def test_inside_takes_the_place_nearest_to_the_middle_that_has_room():
    """An L: its box's middle is empty, and the object goes into the arm beside it, of 30 pixels, or into the corner."""
    target = np.zeros((120, 120), dtype=bool)
    target[10:110, 10:40] = True
    target[90:110, 10:110] = True
    found = place(smooth(120, 120), smooth(60, 60), disc((60, 60), 30, 30, 25), target, fit="inside")
    assert found.clipped <= SHARE_OUTSIDE + 1 / found.object_mask.sum()  # a pixel, by rounding
    assert found.object_mask.any() and not found.object_mask[~target].any()
    columns = np.flatnonzero(found.object_mask.any(axis=0))
    assert 29 <= len(columns) <= 37  # the arm, to a pixel; the corner holds a disc of (2 - sqrt 2) * 60 = 35 at most


@pytest.mark.parametrize("flaw", ["hole", "ragged edge"])
def test_a_flaw_of_the_user_mask_does_not_shrink_the_object(flaw):
    target = disc((160, 160), 80, 80, 40)
    if flaw == "hole":
        target[90, 85] = False
    else:
        target &= ~(np.random.default_rng(0).random((160, 160)) < 0.005)
    background, obj, object_mask = smooth(160, 160), smooth(60, 60), disc((60, 60), 30, 30, 25)
    by_box, inside = (place(background, obj, object_mask, target, fit=fit) for fit in ("box", "inside"))
    assert inside.scale > 0.95 * by_box.scale  # one step of the search


def test_inside_of_a_ring_makes_a_ring_as_large_as_it_fits():
    """No smaller ring fits: the search goes down from the box's scale, and finds the largest that does."""
    ring = disc((60, 60), 30, 30, 28) & ~disc((60, 60), 30, 30, 20)
    target = disc((160, 160), 80, 80, 58) & ~disc((160, 160), 80, 80, 36)
    target[80:84, 130:140] = False
    found = place(smooth(160, 160), smooth(60, 60), ring, target, fit="inside")
    assert found.clipped <= SHARE_OUTSIDE and found.scale == pytest.approx(58 / 28, rel=0.06)


def test_values_with_a_physical_scale_are_never_matched():
    dark, bright = smooth(100, 120), Scan(smooth(60, 60).pixels // 4)
    user_mask = np.zeros((100, 120), dtype=bool)
    user_mask[20:60, 30:90] = True
    matched = place(dark, bright, disc((60, 60), 30, 30, 15), user_mask, match="contrast").match
    assert matched.why is None and (matched.gain, matched.offset) != (1, 0)
    in_units = [Scan(one.pixels, meaning=Meaning(unit="HU")) for one in (dark, bright)]
    for scans, why in (
        (in_units, "the values are in HU"),
        ((in_units[0], bright), ONE_UNIT),
        ((dark, in_units[1]), ONE_UNIT),
    ):
        kept = place(*scans, disc((60, 60), 30, 30, 15), user_mask, match="contrast").match
        assert (kept.how, kept.gain, kept.offset, kept.why) == ("none", 1, 0, why)
