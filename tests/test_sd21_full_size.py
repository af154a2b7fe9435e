"""These tests check the true size. Random weights are written to disk in both published layouts, read back, and
compared with diffusers and transformers reading the same files. It takes a minute or two, and is skipped below 12 GB of
memory or 6 GB of free disk."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ALL_THREADS
from diffusers import AutoencoderKL, UNet2DConditionModel
from original_layout import FULL, modules, original_layout
from relative_error import relative
from safetensors.torch import save_file
from small_models import SCHEDULER_JSON, randomise, write_small_tokenizer
from transformers import CLIPTextModel

import sd21

PARTS = {
    "unet": "diffusion_pytorch_model.fp16.safetensors",
    "vae": "diffusion_pytorch_model.fp16.safetensors",
    "text_encoder": "model.fp16.safetensors",
}
# Rounding alone: float32's 6e-8 over the ~400 operations in a row of the UNet gives 1e-6; measured 2e-6.
BOUND = 1e-5
# bfloat16 rounds to 2^-9 relative; 400 independent roundings add up to a factor of sqrt(400) = 20. Measured: 4.
BFLOAT16_BOUND = 20 * 2**-9


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def all_threads():
    torch.set_num_threads(ALL_THREADS)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def published():
    """A folder and a single file with the same weights. Both are in float16 (as they are also published) to save
    disk."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if memory < 12e9 or disk < 6e9:
        pytest.skip(f"needs 12 GB of memory and 6 GB of free disk, found {memory / 1e9:.1f} and {disk / 1e9:.1f}")
    with tempfile.TemporaryDirectory() as name:  # not pytest's, which keeps its folders for a while
        folder = Path(name) / "model"
        with torch.device("meta"):
            networks = modules(FULL)
        for seed, (part, config, network) in enumerate(zip(PARTS, FULL, networks, strict=True)):
            randomise(network.half().to_empty(device="cpu"), seed)
            (folder / part).mkdir(parents=True)
            (folder / part / "config.json").write_text(json.dumps(asdict(config)))
            save_file(network.state_dict(), folder / part / PARTS[part], metadata={"format": "pt"})
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER_JSON))
        write_small_tokenizer(folder / "tokenizer")
        save_file(original_layout(FULL, networks), Path(name) / "model.safetensors")
        del networks
        yield folder


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 64, 64, generator=generator)
    image = torch.rand(1, 3, 256, 192, generator=generator) * 2 - 1
    ids = torch.randint(49408, (1, 77), generator=generator)
    return x, 731.25, ids, image


@pytest.fixture(scope="module")
def ours(published):
    """Outputs of the loaded folder. The networks themselves are freed before the reference's are loaded."""
    model = sd21.load(published, device="cpu", dtype=torch.float32, variant="fp16")
    x, t, ids, image = inputs()
    with torch.no_grad():
        context = model.text_encoder(ids)
        latent = model.vae.encode(image)
        found = {"context": context, "latent": latent, "image": model.vae.decode(latent)}
        found["unet"] = model.unet(x, t, context)
        found["bfloat16"] = model.unet.bfloat16()(x, t, context)
    return found


def reference(kind, published, part):
    return kind.from_pretrained(published / part, variant="fp16", torch_dtype=torch.float32).eval()


def lively_error(got, expected):
    assert expected.std() > 0.1  # without a lively network nothing would be compared
    return relative(got, expected)


@torch.no_grad()
def test_unet_matches_diffusers(published, ours):
    x, t, _, _ = inputs()
    expected = reference(UNet2DConditionModel, published, "unet")(x, t, ours["context"]).sample
    assert lively_error(ours["unet"], expected) < BOUND


@torch.no_grad()
def test_vae_matches_diffusers(published, ours):
    vae = reference(AutoencoderKL, published, "vae")
    assert lively_error(ours["latent"], vae.encode(inputs()[-1]).latent_dist.mean) < BOUND
    assert lively_error(ours["image"], vae.decode(ours["latent"]).sample) < BOUND


@torch.no_grad()
def test_text_encoder_matches_transformers(published, ours):
    expected = reference(CLIPTextModel, published, "text_encoder")(inputs()[2]).last_hidden_state
    assert lively_error(ours["context"], expected) < BOUND


def test_bfloat16_stays_near_float32(ours):
    assert 0 < lively_error(ours["bfloat16"], ours["unet"]) < BFLOAT16_BOUND


def test_the_single_file_holds_the_same_weights(published):
    folder = sd21.load(published, device="cpu", dtype=torch.float16, variant="fp16")
    file = published.with_suffix(".safetensors")
    single = sd21.load(
        file, device="cpu", dtype=torch.float16, prediction_type="epsilon", tokenizer=published / "tokenizer"
    )
    for part in PARTS:
        expected = getattr(folder, part).state_dict()
        found = getattr(single, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
