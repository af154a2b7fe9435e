"""These tests check that a mask's compression is told from what its file holds: a lossy one is read by half of the
range, and a lossless one of labels 0 and 1 as it is."""

import numpy as np
import pytest
from PIL import Image, features

from composition.scans.errors import ScanError
from composition.scans.images import read_mask

Y, X = np.mgrid[:64, :80]
DISC = (X - 30) ** 2 + (Y - 32) ** 2 < 300
LOSSLESS = {
    "vp8l.webp": {"lossless": True},
    "lzw.tif": {"compression": "tiff_lzw"},
    "reversible.jp2": {"irreversible": False},
}
LOSSY = {
    "vp8.webp": {"quality": 80},
    "jpeg.tif": {"compression": "jpeg"},
    "truncated.jp2": {"irreversible": False, "quality_mode": "rates", "quality_layers": [8]},
    "irreversible.jp2": {"irreversible": True, "quality_mode": "dB", "quality_layers": [35]},
    "a.avif": {"quality": 20},
    "a.jpg": {"quality": 75},
}
NEEDS = {".webp": "webp", ".jp2": "jpg_2000", ".avif": "avif", ".tif": "libtiff"}


def written(folder, name: str, values: np.ndarray, **options):
    kind = NEEDS.get(name[name.rindex(".") :])
    if kind is not None and not features.check(kind):
        pytest.skip(f"this Pillow cannot write {kind}")
    path = folder / name
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("label", [1, 255])
def test_lossless_labels_are_exact(tmp_path, name, label):
    assert np.array_equal(read_mask(written(tmp_path, name, DISC * np.uint8(label), **LOSSLESS[name])), DISC)


def test_a_lossless_webp_with_alpha_is_exact(tmp_path):
    picture = Image.fromarray(DISC.astype(np.uint8))
    picture.putalpha(255)
    path = written(tmp_path, "alpha.webp", np.asarray(picture), lossless=True, exact=True)
    assert np.array_equal(read_mask(path), DISC)


@pytest.mark.parametrize("name", LOSSY)
def test_a_lossy_mask_does_not_grow(tmp_path, name):
    path = written(tmp_path, name, DISC * np.uint8(255), **LOSSY[name])
    # It is half of the range that counts, which the compression moves by a pixel here and there along the edge.
    moved = 0.02 * DISC.sum()
    assert np.count_nonzero(read_mask(path) != DISC) <= moved
    with Image.open(path) as image:
        rung = np.count_nonzero(np.asarray(image.convert("L"))) - DISC.sum()
    assert rung > moved or name == "a.avif"  # whose encoder knows drawings, and draws no rings around this one
    if name == "truncated.jp2":  # with labels of 0 and 1 nobody can tell it from a lossless file
        return
    with pytest.raises(ScanError, match="inside is where it is 128 or more, since its compression is lossy"):
        read_mask(written(tmp_path, name, DISC.astype(np.uint8), **LOSSY[name]))
