"""These tests check attention sites and the hook: what it sees, that it changes nothing by itself, and that it always
goes away."""

import weakref

import pytest
import torch
from small_models import small_unet, small_vae, unet_inputs

from sd21.attention import Site, attention_hook, attention_map, default_kernel, record_maps
from sd21.config import UNetConfig
from sd21.unet import UNet


@pytest.fixture(scope="module")
def unet():
    return small_unet()


@pytest.fixture(scope="module")
def arguments():
    return unet_inputs(batch=2, height=16, width=8, length=5, dtype=torch.float32)


def passing(site, q, k, v):
    return default_kernel(q, k, v)


def sites_seen(unet, arguments):
    seen = []
    with attention_hook(
        unet, lambda site, q, k, v: (seen.append((site, q.shape, k.shape)), default_kernel(q, k, v))[1]
    ):
        unet(*arguments)
    return seen


@torch.no_grad()
def test_a_hook_sees_every_site_in_order_with_its_grid(unet, arguments):
    seen = sites_seen(unet, arguments)
    first, q_shape, k_shape = seen[0]
    assert first == Site("down_blocks.0.attentions.0.transformer_blocks.0.attn1", "self", "down", 0, 16, 8)
    assert q_shape == k_shape == (2, 2, 16 * 8, 16)  # (B, heads, tokens, head_dim)
    second, q_shape, k_shape = seen[1]
    assert second == Site("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", "down", 0, 16, 8)
    assert q_shape == (2, 2, 16 * 8, 16) and k_shape == (2, 2, 5, 16)
    assert [site.layer for site, _, _ in seen] == [layer for layer in range(11) for _ in "sc"]
    assert [site.kind for site, _, _ in seen] == ["self", "cross"] * 11
    assert [site.stage for site, _, _ in seen[::2]] == ["down"] * 4 + ["mid"] + ["up"] * 6
    assert [(site.height, site.width) for site, _, _ in seen[8:10]] == [(4, 2)] * 2
    for site, _, _ in seen:
        assert unet.get_submodule(site.name).placement.at(site.height, site.width) == site


def test_full_size_has_16_self_and_16_cross_sites():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
        seen = sites_seen(unet, (torch.zeros(1, 4, 64, 64), 500.0, torch.zeros(1, 77, 1024)))
    assert [site.kind for site, _, _ in seen] == ["self", "cross"] * 16
    assert [site.stage for site, _, _ in seen[::2]] == ["down"] * 6 + ["mid"] + ["up"] * 9
    assert [site.height for site, _, _ in seen[::2]] == [64, 64, 32, 32, 16, 16, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    assert all(q_shape[-1] == 64 for _, q_shape, _ in seen)


@torch.no_grad()
def test_a_passing_hook_changes_nothing_and_none_is_left(unet, arguments):
    before = unet(*arguments)
    with attention_hook(unet, passing):
        during = unet(*arguments)
    assert torch.equal(during, before)  # the same kernel on the same tensors
    assert torch.equal(unet(*arguments), before)


@torch.no_grad()
def test_a_hook_replaces_what_it_wants_to(unet, arguments):
    before = unet(*arguments)
    with attention_hook(
        unet, lambda site, q, k, v: torch.zeros_like(q) if site.kind == "cross" else passing(site, q, k, v)
    ):
        without_context = unet(*arguments)
        x, t, context = arguments
        assert torch.equal(unet(x, t, -context), without_context)
    assert not torch.allclose(without_context, before, atol=1e-2)


@torch.no_grad()
def test_one_context_for_all_rows_reaches_the_hook_per_row(unet, arguments):
    x, t, context = arguments
    assert all(k_shape[0] == 2 for _, _, k_shape in sites_seen(unet, (x, t, context[:1])))


@torch.no_grad()
def test_an_exception_in_a_hook_restores_everything(unet, arguments):
    before = unet(*arguments)

    def failing(site, q, k, v):
        if site.stage == "mid":
            raise RuntimeError("deliberate")
        return torch.zeros_like(q)

    with pytest.raises(RuntimeError, match="deliberate"), attention_hook(unet, failing):
        unet(*arguments)
    assert torch.equal(unet(*arguments), before)


@torch.no_grad()
def test_the_innermost_of_nested_hooks_alone_is_called(unet, arguments):
    calls = []

    def counting(name):
        return lambda site, q, k, v: (calls.append(name), default_kernel(q, k, v))[1]

    with attention_hook(unet, counting("outer")):
        with attention_hook(unet, counting("inner")):
            unet(*arguments)
        assert calls == ["inner"] * 22
        with pytest.raises(RuntimeError), attention_hook(unet, counting("inner")):
            raise RuntimeError
        unet(*arguments)
        assert calls == ["inner"] * 22 + ["outer"] * 22
    unet(*arguments)
    assert len(calls) == 44


@torch.no_grad()
def test_hooks_of_two_networks_do_not_meet(unet, arguments):
    other = small_unet(seed=5)
    with attention_hook(unet, lambda *_: pytest.fail("the hook of another network was called")):
        other(*arguments)


@pytest.mark.parametrize("wrong", [lambda q: q[:, :, :-1], lambda q: q.transpose(1, 2), lambda q: None])
@torch.no_grad()
def test_a_hook_that_returns_another_shape_is_an_error(unet, arguments, wrong):
    with (
        pytest.raises(ValueError, match=r"down_blocks.0.*attn1: expected a tensor of shape \(2, 2, 128, 16\), got"),
        attention_hook(unet, lambda site, q, k, v: wrong(q)),
    ):
        unet(*arguments)


@torch.no_grad()
def test_a_hook_may_compute_in_float32_for_a_half_precision_network(arguments):
    unet = small_unet().bfloat16()
    with attention_hook(unet, lambda site, q, k, v: default_kernel(q.float(), k.float(), v.float())):
        out = unet(*arguments)
    # One rounding more or less per site: 22 sites of 2^-9 each, root-sum-square 2^-9 * 5, tripled for what follows.
    assert ((out - unet(*arguments)).norm() / out.norm()).item() < 15 * 2**-9


@torch.no_grad()
def test_recorded_maps_are_the_attention_and_arrive_one_at_a_time(unet, arguments):
    before, names, alive = unet(*arguments), [], []

    def sink(site, attention):
        assert sum(ref() is not None for ref in alive) == 0  # the map before this one is gone
        alive.append(weakref.ref(attention))
        names.append(site.name)
        assert attention.shape == (2, 4, site.height * site.width, 5)
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))

    with attention_hook(unet, record_maps(lambda site: site.kind == "cross" and site.stage == "mid", sink)):
        assert torch.equal(unet(*arguments), before)
    assert names == ["mid_block.attentions.0.transformer_blocks.0.attn2"]
    alive.clear()
    names.clear()
    with attention_hook(unet, record_maps(lambda site: site.kind == "cross" and site.height == 8, sink)):
        unet(*arguments)
    assert len(names) == 5  # two layers down, three up


def test_an_attention_map_times_v_is_the_default_kernel():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64) for n in (6, 4, 4))
    torch.testing.assert_close(attention_map(q, k) @ v, default_kernel(q, k, v), rtol=0, atol=1e-13)  # float64 rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_are_float32_whatever_the_dtype(dtype):
    """Logits near 2e5, beyond float16, that differ by 64: a float32 softmax decides, a half-precision one cannot."""
    q = torch.full((1, 1, 1, 64), 256.0, dtype=dtype)
    k = torch.full((1, 1, 2, 64), 100.0, dtype=dtype)
    k[..., 0, 0] += 2.0  # logits / sqrt(64): 204800 + 64, 204800
    v = torch.tensor([1.0, -1.0], dtype=dtype)[:, None].expand(1, 1, 2, 64)
    assert torch.equal(default_kernel(q, k, v), torch.ones_like(q))
    assert attention_map(q, k).flatten().tolist() == [1.0, pytest.approx(0.0, abs=1e-20)]


@torch.no_grad()
def test_the_vae_has_no_sites():
    assert all(getattr(module, "placement", None) is None for module in small_vae().modules())
