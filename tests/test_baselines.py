"""The baselines run here on a model that is known to the last digit. The tests check their equations by hand, their
noise, and their bookkeeping."""

import re
from dataclasses import replace
from functools import partial
from math import inf, nan

import numpy as np
import pytest
import torch
from drawn_samples import data, guided_data, inverted, latents, rendered, run, run_of, sample, scan, stepped
from fake_model import FakeModel

from composition import METHODS, Settings
from composition.blending import compose_states
from composition.methods.blended import blended_latent_diffusion
from composition.methods.copy_paste import copy_paste
from composition.methods.published import published
from composition.methods.sdedit import sdedit
from composition.prompts import exceptional_context

SETTINGS = Settings.paper(tolerance=1e-3)
ON_DOUBLE = {name: method for name, method in METHODS.items() if name != "tf-icon"}  # it hooks a network's attention
NOISY = {"blended": blended_latent_diffusion, "sdedit": sdedit}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_copy_paste_is_the_placed_pixels_inside_and_the_backgrounds_outside(dtype):
    model, one = FakeModel(), replace(sample(), background=scan(120, 160, 0, dtype))
    result = run_one(copy_paste, model, one)
    assert result.image.dtype == dtype and result.mask.any() and not result.mask[~one.user_mask].any()
    assert np.array_equal(result.image[~result.mask], one.background.pixels[~result.mask])
    assert np.array_equal(result.image[result.mask], result.placed[result.mask])
    assert model.rows == 0 and result.rows == {"inversion": 0, "composition": 0}


def run_one(method, model, one, settings=SETTINGS, *, inversions=None, **keywords):
    """keywords: the method's own options."""
    return run(model, one, settings, method=partial(method, **keywords), inversions=inversions)


def test_all_methods_place_alike_and_count_what_the_network_ran():
    for one, shape in ((sample(seed=0), (120, 160)), (sample(160, 120, seed=5), (160, 120))):
        expected = run(FakeModel(), one, SETTINGS)
        for name in ON_DOUBLE:
            model = FakeModel()
            result = run(model, one, SETTINGS, method=name)
            assert model.rows == sum(result.rows.values()), name
            assert np.array_equal(result.mask, expected.mask) and result.canvas == expected.canvas
            assert np.array_equal(result.placed, expected.placed) and result.scale == expected.scale
            assert result.image.shape == shape


@pytest.mark.parametrize(
    ("name", "scale", "inversion", "composition"),
    [
        ("blended", 2.5, 0, 15 * 2),  # a quarter of the 20 steps is skipped; guidance takes two rows
        ("blended", 1.0, 0, 15),
        ("sdedit", 2.5, 0, 10 * 2),  # half of the steps
        ("published", 2.5, 4 * 20, 2 * 20 + 6 * 2),  # two scans up, and back to measure; both down again; T' = 6
        ("published", 1.0, 4 * 20, 2 * 20 + 6),
    ],
)
def test_rows_by_stage(name, scale, inversion, composition):
    result = run_one(METHODS[name], FakeModel(), sample(), replace(SETTINGS, guidance_scale=scale))
    assert result.rows == {"inversion": inversion, "composition": composition}


@pytest.mark.parametrize("name", NOISY)
def test_a_seed_is_its_noise(name):
    method, one, model = NOISY[name], sample(), FakeModel()
    first = run_one(method, model, one, seed=7).image
    assert np.array_equal(run_one(method, model, one, seed=7).image, first)
    assert not np.array_equal(run_one(method, model, one, seed=8).image, first)
    state = torch.random.get_rng_state()
    run_one(method, model, one)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own random numbers are left alone


def test_sdedit_written_out():
    model, one = FakeModel(pull=0.2), sample(128, 128)
    grid, _ = run_of(model, SETTINGS)
    (_, _, pasted), _, _ = latents(model, one)
    z = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3))
    x, older = grid.alpha[8].float() * pasted + grid.sigma[8].float() * z, []
    table = SETTINGS.build_table(grid.until(8))
    for i in range(8, 0, -1):
        older.insert(0, guided_data(model, grid, x, i, one.prompt, 2.5))
        x = stepped(table, i, x, older)
    image = run_one(sdedit, model, one, strength=0.4, seed=3).image
    assert np.abs(image.astype(int) - rendered(model, one, x)).max() <= 1  # rounding to 8 bits may fall either way


def test_sdedit_strays_further_the_stronger_it_is():
    model, one = FakeModel(), sample()
    pasted = run_one(copy_paste, model, one).image.astype(float)
    errors = [np.abs(run_one(sdedit, model, one, strength=share).image - pasted).mean() for share in (0.05, 0.5, 1)]
    assert errors == sorted(errors)


def test_blended_shows_the_network_a_freshly_noised_background_and_ends_in_the_clean_one():
    class Watched(FakeModel):
        seen = []  # noqa: RUF012

        def unet(self, x, t, context):
            self.seen.append((t[0].item(), x[0]))
            return super().unet(x, t, context)

    model, one = Watched(pull=0.5), sample(128, 128)
    grid, _ = run_of(model, SETTINGS)
    (background, _, _), _, m_user = latents(model, one)
    outside = (m_user == 0).expand(4, -1, -1)
    image = run_one(blended_latent_diffusion, model, one).image
    drawn = []
    for i, (t, x) in zip(range(15, 0, -1), model.seen, strict=True):
        assert t == grid.t[i].item()
        z = ((x - grid.alpha[i].float() * background) / grid.sigma[i].float())[outside]
        # About 800 normal numbers: five standard errors of their mean and of their deviation.
        assert abs(z.mean()) < 0.18 and abs(z.std() - 1) < 0.13
        drawn.append(z)
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 0.25  # fresh: seven standard errors
    clean, cells = rendered(model, one, background), outside[0].repeat_interleave(8, 0).repeat_interleave(8, 1).numpy()
    assert np.array_equal(image[cells], clean[cells]) and (image[~cells] != clean[~cells]).any()


def test_blended_does_not_look_at_the_object():
    model, one = FakeModel(), sample()
    other = replace(one, obj=scan(90, 90, 11))
    assert np.array_equal(*(run_one(blended_latent_diffusion, model, which).image for which in (one, other)))


def test_the_method_as_published_written_out():
    """On few steps, so that neighbouring states differ enough to be told apart."""
    model, one = FakeModel(pull=0.2), sample(128, 128)
    settings = replace(SETTINGS, steps=6, start=4, preserve_background_until=2)
    grid, table = run_of(model, settings)
    encoded, m_obj, m_user = latents(model, one)
    naive = Settings(steps=6, inversion="naive")
    exceptional = exceptional_context(model)
    again = []  # states x[6..0] of background and object
    for states in inverted(model, encoded[:2], naive, 6):
        x, older = states[6], []
        states = [x]
        for i in range(6, 0, -1):
            older.insert(0, data(model, grid, x, i, exceptional))
            x = stepped(table, i, x, older)
            states.append(x)
        again.append(states[::-1])
    bg, obj = again
    x, older, table = compose_states(obj[4], bg[4], m_obj), [], settings.build_table(grid.until(4))
    for i in range(4, 0, -1):
        if i >= 2:
            x = x * m_user + bg[i] * (1 - m_user)
        older.insert(0, guided_data(model, grid, x, i, one.prompt, 2.5))
        x = stepped(table, i, x, older)
    expected, image = rendered(model, one, x), run_one(published, model, one, settings).image
    assert np.abs(image.astype(int) - expected).max() <= 1  # rounding to 8 bits may fall either way
    ours = run(model, one, Settings(steps=6, start=4)).image
    assert np.abs(ours.astype(int) - expected).max() > 1  # and it is not our default


def test_published_reuses_a_kept_inversion_whatever_the_settings_of_the_composition():
    model, kept, one = FakeModel(), {}, sample()
    first = run_one(published, model, one, inversions=kept)
    again = run_one(published, model, one, replace(SETTINGS, start=12), inversions=kept)
    assert len(kept) == 2 and first.rows["inversion"] == 80 and again.rows["inversion"] == 0
    assert all(again.reused.values()) and all(report.method == "naive" for report in again.inversion.values())


def test_pixels_are_preserved_where_that_is_asked():
    one = sample()
    for name, method in ON_DOUBLE.items():
        image = run_one(method, FakeModel(), one, replace(SETTINGS, preserve="pixels")).image
        assert np.array_equal(image[~one.user_mask], one.background.pixels[~one.user_mask]), name
        assert (image != one.background.pixels).any()


def test_shares_out_of_range_are_refused_before_the_network_runs():
    model = FakeModel()
    for method, keywords, message in [
        # 1.02 of 20 steps would round to all 20.
        *((sdedit, {"strength": bad}, "a share of the steps in (0, 1], got") for bad in (0.0, -0.1, 1.02, nan, inf)),
        (sdedit, {"strength": 0.02}, "strength 0.02 of 20 steps rounds to none: give more than 0.025"),
        *((blended_latent_diffusion, {"skipped": bad}, "skipped is a share of") for bad in (1.0, -0.1, nan, inf)),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            run_one(method, model, sample(), **keywords)
    assert model.rows == 0
