"""These tests need a CUDA GPU, and skip where torch finds none.

They hold what only a GPU can show: that its kernels compute what the CPU's do, in three precisions and at full size;
that hooks, compilation, inversions and compositions work there; that the solver's loop never makes the GPU wait for the
CPU; and that a pass of the network keeps no attention map. The weights are random, or the small checkpoint's."""

import copy
import shutil
import sysconfig
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_images import drawn_image
from drawn_samples import box, scan
from relative_error import relative
from small_models import small_text_encoder, small_unet, small_vae, unet_inputs

import sd21
from composition import METHODS, Sample, Settings, compose
from composition.blending import preserve_states
from composition.prompts import exceptional_context
from composition.runs.store import InversionStore
from sd21.attention import attention_hook, default_kernel, describe_call, record_maps
from sd21.config import TextConfig, UNetConfig, VAEConfig
from sd21.text import TextEncoder
from sd21.training.loop import Plan, Update
from sd21.training.muon import optimizers
from sd21.unet import UNet
from sd21.vae import VAE
from solvers import INVERSIONS, NoiseSchedule, data_prediction, dpm_solver_pp_2m, invert, sample, time_uniform

DEVICE = torch.device("cuda")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none here"),
    pytest.mark.slow,
]

# float32 rounds to 6e-8. The sums of a row of some 400 operations, in another order, came to 2e-6 on a CPU; another
# kernel's order may cost five times that.
FLOAT32 = 1e-5
# A value is rounded to 2^-9 (bfloat16) or 2^-12 (float16) relative. 400 independent roundings in a row add up to a
# factor of sqrt(400) = 20. On a CPU, on small latents, they came to 8 (UNet), 5 and 10 (encoder, decoder) and 6 (text).
HALVES = pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 20 * 2**-9), (torch.float16, 20 * 2**-12)])
BATCHES = pytest.mark.parametrize("batch", [1, 2])


@pytest.fixture
def ieee():
    """Within the test, float32 is float32. By default, cuDNN's convolutions round its factors to 2^-11 (TF32)."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@torch.no_grad()
def drawn(kind, config, seed):
    """A network of full size, float32, in the layout that sd21.load gives it. Its random weights have the scales of
    `small_models.randomise`; they are drawn on the GPU, because a CPU takes a minute for a thousand million."""
    with torch.device("meta"):
        network = kind(config)
    network = network.to_empty(device=DEVICE).to(memory_format=torch.channels_last)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for name, weight in network.named_parameters():
        weight.normal_(generator=generator)
        if weight.ndim > 1:
            weight.mul_(0.5 if "embedding.weight" in name else weight[0].numel() ** -0.5)
        else:
            weight.mul_(0.2).add_(1 if "norm" in name and name.endswith("weight") else 0)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet():
    return drawn(UNet, UNetConfig(), seed=0)


@pytest.fixture(scope="module")
def vae():
    return drawn(VAE, VAEConfig(), seed=1)


@pytest.fixture(scope="module")
def text_encoder():
    return drawn(TextEncoder, TextConfig(), seed=2)


def normal(*shape, seed=0):
    """Drawn on the CPU, so that every GPU gets the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def inputs(batch, size=(64, 64), length=77):
    """States, times and contexts for the full-size UNet. Times come from the CPU in float64, as the solvers' do."""
    t = torch.linspace(731.25, 20.5, batch, dtype=torch.float64)
    return normal(batch, 4, *size), t, normal(batch, length, UNetConfig().cross_attention_dim, seed=1)


def cast(network, dtype):
    return copy.deepcopy(network).to(dtype)


def lively_error(got, expected):
    """|got - expected| / |expected|. Without a lively network nothing would be compared."""
    assert got.dtype == expected.dtype == torch.float32 and got.isfinite().all() and expected.std() > 0.1
    return relative(got, expected)


# 53 and 39 are odd, and stay odd or become so on the way down: 27 and 20, 14 and 10, 7 and 5.
@HALVES
@BATCHES
@pytest.mark.parametrize("size", [(64, 64), (53, 39)])
@torch.no_grad()
def test_the_unet_in_half_precision_stays_near_float32(unet, ieee, dtype, bound, batch, size):
    arguments = inputs(batch, size)
    assert 0 < lively_error(cast(unet, dtype)(*arguments), unet(*arguments)) < bound


@HALVES
@torch.no_grad()
def test_the_exceptional_prompts_single_row_in_half_precision(unet, ieee, dtype, bound):
    """Attention to one key, which all rows share, is where a fused kernel could refuse."""
    x, t, _ = inputs(2)
    context = inputs(1, length=1)[2]
    assert 0 < lively_error(cast(unet, dtype)(x, t, context), unet(x, t, context)) < bound


@torch.no_grad()
def test_layouts_change_nothing_but_rounding(unet, ieee):
    x, t, context = inputs(2)
    one = context[:1]
    expected = unet(x, t, one)
    assert torch.equal(unet(x.contiguous(memory_format=torch.channels_last), t, one), expected)  # it lays x out itself
    # An expanded context is projected for every row, which is another product; its copies are laid out otherwise.
    for same in (one.expand(2, -1, -1), one.repeat(2, 1, 1), one.mT.contiguous().mT):
        assert lively_error(unet(x, t, same), expected) < FLOAT32
    # Copies of a row are one row, as the exceptional prompt has it.
    assert lively_error(unet(x, t, one[:, :1].expand(-1, 77, -1)), unet(x, t, one[:, :1])) < FLOAT32
    contiguous = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
    assert lively_error(contiguous(x, t, one), expected) < FLOAT32


@HALVES
@torch.no_grad()
def test_an_expanded_context_in_half_precision(unet, ieee, dtype, bound):
    x, t, context = inputs(2)
    expected, half = unet(x, t, context[:1]), cast(unet, dtype)
    for same in (context[:1], context[:1].expand(2, -1, -1), context[:1].repeat(2, 1, 1)):
        assert 0 < lively_error(half(x, t, same), expected) < bound


# 264 x 328 pixels are 33 x 41 latents.
@HALVES
@BATCHES
@pytest.mark.parametrize("size", [(64, 64), (33, 41)])
@torch.no_grad()
def test_the_vae_in_half_precision_stays_near_float32(vae, ieee, dtype, bound, batch, size):
    half = cast(vae, dtype)
    image, latent = normal(batch, 3, *(8 * side for side in size)).tanh(), normal(batch, 4, *size, seed=1)
    assert 0 < lively_error(half.encode(image), vae.encode(image)) < bound
    assert 0 < lively_error(half.decode(latent), vae.decode(latent)) < bound


@HALVES
@BATCHES
@pytest.mark.parametrize("positions", [True, False])
@torch.no_grad()
def test_the_text_tower_in_half_precision_stays_near_float32(text_encoder, ieee, dtype, bound, batch, positions):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(text_encoder.config.vocab_size, (batch, 77), generator=generator).to(DEVICE)
    got, expected = (network(ids, positions).float() for network in (cast(text_encoder, dtype), text_encoder))
    assert 0 < lively_error(got, expected) < bound


@torch.no_grad()
def test_the_gpu_computes_what_the_cpu_computes(ieee):
    def on_both(network, call):
        on_cpu = call(network, torch.device("cpu"))
        return lively_error(call(copy.deepcopy(network).to(DEVICE), DEVICE).cpu(), on_cpu)

    x, t, context = unet_inputs(height=15, width=13, dtype=torch.float32)  # t stays on the CPU
    assert on_both(small_unet(), lambda unet, device: unet(x.to(device), t, context.to(device))) < FLOAT32
    image, latent = drawn_image(64), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert on_both(small_vae(), lambda vae, device: vae.encode(image.to(device))) < FLOAT32
    assert on_both(small_vae(), lambda vae, device: vae.decode(latent.to(device))) < FLOAT32
    ids = torch.arange(2 * 77).view(2, 77)
    assert on_both(small_text_encoder(), lambda encoder, device: encoder(ids.to(device))) < FLOAT32


@HALVES
@torch.no_grad()
def test_a_passing_hook_changes_no_bit_and_maps_are_float32_whose_rows_sum_to_one(unet, dtype, bound):
    half, arguments, names = cast(unet, dtype), inputs(2), []
    before = half(*arguments)
    with attention_hook(half, lambda site, q, k, v: default_kernel(q, k, v)):
        assert torch.equal(half(*arguments), before)

    def sink(site, attention):
        names.append(site.name)
        assert attention.dtype == torch.float32 and attention.device == before.device
        # A row has up to 4096 entries of about 1/4096, each rounded to 2^-24 of itself, and their sum is rounded too.
        assert (attention.sum(-1) - 1).abs().max() < 1e-5

    with attention_hook(half, record_maps(lambda site: True, sink)):
        assert torch.equal(half(*arguments), before)
    assert len(names) == 32
    assert torch.equal(half(*arguments), before)
    assert half.hook_slot.fn is None and len(names) == 32  # and the hook has gone


@torch.no_grad()
def test_hooks_see_the_same_sites_and_maps_on_both_devices(ieee):
    x, t, context = unet_inputs(height=15, width=13, dtype=torch.float32)

    def recorded(device):
        unet, sites, maps = small_unet().to(device), [], []
        record = record_maps(lambda site: True, lambda site, attention: (sites.append(site), maps.append(attention)))
        with attention_hook(unet, record):
            unet(x.to(device), t, context.to(device))
        return sites, maps

    (sites, maps), (expected_sites, expected_maps) = recorded(DEVICE), recorded(torch.device("cpu"))
    assert sites == expected_sites
    assert all(relative(got.cpu(), of) < FLOAT32 for got, of in zip(maps, expected_maps, strict=True))


# torch's compiler writes its kernels in Triton, which builds their launchers with a C compiler and Python's headers.
HAS_COMPILER = (
    find_spec("triton") is not None
    and any(map(shutil.which, ("cc", "gcc", "clang")))
    and (Path(sysconfig.get_path("include")) / "Python.h").exists()
)


@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs triton, a C compiler and Python's headers here")
@torch.no_grad()
def test_a_compiled_unet_agrees_and_obeys_a_hook_that_is_set_later(ieee):
    """The compiler guards the slot of the hook: with another hook in it, it compiles anew. If it did not, the hook
    would be ignored, and the results below would be those without it."""
    # Two levels and four layers of attention: compiling takes as long as the network has different operations.
    levels = {"block_out_channels": [32, 32], "attention_head_dim": [2, 2], "layers_per_block": 1}
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    eager = small_unet(**levels, down_block_types=down, up_block_types=up).to(DEVICE)
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled.compile()  # as sd21.load does
    x, t, context = unet_inputs(dtype=torch.float32)
    arguments = x.to(DEVICE), t, context.to(DEVICE)
    seen = []

    def without_context(site, q, k, v):
        seen.append((site.call, site.name))
        return torch.zeros_like(q) if site.kind == "cross" else default_kernel(q, k, v)

    def hooked(unet, call):
        with attention_hook(unet, without_context), describe_call(unet, call):
            return unet(*arguments)

    try:
        free = eager(*arguments)
        # The same float32 sums, fused and in another order; 1.2e-6 on a CPU.
        assert lively_error(compiled(*arguments), free) < FLOAT32
        for call in ("first", "second"):  # nor does a compiled hook keep what an earlier call was for
            expected, told = hooked(eager, call), list(seen)
            assert relative(expected, free) > 0.01  # the hook shows
            seen.clear()
            assert lively_error(hooked(compiled, call), expected) < FLOAT32
            assert seen == told and len(seen) == 8 and {of for of, _ in seen} == {call}
            seen.clear()
        assert lively_error(compiled(*arguments), free) < FLOAT32 and not seen  # and it leaves nothing behind
    finally:
        torch._dynamo.reset()


START = 6


@torch.no_grad()
def inversion(model, method, **keywords):
    """The small checkpoint's inversion of two drawn images of 128 pixels under the exceptional prompt."""
    grid = time_uniform(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod), 20)
    x0_fn = data_prediction(model.unet, grid, model.prediction_type, exceptional_context(model))
    latents = model.encode(torch.cat([drawn_image(128, variant) for variant in (0, 1)]))
    return invert(latents, grid, dpm_solver_pp_2m, x0_fn, start=START, method=method, **keywords)


# Ten times the default tolerance of float32, so that a kernel whose sums run in another order reaches it too.
TOLERANCE = 2e-5


@pytest.mark.parametrize("method", INVERSIONS)
def test_an_inversion_in_float32_is_the_cpus(ieee, method):
    on_gpu, on_cpu = (
        inversion(sd21.load("mini", device=device, dtype=torch.float32), method, tol=TOLERANCE, max_sweeps=30)
        for device in (DEVICE, "cpu")
    )
    assert on_gpu.states.device.type == DEVICE.type and on_gpu.states.dtype == torch.float32
    for got, expected in zip(on_gpu.reports, on_cpu.reports, strict=True):
        if not INVERSIONS[method].measured:
            assert got.error is expected.error is None
        elif INVERSIONS[method].exact:  # what is below the tolerance is rounding, and differs
            assert got.converged and got.error <= got.tolerance == TOLERANCE
        else:
            # The error is a tenth. Rounding moves the states by 1e-6, and a run enlarges that some ten times.
            assert got.error == pytest.approx(expected.error, rel=1e-2)
    # Two solutions differ by what their tolerance allows, which the way up enlarges; the others by rounding.
    solves = any(report.residuals for report in on_cpu.reports)
    bound = 100 * TOLERANCE if solves else 10 * FLOAT32
    assert relative(on_gpu.states.cpu(), on_cpu.states) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", INVERSIONS)
def test_an_inversion_in_half_precision_is_finite_and_near(method, dtype):
    model = sd21.load("mini", device=DEVICE, dtype=dtype)
    found = inversion(model, method, tol=1e-2, max_sweeps=4, on_failure="return")
    assert found.states.dtype == torch.float32 and found.states.isfinite().all()
    # The naive inversion of these images misses by 0.11 and 0.12 in float32, and rounding adds less than 0.01. Where
    # states are drawn, the run from one of them ends in another image, at 0.61.
    bound = 0.2 if INVERSIONS[method].trajectory else 0.8
    assert all(report.error is None or 0 < report.error < bound for report in found.reports)


def test_the_small_checkpoint_loads_onto_the_gpu_in_bfloat16():
    model = sd21.load("mini", device=DEVICE)
    assert model.dtype == torch.bfloat16
    assert {weight.dtype for weight in model.unet.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.vae.parameters()} == {torch.float32}
    for part in (model.unet, model.vae, model.text_encoder):
        assert {weight.device.type for weight in part.parameters()} == {DEVICE.type}


@pytest.fixture(scope="module")
def full_size(unet, vae, text_encoder):
    """A model of full size with random weights, in the dtypes of a GPU. Tokenizer and schedule are the small
    checkpoint's: its tokens are among the large vocabulary's, and its schedule is the published one."""
    return replace(
        sd21.load("mini", device="cpu"),
        unet=cast(unet, torch.bfloat16),
        vae=vae,
        text_encoder=cast(text_encoder, torch.bfloat16),
        image_size=512,
        device=DEVICE,
        dtype=torch.bfloat16,
        source="random weights of full size",
        files={},
    )


def drawn_sample():
    size = (512, 512)
    object_mask, user_mask = box(size, 180, 200, 120, 100), box(size, 260, 240, 140, 130)
    return Sample(scan(*size, seed=0), scan(*size, seed=1), object_mask, user_mask, "a brain scan with a tumour")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_at_full_size_and_gives_the_same_bits_again(full_size, method):
    one, settings, states = drawn_sample(), Settings(preserve="pixels"), []
    composed, again = (
        compose(full_size, *one, settings, method=method, on_state=lambda i, x, x0: states.append(x)) for _ in range(2)
    )
    pixels = one.background.pixels
    assert composed.image.shape == composed.mask.shape == pixels.shape and composed.image.dtype == pixels.dtype
    assert composed.mask.any() and not (composed.mask & ~one.user_mask).any()
    assert np.array_equal(composed.image[~one.user_mask], pixels[~one.user_mask])
    assert (composed.image != pixels)[one.user_mask].any()
    assert np.array_equal(again.image, composed.image)
    assert all(state.isfinite().all() and state.device.type == DEVICE.type for state in states)
    assert bool(states) == (method != "copy-paste")  # which runs no network
    half = len(states) // 2
    assert all(map(torch.equal, states[:half], states[half:]))


def test_the_decoded_image_is_finite(full_size):
    """`preserve="latent"` shows what the autoencoder decodes, also outside the target."""
    result = compose(full_size, *drawn_sample(), Settings(steps=4, start=2, detail=False))
    assert result.decoded and result.image.shape == (512, 512) and result.image.std() > 0


def test_an_inversion_that_was_kept_gives_the_same_bits():
    """A store keeps trajectories on the CPU, and they come back to the GPU."""
    model, store = sd21.load("mini", device=DEVICE), InversionStore()
    first, second = (compose(model, *drawn_sample(), inversions=store) for _ in range(2))
    assert not any(first.reused.values()) and all(second.reused.values()) and second.rows["inversion"] == 0
    assert np.array_equal(first.image, second.image)


def synchronisations(run):
    """The places, file:line, at which `run` makes the CPU wait for the GPU. torch's "error" mode names the first one
    alone, and "warn" all of them; it knows copies and reads, and no others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    return sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits})


@torch.no_grad()
def test_the_solvers_loop_never_waits_for_the_gpu():
    """A guided run with Eq. 9, as a composition makes it. While the CPU waits it launches nothing, and the GPU, which
    takes microseconds for a kernel, soon has nothing to do."""
    grid = time_uniform(NoiseSchedule.from_alphas_cumprod(sd21.load("mini", device="cpu").alphas_cumprod), 20)
    run = grid.until(START)
    table = dpm_solver_pp_2m(run)
    unet = small_unet().to(DEVICE)
    context, null_context = normal(2, 1, 77, unet.config.cross_attention_dim).unbind(0)
    x0_fn = data_prediction(unet, run, "epsilon", context, null_context=null_context, scale=2.5)
    x, mask = normal(1, 4, 16, 16), (normal(1, 1, 16, 16) > 0).float()
    edit = preserve_states(x.expand(START + 1, *x.shape), x.expand(START + 1, *x.shape), mask, mask, START, 0, 0)

    def loop():
        for _ in sample(x, run, table, x0_fn, edit=edit):
            pass

    loop()  # the libraries start up
    torch.cuda.synchronize()
    assert synchronisations(lambda: x.sum().item()), "torch does not tell of a read that must wait"
    assert synchronisations(loop) == []


@torch.no_grad()
def test_a_pass_of_eight_rows_keeps_no_attention_map(unet):
    """One self-attention map of the finest level, 5 heads x 4096^2 in bfloat16, takes 1.25 GiB for 8 rows; a fused
    kernel never holds it. All else that the pass holds comes to less than that: by count, 0.47 GiB
    (tests/benchmarks/full_size_cost.py), to which cuDNN's work space is added."""
    rows = 8
    half, arguments = cast(unet, torch.bfloat16), inputs(rows)
    half(*arguments)  # the libraries take their work space once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    half(*arguments)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < rows * UNetConfig().attention_head_dim[0] * 4096**2 * 2


def test_a_recorded_training_step_does_what_a_plain_one_does(monkeypatch):
    """The same eight steps of a small UNet, recorded after three and never recorded. Both run the same kernels."""
    losses = {}
    for name, plain in (("recorded", 3), ("plain", 100)):
        monkeypatch.setattr(Update, "PLAIN_STEPS", plain)
        unet = small_unet().float().to(DEVICE).requires_grad_(True)
        average = copy.deepcopy(unet).requires_grad_(False)
        steppers = list(optimizers(unet, 1e-3).values())
        update = Update(unet, average, steppers, lambda net, x, context: net(x, 500.0, context).square().mean())
        width, plan = unet.config.cross_attention_dim, Plan(steps=8, batch=2, lr=1e-3)
        batches = [(normal(2, 4, 16, 16, seed=k), normal(2, 7, width, seed=8 + k)) for k in range(8)]
        losses[name] = [update(batch, plan, step).item() for step, batch in enumerate(batches)]
        assert (update.graph is not None) == (name == "recorded")
    # Atomic additions in the backward pass come in any order: float32's 1e-7 over eight steps.
    assert losses["recorded"] == pytest.approx(losses["plain"], rel=1e-4)
    assert len(set(losses["recorded"])) == 8  # a replay sees its own batch
