"""These tests check the match of grey values on drawn scans, where the right gain and offset are known."""

import tracemalloc

import numpy as np
import pytest

from composition.matching import (
    GAP,
    LEAST_GAIN,
    LEAST_PIXELS,
    MATCHES,
    MOST_GAIN,
    Match,
    grown,
    match,
    ring,
    ring_greys,
)

# Greys are sums and products of float32 numbers below 2, whose spacing is 1.2e-7; a match takes a few of them.
ROUNDING = 1e-6


def disc(size, y, x, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def scan(size, mask, tissue, tumour):
    """Values (H, W, 3) in [-1, 1] of a tumour in tissue, of these greys."""
    greys = np.where(mask, tumour, tissue).astype(np.float32)
    return np.repeat(2 * greys[..., None] - 1, 3, axis=2)


MASK = disc((90, 110), 40, 50, 14)
PLACED = disc((120, 100), 70, 45, 22)


def matched(target, own, tumour, how="contrast"):
    background, obj = scan(PLACED.shape, PLACED, target, 0.5), scan(MASK.shape, MASK, own, tumour)
    return match(background, PLACED, obj, MASK, how), obj


@pytest.mark.parametrize(
    ("target", "own", "tumour", "gain", "there"),
    [(0.3, 0.5, 0.7, 1, 0.5), (0.45, 0.6, 0.4, 1, 0.25), (0.4, 0.32, 0.08, 1.25, 0.1), (0.6, 0.3, 0.1, MOST_GAIN, 0.3)],
    ids=["darker tissue", "darker tissue, dark tumour", "brighter tissue", "much brighter tissue"],
)
def test_ring_comes_to_ring_and_the_contrast_is_kept_or_grows_with_the_tissue(target, own, tumour, gain, there):
    found, obj = matched(target, own, tumour)
    assert found.why is None and found.how == "contrast"
    assert found.gain == pytest.approx(gain, abs=ROUNDING)
    assert found.offset == pytest.approx(target - gain * own, abs=ROUNDING)
    assert (found.background_ring, found.object_ring) == pytest.approx((target, own), abs=ROUNDING)
    greys = (found.apply(obj) + 1) / 2
    assert greys[MASK] == pytest.approx(there, abs=ROUNDING)
    assert greys[~MASK] == pytest.approx(target, abs=ROUNDING)


@pytest.mark.parametrize(
    ("target", "own", "tumour", "end"), [(0.8, 0.3, 0.6, 1.0), (0.2, 0.6, 0.3, 0.0)], ids=["bright", "dark"]
)
def test_the_contrast_is_lowered_to_the_room_that_white_and_black_leave(target, own, tumour, end):
    found, obj = matched(target, own, tumour)
    assert found.gain == pytest.approx(2 / 3, abs=ROUNDING)
    greys = (found.apply(obj) + 1) / 2
    assert greys[MASK] == pytest.approx(end, abs=ROUNDING) and greys[~MASK] == pytest.approx(target, abs=ROUNDING)


@pytest.mark.parametrize("flip", [1, -1], ids=["bright", "dark"])
def test_the_far_end_is_where_the_tumour_ends_but_for_its_tail(flip):
    # In greys: tissue of 0.3, a tumour of 0.5 with a twelfth of it at 0.8, and a background of 0.6; or their negative.
    background, obj = scan(PLACED.shape, PLACED, 0.6, 0.5), scan(MASK.shape, MASK, 0.3, 0.5)
    tumour = np.flatnonzero(MASK)
    obj.reshape(-1, 3)[tumour[::12]] = 0.6
    tail = obj.copy()
    tail.reshape(-1, 3)[tumour[1::100]] = 1  # a hundredth is white, less than the tail
    for values in (obj, tail):
        found = match(flip * background, PLACED, flip * values, MASK)
        assert found.gain == pytest.approx(0.4 / 0.5, abs=ROUNDING)


def test_the_contrast_is_not_lowered_below_its_least_share():
    for target, own, tumour in ((0.95, 0.2, 0.9), (0.05, 0.8, 0.1)):
        found, obj = matched(target, own, tumour)
        assert found.gain == LEAST_GAIN
        assert abs(found.apply(obj)).max() <= 1


@pytest.mark.parametrize("how", MATCHES)
def test_a_scan_matched_to_itself_stays_as_it_is(how):
    values = np.random.default_rng(0).uniform(-1, 1, (*MASK.shape, 3)).astype(np.float32)
    found = match(values, MASK, values, MASK, how)
    assert (found.gain, found.offset, found.why) == (1, 0, None)
    assert np.array_equal(found.apply(values), values)


def test_none_looks_at_nothing():
    found, obj = matched(0.8, 0.2, 0.6, how="none")
    assert found == Match("none") and np.array_equal(found.apply(obj), obj)


def test_apply_clips_keeps_the_dtype_and_leaves_its_argument():
    for dtype in (np.float32, np.float64):
        values = np.linspace(-1, 1, 12, dtype=dtype).reshape(2, 2, 3)
        before = values.copy()
        found = Match("contrast", gain=2, offset=0.1).apply(values)
        expected = np.clip(2 * (2 * (values + 1) / 2 + 0.1) - 1, -1, 1)
        assert found.dtype == dtype and np.array_equal(values, before)
        assert found == pytest.approx(expected, abs=ROUNDING)


def test_air_does_not_count_in_a_ring():
    background = scan(PLACED.shape, PLACED, 0.5, 0.5)
    background[:, :38] = 2 * 7 / 255 - 1  # air with the noise of JPEG, in the left third of the ring
    obj = scan(MASK.shape, MASK, 0.3, 0.6)
    found = match(background, PLACED, obj, MASK)
    assert found.why is None and found.background_ring == pytest.approx(0.5, abs=ROUNDING)


def check_unmatched(found, obj, *reasons):
    assert (found.gain, found.offset, found.background_ring, found.object_ring) == (1, 0, None, None)
    assert all(reason in found.why for reason in reasons)
    assert np.array_equal(found.apply(obj), obj)


def test_a_black_ring_matches_nothing():
    background, obj = scan(PLACED.shape, PLACED, 0.01, 0.5), scan(MASK.shape, MASK, 0.3, 0.6)
    check_unmatched(match(background, PLACED, obj, MASK), obj, "is black", "place on the background", "100%")
    black = scan(MASK.shape, MASK, 0.01, 0.6)
    bright = scan(PLACED.shape, PLACED, 0.5, 0.5)
    check_unmatched(match(bright, PLACED, black, MASK), black, "is black", "object in its own scan")


def test_a_ring_that_the_border_cuts_is_used_from_a_quarter_on():
    obj = scan(MASK.shape, MASK, 0.3, 0.6)
    for corner, usable in ((disc((120, 100), 3, 3, 20), True), (np.ones((24, 24), dtype=bool), False)):
        found = match(scan(corner.shape, corner, 0.5, 0.5), corner, obj, MASK)
        assert (found.why is None) == usable
    check_unmatched(found, obj, "border", "100%")


def test_a_tiny_ring_matches_nothing():
    obj = scan(MASK.shape, MASK, 0.3, 0.6)
    tiny = np.zeros((40, 40), dtype=bool)
    tiny[0, 20] = True  # its ring has 9 x 9 - 5 x 5 = 56 pixels in the middle of a scan
    assert GAP == 2 and ring(np.roll(tiny, 20, axis=0)).sum() == 56 < LEAST_PIXELS
    check_unmatched(match(scan(tiny.shape, tiny, 0.5, 0.5), tiny, obj, MASK), obj, "tiny", "30 pixels")


def test_a_ring_lies_around_its_mask_and_has_a_quarter_of_its_size():
    mask = np.zeros((70, 90), dtype=bool)
    mask[20:40, 30:50] = True
    expected = np.zeros_like(mask)
    expected[13:47, 23:57] = True  # 20 / 4 = 5 pixels wide, 2 pixels off
    expected[18:42, 28:52] = False
    assert np.array_equal(ring(mask), expected)
    assert np.array_equal(
        ring(np.roll(mask, -20, axis=0)), np.where(np.arange(70)[:, None] < 50, np.roll(expected, -20, axis=0), False)
    )


@pytest.mark.parametrize("reach", [1, 2, 3, 4, 5, 12, 13, 14, 40])
def test_growing_leaves_no_hole(reach):
    mask = np.zeros((31, 33), dtype=bool)
    mask[9, 20] = mask[25, 3] = True
    rows, columns = np.nonzero(mask)
    y, x = np.mgrid[:31, :33]
    distance = np.maximum(abs(y[..., None] - rows), abs(x[..., None] - columns)).min(axis=2)
    assert np.array_equal(grown(mask, reach), distance <= reach)


def test_colours_count_by_the_mean_of_their_channels():
    values = scan(MASK.shape, MASK, 0.3, 0.6)
    values += np.array([-0.1, 0, 0.1], dtype=np.float32)
    greys, why = ring_greys(values, MASK, "tumour")
    assert why is None and greys == pytest.approx(0.3, abs=ROUNDING)


def test_what_cannot_be_matched_is_an_error():
    obj = scan(MASK.shape, MASK, 0.3, 0.6)
    with pytest.raises(ValueError, match="one of contrast, none; got 'median'"):
        match(obj, MASK, obj, MASK, "median")
    with pytest.raises(ValueError, match="empty"):
        match(obj, MASK, obj, np.zeros_like(MASK))


def test_a_mammogram_takes_memory_by_its_tumour():
    size = (3000, 4000)
    mask = np.zeros(size, dtype=bool)
    mask[1000:1600, 500:1100] = True
    values = np.broadcast_to(np.float32(0.2), (*size, 3))
    tracemalloc.start()
    found = match(values, mask, values, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.why is None
    # The ring's box has 0.8 million pixels: a few bool arrays of it, and float32 greys of ring and tumour with their
    # copies, are 16 MB at most. One float32 array of the scan would be 48 MB, and one of its values 144.
    assert peak < 16e6


def test_a_match_is_applied_in_one_array():
    values = np.zeros((1000, 1000, 3), dtype=np.float32)
    tracemalloc.start()
    Match("contrast", gain=0.7, offset=0.1).apply(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * values.nbytes  # the result itself; a second array of its size would be 2
