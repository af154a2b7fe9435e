"""These tests run the method on inputs whose answer is known: Eq. 8 and 9 by hand, and what composition must hold from
end to end."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from drawn_samples import box, data, guided_data, inverted, latents, rendered, run, run_of, sample, scan, stepped
from fake_model import FakeModel
from small_models import write_small_pipeline

import sd21
from composition import METHODS, Composition, Frame, Sample, Scan, Settings, compose
from composition.blending import compose_states, feather_weight, preserve_pixels, preserve_states
from composition.canvas import soft_latent_mask
from composition.prompts import exceptional_context
from solvers import SOLVERS, exponential_ab3, history_at, log_snr

# The paper's method, whose result is its equations' and nothing more, by an exact inversion.
PAPER = Settings.paper(inversion="joint", max_sweeps=200, on_failure="raise")
EXACT = replace(PAPER, tolerance=2e-6, guidance_scale=1.0)


def test_eq_8_by_hand():
    x_obj, x_bg = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[10.0, 20.0, 30.0]]]])
    composed = compose_states(x_obj, x_bg, torch.tensor([[[[1.0, 0.0, 1.0]]]]))
    assert composed.tolist() == [[[[1.0, 20.0, 3.0]]]]


@pytest.mark.parametrize(("background", "start"), [(3, 6), (0, 2), (2, 2), (5, 4), (None, 3)])
@pytest.mark.parametrize("held", [1, 4, None])
def test_eq_9_by_hand_and_on_its_bounds_alone(background, held, start):
    """Three cells: in the object's mask, in the user mask beside it, and outside."""
    x_bg = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(8, 1, 1, 1, 3)  # the state i holds i
    m_user, m_obj = torch.tensor([[[[1.0, 1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0, 0.0]]]])
    edit = preserve_states(x_bg, 10 * x_bg, m_user, m_obj, start, background, held)
    for i in range(start + 2):
        expected = [-1.0, -1.0, -1.0]
        if i <= start and background is not None and background <= i:
            expected[2] = float(i)
        if i <= start and held is not None and held <= i:
            expected[0] = 10.0 * i
        assert edit(i, -torch.ones(1, 1, 1, 3)).flatten().tolist() == expected


def test_the_objects_soft_edge_reaches_over_the_edge_of_the_user_mask():
    """Outside M_user, at a weight of a quarter, a state is three quarters background and one quarter object."""
    x_bg = torch.full((3, 1, 1, 1, 2), 8.0)
    edit = preserve_states(x_bg, 2 * x_bg, torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.75, 0.25]]]]), 2, 0, 0)
    assert edit(1, torch.zeros(1, 1, 1, 2)).flatten().tolist() == [12.0, 10.0]


def test_the_soft_mask_of_the_latent_grid_by_hand():
    """A cell of 8 x 8 pixels, half of it inside, is seen by itself and its neighbours: a ninth of a half, and at the
    corner of the grid, which has three neighbours, a quarter of it."""
    mask = np.zeros((40, 40), dtype=bool)
    mask[16:24, 16:20] = True
    soft = soft_latent_mask(mask, (5, 5))
    assert soft.shape == (1, 5, 5) and soft[0, 1:4, 1:4].unique().tolist() == pytest.approx([1 / 18])
    assert soft[0, 0].max() == 0 == soft[0, :, 4].max()
    corner = np.zeros((40, 40), dtype=bool)
    corner[:8, :8] = True
    assert soft_latent_mask(corner, (5, 5))[0, 0, 0] == pytest.approx(1 / 4)


def test_the_feather_lies_inside_the_mask_and_ignores_the_scans_border():
    mask = box((7, 9), 3, 0, 6, 6)  # touches the scan at the top and on the right
    expected = np.zeros((7, 9))
    expected[:6, 3:] = 1 / 3
    expected[:5, 4:] = 2 / 3
    expected[:4, 5:] = 1
    np.testing.assert_array_equal(feather_weight(mask, 2), expected)
    np.testing.assert_array_equal(feather_weight(mask, 0), mask)
    # A feather is no wider than the mask is deep: here 6 pixels, at the corner of the scan.
    assert feather_weight(mask, 50)[0, 8] == 1 and feather_weight(mask, 50)[3, 5] == 3 / 6
    assert (feather_weight(np.ones((5, 5), bool), 3) == 1).all() and not feather_weight(np.zeros((5, 5), bool), 3).any()


def test_preserved_pixels_are_the_scans_own_and_blend_inside():
    mask = box((7, 9), 2, 2, 5, 5)
    background = Scan(np.full((7, 9), 9, np.uint16) + np.eye(7, 9, dtype=np.uint16), levels=(0, 2000))
    image = preserve_pixels(background, np.full((7, 9), 1009, np.uint16), mask, 1)
    assert np.array_equal(image[~mask], background.pixels[~mask])
    assert image[2, 4] == 509 and (image[3:6, 3:6] == 1009).all()
    colour = preserve_pixels(background, np.full((7, 9, 3), 1009, np.uint16), mask, 1)
    assert np.array_equal(colour, np.repeat(image[..., None], 3, 2))


@pytest.mark.parametrize(("history", "inversion"), [("carry", "joint"), ("carry", "defect"), ("restart", "joint")])
@pytest.mark.parametrize(("steps", "start"), [(20, 6), (20, 1), (8, 8)])
def test_an_object_that_is_the_backgrounds_own_region_returns_the_background(history, inversion, steps, start):
    """With the exceptional prompt and scale 1, the whole method is an identity. 16 bits show more than 8 would."""
    model, background, mask = FakeModel(), scan(128, 128, 3, np.uint16), box((128, 128), 30, 40, 50, 40)
    settings = replace(EXACT, history=history, inversion=inversion, steps=steps, start=start)
    assert _identity_error(model, background, mask, settings) <= 2
    if start > 1:  # inversion takes more than one equation here, and the usual one is visibly not exact
        assert _identity_error(model, background, mask, replace(settings, inversion="naive")) > 100


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("history", ["carry", "restart"])
def test_the_identity_holds_for_every_solver_and_its_history(solver, history):
    model, background, mask = FakeModel(), scan(128, 128, 3, np.uint16), box((128, 128), 30, 40, 50, 40)
    assert _identity_error(model, background, mask, replace(EXACT, solver=solver, history=history)) <= 2


def _identity_error(model, background, mask, settings) -> int:
    """The largest difference in stored values. The inversion is exact to 2e-6 of the latent's norm. The error of its
    largest entry is some ten times that, which is 1 in 65535."""
    image = compose(model, background, background, mask, mask, None, settings).image
    decoded = model.decode(model.encode(torch.from_numpy(background.values()).permute(2, 0, 1)[None]))
    expected = background.render(decoded[0].permute(1, 2, 0).numpy(), grayscale=True)
    return np.abs(image.astype(int) - expected).max()


@pytest.mark.slow
def test_the_identity_through_the_whole_network(tmp_path):
    """The same holds through sd21's own UNet, VAE and text tower. Random weights make a network rougher than trained
    ones do, and it cannot be inverted at most images. With the UNet's output scaled to a tenth it can."""
    model = sd21.load(write_small_pipeline(tmp_path / "model"), device="cpu")
    for weight in model.unet.conv_out.parameters():
        weight.mul_(0.1)
    background, mask = scan(128, 128, 3, np.uint16), box((128, 128), 30, 40, 50, 40)
    settings = replace(EXACT, tolerance=5e-6)  # 2e-6 is this network's rounding
    # 5e-6 of latents of order 0.1, decoded with a gain of order ten, in steps of 2 / 65535.
    assert _identity_error(model, background, mask, settings) <= 4
    assert _identity_error(model, background, mask, replace(settings, inversion="naive")) > 4


@pytest.mark.parametrize("solver", ["dpm_solver_pp_2m", "exponential_ab3"])
def test_the_carried_history_is_the_data_predictions_before_start(solver):
    model, settings = FakeModel(), replace(EXACT, solver=solver)
    grid, table = run_of(model, settings)
    until = 6 + table.terms - 1
    latent = model.encode(torch.from_numpy(scan(128, 128, 1).values()).permute(2, 0, 1)[None])
    (states,) = inverted(model, latent, settings, until)
    assert states.shape == (until + 1, 4, 16, 16)
    history = history_at(states[:, None], settings.build_table(grid.until(until)), 6)
    context = exceptional_context(model)
    for i, found in zip(range(7, until + 1), history, strict=True):
        # The inversion's 2e-6 of the state, divided by the rows' weights, 0.35 and more, one after the other.
        torch.testing.assert_close(found[0], data(model, grid, states[i], i, context), rtol=0, atol=1e-4)


def test_the_method_against_its_equations_written_out():
    """The expected image comes from loops over the paper's equations with the table's numbers."""
    model, settings, one = FakeModel(pull=0.2), replace(PAPER, tolerance=2e-6, history="carry"), sample(128, 128)
    grid, table = run_of(model, settings)
    encoded, m_obj, m_user = latents(model, one)
    bg, obj = inverted(model, encoded[:2], settings, 7)
    context = exceptional_context(model)
    x = obj[6] * m_obj + bg[6] * (1 - m_obj)
    older = [data(model, grid, obj[7], 7, context) * m_obj + data(model, grid, bg[7], 7, context) * (1 - m_obj)]
    for i in range(6, 0, -1):
        if i >= 3:
            x = x * m_user + bg[i] * (1 - m_user)
        older.insert(0, guided_data(model, grid, x, i, one.prompt, 2.5))
        x = stepped(table, i, x, older)
    # Rounding to 8 bits may fall either way.
    assert np.abs(run(model, one, settings).image.astype(int) - rendered(model, one, x)).max() <= 1


def test_eq_9_acts_in_the_latents_until_preserve_background_until():
    """If it is kept down to i = 0, the background is the autoencoder's own; if to i = 1, the text prompt moves it."""
    model, one = FakeModel(pull=0.5), sample(128, 128)
    outside = ~one.user_mask
    outside[24:88, 32:104] = False  # latent cells that the user mask touches
    expected = rendered(model, one, latents(model, one)[0][0])
    kept = run(model, one, replace(PAPER, preserve_background_until=0)).image
    moved = run(model, one, replace(PAPER, preserve_background_until=1)).image
    assert np.array_equal(kept[outside], expected[outside])
    assert (moved[outside] != expected[outside]).mean() > 0.9


@pytest.mark.parametrize("start", [1, 20])
def test_the_ends_of_start(start):
    composition = run(FakeModel(), sample(), replace(PAPER, start=start, tolerance=1e-3, history="carry"))
    assert composition.image.shape == (120, 160) and composition.rows["composition"] == 2 * start
    if start == 20:  # nothing comes before T, so there is no history to carry
        restarted = run(FakeModel(), sample(), replace(PAPER, start=20, tolerance=1e-3))
        assert np.array_equal(composition.image, restarted.image)


def test_the_result_outside_the_user_mask_is_the_scan_to_the_bit():
    for dtype in (np.uint8, np.uint16):
        one = sample()
        one = replace(one, background=scan(120, 160, 0, dtype))
        image = run(FakeModel(), one, Settings(preserve="pixels")).image
        assert image.dtype == dtype
        assert np.array_equal(image[~one.user_mask], one.background.pixels[~one.user_mask])
        assert not np.array_equal(image, one.background.pixels)
        assert (run(FakeModel(), one, PAPER).image[~one.user_mask] != one.background.pixels[~one.user_mask]).any()


def test_the_feather_is_in_pixels_of_the_canvas():
    """The canvas has half of the scan's pixels a side, so that a feather of 4 is 8 pixels of the scan."""
    one = Sample(
        scan(256, 256, 0), scan(90, 90, 1), box((90, 90), 20, 25, 40, 40), box((256, 256), 60, 60, 90, 90), None
    )
    latent, pixels = (run(FakeModel(), one, replace(PAPER, preserve=which)).image for which in ("latent", "pixels"))
    moved = latent != one.background.pixels
    for depth, blended in ((1, True), (8, True), (9, False)):
        edge = np.zeros_like(one.user_mask)
        edge[60 + depth - 1, 75:135] = True  # this many pixels below the upper edge
        assert (pixels[edge & moved] != latent[edge & moved]).any() == blended


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


def test_background_and_object_go_through_the_network_together():
    class Watched(FakeModel):
        calls = []  # noqa: RUF012

        def unet(self, x, t, context):
            self.calls.append(len(x))
            return super().unet(x, t, context)

    model = Watched()
    run(model, sample(), Settings(inversion="naive"))
    assert model.calls[:12] == [2] * 12  # six up and six down to measure, both images in every call
    model.calls.clear()
    run(model, sample(), Settings(inversion="naive"), inversions={})
    assert model.calls[:24] == [1] * 24  # what is kept must not depend on the rest of its batch


def test_a_scan_that_is_its_own_object_in_its_place_is_inverted_once():
    model, background, mask = FakeModel(), scan(128, 128, 3), box((128, 128), 30, 40, 50, 40)
    result = compose(model, background, background, mask, mask, None)
    assert result.reused == {"background": False, "object": True}
    assert model.rows == sum(result.rows.values()) and result.rows["inversion"] == result.inversion["background"].rows


def test_what_is_kept_is_inverted_once():
    model, kept, one = FakeModel(), {}, sample()
    first = run(model, one, inversions=kept)
    assert len(kept) == 2 and model.rows == sum(first.rows.values())
    model.rows = 0
    second = run(model, replace(one, obj=scan(90, 90, 8)), inversions=kept)
    assert len(kept) == 3 and model.rows == sum(second.rows.values())
    assert second.rows["inversion"] == second.inversion["object"].rows and second.reused["background"]
    again = run(model, one, inversions=kept)
    assert np.array_equal(again.image, first.image)
    model.rows = 0
    settings = Settings(guidance_scale=4, preserve_background_until=1)
    third = run(model, replace(one, prompt="another"), settings, inversions=kept)
    assert len(kept) == 3 and model.rows == sum(third.rows.values()) == third.rows["composition"]
    moved = np.roll(one.user_mask, 3, axis=1)  # the same object, elsewhere on the canvas
    assert not run(model, replace(one, user_mask=moved), inversions=kept).reused["object"]


def test_an_object_that_cannot_be_inverted_costs_its_background_nothing():
    kept, one = {}, sample()

    class FailsOnceSomethingIsKept(FakeModel):
        def unet(self, x, t, context):
            return super().unet(x, t, context) * (float("nan") if kept else 1)

    with pytest.raises(FloatingPointError):
        run(FailsOnceSomethingIsKept(), one, inversions=kept)
    assert len(kept) == 1 and run(FakeModel(), one, inversions=kept).reused["background"]


def test_a_composition_costs_at_most_a_third_of_the_papers_recipe():
    """Cost is rows of the UNet. TF-ICON's code, which the paper builds on, runs two for every state, guided or not."""
    inverting_both_to_20, denoising_both_to_6, the_background_on_to_3, composing = 2 * 20, 2 * 14, 3, 6
    published = 2 * (inverting_both_to_20 + denoising_both_to_6 + the_background_on_to_3 + composing)
    model = FakeModel()
    composition = run(model, sample())
    assert model.rows == sum(composition.rows.values()) <= published / 3


def test_a_solver_and_a_grid_are_named_in_settings_or_given():
    one = sample()
    named = run(FakeModel(), one, Settings(solver="exponential_ab3", grid="log_snr"))
    given = run(FakeModel(), one, table=exponential_ab3, grid=log_snr)
    assert np.array_equal(named.image, given.image) and named.solver == given.solver
    assert not np.array_equal(named.image, run(FakeModel(), one).image)
    assert named.solver.startswith("exponential_ab3 on log_snr(20)")
    with pytest.raises(ValueError, match=r"start must be an index of 1\.\.4 on log_snr\(4\), got 6"):
        run(FakeModel(), one, grid=lambda schedule, steps: log_snr(schedule, 4))


def test_on_state_hands_out_the_run_and_the_result_its_trajectories():
    seen, one, model = [], sample(128, 128), FakeModel(pull=0.2)
    result = run(model, one, PAPER, on_state=lambda i, x, x0: seen.append((i, x, x0)), keep_trajectories=True)
    assert [i for i, _, _ in seen] == [6, 5, 4, 3, 2, 1, 0] and seen[-1][2] is None
    assert np.array_equal(result.image, rendered(model, one, seen[-1][1][0]))
    grid, _ = run_of(model, Settings())
    for i, x, x0 in seen[:-1]:
        # The same float32 numbers; the double's sums are of one row or of two.
        expected = guided_data(model, grid, x[0], i, one.prompt, 2.5)
        torch.testing.assert_close(x0[0], expected, rtol=1e-5, atol=1e-5)
    m_user = latents(model, one)[2]
    background = result.trajectories["background"].states
    for i, x, _ in seen[:4]:  # Eq. 9: the network saw the background's own states outside the user mask
        assert torch.equal(x[0] * (1 - m_user), background[i] * (1 - m_user))
    assert result.trajectories["object"].report is result.inversion["object"]
    assert run(model, one).trajectories is None


def test_what_is_handed_out_is_a_copy():
    """Whoever changes it in place changes neither the run nor what is kept."""
    model, one, kept = FakeModel(pull=0.2), sample(128, 128), {}
    plain = run(model, one)

    def spoil(i, x, x0):
        x.zero_()
        if x0 is not None:
            x0.zero_()

    result = run(model, one, on_state=spoil, inversions=kept, keep_trajectories=True)
    for trajectory in result.trajectories.values():
        trajectory.states.zero_()
    again = run(model, one, inversions=kept)
    # One by one the inversions round otherwise than in a batch of two.
    for image in (result.image, again.image):
        assert np.abs(image.astype(int) - plain.image).max() <= 1


def test_a_method_inverts_once():
    def twice(frame):
        frame.invert(3)
        return METHODS["ours"](frame)

    with pytest.raises(RuntimeError, match="inverted already; invert as far as is needed, in one call"):
        run(FakeModel(), sample(), method=twice)


def test_a_result_is_shown_in_a_line_and_in_a_notebook_by_its_figure():
    result = run(FakeModel(), sample())
    assert len(repr(result)) < 200 and repr(result).startswith("Composition(120x160 uint8, tumour of 2")
    assert f"{sum(result.rows.values())} rows" in repr(result)
    assert result._repr_png_().startswith(b"\x89PNG")


def test_max_batch_bounds_every_call_and_changes_nothing():
    class Watched(FakeModel):
        def unet(self, x, t, context):
            assert len(x) <= 3
            return super().unet(x, t, context)

    bounded, free = run(Watched(), sample(), Settings(max_batch=3)), run(FakeModel(), sample())
    assert np.abs(bounded.image.astype(int) - free.image).max() <= 1 and bounded.rows == free.rows


def test_a_method_is_any_function_of_a_frame():
    def nothing_at_all(frame: Frame, *, value: int = 0) -> Composition:
        return frame.composition(np.full_like(frame.sample.background.pixels, value))

    image = run(FakeModel(), sample(), method=partial(nothing_at_all, value=7)).image
    assert image.shape == (120, 160) and (image == 7).all()
