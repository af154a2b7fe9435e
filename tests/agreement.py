"""This module checks that diffusers, loading the same folder, computes what we compute. The tests of the shipped
checkpoint and of the training share it."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import sd21
from sd21.training import data


def assert_diffusers_agrees(ours: sd21.StableDiffusion, folder: Path) -> None:
    """Compare text tower, UNet at both ends of time, VAE both ways, and schedule. ours: the folder, on the CPU in
    float32."""
    theirs = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    prompts = ["", *(captions[0] for captions in data.CAPTIONS.values())]
    context = ours.embed(prompts)
    expected, _ = theirs.encode_prompt(prompts, "cpu", 1, False)
    # float32 sums in another order: 1e-5 of values of order 1, and somewhat more after the UNet's forty layers.
    torch.testing.assert_close(context, expected, rtol=1e-4, atol=1e-5)
    side = ours.image_size // ours.vae.config.factor
    x = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(0))
    picture = torch.tanh(x[:1, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))
    with torch.no_grad():
        for t in (20, 980):
            eps = ours.unet(x, t, context)
            assert eps.abs().mean() > 0.1  # not the zeros that an untrained conv_out gives
            torch.testing.assert_close(eps, theirs.unet(x, t, context).sample, rtol=1e-4, atol=1e-4)
        scaled = theirs.vae.encode(picture).latent_dist.mean * theirs.vae.config.scaling_factor
        image = theirs.vae.decode(x[:1] / theirs.vae.config.scaling_factor).sample
    torch.testing.assert_close(ours.encode(picture), scaled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode(x[:1]), image, rtol=1e-4, atol=1e-5)
    assert theirs.scheduler.config.prediction_type == ours.prediction_type == "epsilon"
    torch.testing.assert_close(theirs.scheduler.alphas_cumprod.double(), ours.alphas_cumprod, rtol=1e-4, atol=0)
