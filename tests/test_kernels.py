"""The Triton kernels compute what torch computes in float64; so does the network that calls them, and its recorded
graphs replay what it computes. Without a GPU the kernels run in Triton's interpreter, and the network's tests are
skipped."""

import importlib
import importlib.util
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import small_unet, small_vae, unet_inputs

from sd21.attention import attention_hook, default_kernel
from sd21.layers import norm_silu

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
DEVICE = "cuda" if GPU else "cpu"
# Half a unit in the last place, and a little for the arithmetic in float32 before. Triton's interpreter cuts bfloat16
# off where a GPU rounds: a whole unit.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1.02 * 2**-11, torch.bfloat16: 1.02 * 2 ** (-8 if GPU else -7)}


@pytest.fixture
def kernels(monkeypatch):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if GPU:
        yield importlib.import_module("sd21.kernels")
        return
    if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter takes int() of arrays, which numpy 2.4 refuses")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "sd21.kernels", raising=False)
    yield importlib.import_module("sd21.kernels")
    sys.modules.pop("sd21.kernels", None)


def largest_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the larger of 1 and the value expected, as all values here are about 1."""
    return ((got.double() - expected).abs() / expected.abs().clamp(min=1)).max().item()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    "batch, channels, height, width, groups, shift_rows, silu",
    [
        (1, 320, 9, 7, 32, 0, True),
        (3, 640, 5, 6, 32, 3, True),
        (2, 960, 9, 11, 32, 1, False),  # several chunks of pixels, the last one not full
        (4, 320, 37, 41, 32, 4, True),  # chunks of several tiles
        (3, 1280, 8, 8, 32, 3, True),
        (1, 1920, 4, 5, 32, 0, True),
        (3, 2560, 3, 1, 32, 1, False),
        (2, 30, 5, 5, 3, 2, True),  # the tiles hold two groups each, the last one holds one
        (2, 64, 6, 6, 64, 0, True),  # a channel a group
        (1, 600, 3, 3, 1, 1, True),  # a group wider than a tile
    ],
)
def test_group_norm(kernels, dtype, batch, channels, height, width, groups, shift_rows, silu):
    torch.manual_seed(channels)
    slope = torch.linspace(0, 5, height)[:, None]  # tiles of pixels differ in their means
    x = torch.randn(batch, channels, height, width) * 2 + 5 + slope
    x = x.to(DEVICE, dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels).to(DEVICE, dtype)
    shift = torch.randn(shift_rows, channels).to(DEVICE, dtype) if shift_rows else None
    got = kernels.group_norm_silu(x, weight, bias, groups, 1e-5, shift, silu)

    shifted = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    expected = F.group_norm(shifted, groups, weight.double(), bias.double(), 1e-5)
    expected = F.silu(expected) if silu else expected
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert largest_error(got, expected) < ROUNDING[dtype]
    # The same values in another layout are the same call.
    assert torch.equal(kernels.group_norm_silu(x.contiguous(), weight, bias, groups, 1e-5, shift, silu), got)


def test_group_norm_of_values_far_from_zero(kernels):
    """Sums of squares would lose all digits here: the deviation is 1e-4 of the mean."""
    torch.manual_seed(0)
    x = (1000 + 0.1 * torch.randn(1, 64, 40, 40)).to(DEVICE, memory_format=torch.channels_last)
    weight, bias = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    got = kernels.group_norm_silu(x, weight, bias, 8, 1e-5, silu=False)
    expected = F.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-5)
    assert largest_error(got, expected) < 2e-3  # a mean of 1000 is rounded by 6e-5, and 0.1 divides it


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 2 * 1280), (5, 2 * 37), (0, 8)])
def test_geglu(kernels, dtype, shape):
    torch.manual_seed(0)
    h = (2 * torch.randn(shape)).to(DEVICE, dtype)
    a, b = h.double().chunk(2, dim=-1)
    got = kernels.geglu(h)
    assert got.dtype == dtype and got.shape == a.shape
    if len(h):
        assert largest_error(got, a * F.gelu(b)) < ROUNDING[dtype]


def test_on_a_cpu_the_norm_is_what_torch_computes():
    torch.manual_seed(0)
    norm, x, shift = torch.nn.GroupNorm(4, 8), torch.randn(2, 8, 5, 3), torch.randn(2, 8)
    assert torch.equal(norm_silu(norm, x, shift), F.silu(norm(x + shift[:, :, None, None])))
    assert torch.equal(norm_silu(norm, x, silu=False), norm(x))


def on_gpu(dtype=torch.float32, **shape):
    unet = small_unet().to("cuda", dtype, memory_format=torch.channels_last)
    return unet.requires_grad_(False), [one.to("cuda", torch.float32) for one in unet_inputs(**shape)]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.cpu().double() - expected).norm() / expected.norm()).item()


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, {"batch": 1, "height": 11, "width": 13}], ids=["even", "odd"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.bfloat16, 0.05)])
def test_the_network_on_a_gpu_computes_what_it_computes_on_a_cpu(kernels, monkeypatch, dtype, tolerance, shape):
    """float32 convolutions on a GPU use TF32 by default, which has ten bits."""
    expected = small_unet().double()(*unet_inputs(**shape))
    unet, inputs = on_gpu(dtype, **shape)
    with_kernels = relative_error(unet(*inputs), expected)
    monkeypatch.setattr("sd21.layers._kernels", lambda: None)
    assert with_kernels < min(tolerance, 1.2 * relative_error(unet(*inputs), expected))


@needs_gpu
@torch.no_grad()
def test_the_vae_on_a_gpu_computes_what_it_computes_on_a_cpu(kernels):
    latent = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = small_vae().double().decode(latent)
    assert relative_error(small_vae().cuda().decode(latent.float().cuda()), expected) < 2e-3  # TF32


@needs_gpu
def test_gradients_on_a_gpu_pass_through_plain_operations():
    unet, (x, t, context) = on_gpu()
    unet(x.requires_grad_(), t, context).sum().backward()
    assert x.grad.abs().sum() > 0


@needs_gpu
@torch.no_grad()
def test_a_graph_replays_the_bits_of_a_plain_forward():
    unet, (x, t, context) = on_gpu(torch.bfloat16)
    cases = [(x, t, context), (x * 2, t, context), (x, 500.5, context), (x, 3, context * 2), (x[:1], 7.0, context[:1])]
    cases += [(x, torch.tensor(41.0), context), (x, 12.0, context[:1]), (x[..., :9], t, context)]
    plain = [unet(*case) for case in cases]
    unet.use_graphs()
    for _ in range(2):  # four are kept, so that all are recorded twice
        replayed = [unet(*case) for case in cases]
        for one, other in zip(replayed, plain, strict=True):
            assert torch.equal(one, other)
    assert len(unet.graphs.recordings) == 4


@needs_gpu
@torch.no_grad()
def test_a_graph_takes_no_hook_and_no_weight_for_granted():
    unet, inputs = on_gpu()
    unet.use_graphs()
    first = unet(*inputs)
    sites = []
    with attention_hook(unet, lambda site, q, k, v: sites.append(site) or default_kernel(q, k, v) * 0):
        hooked = unet(*inputs)
    assert sites and not torch.equal(hooked, first)
    assert torch.equal(unet(*inputs), first)

    unet.conv_out.weight.mul_(2)  # in place
    assert not torch.equal(unet(*inputs), first)
    unet.conv_out.weight.mul_(0.5)
    assert torch.equal(unet(*inputs), first)
    unet.conv_out.weight = torch.nn.Parameter(unet.conv_out.weight * 2, requires_grad=False)  # replaced
    assert not torch.equal(unet(*inputs), first)
    assert len(unet.graphs.recordings) == 1
    unet.half()
    assert unet(*inputs).isfinite().all()
    with torch.inference_mode():
        kept = unet(*inputs)
    assert torch.equal(unet(*inputs), kept)


@needs_gpu
def test_a_network_with_graphs_still_has_gradients():
    unet, (x, t, context) = on_gpu()
    unet.use_graphs()
    unet(x.requires_grad_(), t, context).sum().backward()
    assert x.grad.abs().sum() > 0 and not unet.graphs.recordings


def test_on_a_cpu_graphs_change_nothing():
    unet, inputs = small_unet(), unet_inputs(dtype=torch.float32)
    plain = unet(*inputs)
    unet.use_graphs()
    assert torch.equal(unet(*inputs), plain) and not unet.graphs.recordings
    unet.use_graphs(None)
    assert unet.graphs is None
    with pytest.raises(ValueError, match="at least 1"):
        unet.use_graphs(0)
