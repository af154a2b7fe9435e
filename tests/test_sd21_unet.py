"""The UNet is compared with diffusers' UNet2DConditionModel, with the same weights in both."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from relative_error import relative
from small_models import UNET_JSON, randomise, small_unet, unet_inputs

from sd21.attention import attention_hook, default_kernel
from sd21.config import UNetConfig
from sd21.layers import timestep_embedding
from sd21.unet import UNet

# Measured 2e-15; 1e-10 leaves room for another order of sums and none for another formula.
EXACT = {"rtol": 0, "atol": 1e-10}
CONFIGS = {
    "2-1-base": {},
    "2-1": {"upcast_attention": True, "sample_size": 24},
    "one head size": {"attention_head_dim": 4},
    "layers differ": {"layers_per_block": [1, 2, 3], "transformer_layers_per_block": [1, 2, 1]},
    "attention at the bottom only": {
        "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    },
    "one level": {
        "block_out_channels": [32],
        "attention_head_dim": [2],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    },
}


def reference_of(unet, **changes):
    config = {key: value for key, value in (UNET_JSON | changes).items() if not key.startswith("_")}
    with torch.device("meta"):
        reference = UNet2DConditionModel(**config)
    reference.load_state_dict(unet.state_dict(), assign=True)
    return reference.eval()


@pytest.fixture(scope="module")
def unet():
    return small_unet().double()


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_matches_diffusers_in_every_configuration(changes):
    unet = small_unet(**changes).double()
    reference = reference_of(unet, **changes)
    assert unet.state_dict().keys() == UNet2DConditionModel.from_config(reference.config).state_dict().keys()
    x, t, context = unet_inputs()
    got, expected = unet(x, t, context), reference(x, t, context).sample
    assert expected.std() > 0.1  # without a lively network nothing would be compared
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize(
    "batch, height, width, length",
    [
        (1, 16, 16, 77),
        (2, 24, 8, 77),
        (3, 8, 20, 1),
        (5, 16, 16, 3),
        (2, 15, 11, 7),
        (1, 30, 23, 7),
        pytest.param(1, 96, 96, 77, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_matches_diffusers_at_every_size(unet, batch, height, width, length):
    """Odd sides too: 15 is halved to 8 and 4, and comes back through 8 to 15."""
    x, t, context = unet_inputs(batch, height, width, length)
    torch.testing.assert_close(unet(x, t, context), reference_of(unet)(x, t, context).sample, **EXACT)


@torch.no_grad()
def test_full_size_matches_by_count_and_keys():
    with torch.device("meta"):
        unet = UNet(UNetConfig())
        reference = UNet2DConditionModel(
            sample_size=64,
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    shapes = {key: weight.shape for key, weight in unet.state_dict().items()}
    assert shapes == {key: weight.shape for key, weight in reference.state_dict().items()}


@torch.no_grad()
def test_time_may_be_a_number_one_for_all_or_one_per_row(unet):
    x, _, context = unet_inputs(batch=3)
    t = torch.full((3,), 421.75, dtype=torch.float64)
    expected = unet(x, t, context)
    for same in (421.75, torch.tensor(421.75), torch.tensor([421.75])):
        torch.testing.assert_close(unet(x, same, context), expected, **EXACT)
    assert torch.equal(unet(x, 500, context), unet(x, torch.tensor(500), context))
    assert not torch.allclose(unet(x, 421.0, context), expected, rtol=0, atol=1e-4)  # the fraction matters


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 951.25])
    got = timestep_embedding(t, 8).double()
    angles = t.double()[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    # float32 frequencies, rounded to 6e-8, times t up to 1000.
    torch.testing.assert_close(got, torch.cat([angles.cos(), angles.sin()], 1), rtol=0, atol=1e-4)


@torch.no_grad()
def test_one_context_serves_the_whole_batch(unet):
    x, t, context = unet_inputs(batch=3)
    for row in (context[:1], context[:1, :1]):
        torch.testing.assert_close(unet(x, t, row), unet(x, t, row.expand(3, -1, -1).contiguous()), **EXACT)


@torch.no_grad()
def test_copies_of_a_context_row_are_one_row(unet):
    """This is why an exceptional prompt of 77 equal tokens may be given as a single row."""
    x, t, context = unet_inputs(batch=2, length=1)
    torch.testing.assert_close(unet(x, t, context.expand(-1, 77, -1)), unet(x, t, context), **EXACT)


@torch.no_grad()
def test_streams_in_one_batch_do_not_mix(unet):
    x, t, context = unet_inputs(batch=4)
    together = unet(x, t, context)
    for i in range(4):
        torch.testing.assert_close(unet(x[i : i + 1], t[i], context[i : i + 1]), together[i : i + 1], **EXACT)


# Bounds: a value is rounded to 2^-9 (bfloat16) or 2^-12 (float16) relative, at each of the ~100 operations in a row of
# this network; independent roundings add up to a factor of sqrt(100) = 10, in the norm over the whole output.
HALVES = pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 10 * 2**-9), (torch.float16, 10 * 2**-12)])


@HALVES
@torch.no_grad()
def test_half_precision_stays_near_float32(dtype, bound):
    unet = small_unet()
    x, t, context = unet_inputs(dtype=torch.float32)
    expected = unet(x, t, context)
    got = copy.deepcopy(unet).to(dtype)(x, t, context)
    assert got.dtype == torch.float32  # the dtype of x, whatever the network computes in
    assert 0 < relative(got, expected) < bound


@torch.no_grad()
def test_attention_logits_beyond_float16_do_no_harm():
    """Stable Diffusion 2.1 at 768 pixels has logits beyond 65504; its config asks for upcast_attention."""
    unet = small_unet(upcast_attention=True)
    for name, weight in unet.named_parameters():
        if "attn1.to_q" in name or "attn1.to_k" in name:
            weight.mul_(200)
    largest = []

    def watch(site, q, k, v):
        largest.append((q @ k.transpose(-1, -2)).abs().max().item())
        return default_kernel(q, k, v)

    x, t, context = unet_inputs(dtype=torch.float32)
    with attention_hook(unet, watch):
        unet(x, t, context)
    assert max(largest) > 65504
    # Here the softmax nearly chooses the largest logit, and if two are near, rounding chooses. So the output cannot be
    # asked to be close to another, but it must be finite.
    assert unet.half()(x, t, context).isfinite().all()


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_a_graph_break():
    unet = small_unet()
    x, t, context = unet_inputs(dtype=torch.float32)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, context), unet(x, t, context), rtol=0, atol=1e-5)  # float32 rounding


def test_gradients_reach_every_weight():
    """The network can be trained, also on a CPU through its own convolution."""
    unet = randomise(UNet(UNetConfig.from_dict(UNET_JSON)), seed=0)
    unet(*unet_inputs(dtype=torch.float32)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in unet.parameters())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(4, 16, 16)}, r"x must be latents \(B, 4, h, w\), got \(4, 16, 16\)"),
        ({"x": torch.zeros(2, 3, 16, 16)}, r"x must be latents \(B, 4, h, w\), got \(2, 3, 16, 16\)"),
        ({"t": torch.zeros(3)}, r"t must be one time or 2, one per row of x, got shape \(3,\)"),
        ({"context": torch.zeros(3, 7, 48)}, r"context must be \(2 or 1, L, 48\), got \(3, 7, 48\)"),
        ({"context": torch.zeros(2, 7, 32)}, r"context must be \(2 or 1, L, 48\), got \(2, 7, 32\)"),
        ({"context": torch.zeros(2, 48)}, r"context must be \(2 or 1, L, 48\), got \(2, 48\)"),
    ],
)
def test_wrong_shapes_are_one_clear_error(change, message):
    x, t, context = unet_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        small_unet()(**({"x": x, "t": t, "context": context} | change))
