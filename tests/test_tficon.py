"""These tests check TF-ICON's pieces against its equations and its public code's numbers, and the whole method against
what it must hold."""

import json
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn_samples import box, data, inverted, latents, rendered, run, run_of, sample, scan, stepped
from fake_model import FakeModel
from small_models import small_unet

from composition import Settings
from composition.methods import tficon, tficon_attention
from composition.methods.tficon import compose_noise, tf_icon, window
from composition.methods.tficon_attention import BACKGROUND, CROSS, OBJECT, TEXT, Injection, composite_logits, tokens
from composition.prompts import exceptional_context
from sd21 import Site, default_kernel
from solvers import sample as solver_run

REFERENCE = json.loads((Path(__file__).parent / "reference" / "tficon.json").read_text())
SETTINGS = Settings(steps=5, start=1)
SELF = Site("attn1", "self", "down", 0, 6, 6)


class SmallNetwork(FakeModel):
    """The double with a real, random UNet, whose attention can be hooked. calls: the rows of every call; seen: x, t,
    context, output, attention hook and description of every call."""

    def __init__(self):
        super().__init__()
        self.unet, self.calls, self.seen, self.text_encoder = small_unet(), [], [], Words()
        self.unet.register_forward_pre_hook(lambda module, inputs: self.calls.append(len(inputs[0])))
        self.unet.register_forward_hook(self._watch)

    def _watch(self, unet, inputs, out):
        self.seen.append((*inputs, out, unet.hook_slot.fn, unet.hook_slot.call))

    def decode(self, latent):
        return super().decode(latent / 40)  # five steps of a random network lead to such large values


class Words:
    """Random contexts (77, 48), one for each token."""

    config = SimpleNamespace(vocab_size=49408)

    def embed(self, token):
        return torch.randn(77, 48, generator=torch.Generator().manual_seed(token))

    def __call__(self, ids, position_embedding=True):
        return self.embed(int(ids[0, 0]))[None, :1].expand(-1, 77, -1)


def run_one(model, one, settings=SETTINGS, *, inversions=None, **keywords):
    """keywords: the method's own options."""
    return run(model, one, settings, method=partial(tf_icon, **keywords), inversions=inversions)


def states_again(model, x, grid, table):
    """x[0..T] (C, h, w) of the run from x[T] = x under the exceptional prompt."""
    context = exceptional_context(model)
    run = solver_run(x[None], grid, table, lambda x, i: data(model, grid, x[0], i, context)[None])
    return [x[0] for _, x, _ in run][::-1]


def box_mask(side, top, bottom, left, right):
    return torch.from_numpy(box((side, side), left, top, right - left, bottom - top)).float()[None]


def reference_rows(streams):
    """q, k, v (len(streams), heads, tokens, d), float64, of the reference's streams."""
    attention = REFERENCE["attention"]
    x = torch.tensor([attention["streams"][name] for name in streams], dtype=torch.float64)
    weights = (torch.tensor(attention["weights"][name], dtype=torch.float64) for name in "qkv")
    return [(x @ weight.T).unflatten(-1, (attention["heads"], -1)).transpose(1, 2) for weight in weights]


@pytest.mark.parametrize("with_object", [True, False])
def test_the_injected_attention_against_the_public_codes_numbers(with_object):
    """Its pseudo cross-attention takes queries from the object's features (a bug that ours does not have), so here
    CROSS holds the object. Without an object, only the background is injected."""
    attention = REFERENCE["attention"]
    m_obj, m_user = torch.tensor(attention["m_obj"]).double()[None], box_mask(6, *attention["box"])
    q, k, v = reference_rows(["background", "object", "object", "composite", "composite"])
    out = Injection(m_obj * with_object, m_user)(SELF, q, k, v).transpose(1, 2).flatten(2)
    names = ["background", "object", "cross", "text", "null"] if with_object else ["background", "object"]
    expected = {name: attention["out"][name] for name in names}
    if not with_object:
        expected["text, background alone"] = attention["out"]["text, background alone"]
    rows = {"background": 0, "object": 1, "cross": 2, "text": 3, "null": 4, "text, background alone": 3}
    for name, numbers in expected.items():
        # The reference is rounded to nine decimals.
        torch.testing.assert_close(out[rows[name]], torch.tensor(numbers, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", REFERENCE["blocks"]["grids"], ids=lambda grid: f"{grid['side']}x{grid['side']}")
def test_the_index_sets_of_coarser_grids_against_the_public_codes(grid):
    blocks, side = REFERENCE["blocks"], grid["side"]
    m_obj = torch.zeros(1, 64, 64)
    for row, span in enumerate(blocks["m_obj_columns_by_row"]):
        m_obj[0, row, slice(*span) if span else slice(0)] = 1
    where = tokens(m_obj, box_mask(64, *blocks["box"]), side, side)
    assert where.obj.tolist() == grid["object"] and where.outside.tolist() == grid["outside"]


def test_index_sets_keep_the_object_inside_the_user_mask_on_odd_grids():
    m_obj, m_user = box_mask(20, 5, 9, 3, 8)[:, :14, :18], box_mask(20, 3, 11, 2, 13)[:, :14, :18]
    for height, width in [(14, 18), (7, 9), (4, 5), (2, 3)]:
        where = tokens(m_obj, m_user, height, width)
        assert not set(where.obj.tolist()) & set(where.outside.tolist())
        assert len(where.outside) > 0
    assert tokens(m_obj, m_user, 14, 18).obj.tolist() == [18 * y + x for y in range(5, 9) for x in range(3, 8)]


@pytest.mark.parametrize("one", REFERENCE["windows"], ids=lambda one: f"{one['steps']}-{one['tau_a']}-{one['tau_b']}")
def test_the_windows_against_the_public_codes(one):
    assert list(window(one["tau_a"], one["steps"])) == one["injected"]
    # The public code rectifies neither x[T], which Eq. 7 made from the background's, nor x[T - 1].
    assert list(window(one["tau_b"], one["steps"]))[2:] == one["rectified"]


def test_windows_of_nothing_and_of_all():
    assert list(window(0, 20)) == [] and list(window(1, 20)) == list(range(20, 1, -1))


def test_eq_7_by_hand():
    x_obj, x_bg, z = (torch.tensor([[[values]]]) for values in ([1.0, 2, 3], [10.0, 20, 30], [100.0, 200, 300]))
    m_obj, m_user = torch.tensor([[[[0.0, 1, 0]]]]), torch.tensor([[[[1.0, 1, 0]]]])
    assert compose_noise(x_obj, x_bg, z, m_obj, m_user).tolist() == [[[[100.0, 2.0, 30.0]]]]


def random_rows(streams=5, heads=2, n=36, d=4):
    return torch.randn(3, streams, heads, n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_stream_injected_into_itself_changes_nothing():
    """For the background's part it holds for any q and k. The object's rows take the pseudo cross-attention's
    transpose, so for them it holds for symmetric logits, q = k."""
    nothing, m_obj, m_user = torch.zeros(1, 6, 6), box_mask(6, 2, 4, 2, 5), box_mask(6, 1, 5, 1, 5)
    q, k, v = (x[:1].expand(5, -1, -1, -1) for x in random_rows())
    for where, keys in [(nothing, k), (m_obj, q)]:
        out = Injection(where, m_user)(SELF, q, keys, v)
        # Two ways to the same sums in float64.
        torch.testing.assert_close(out[TEXT], default_kernel(q, keys, v)[TEXT], rtol=0, atol=1e-12)


def test_every_entry_of_the_composite_comes_from_its_stream():
    q, k, _ = random_rows(streams=4)
    where = tokens(box_mask(6, 2, 4, 2, 5), box_mask(6, 1, 5, 1, 6), 6, 6)
    composite = composite_logits(q, k, where)
    own = [q[asks] @ k[answers].transpose(-1, -2) / 2 for asks, answers in
           [(TEXT, TEXT), (BACKGROUND, BACKGROUND), (CROSS, OBJECT), (OBJECT, OBJECT)]]  # fmt: skip
    obj, outside = set(where.obj.tolist()), set(where.outside.tolist())
    for i in range(36):
        for j in range(36):
            if i in obj and j in obj:
                expected = own[3][:, i, j]
            elif j in obj:
                expected = own[2][:, i, j]
            elif i in obj:
                expected = own[2][:, j, i]
            else:
                expected = own[1 if i in outside and j in outside else 0][:, i, j]
            torch.testing.assert_close(composite[:, i, j], expected, rtol=0, atol=1e-12)


def test_other_rows_and_other_layers_are_left_alone():
    q, k, v = random_rows()
    injection = Injection(box_mask(6, 2, 4, 2, 5), box_mask(6, 1, 5, 1, 5))
    plain = default_kernel(q, k, v)
    assert torch.equal(injection(replace(SELF, kind="cross"), q, k, v), plain)
    out = injection(SELF, q, k, v)
    changed = [not torch.equal(*rows) for rows in zip(out, plain, strict=True)]
    assert changed == [False, False, True, True, False]
    seen = tokens(box_mask(6, 2, 4, 2, 5), box_mask(6, 1, 5, 1, 5), 6, 6).obj
    pseudo_cross = default_kernel(q[CROSS], k[OBJECT][:, seen], v[OBJECT][:, seen])
    torch.testing.assert_close(out[CROSS], pseudo_cross, rtol=0, atol=1e-12)


def test_half_precision_logits_are_formed_in_float32():
    """Logits of SD 2.1 exceed float16's 65504, and infinite ones make a row of the map nan."""
    q, k, v = (400 * x.half() for x in random_rows(d=64))
    out = Injection(box_mask(6, 2, 4, 2, 5), box_mask(6, 1, 5, 1, 5))(SELF, q, k, v / 400)
    assert out.dtype == torch.float16 and torch.isfinite(out).all()


def test_nothing_is_kept_from_one_layer_to_the_next(monkeypatch):
    made, sites = [], []

    def watched(q, k, where):
        assert not [size for size, kept in made if kept() is not None], "an earlier layer's map is still there"
        logits = composite_logits(q, k, where)
        made.append((logits.numel(), weakref.ref(logits)))
        sites.append(q.shape[2])
        return logits

    monkeypatch.setattr(tficon_attention, "composite_logits", watched)
    model = SmallNetwork()
    run_one(model, sample(128, 128))
    layers = [name for name, _ in model.unet.named_modules() if name.endswith("attn1")]
    assert len(sites) == len(layers) * len(window(0.4, 5)) and set(sites) == {16 * 16, 8 * 8, 4 * 4}


@pytest.mark.parametrize(("tau_b", "last", "rows"), [(0, 21, 2 * 20), (0.5, 12, 2 * 20 + 8)])
def test_without_injection_it_is_the_plain_composition_of_eq_7_with_eq_9(tau_b, last, rows):
    """last: the last state that is rectified. rows: of text, null and, for the steps 20 to 13, the background."""
    model, one, settings = FakeModel(pull=0.2), sample(128, 128), Settings.paper()
    grid, table = run_of(model, settings)
    encoded, m_obj, m_user = latents(model, one)
    x_bg, x_obj = (states[20] for states in inverted(model, encoded[:2], Settings(inversion="naive"), 20))
    z = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5))
    x, older = compose_noise(x_obj, x_bg, z, m_obj, m_user), []
    background = states_again(model, x_bg, grid, table)
    for i in range(20, 0, -1):
        if i >= last:
            x = x * m_user + background[i] * (1 - m_user)
        text, null = (model.unet(x[None], grid.t[i : i + 1], model.embed([words]))[0] for words in (one.prompt, ""))
        older.insert(0, (x - grid.sigma[i].float() * (null + 2.5 * (text - null))) / grid.alpha[i].float())
        x = stepped(table, i, x, older)
    result = run_one(model, one, settings, tau_a=0, tau_b=tau_b, seed=5)
    # Rounding to 8 bits may fall either way.
    assert np.abs(result.image.astype(int) - rendered(model, one, x)).max() <= 1
    assert result.rows["composition"] == rows


def test_in_the_window_of_tau_b_the_network_sees_the_backgrounds_state_outside_the_user_mask():
    class Watched(FakeModel):
        def unet(self, x, t, context):
            seen.append(x)
            return super().unet(x, t, context)

    seen, model, one = [], Watched(pull=0.5), sample(128, 128)
    _, _, m_user = latents(model, one)
    outside = (m_user == 0).expand(4, -1, -1)
    run_one(model, one, Settings(), tau_a=0, tau_b=0.5)
    calls = dict(zip(range(20, 0, -1), seen[-20:], strict=True))
    states = states_again(model, calls[20][0], *run_of(model, Settings()))
    for i, x in calls.items():
        assert len(x) == (3 if i > 12 else 2)  # states 20 to 12 are rectified: the background's prediction ends at 13
        error = (x[-1] - states[i])[outside].abs().max()
        assert (error < 1e-5) == (i >= 12)  # roundings of steps taken in batches of other sizes
        if i > 12:
            background, text, null = x
            assert torch.equal(text, null) and torch.equal(text[outside], background[outside])
            assert not torch.equal(text[~outside], background[~outside])


def test_every_row_of_every_step_by_default(monkeypatch):
    """This is the wiring: each row's state, as the network's own outputs lead to it, its contexts and masks."""
    model, one = SmallNetwork(), sample(128, 128)
    _, m_obj, m_user = latents(model, one)
    # x[T] as inversions might give it: they have tests of their own.
    background, obj = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(tficon, "invert_to_the_end", lambda frame: ([background], [obj]))
    run_one(model, one, Settings())

    grid, table = run_of(model, Settings())
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    composite, older = compose_noise(obj, background, z, m_obj, m_user), [[], [], []]
    exceptional, null = model.text_encoder.embed(7788)[:1].expand(77, -1), model.embed([""])[0]
    text = model.embed([one.prompt])[0]
    for i, (x, t, context, out, hook, call) in zip(range(20, 0, -1), model.seen, strict=True):
        if i >= 6:  # tau_b = 0.8: the states 20 to 6 are rectified
            composite = composite * m_user + background * (1 - m_user)
        if i >= 14:  # tau_a = 0.4: at the states 20 to 14 attention is injected
            streams, images = [background, obj, background], ("background", "object", "background")
            assert isinstance(hook, Injection)
            assert torch.equal(hook.m_obj, m_obj) and torch.equal(hook.m_user, m_user)
        else:
            # The background is needed while the next state is rectified.
            streams, images = ([background], ("background",)) if i > 6 else ([], ())
            assert hook is None
        # The same float32 sums, of numbers below 70: even in another order, 20 steps would round by 4e-6 each.
        torch.testing.assert_close(x, torch.cat([*streams, composite, composite]), rtol=0, atol=1e-4)
        assert torch.equal(context, torch.stack([exceptional] * len(streams) + [text, null]))
        assert (t == grid.t[i]).all()
        assert (call.stage, call.i) == ("composition", (i,) * len(x))
        assert call.images == (*images, "composite", "composite")
        assert call.contexts == ("exceptional",) * len(images) + ("text", "null")
        rows = ((x - grid.sigma[i].float() * out) / grid.alpha[i].float()).split(1)
        # A stream that has ended takes any row: nothing reads it again.
        x0 = [rows[0], rows[1], rows[-1] + 2.5 * (rows[-2] - rows[-1])]
        for predictions, new in zip(older, x0, strict=True):
            predictions.insert(0, new)
        streams = zip((background, obj, composite), older, strict=True)
        background, obj, composite = (stepped(table, i, state, predictions) for state, predictions in streams)


def test_rows_by_stage_and_the_hook_taken_off():
    model, one = SmallNetwork(), sample(128, 128)
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 48)
    before = model.unet(x, t, context)
    model.calls.clear()
    result = run_one(model, one, tau_a=0.6, tau_b=1)
    # Injected at 5 and 4, five rows; states 5 to 2 rectified, so the background still runs at 3; then text and null.
    assert result.rows == {"inversion": 4 * 5, "composition": 2 * 5 + 3 + 2 * 2}
    assert sum(model.calls) == sum(result.rows.values()) and model.calls[-5:] == [5, 5, 3, 2, 2]
    assert model.unet.hook_slot.fn is None and torch.equal(model.unet(x, t, context), before)
    model.calls.clear()
    unguided = run_one(model, one, replace(SETTINGS, guidance_scale=1.0), tau_a=0.6, tau_b=1)
    assert model.calls[-5:] == [4, 4, 2, 1, 1] and unguided.rows["composition"] == 12


def test_the_hook_is_taken_off_after_an_error(monkeypatch):
    def fail(q, k, where):
        raise RuntimeError("no memory")

    model = SmallNetwork()
    monkeypatch.setattr(tficon_attention, "composite_logits", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        run_one(model, sample(128, 128))
    assert model.unet.hook_slot.fn is None


def test_seeds_and_max_batch():
    model, one = SmallNetwork(), sample(128, 128)
    first = run_one(model, one, seed=7)
    assert np.array_equal(run_one(model, one, seed=7).image, first.image)
    assert not np.array_equal(run_one(model, one, seed=8).image, first.image)
    model.calls.clear()
    bounded = run_one(model, one, replace(SETTINGS, max_batch=1), seed=7)
    assert model.calls[:10] == [1] * 10 and model.calls[-5:] == [5, 3, 2, 2, 2]  # the five rows of a step stay together
    # A batch of another size rounds otherwise.
    assert np.abs(bounded.image.astype(int) - first.image).max() <= 1 and bounded.rows == first.rows


def test_the_object_reaches_the_composite_through_the_injection(monkeypatch):
    """Another object whose noise Eq. 7 does not use reaches the composite through the injection alone."""
    monkeypatch.setattr(tficon, "compose_noise", lambda x_obj, x_bg, z, m_obj, m_user: x_bg)
    model, one = SmallNetwork(), sample(128, 128)
    other = replace(one, obj=scan(90, 90, 9))
    for tau_a, alike in [(0, True), (0.6, False)]:
        images = [run_one(model, which, tau_a=tau_a, tau_b=0).image for which in (one, other)]
        assert np.array_equal(*images) == alike


@pytest.mark.parametrize("name", ["tau_a", "tau_b"])
def test_thresholds_out_of_range_are_refused(name):
    for tau in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=name):
            run_one(FakeModel(), sample(), **{name: tau})
