"""These tests check what is given back of the autoencoder's losses, and by which methods."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_samples import latents, run, sample, scan
from fake_model import FakeModel

from composition import METHODS, Settings, compose
from composition.blending import soft_mask
from composition.canvas import from_canvas
from composition.matching import grown
from composition.mini.demo import demo_request
from composition.placement import place
from sd21 import load

WITH_DETAIL = Settings.paper(detail=True)
# The double's autoencoder keeps one number of every 8 x 8 pixels, so that nearly all of a scan's texture is its loss.


def test_what_is_given_back_written_out():
    """decode(x[0]) + r(placed) S + r(background) (1 - S), with r(image) = image - decode(encode(image))."""
    model, one, seen = FakeModel(pull=0.2), sample(128, 128), []
    image = run(model, one, WITH_DETAIL, on_state=lambda i, x, x0: seen.append(x[0])).image
    encoded, _, _ = latents(model, one)
    background, placed, result = (
        from_canvas(model.decode(latent[None])[0], (128, 128)) for latent in (encoded[0], encoded[1], seen[-1])
    )
    placement = place(one.background, one.obj, one.object_mask, one.user_mask)
    soft = soft_mask(grown(placement.object_mask, 3), 3.0)[..., None]  # a pixel of the canvas is one of the scan here
    expected = result + (placement.image - placed) * soft + (one.background.values() - background) * (1 - soft)
    rendered = one.background.render(expected, grayscale=True)
    assert np.abs(image.astype(int) - rendered).max() <= 1  # rounding to 8 bits may fall either way


def test_a_soft_mask_is_the_gaussian_of_the_mask():
    mask = np.zeros((64, 80), dtype=bool)
    mask[:, 40:] = True
    soft = soft_mask(mask, 4.0)
    assert soft.dtype == np.float32 and np.ptp(soft, axis=0).max() < 1e-6  # the mask goes on beyond both borders
    expected = torch.special.ndtr(torch.from_numpy((np.arange(80) - 39.5) / 4)).numpy()
    # Sums over pixels for integrals, cut off at 3.5 sigma: some 1e-3.
    np.testing.assert_allclose(soft[0], expected, atol=2e-3)
    assert soft_mask(mask.T, 4.0).T == pytest.approx(soft)
    assert soft_mask(np.ones((3, 3), bool), 5.0).min() == pytest.approx(1)


@pytest.mark.parametrize("method", ["blended", "published"])
def test_baselines_give_detail_back_where_asked_alone(method):
    one = sample(128, 128)
    plain, detailed = (
        run(FakeModel(), one, Settings(focus="scan", detail=detail), method=method) for detail in (None, True)
    )
    outside = ~one.user_mask

    def loss(result):
        return np.abs(result.image[outside].astype(int) - one.background.pixels[outside]).mean()

    assert plain.decoded and not detailed.decoded
    assert loss(detailed) < 0.5 * loss(plain)


def test_blended_gives_back_nothing_inside_the_user_mask():
    """It draws something else there. Four sigma of the soft mask inside the edge, the object's pixels play no part."""
    one = sample(128, 128)
    plain, detailed = (
        run(FakeModel(), one, Settings.paper(detail=detail), method="blended").image for detail in (None, True)
    )
    inside = np.zeros_like(one.user_mask)
    inside[30 + 12 : 80 - 12, 40 + 12 : 100 - 12] = True
    assert np.abs(plain[inside].astype(int) - detailed[inside]).max() <= 1


def test_sdedit_has_no_detail_to_give_back():
    model = FakeModel()
    with pytest.raises(ValueError, match="sdedit draws it anew"):
        run(model, sample(), Settings(detail=True), method="sdedit")
    assert model.rows == 0


@pytest.mark.parametrize("preserve", ["latent", "pixels"])
def test_detail_goes_with_every_preserve(preserve):
    """The background's own pixels come back to one grey level outside the soft mask, by either way."""
    one = sample(128, 128)
    image = run(FakeModel(), one, Settings(preserve=preserve, preserve_background_until=0)).image
    far = np.ones_like(one.user_mask)
    far[30 - 24 : 80 + 24, 40 - 24 : 100 + 24] = False  # three latent cells around the user mask: the soft masks' reach
    assert np.abs(image[far].astype(int) - one.background.pixels[far]).max() <= 1


def test_what_is_lost_is_kept_with_the_inversion():
    class Watched(FakeModel):
        decodes = 0

        def decode(self, latent):
            self.decodes += 1
            return super().decode(latent)

    model, kept, one = Watched(), {}, sample()
    first = run(model, one, inversions=kept)
    assert model.decodes == 3 and all(trajectory.decoded is not None for trajectory in kept.values())
    again = run(model, replace(one, prompt="another"), inversions=kept)
    assert model.decodes == 4
    run(model, replace(one, obj=scan(90, 90, 8)), inversions=kept)
    assert model.decodes == 6  # the other object and the result
    assert again.image.shape == first.image.shape


def test_without_detail_nothing_of_it_is_kept_and_it_is_added_when_it_is_asked_for():
    kept, one = {}, sample()
    run(FakeModel(), one, Settings(detail=False), inversions=kept)
    assert len(kept) == 2 and all(trajectory.decoded is None for trajectory in kept.values())
    run(FakeModel(), one, inversions=kept)
    assert len(kept) == 2 and all(trajectory.decoded is not None for trajectory in kept.values())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sdedit", "copy-paste", "tf-icon")])
def test_settings_paper_has_every_step_off(method):
    """Nothing but the method's own equations: the result is the decoded latent."""
    seen, one, model = [], sample(128, 128), FakeModel()
    result = run(model, one, Settings.paper(), method=method, on_state=lambda i, x, x0: seen.append(x))
    expected = one.background.render(from_canvas(model.decode(seen[-1])[0], (128, 128)), grayscale=True)
    assert result.decoded and np.array_equal(result.image, expected)
    assert result.match.how == "none" and result.window.covers(one.background)


@pytest.mark.slow
def test_the_identity_through_the_small_checkpoint():
    """The background's own region, under the exceptional prompt at scale 1, returns the background to 45 dB.

    Nothing is put back on the way, so that the inversion alone brings it back; the naive one does not (41 dB seen).
    """
    background, *_ = demo_request().read()
    mask = np.zeros(background.size, dtype=bool)
    mask[72:124, 148:194] = True
    free = {"preserve_background_until": None, "preserve_object_until": None, "guidance_scale": 1.0}
    exact = Settings(tolerance=1e-3, max_sweeps=15, on_failure="raise", **free)
    model = load("mini", device="cpu")

    def psnr(settings):
        image = compose(model, background, background, mask, mask, None, settings).image.astype(float)
        return 10 * np.log10(255**2 / max(((image - background.pixels) ** 2).mean(), 1e-9))

    assert psnr(exact) >= 45 > psnr(Settings(inversion="naive", **free))
