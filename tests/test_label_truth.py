"""Whether a label is true is measured on pictures whose figures are known."""

import json
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from drawn_samples import box, sample
from fake_model import FakeModel

from composition import METHODS, Sample, Scan, Settings, compose
from composition.canvas import to_latent_mask
from composition.matching import ring
from composition.metrics.label_truth import (
    AIR,
    VALUES,
    LabelTruth,
    cells_iou,
    contrast_kept,
    contrast_of,
    correlation,
    measure_label,
)
from composition.scans.images import values_of

SIZE = (60, 80)
TISSUE, TUMOUR = 100, 160
MASK = box(SIZE, 24, 20, 16, 16)
WHOLE = slice(0, SIZE[0]), slice(0, SIZE[1])
CELLS = MASK[::4, ::4]  # 4 x 4 cells of 4 pixels, which the mask fills exactly
# The figures are exact in float64 up to the rounding of a few products.
EXACT = 1e-12


def drawn(inside=TUMOUR, outside=TISSUE, mask=MASK):
    """A tumour on tissue, each with a chessboard of one level up and down, so that nothing is constant."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return (np.where(mask, inside, outside) + 2 * ((x + y) % 2) - 1).astype(np.uint8)


def label_of(composite, placed=None, own=None, mask=MASK, cells=CELLS, clipped=0.0):
    own = drawn() if own is None else own
    one = Sample(Scan(drawn(TISSUE)), Scan(own), mask, mask, None)
    return measure_label(one, composite, own if placed is None else placed, mask, WHOLE, cells, clipped)


def test_a_pasted_object_keeps_everything():
    label = label_of(drawn())
    # A chessboard of as many highs as lows has its median in the middle.
    assert label == LabelTruth(1.0, TUMOUR - TISSUE, TUMOUR - TISSUE, 1.0, 0.0, 16, 1.0, 0.0)


def test_a_vanished_object_has_no_contrast():
    label = label_of(drawn(TISSUE))
    assert (label.contrast, label.contrast_composite, label.grey_shift) == (0, 0, TISSUE - TUMOUR)
    assert label.correlation == pytest.approx(1, abs=EXACT)  # the texture is that of the object, moved in grey


def test_an_object_turned_round_has_the_contrast_minus_one():
    turned = (2 * TISSUE - drawn().astype(int)).astype(np.uint8)
    label = label_of(turned)
    assert label.contrast == -1
    assert label.correlation == pytest.approx(-1, abs=EXACT)
    assert label.grey_shift == 2 * (TISSUE - TUMOUR)


def test_a_drawn_case_by_hand():
    placed = np.full(SIZE, TISSUE, dtype=np.uint8)
    composite = placed.copy()
    mask = box(SIZE, 30, 20, 2, 2)
    placed[mask], composite[mask] = (10, 20, 30, 40), (12, 20, 31, 45)
    label = label_of(composite, placed, own=placed, mask=mask, cells=CELLS, clipped=0.25)
    assert (label.contrast_own, label.contrast_composite) == (25 - TISSUE, 25.5 - TISSUE)
    assert label.contrast == pytest.approx(74.5 / 75, abs=EXACT)
    # Deviations from the means 25 and 27: (-15, -5, 5, 15) and (-15, -7, 4, 18).
    assert label.correlation == pytest.approx((225 + 35 + 20 + 270) / np.sqrt(500 * 614), abs=EXACT)
    assert label.grey_shift == 2
    assert (label.cells, label.clipped) == (16, 0.25)
    assert label.cells_iou == 4 / 256  # the cells are the 16 x 16 square, which holds the mask


@pytest.mark.parametrize("channels", [False, True])
def test_sixteen_bits_and_values_say_the_same_as_eight(channels):
    rng = np.random.default_rng(0)
    eight = (rng.integers(20, 120, SIZE) + 100 * MASK).astype(np.uint8)
    deep, levels = eight.astype(np.uint16) * 12 + 1000, (1000, 1000 + 255 * 12)
    values = values_of(eight, (0, 255))
    if channels:
        eight = np.repeat(eight[..., None], 3, axis=2)
    expected = contrast_of(eight, MASK, (0, 255))
    assert contrast_of(deep, MASK, levels) == pytest.approx(expected, abs=EXACT * 255)
    # float32 keeps 24 bits of a number up to 1, hence of 127.5 grey levels 8e-6; a contrast has two.
    assert contrast_of(values, MASK, VALUES) == pytest.approx(expected, abs=2e-5)

    def measured(pixels, window):
        scans = Scan(pixels, levels=window), Scan(pixels, levels=window)
        one = Sample(*scans, MASK, MASK, None)
        moved = np.roll(pixels, 1, axis=1)
        return asdict(measure_label(one, pixels, moved, MASK, WHOLE, CELLS, 0.0))

    # Some three hundred products of the order of 1e4 are summed: 1e-12 of the sum each at most.
    assert measured(deep, levels) == pytest.approx(measured(eight, (0, 255)), rel=1e-10, abs=1e-10)


def test_what_is_undefined_is_none():
    everything = np.ones(SIZE, dtype=bool)
    assert contrast_of(drawn(), everything, (0, 255)) is None  # no ring
    assert contrast_kept(None, 60.0) is None and contrast_kept(60.0, None) is None
    assert contrast_kept(30.0, 4.9) is None and contrast_kept(30.0, -4.9) is None
    assert contrast_kept(30.0, 5.0) == 6 and contrast_kept(30.0, -5.0) == -6
    flat = np.full(9, 1 / 3)
    assert correlation(flat, np.arange(9.0)) is None and correlation(np.arange(9.0), flat) is None
    label = label_of(drawn(), own=drawn(TISSUE + 3))
    assert label.contrast is None and (label.contrast_own, label.contrast_composite) == (3, 60)


def test_air_in_the_ring_is_no_tissue():
    pixels = drawn()
    pixels[:, 42:] = 8  # JPEG's noise in air
    assert (pixels[ring(MASK)] == 8).any() and 8 < AIR < 9
    assert contrast_of(pixels, MASK, (0, 255)) == TUMOUR - TISSUE
    pixels[~MASK] = 3
    assert contrast_of(pixels, MASK, (0, 255)) == TUMOUR - 3  # nothing but air


@pytest.mark.parametrize(
    "where", [(0, 0, 9, 5), (71, 40, 9, 20), (20, 1, 40, 3), (5, 5, 1, 1)], ids=["corner", "edges", "long", "pixel"]
)
def test_the_box_that_is_looked_at_holds_the_whole_ring(where):
    mask, pixels = box(SIZE, *where), np.random.default_rng(1).integers(9, 256, SIZE, dtype=np.uint8)
    expected = np.median(pixels[mask]) - np.median(pixels[ring(mask)])
    assert contrast_of(pixels, mask, (0, 255)) == expected


def test_cells_are_compared_with_the_mask_in_its_pixels():
    mask = box((12, 16), 4, 4, 8, 4)
    assert cells_iou(mask[::4, ::4], mask) == 1
    assert cells_iou(np.zeros((3, 4), dtype=bool), mask) == 0
    moved = np.roll(mask[::4, ::4], 1, axis=1)
    assert cells_iou(moved, mask) == 4 * 4 / (3 * 4 * 4)
    # Where cells and pixels do not divide, a pixel goes to the cell of its middle: 2, 1 and 2 of 5 pixels.
    assert cells_iou(np.array([[False, True, False]]), np.ones((1, 5), dtype=bool)) == 1 / 5


def test_a_large_scan_costs_little_memory():
    """A mammogram's 12 million pixels would be 96 MB in float64 for every picture that was looked at whole."""
    size = 3000, 4000
    mask, cells = box(size, 2000, 1500, 300, 200), np.zeros((56, 75), dtype=bool)
    pixels = np.full(size, 1000, dtype=np.uint16)
    pixels[mask] = 3000
    pixels[0, 0], pixels[0, 1] = 0, 4000
    one = Sample(Scan(pixels), Scan(pixels), mask, mask, None)
    tracemalloc.start()
    label = measure_label(one, pixels, pixels, mask, (slice(None), slice(None)), cells, 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert label.contrast == 1
    assert peak < 60e6  # bool arrays of the whole scan are 12 MB each; there are three of them, and the box


@pytest.mark.parametrize("method", [name for name in METHODS if name != "tf-icon"])
def test_every_method_measures_its_label(method):
    """The double has no attention to hook, so it cannot run tf-icon."""
    settings = Settings(inversion="naive", focus="window", focus_context=2, fit="box")
    result = compose(FakeModel(), *sample(), settings, method=method)
    label, seen = result.label, result.window.part
    assert not result.window.covers(result.sample.background)
    cells = to_latent_mask(result.mask[seen], tuple(side // 8 for side in result.canvas))[0].numpy()
    assert label == measure_label(
        result.sample, result.image, result.placed, result.mask, seen, cells, result.label.clipped
    )
    assert label.cells > 4 and 0.5 < label.cells_iou <= 1
    json.dumps(asdict(label), allow_nan=False)
    assert ("contrast unknown" if label.contrast is None else f"contrast {label.contrast:.2f}") in repr(result)
    if method == "copy-paste":
        assert (label.correlation, label.grey_shift) == (pytest.approx(1, abs=EXACT), 0)


def test_a_label_is_json_whatever_is_undefined():
    everything = np.ones(SIZE, dtype=bool)
    flat = np.full(SIZE, 7, dtype=np.uint8)
    label = label_of(flat, flat, mask=everything)
    assert (label.contrast, label.contrast_composite, label.contrast_own, label.correlation) == (None,) * 4
    assert json.loads(json.dumps(asdict(label), allow_nan=False)) == asdict(label)
    assert all(type(value) in (float, int, type(None)) for value in asdict(label).values())
