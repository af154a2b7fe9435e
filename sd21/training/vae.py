"""Two stages share the autoencoder, so this module holds both. The stage "vae" trains it on crops of scans; the stage
"latents" encodes all scans, and the diffusion model is trained on the result."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ..config import VAEConfig
from ..vae import VAE
from . import data, recipe
from .loop import Plan, autocast, check_seed, compile_on_gpu, load, normal, save, sound, train

# The loss is L1 + L2_WEIGHT * L2 + KL_WEIGHT * KL, each a mean over its elements.
L2_WEIGHT = 10.0  # L1 keeps edges; L2 is what PSNR measures
# The noise this allows in the latents costs about 0.1 dB and makes them smooth enough to be generated.
KL_WEIGHT = 1e-4
VALIDATION_SCANS = 32  # per modality, evenly spaced in the held-out list


def posterior(vae: VAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance (B, 4, H/8, W/8) of the latents; VAE.encode returns the mean alone."""
    mean, log_variance = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def random_crops(pixels: Tensor, batch: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Crops (B, size, size) of pixels[batch] at random places. Each is mirrored in x, and in y, with probability 1/2:
    the autoencoder must not learn its few hundred slices by heart, and mirroring keeps every grey level."""
    room = pixels.shape[-1] - size + 1
    corner = torch.randint(room, (2, len(batch), 1), generator=generator)
    mirrored = torch.rand(2, len(batch), 1, generator=generator) < 0.5
    along = torch.arange(size)
    rows, columns = (corner + torch.where(mirrored, along.flip(0), along)).to(pixels.device)  # (B, size) each
    return pixels[batch.to(pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def vary_contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], each with its grey levels multiplied by 0.8 to 1.2."""
    gain = (0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator)).to(images.device)
    return ((images + 1) * gain - 1).clamp(-1, 1)


def vae_loss(vae: VAE, images: Tensor, noise: Tensor) -> Tensor:
    """The training loss of images (B, 3, H, W); noise (B, 4, H/8, W/8) draws from the posterior."""
    with autocast(images.device):
        mean, log_variance = posterior(vae, images)
        decoded = vae.decode(mean + (0.5 * log_variance).exp() * noise).float()
    error = decoded - images
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + L2_WEIGHT * error.square().mean() + KL_WEIGHT * kl


def psnr(images: Tensor, decoded: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,), of images in [-1, 1]; the decoded ones are clamped as a viewer would."""
    return 10 * torch.log10(4 / (decoded.clamp(-1, 1) - images).square().flatten(1).mean(1))


def train_vae(scans: str | Path, out: Path, plan: Plan, crop: int, device: torch.device) -> VAE:
    """Start or continue training OUT/vae.pt. Returns the average model."""
    if not 8 <= crop <= data.IMAGE_SIZE or crop % 8:
        raise ValueError(f"crop is a multiple of 8 from 8 to {data.IMAGE_SIZE}, got {crop}")
    training, held_out = data.split(data.find_scans(scans))
    some = data.evenly(held_out, VALIDATION_SCANS)
    pixels, validation = data.load_pixels(training).to(device), data.load_pixels(some).to(device)
    weights = data.sampling_weights(training)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        images = data.to_images(random_crops(pixels, batch, crop, generator))
        shape = (plan.batch, vae.config.latent_channels, *(side // vae.config.factor for side in images.shape[2:]))
        return vary_contrast(images, generator), normal(shape, device, generator)

    def validate(vae: VAE) -> dict[str, float]:
        figures = {"mri": [], "ultrasound": []}
        for scan, grey in zip(some, validation, strict=True):
            image = data.to_images(grey[None])
            with autocast(device):
                decoded = vae.decode(vae.encode(image))
            figures[data.MODALITY[scan.kind]].append(psnr(image, decoded.float()).item())
        return {f"psnr_{modality}": sum(values) / len(values) for modality, values in figures.items()}

    torch.manual_seed(plan.seed)
    vae = VAE(VAEConfig.from_dict(recipe.VAE)).to(device, memory_format=torch.channels_last)
    compile_on_gpu(vae.encoder, vae.decoder)
    return train(vae, draw, vae_loss, validate, plan, out / "vae.pt")


def trained_vae(out: Path, device: torch.device) -> VAE:
    """The averaged weights of OUT/vae.pt."""
    vae = VAE(VAEConfig.from_dict(recipe.VAE))
    with sound(out / "vae.pt", "the stage vae"):
        vae.load_state_dict(load(out / "vae.pt", ["average"], "the stage vae")["average"])
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


@torch.no_grad()
def write_latents(scans: str | Path, out: Path, variants: int, seed: int, device: torch.device) -> None:
    """Encode all scans. OUT/latents.pt: "training" (N, variants, 4, 32, 32) and "held_out" (M, 4, 32, 32), both scaled.

    Variant 0 of a training scan is the scan itself; the others are augmented copies. "scaling_factor" is one over the
    standard deviation of the training latents, and gives them the variance of the noise.
    """
    if not 1 <= variants <= 1000:
        raise ValueError(f"variants is a whole number from 1 to 1000, got {variants}")
    check_seed(seed)
    vae = trained_vae(out, device)
    training, held_out = data.split(data.find_scans(scans))
    generator = torch.Generator().manual_seed(seed)

    def encode(grey: Tensor, augmented: bool) -> Tensor:
        images = data.to_images(grey.to(device))
        images = data.augment(images, generator) if augmented else images
        with autocast(device):
            return posterior(vae, images)[0].cpu()

    pixels = data.load_pixels(training)
    copies = [torch.cat([encode(grey, v > 0) for grey in pixels.split(16)]) for v in range(variants)]
    latents = torch.stack(copies, dim=1)
    held_out_latents = torch.cat([encode(grey, False) for grey in data.load_pixels(held_out).split(16)])
    spread = latents.std().item()
    if not (math.isfinite(spread) and spread > 0):
        raise FloatingPointError(f"the latents that {out / 'vae.pt'} makes have the deviation {spread}; train it anew")
    factor = 1 / spread
    scaled = {"training": (latents * factor).half(), "held_out": (held_out_latents * factor).half()}
    save(scaled | {"scaling_factor": factor}, out / "latents.pt")
    print(f"scaling_factor {factor:.5g}  mean {latents.mean(dim=(0, 1, 3, 4)).mul(factor).tolist()}")
