"""The method on inputs that know their answer: Eq. 8 and 9 by hand, and what composition must hold from end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from small_models import write_small_pipeline

import sd21
from composition.blending import compose_states, feather_weight, preserve_background, preserve_pixels
from composition.compose import Sample, compose, compose_batch
from composition.images import Scan, ScanError
from composition.inversions import carried_history, inversion_key, invert_latents, network, sampler
from composition.placement import PlacementError, from_canvas, place, to_canvas, to_latent_mask
from composition.prompts import exceptional_context
from composition.settings import Settings

EXACT = Settings(tolerance=2e-6, guidance_scale=1.0)


def scan(height, width, seed, dtype=np.uint8):
    """Long waves and a little noise, over the whole range of the dtype."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    values = np.sin(x / 17 + seed) + np.cos(y / 13 + 2 * seed) + 0.1 * rng.standard_normal((height, width))
    values = (values - values.min()) / (values.max() - values.min())
    return Scan(np.rint(values * np.iinfo(dtype).max).astype(dtype))


def box(shape, x, y, width, height):
    mask = np.zeros(shape, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def sample(height=120, width=160, seed=0, prompt="a lesion"):
    user_mask = box((height, width), 40, 30, 60, 50)
    return Sample(scan(height, width, seed), scan(90, 90, seed + 1), box((90, 90), 20, 25, 40, 40), user_mask, prompt)


def run(model, sample, settings=Settings(), **keywords):  # noqa: B008 -- frozen
    return compose_batch(model, [sample], settings, **keywords)[0]


def test_eq_8_by_hand():
    x_obj, x_bg = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[10.0, 20.0, 30.0]]]])
    composed = compose_states(x_obj, x_bg, torch.tensor([[[[1.0, 0.0, 1.0]]]]))
    assert composed.tolist() == [[[[1.0, 20.0, 3.0]]]]


@pytest.mark.parametrize(("preserve_until", "start"), [(3, 6), (0, 2), (2, 2), (5, 4)])
def test_eq_9_by_hand_and_on_its_bounds_alone(preserve_until, start):
    x_bg = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(8, 1, 1, 1, 2)  # the state i holds i
    edit = preserve_background(x_bg, torch.tensor([[[[1.0, 0.0]]]]), preserve_until, start)
    for i in range(start + 1):
        expected = [-1.0, float(i)] if preserve_until <= i else [-1.0, -1.0]
        assert edit(i, -torch.ones(1, 1, 1, 2)).flatten().tolist() == expected


def test_the_feather_lies_inside_the_mask_and_ignores_the_scans_border():
    mask = box((7, 9), 3, 0, 6, 6)  # touches the scan at the top and on the right
    expected = np.zeros((7, 9))
    expected[:6, 3:] = 1 / 3
    expected[:5, 4:] = 2 / 3
    expected[:4, 5:] = 1
    np.testing.assert_array_equal(feather_weight(mask, 2), expected)
    np.testing.assert_array_equal(feather_weight(mask, 0), mask)


def test_preserved_pixels_are_the_scans_own_and_blend_inside():
    background, mask = Scan(np.full((7, 9), 9, np.uint16) + np.eye(7, 9, dtype=np.uint16)), box((7, 9), 2, 2, 5, 5)
    image = preserve_pixels(background, np.full((7, 9), 1009, np.uint16), mask, 1)
    assert np.array_equal(image[~mask], background.pixels[~mask])
    assert image[2, 4] == 509 and (image[3:6, 3:6] == 1009).all()
    colour = preserve_pixels(background, np.full((7, 9, 3), 1009, np.uint16), mask, 1)
    assert np.array_equal(colour, np.repeat(image[..., None], 3, 2))


@pytest.mark.parametrize(("history", "inversion"), [("carry", "joint"), ("carry", "defect"), ("restart", "joint")])
@pytest.mark.parametrize(("steps", "start"), [(20, 6), (20, 1), (8, 8)])
def test_an_object_that_is_the_backgrounds_own_region_returns_the_background(history, inversion, steps, start):
    """The identity of the whole method: exceptional prompt throughout, scale 1. 16 bits, to see more than 8 would."""
    model, background, mask = FakeModel(), scan(128, 128, 3, np.uint16), box((128, 128), 30, 40, 50, 40)
    settings = replace(EXACT, history=history, inversion=inversion, steps=steps, start=start)
    image = compose(model, background, background, mask, mask, None, settings).image
    decoded = model.decode(model.encode(torch.from_numpy(background.values()).permute(2, 0, 1)[None]))
    expected = background.render(decoded[0].permute(1, 2, 0).numpy(), grayscale=True)
    # The inversion is exact to 2e-6 of the latent's norm; its largest entry errs some ten times more: 1 in 65535.
    error = np.abs(image.astype(int) - expected).max()
    assert error <= 2
    if start > 1:  # where inversion takes more than one equation, the usual one is not exact, and shows
        naive = compose(model, background, background, mask, mask, None, replace(settings, inversion="naive")).image
        assert np.abs(naive.astype(int) - expected).max() > 100


def test_the_identity_through_the_whole_network(tmp_path):
    """The same through sd21's own UNet, VAE and text tower. Random weights make a network rougher than trained ones,
    which cannot be inverted at most images; with the UNet's output scaled to a tenth it can."""
    model = sd21.load(write_small_pipeline(tmp_path / "model"), device="cpu")
    for weight in model.unet.conv_out.parameters():
        weight.mul_(0.1)
    background, mask = scan(128, 128, 3, np.uint16), box((128, 128), 30, 40, 50, 40)
    decoded = model.decode(model.encode(torch.from_numpy(background.values()).permute(2, 0, 1)[None]))
    expected = background.render(decoded[0].permute(1, 2, 0).numpy(), grayscale=True).astype(int)
    for inversion, exact in (("joint", True), ("naive", False)):
        settings = replace(EXACT, tolerance=5e-6, inversion=inversion)  # 2e-6 is this network's rounding
        image = compose(model, background, background, mask, mask, None, settings).image
        # 5e-6 of latents of order 0.1, decoded with a gain of order ten, in steps of 2 / 65535.
        assert (np.abs(image - expected).max() <= 4) == exact


def test_the_carried_history_is_the_data_prediction_before_start():
    model, settings = FakeModel(), EXACT
    grid, table = sampler(model, settings)
    latent = model.encode(torch.from_numpy(scan(128, 128, 1).values()).permute(2, 0, 1)[None])
    (trajectory,) = invert_latents(model, latent, 7788, settings)
    assert trajectory.states.shape == (8, 4, 16, 16) and trajectory.converged
    x = trajectory.states[7:]
    t, alpha, sigma = grid.t[7:8], grid.alpha[7].item(), grid.sigma[7].item()
    data = (x - sigma * network(model, None)(x, t, exceptional_context(model, 7788))) / alpha
    # The inversion's 2e-6, divided by b + c = 0.35 of that step.
    torch.testing.assert_close(carried_history(trajectory.states[:, None], table), data, rtol=0, atol=2e-5)


def test_the_method_against_its_equations_written_out():
    """Steps 3 to 5 once more, as loops over the paper's equations with the table's numbers."""
    model, settings, one = FakeModel(pull=0.2), Settings(tolerance=2e-6), sample(128, 128)
    grid, table = sampler(model, settings)
    placement = place(one.background, one.obj, one.object_mask, one.user_mask)
    images = torch.stack([to_canvas(values, (128, 128)) for values in (one.background.values(), placement.image)])
    bg, obj = (trajectory.states for trajectory in invert_latents(model, model.encode(images), 7788, settings))
    m_obj, m_user = (to_latent_mask(mask, (16, 16)) for mask in (placement.object_mask, placement.user_mask))

    def eps(x, i, context):
        return model.unet(x[None], grid.t[i : i + 1], context)[0]

    def x0(x, i, text):
        noise = eps(x, i, model.text_encoder.embed(7788)[None])
        if text:
            null = eps(x, i, model.embed([""]))
            noise = null + 2.5 * (eps(x, i, model.embed([one.prompt])) - null)
        return (x - grid.sigma[i].float() * noise) / grid.alpha[i].float()

    x = obj[6] * m_obj + bg[6] * (1 - m_obj)
    older = x0(obj[7], 7, text=False) * m_obj + x0(bg[7], 7, text=False) * (1 - m_obj)
    for i in range(6, 0, -1):
        if i >= 3:
            x = x * m_user + bg[i] * (1 - m_user)
        data = x0(x, i, text=True)
        x, older = (table.a[i] * x + table.b[i] * data + table.c[i] * older).float(), data
    expected = one.background.render(from_canvas(model.decode(x[None])[0], (128, 128)), grayscale=True)
    # Rounding to 8 bits may fall either way.
    assert np.abs(run(model, one, settings).image.astype(int) - expected).max() <= 1


def test_eq_9_acts_in_the_latents_until_preserve_until():
    """Kept down to i = 0, the background is the autoencoder's own; kept to i = 1, the text prompt moves it."""
    model, one = FakeModel(pull=0.5), sample(128, 128)
    outside = ~one.user_mask
    outside[24:88, 32:104] = False  # latent cells that the user mask touches
    decoded = model.decode(model.encode(torch.from_numpy(one.background.values()).permute(2, 0, 1)[None]))
    expected = one.background.render(decoded[0].permute(1, 2, 0).numpy(), grayscale=True)
    kept = run(model, one, Settings(preserve_until=0)).image
    moved = run(model, one, Settings(preserve_until=1)).image
    assert np.array_equal(kept[outside], expected[outside])
    assert (moved[outside] != expected[outside]).mean() > 0.9


@pytest.mark.parametrize("start", [1, 20])
def test_the_ends_of_start(start):
    composition = run(FakeModel(), sample(), Settings(start=start, tolerance=1e-3))
    assert composition.image.shape == (120, 160) and composition.nfe["composition"] == 2 * start
    if start == 20:  # nothing comes before T, so there is no history to carry
        restarted = run(FakeModel(), sample(), Settings(start=20, tolerance=1e-3, history="restart"))
        assert np.array_equal(composition.image, restarted.image)


def test_the_result_outside_the_user_mask_is_the_scan_to_the_bit():
    for dtype in (np.uint8, np.uint16):
        one = sample()
        one = replace(one, background=scan(120, 160, 0, dtype))
        image = run(FakeModel(), one, Settings(preserve="pixels")).image
        assert image.dtype == dtype
        assert np.array_equal(image[~one.user_mask], one.background.pixels[~one.user_mask])
        assert not np.array_equal(image, one.background.pixels)
        assert (run(FakeModel(), one).image[~one.user_mask] != one.background.pixels[~one.user_mask]).any()


def test_the_result_is_grayscale_if_both_scans_are():
    one = sample()
    tinted = Scan(np.stack([one.obj.pixels, one.obj.pixels // 2, one.obj.pixels], axis=2))
    rgb = Scan(np.repeat(one.background.pixels[..., None], 3, axis=2))
    assert run(FakeModel(), one).image.shape == (120, 160)
    threefold = run(FakeModel(), replace(one, background=rgb)).image
    assert threefold.shape == (120, 160, 3) and (threefold == threefold[..., :1]).all()
    coloured = run(FakeModel(), replace(one, obj=tinted)).image
    assert coloured.shape == (120, 160, 3) and (coloured != coloured[..., :1]).any()
    assert run(FakeModel(), replace(one, obj=tinted, background=scan(120, 160, 0, np.uint16))).image.ndim == 2


def test_a_batch_is_its_samples_one_by_one_in_their_order():
    """Two canvases, two tumours in one background, two prompts."""
    samples = [sample(seed=0), sample(160, 120, seed=5), sample(seed=0, prompt=None), sample(seed=2)]
    samples[2] = replace(samples[2], obj=scan(90, 90, 9))
    model = FakeModel(pull=0.5)
    together = compose_batch(model, samples)
    rows = model.rows
    for one, expected in zip(samples, together, strict=True):
        alone = run(model, one)
        assert np.array_equal(alone.mask, expected.mask) and alone.canvas == expected.canvas
        assert np.abs(alone.image.astype(int) - expected.image).max() <= 1  # a batch of another size rounds otherwise
    assert together[2].inversion["background"]["reused"] and not together[0].inversion["background"]["reused"]
    assert rows == sum(sum(composition.nfe.values()) for composition in together)


def test_what_is_kept_is_inverted_once():
    model, kept, one = FakeModel(), {}, sample()
    first = run(model, one, inversions=kept)
    assert len(kept) == 2 and model.rows == sum(first.nfe.values())
    model.rows = 0
    second = run(model, replace(one, obj=scan(90, 90, 8)), inversions=kept)
    assert len(kept) == 3 and model.rows == sum(second.nfe.values())
    assert second.nfe["inversion"] == second.inversion["object"]["nfe"] and second.inversion["background"]["reused"]
    again = run(model, one, inversions=kept)
    assert np.array_equal(again.image, first.image)
    model.rows = 0
    third = run(model, replace(one, prompt="another"), Settings(guidance_scale=4, preserve_until=1), inversions=kept)
    assert len(kept) == 3 and model.rows == sum(third.nfe.values()) == third.nfe["composition"]
    moved = np.roll(one.user_mask, 3, axis=1)  # the same object, elsewhere on the canvas
    assert not run(model, replace(one, user_mask=moved), inversions=kept).inversion["object"]["reused"]


def test_an_object_that_cannot_be_inverted_costs_its_background_nothing():
    kept, one = {}, sample()

    class FailsOnceSomethingIsKept(FakeModel):
        def unet(self, x, t, context):
            return super().unet(x, t, context) * (float("nan") if kept else 1)

    with pytest.raises(FloatingPointError):
        run(FailsOnceSomethingIsKept(), one, inversions=kept)
    assert len(kept) == 1 and run(FakeModel(), one, inversions=kept).inversion["background"]["reused"]


def test_a_composition_costs_at_most_a_third_of_the_papers_recipe():
    """Rows of the UNet. TF-ICON's code, which the paper builds on, runs two for every state, guided or not."""
    inverting_both_to_20, denoising_both_to_6, the_background_on_to_3, composing = 2 * 20, 2 * 14, 3, 6
    published = 2 * (inverting_both_to_20 + denoising_both_to_6 + the_background_on_to_3 + composing)
    model = FakeModel()
    composition = run(model, sample())
    assert model.rows == sum(composition.nfe.values()) <= published / 3


def test_the_key_is_of_content_model_and_the_inversions_settings():
    model, image, settings = FakeModel(), torch.zeros(3, 16, 16), Settings()
    key = inversion_key(model, image, 7788, settings)
    assert key == inversion_key(
        FakeModel(), image.clone(), 7788, replace(settings, preserve="pixels", guidance_scale=5)
    )
    other = FakeModel()
    other.identity = {**model.identity, "revision": "another"}
    changed = [
        inversion_key(other, image, 7788, settings),
        inversion_key(model, image + 1, 7788, settings),
        inversion_key(model, image.view(3, 32, 8), 7788, settings),
        inversion_key(model, image, 7, settings),
        *(inversion_key(model, image, 7788, replace(settings, **{name: value})) for name, value in [
            ("steps", 25), ("start", 4), ("history", "restart"), ("grid", "log_snr"), ("tolerance", 0.5),
            ("inversion", "defect"), ("lower_order_final", True),
        ]),
    ]  # fmt: skip
    assert len({key, *changed}) == 1 + len(changed)


def test_max_batch_bounds_every_call_and_changes_nothing():
    class Watched(FakeModel):
        def unet(self, x, t, context):
            assert len(x) <= 3
            return super().unet(x, t, context)

    samples = [sample(seed=0), sample(seed=4)]
    for bounded, free in zip(
        compose_batch(Watched(), samples, Settings(max_batch=3)), compose_batch(FakeModel(), samples), strict=True
    ):
        assert np.abs(bounded.image.astype(int) - free.image).max() <= 1 and bounded.nfe == free.nfe


def test_what_cannot_be_composed_is_told_before_the_network_runs():
    model, one = FakeModel(), sample()
    speck = replace(one, user_mask=box((120, 160), 50, 50, 3, 3))
    for bad, error, message in [
        (speck, PlacementError, "covers 9 pixels of scan, less than half of any cell of the 14x18 latent grid"),
        (replace(one, user_mask=one.user_mask.T), PlacementError, "user mask has"),
        (replace(one, object_mask=one.object_mask & False), PlacementError, "object mask of scan is empty"),
    ]:
        with pytest.raises(error, match=message):
            compose_batch(model, [one, bad])
    with pytest.raises(ScanError, match="blank"):
        Scan(np.zeros((120, 160), np.uint8))
    with pytest.raises(ValueError, match="not one of the model's 49408 tokens"):
        run(model, one, Settings(exceptional_token=50000))
    assert model.rows == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("start", 0), ("start", 21), ("start", 6.0), ("preserve_until", -1), ("feather", -1),
     ("max_batch", 0), ("grid", "karras"), ("inversion", "exact"), ("history", "keep"), ("preserve", "all"),
     ("tolerance", 0), ("tolerance", float("nan")), ("guidance_scale", float("inf")), ("exceptional_token", -1)],
)  # fmt: skip
def test_settings_refuse_what_they_cannot_mean(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})
