"""These tests check the window that the network sees: where it lies, what comes back into the scan, and how."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from drawn_samples import box, run, scan
from fake_model import FakeModel

from composition import Sample, Scan, Settings, compose
from composition.focus import FEW_CELLS, LEAST_WINDOW, choose_window
from sd21 import load

NETWORK = dict(image_size=128, factor=8)  # the double's


def window(shape, x, y, width, height, **how):
    return choose_window(box(shape, x, y, width, height), **NETWORK, **how)


def small_target(dtype=np.uint8, shape=(300, 400), at=(250, 100)):
    """A target of 20 x 16 pixels on a large scan: two latent cells of the whole of it."""
    background = scan(*shape, 0, dtype)
    return Sample(
        background, scan(90, 90, 1, dtype), box((90, 90), 20, 25, 40, 32), box(shape, *at, 20, 16), "a lesion"
    )


def test_the_window_is_a_square_around_the_target_and_lies_on_the_scan():
    found = window((300, 400), 250, 100, 40, 20, focus="window", focus_context=3.0)
    assert (found.rows, found.columns) == ((50, 170), (210, 330)) and found.zoom == 128 / 120
    at_the_corner = window((300, 400), 370, 0, 30, 20, focus="window", focus_context=3.0)
    assert (at_the_corner.rows, at_the_corner.columns) == ((0, 90), (310, 400))
    flat = window((60, 400), 250, 10, 40, 20, focus="window", focus_context=3.0)  # taller than the scan
    assert (flat.rows, flat.columns) == ((0, 60), (210, 330))
    assert window((60, 70), 5, 5, 40, 40, focus="window").size == (60, 70)


def test_the_window_has_a_least_size_and_the_zoom_tells_how_far_it_enlarges():
    found = window((300, 400), 200, 100, 4, 4, focus="window")
    assert found.size == (LEAST_WINDOW * 128,) * 2 and found.zoom == 1 / LEAST_WINDOW
    assert window((300, 400), 200, 100, 4, 4, focus="scan").zoom == pytest.approx(144 / 400)  # the canvas is 112 x 144


def test_auto_takes_a_window_where_the_target_spans_too_few_cells():
    """128 pixels are 16 cells here, so that a cell is 8 pixels."""
    enough = int(FEW_CELLS * 8)
    assert window((128, 128), 10, 10, enough, enough, focus="auto", focus_context=2.0).size == (128, 128)
    found = window((128, 128), 10, 10, 45, enough - 1, focus="auto", focus_context=2.0)
    assert found.size == (90, 90) and found.cells > FEW_CELLS
    assert window((128, 128), 10, 10, 8, 8).size == (128, 128)  # the default of the function is the whole scan


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("at", [(250, 100), (0, 0), (380, 284)])
@pytest.mark.parametrize("method", ["ours", "copy-paste", "sdedit", "blended", "published"])
def test_outside_the_window_the_pixels_are_the_scans_to_the_bit(dtype, at, method):
    one = small_target(dtype, at=at)
    result = run(FakeModel(pull=0.3), one, method=method)
    outside = np.ones(one.background.size, dtype=bool)
    outside[result.window.part] = False
    assert outside.sum() > outside.size / 2 and result.image.shape == one.background.size
    assert np.array_equal(result.image[outside], one.background.pixels[outside])
    assert np.array_equal(result.placed[outside], one.background.pixels[outside])
    assert result.mask.any() and not result.mask[~one.user_mask].any() and not result.decoded
    assert not np.array_equal(result.image, one.background.pixels)


@pytest.mark.parametrize("shape", ["thin", "scattered"])
def test_the_window_is_around_the_object_and_not_around_a_target_that_it_cannot_fill(shape):
    """A strip of 200 x 12 pixels, and two patches 250 apart: the object lies in a small part of either."""
    one, target = small_target(), np.zeros((300, 400), dtype=bool)
    if shape == "thin":
        target[100:112, 100:300] = True
    else:
        target[20:50, 20:50] = target[240:270, 240:270] = True
    result = run(FakeModel(), replace(one, user_mask=target))
    # Four times the object, which is as long as the strip is high (16), or as a patch is wide (30).
    assert result.window.size == ((64, 64) if shape == "thin" else (120, 120))
    assert result.label.cells >= 4 and result.mask.any() and not result.mask[~target].any()
    outside = np.ones((300, 400), dtype=bool)
    outside[result.window.part] = False
    assert np.array_equal(result.image[outside], one.background.pixels[outside])


def test_no_step_in_grey_is_left_at_the_windows_edge():
    """SDEdit moves every pixel of the window, so that without the blend its edge would show.

    A row or column of pixels across the edge differs from the scan's own step by the first weight of the blend at most,
    1 / (margin / 2 + 1) of what the window's pixels moved, and by the rounding of two pixels.
    """
    one = small_target()
    result = run(FakeModel(pull=0.3), one, Settings(focus="window"), method="sdedit")
    (top, bottom), (left, right) = result.window.rows, result.window.columns
    image, own = result.image.astype(float), one.background.pixels.astype(float)
    moved = np.abs(image - own)[result.window.part].max()
    margin = min(100 - top, bottom - 116, 250 - left, right - 270)
    assert moved > 20
    for across in (np.s_[top - 1 : top + 1, left:right], np.s_[bottom - 1 : bottom + 1, left:right]):
        assert np.abs(np.diff(image[across], axis=0) - np.diff(own[across], axis=0)).max() <= moved / (margin // 2) + 1
    for across in (np.s_[top:bottom, left - 1 : left + 1], np.s_[top:bottom, right - 1 : right + 1]):
        assert np.abs(np.diff(image[across], axis=1) - np.diff(own[across], axis=1)).max() <= moved / (margin // 2) + 1


def test_a_part_of_a_scan_keeps_the_windows_greys_of_the_whole_and_may_be_of_one_grey():
    pixels = np.full((300, 400), 700, np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 4000
    pixels[100:150, 200:260] += np.arange(60, dtype=np.uint16)
    whole = Scan(pixels)
    part = whole.part(slice(150, 300), slice(0, 100))
    assert part.window == whole.window == (700, 759) and (part.pixels == 700).all()  # two hot pixels are no ends


def test_colour_elsewhere_on_the_scan_keeps_the_result_in_colour():
    one = small_target()
    pixels = np.repeat(one.background.pixels[..., None], 3, axis=2)
    pixels[0, 0] = (255, 0, 0)  # a burnt-in mark, far from the window
    result = run(FakeModel(), replace(one, background=Scan(pixels)))
    assert result.image.shape == (300, 400, 3) and result.image[0, 0].tolist() == [255, 0, 0]


def mammogram() -> Sample:
    """3000 x 4000 pixels with fine texture, and a lesion of 90 pixels."""
    rng = np.random.default_rng(0)

    def drawn(height, width, disc=None):
        y, x = np.mgrid[:height, :width].astype(np.float32)
        grey = 110 + 30 * np.sin(x / 400) * np.cos(y / 300)
        if disc is not None:
            cx, cy, radius = disc
            grey += 60 * ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)
        return Scan(np.clip(grey + 6 * rng.standard_normal((height, width), dtype=np.float32), 0, 255).astype(np.uint8))

    background, obj = drawn(3000, 4000), drawn(600, 600, (300, 300, 45))
    y, x = np.mgrid[:600, :600]
    mask = (x - 300) ** 2 + (y - 300) ** 2 < 45**2
    return Sample(background, obj, mask, box((3000, 4000), 2100, 1400, 90, 90), "An MRI scan of a cancerous brain")


@pytest.mark.slow
def test_a_small_lesion_in_a_mammogram_keeps_the_fine_texture_of_both():
    """Neighbouring pixels differ as they did, within 5 %, outside the tumour and inside.

    The scan itself takes 12 MB. Numpy's memory, which tracemalloc counts, stays below 20 times that: below a float64
    copy of the whole scan in three channels. The network's own is that of its canvas, whatever the scan's size.
    """
    one, model = mammogram(), load("mini", device="cpu")
    tracemalloc.start()
    result = compose(model, *one)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 240e6 and result.window.size == (360, 360)

    def texture(pixels, inside):
        both = inside[:, 1:] & inside[:, :-1]
        return np.diff(pixels.astype(float), axis=1)[both].std()

    (y0, y1), (x0, x1) = result.window.rows, result.window.columns
    near = np.zeros_like(result.mask)
    near[y0:y1, x0:x1] = True
    around = near & ~result.mask
    assert texture(result.image, around) == pytest.approx(texture(one.background.pixels, around), rel=0.05)
    assert texture(result.image, result.mask) == pytest.approx(texture(result.placed, result.mask), rel=0.05)
    assert np.array_equal(result.image[~near], one.background.pixels[~near])
