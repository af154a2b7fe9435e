"""This module measures the small checkpoint for its card: `python -m composition.mini.card --data DATA --out CARD`.

It writes CARD/figures.json, one picture of samples for each prompt, and compositions beside copy-paste. It measures
everything on the held-out split: how well the autoencoder reconstructs; whether a classifier trained on real scans
tells the samples apart as it does real scans; seams and fidelity of the compositions; and the error of inverting scans
and denoising them again under the three prompts. The same command goes on after a kill with what it has not measured.
"""

import argparse
import json
import sys
from collections import defaultdict
from itertools import pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

import sd21
import solvers
from sd21.command import guarded
from sd21.files import write_json
from sd21.training import data
from sd21.training.vae import psnr

from ..prompts import exceptional_context, exceptional_token, null_context
from ..runs.record import read_kept
from ..settings import Settings
from .pairs import compare_with_paste, held_out_pairs

SETTINGS = Settings()
# A trained network is slow to invert exactly from the noise end: there the card asks how far 20 sweeps come.
SWEEPS, TOLERANCE = 20, 1e-3
CLASSIFIER_SIZE, CLASSIFIER_STEPS, CLASSIFIER_BATCH = 64, 1500, 64
HAS_TUMOUR = torch.tensor([kind not in ("no", "normal") for kind in data.KINDS])
IS_MRI = torch.tensor([data.MODALITY[kind] == "mri" for kind in data.KINDS])


def labels(scans: list[data.Scan]) -> Tensor:
    return torch.tensor([data.KINDS.index(scan.kind) for scan in scans])


def reconstruction(model: sd21.StableDiffusion, training: list[data.Scan], held_out: list[data.Scan]) -> dict:
    """PSNR in dB of decode(encode(scan)) at 256 px, by modality, and of the best linear code of as many numbers."""
    figures = {}
    for modality in ("mri", "ultrasound"):
        known, pixels = (
            data.load_pixels([scan for scan in scans if data.MODALITY[scan.kind] == modality])
            for scans in (training, held_out)
        )
        images = (data.to_images(part).to(model.device) for part in pixels.split(8))
        values = torch.cat([psnr(image, model.decode(model.encode(image))) for image in images])
        linear = psnr_of_linear_code(known, pixels, model.vae.config.latent_channels, model.vae.config.factor)
        figures[modality] = {
            "mean": values.mean().item(),
            "worst": values.min().item(),
            "linear": linear.mean().item(),
            "scans": len(values),
        }
    return figures


def psnr_of_linear_code(known: Tensor, pixels: Tensor, channels: int, factor: int) -> Tensor:
    """PSNR in dB, (N,), of grey levels (N, H, W) through the linear code that suits the `known` ones (M, H, W) best.

    It keeps the first principal components of squares of four latents' side, as many as the latents have numbers there:
    what an autoencoder is worth shows against that.
    """
    side, count = 4 * factor, 16 * channels

    def squares(grey: Tensor) -> Tensor:
        return rearrange(grey.float() / 127.5 - 1, "n (y h) (x w) -> (n y x) (h w)", h=side, w=side)

    centred = squares(known)
    mean = centred.mean(0)
    centred -= mean
    basis = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors[:, -count:].float()
    images = squares(pixels)
    decoded = (images - mean) @ basis @ basis.T + mean
    return psnr(*(part.unflatten(0, (len(pixels), -1)) for part in (images, decoded)))


def grid_of(model: sd21.StableDiffusion) -> solvers.Grid:
    """The composition's default grid for the model's noise schedule."""
    return SETTINGS.build_grid(solvers.NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod))


def draw(model: sd21.StableDiffusion, prompt: str, count: int, seed: int) -> Tensor:
    """Samples (count, 3, 256, 256) in [-1, 1] of a prompt, by the default sampler and guidance of the composition."""
    grid = grid_of(model)
    x0_fn = solvers.data_prediction(
        model.unet,
        grid,
        model.prediction_type,
        model.embed([prompt]),
        null_context=null_context(model),
        scale=SETTINGS.guidance_scale,
    )
    side = model.image_size // model.vae.config.factor
    noise = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(model.device)
    parts = noise.split(16)
    table = SETTINGS.build_table(grid)
    latents = [solvers.denoise(x, grid, table, x0_fn) for x in parts]
    return torch.cat([model.decode(latent).clamp(-1, 1).cpu() for latent in latents])


def write_sheet(images: Tensor, path: Path, columns: int = 4) -> None:
    """The first 16 images, (N, 3, H, W) in [-1, 1], side by side as one grey picture."""
    grey = data.to_pixels(images[:16])
    rows = [torch.cat(list(row), dim=1) for row in grey.split(columns) if len(row) == columns]
    Image.fromarray(torch.cat(rows).numpy()).save(path)


def grey_small(images: Tensor) -> Tensor:
    """What the classifier sees of images (B, 3, H, W): (B, 1, 64, 64)."""
    return F.interpolate(images.mean(1, keepdim=True), size=CLASSIFIER_SIZE, mode="area")


def train_classifier(pixels: Tensor, kinds: Tensor, weights: Tensor, device: torch.device, seed: int) -> nn.Module:
    """A small convolutional network that tells the five classes apart, from (B, 1, 64, 64)."""
    torch.manual_seed(seed)
    widths = (1, 32, 64, 128, 128)
    layers = [
        part
        for dim_in, dim in pairwise(widths)
        for part in (nn.Conv2d(dim_in, dim, 3, padding=1), nn.GroupNorm(8, dim), nn.ReLU(), nn.MaxPool2d(2))
    ]
    classifier = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, len(data.KINDS))).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, CLASSIFIER_STEPS)
    generator = torch.Generator().manual_seed(seed)
    small = grey_small(data.to_images(pixels)).expand(-1, 3, -1, -1)
    for _ in range(CLASSIFIER_STEPS):
        batch = torch.multinomial(weights, CLASSIFIER_BATCH, replacement=True, generator=generator)
        images = data.augment(small[batch], generator)[:, :1].to(device)
        loss = F.cross_entropy(classifier(images), kinds[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return classifier.eval()


@torch.no_grad()
def recognised(classifier: nn.Module, images: Tensor, kinds: Tensor) -> dict:
    """Shares of images (N, 3, H, W) whose modality is told right; and for each kind: with tumour or none, the kind."""
    device = next(classifier.parameters()).device
    share = torch.cat([classifier(grey_small(part).to(device)).softmax(1).cpu() for part in images.split(64)])
    mri, tumour = (share[:, kinds_with].sum(1) > 0.5 for kinds_with in (IS_MRI, HAS_TUMOUR))
    figures = {"modality": (mri == IS_MRI[kinds]).float().mean().item()}
    for kind, name in enumerate(data.KINDS):
        of = kinds == kind
        figures[name] = {
            "tumour_or_none": (tumour == HAS_TUMOUR[kinds])[of].float().mean().item(),
            "kind": (share.argmax(1) == kinds)[of].float().mean().item(),
            "images": int(of.sum()),
        }
    return figures


def inversion_errors(model: sd21.StableDiffusion, scans: list[data.Scan]) -> dict:
    """Relative error, in the latent, of inverting to T and denoising again without guidance, by prompt and method."""
    grid = grid_of(model)
    errors = defaultdict(list)
    for kind in data.KINDS:  # a sweep takes one context for all of its images
        some = [scan for scan in scans if scan.kind == kind]
        if not some:
            continue
        x0 = model.encode(data.to_images(data.load_pixels(some)).to(model.device))
        contexts = {
            "exceptional": exceptional_context(model),
            "null": null_context(model),
            "text": model.embed([data.CAPTIONS[kind][0]]),
        }
        for (prompt, context), method in product(contexts.items(), ("naive", "joint")):
            x0_fn = solvers.data_prediction(model.unet, grid, model.prediction_type, context)
            found = solvers.invert(
                x0,
                grid,
                SETTINGS.build_table,
                x0_fn,
                method=method,
                tol=TOLERANCE,
                max_sweeps=SWEEPS,
                on_failure="return",
            )
            errors[f"{prompt}, {method}"].append(found.errors)
    figures = {name: torch.cat(parts) for name, parts in errors.items()}
    figures = {name: {"median": of.median().item(), "worst": of.max().item()} for name, of in figures.items()}
    return figures | {"scans": len(scans), "exceptional_token": exceptional_token(model)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="composition.mini.card", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds br35h/ and busi/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini", help='"mini", or the folder of an exported checkpoint')
    parser.add_argument("--samples", type=int, default=64, help="samples a prompt, at least 4")
    parser.add_argument("--inversions", type=int, default=8, help="scans a modality")
    parser.add_argument("--pairs", type=int, default=6, help="compositions a modality; 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier and the samples")
    arguments = parser.parse_args()
    if arguments.samples < 4:
        parser.error(f"--samples is at least 4, a row of the picture, got {arguments.samples}")

    model = sd21.load(arguments.model)
    training, held_out = data.split(data.find_scans(arguments.data))
    out, count = arguments.out, arguments.samples

    def compositions() -> dict:
        return compare_with_paste(model, held_out_pairs(arguments.data, arguments.pairs), out / "compositions.png")

    def classification() -> dict:
        weights = data.sampling_weights(training)
        seed = arguments.seed
        classifier = train_classifier(data.load_pixels(training), labels(training), weights, model.device, seed)
        drawn = []  # all prompts start from the same noise, so that what differs is the prompt's doing
        for kind in data.KINDS:
            drawn.append(draw(model, data.CAPTIONS[kind][0], count, seed))
            write_sheet(drawn[-1], out / f"samples_{kind}.png")
        kinds = torch.arange(len(data.KINDS)).repeat_interleave(count)
        real = data.to_images(data.load_pixels(held_out))
        return {
            "held-out scans": recognised(classifier, real, labels(held_out)),
            "samples": recognised(classifier, torch.cat(drawn), kinds),
        }

    parts = {
        "reconstruction": lambda: reconstruction(model, training, held_out),
        "classifier": classification,
        "compositions": compositions,
        "inversion": lambda: inversion_errors(model, data.evenly(held_out, arguments.inversions)),
    }
    out.mkdir(parents=True, exist_ok=True)
    asked = {name: str(value) for name, value in vars(arguments).items()} | {"identity": model.identity}
    figures = kept_figures(out / "figures.json", asked)
    for name, measure in parts.items():
        if name not in figures and (name != "compositions" or arguments.pairs):
            figures[name] = measure()
            write_json(out / "figures.json", figures)
    print(json.dumps(figures, indent=2))


def kept_figures(path: Path, asked: dict) -> dict:
    """What an earlier run with the same options measured before it was stopped."""
    return read_kept(path, {"asked": asked}) or {"asked": asked}


if __name__ == "__main__":
    sys.exit(guarded(lambda: main() or 0, "the same command goes on with what it has not measured"))
