"""The VAE is compared with diffusers' AutoencoderKL, with the same weights in both."""

import pytest
import torch
from diffusers import AutoencoderKL
from small_models import VAE_JSON, small_vae

from sd21.config import VAEConfig
from sd21.vae import VAE

EXACT = {"rtol": 0, "atol": 1e-10}  # measured 2e-15; room for another order of sums, none for another formula


def reference_of(vae, **changes):
    with torch.device("meta"):
        reference = AutoencoderKL(**(VAE_JSON | changes))
    reference.load_state_dict(vae.state_dict(), assign=True)
    return reference.eval()


def image_of(batch=2, height=64, width=48, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator, dtype=dtype) * 2 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_block": 2, "block_out_channels": [8, 16, 16, 32]},
        {
            "block_out_channels": [16, 32],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
        },
    ],
    ids=["small", "two layers", "two levels"],
)
@pytest.mark.parametrize("batch, height, width", [(1, 64, 64), (3, 32, 72)])
@torch.no_grad()
def test_matches_diffusers(changes, batch, height, width):
    vae = small_vae(**changes).double()
    reference = reference_of(vae, **changes)
    image = image_of(batch, height, width)
    latent, expected = vae.encode(image), reference.encode(image).latent_dist.mean
    assert latent.shape == (batch, 4, height // vae.config.factor, width // vae.config.factor)
    assert expected.std() > 0.1
    torch.testing.assert_close(latent, expected, **EXACT)
    torch.testing.assert_close(vae.decode(latent), reference.decode(latent).sample, **EXACT)


def test_full_size_matches_by_count_and_keys():
    with torch.device("meta"):
        vae = VAE(VAEConfig())
        reference = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    shapes = {key: weight.shape for key, weight in vae.state_dict().items()}
    assert shapes == {key: weight.shape for key, weight in reference.state_dict().items()}


@torch.no_grad()
def test_bfloat16_stays_near_float32_and_keeps_the_callers_dtype():
    image, vae = image_of(dtype=torch.float32), small_vae()
    latent = vae.encode(image)
    decoded = vae.decode(latent)
    half = small_vae().bfloat16()
    for got, expected in ((half.encode(image), latent), (half.decode(latent), decoded)):
        assert got.dtype == torch.float32
        # 2^-9 per rounding, some 50 operations in a row: a factor of 7 if they are independent, doubled.
        assert 0 < (got - expected).norm() / expected.norm() < 15 * 2**-9


@pytest.mark.parametrize(
    "image, message",
    [
        (torch.zeros(3, 64, 64), r"image must be a float tensor \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"image must be a float tensor \(B, 3, H, W\), got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"image must be a float tensor.*uint8"),
        (torch.zeros(1, 3, 64, 60), r"multiples of 8, got 64x60; crop to 64x56 or pad"),
        (torch.full((1, 3, 64, 64), 255.0), r"must lie in \[-1, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 64, 64), -1.01), r"must lie in \[-1, 1\]"),
        (torch.full((1, 3, 64, 64), torch.nan), r"must lie in \[-1, 1\], got \[nan, nan\]"),
    ],
)
def test_wrong_images_are_one_clear_error(image, message):
    with pytest.raises(ValueError, match=message):
        small_vae().encode(image)


def test_rounding_beyond_the_range_is_allowed():
    small_vae().encode(torch.full((1, 3, 8, 8), 1.0 + 1e-6))


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 3, 8, 8)])
def test_wrong_latents_are_one_clear_error(shape):
    with pytest.raises(ValueError, match=r"latent must be \(B, 4, h, w\), got"):
        small_vae().decode(torch.zeros(shape))
