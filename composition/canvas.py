"""This module holds the geometry of the canvas, the image that the network sees of a scan.

It takes a scan to the canvas and to latents, and the canvas back to the scan's own pixels. All methods share it, and no
other module resizes a scan for the network. The canvas has the scan's aspect as nearly as the network allows.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from solvers.finite import check_finite

from .model import Model
from .scans.images import Scan, check_scan

# Half precision overflows on some images, and a picture of nan would be written as a black one. The autoencoder of
# sd21 never runs in it.
OVERFLOWN = "load the model in float32 (--dtype float32), or, if it is, compare its files with their publisher's"


def canvas_size(size: tuple[int, int], image_size: int, factor: int) -> tuple[int, int]:
    """The (height, width) at which the network sees a scan of size (height, width).

    About as many pixels as the square of image_size it was trained on, in the scan's aspect, each side a multiple of
    `factor`, the pixels per latent; the rounding is undone on the way back. TF-ICON stretches every scan to the square.
    """
    height, width = size
    aspect = math.sqrt(height / width)
    return tuple(max(1, round(image_size * side / factor)) * factor for side in (aspect, 1 / aspect))


def to_canvas(values: np.ndarray, canvas: tuple[int, int]) -> torch.Tensor:
    """Values (H, W, 3) in [-1, 1] as an image (3, height, width) of the canvas."""
    return _resize(torch.from_numpy(values).permute(2, 0, 1), canvas).clamp(-1, 1)


def from_canvas(image: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """An image (3, h, w) of the canvas as values (H, W, 3) of the scan's own size."""
    return _resize(image.float().cpu(), size).permute(1, 2, 0).numpy()


def to_latent_mask(mask: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """A bool mask (H, W) on the latent grid, float32 (1, h, w) of zeros and ones.

    A cell is inside if at least half of its area is, which keeps a mask inside another one there as well.
    """
    return (latent_shares(mask, grid) >= 0.5 - 1e-9).float()[None]  # the margin: sums of fractions round


def soft_latent_mask(mask: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """A bool mask (H, W) on the latent grid with soft edges, float32 (1, h, w) in [0, 1].

    A cell's weight is the share of the mask in it and its eight neighbours, as far as these lie on the grid: so it is
    one a cell inside the mask, and falls to zero a cell outside.
    """
    shares = latent_shares(mask, grid)[None]
    return F.avg_pool2d(shares, kernel_size=3, stride=1, padding=1, count_include_pad=False).float()


def latent_shares(mask: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """The share of each latent cell's area that lies in a bool mask (H, W), float64 (h, w)."""
    rows, columns = (_area_matrix(*lengths) for lengths in zip(mask.shape, grid, strict=True))
    return torch.from_numpy(rows @ mask.astype(np.float64) @ columns.T)


def canvas_of(model: Model, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) in pixels at which the model sees a scan of size (height, width)."""
    return canvas_size(size, model.image_size, model.vae.config.factor)


def canvas_image(model: Model, values: np.ndarray) -> torch.Tensor:
    """Values (H, W, 3) in [-1, 1] as what the model sees of them, an image (1, 3, h, w) on its device."""
    return to_canvas(values, canvas_of(model, values.shape[:2]))[None].to(model.device)


@torch.no_grad()
def encoded(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, h, w) of the canvas as latents. Raises FloatingPointError where these are not finite."""
    return check_finite(model.encode(images), "the latent that the autoencoder makes of a scan", OVERFLOWN)


@torch.no_grad()
def decoded(model: Model, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h / 8, w / 8) as images of the canvas. Raises FloatingPointError where these are not finite."""
    return check_finite(model.decode(latents), "the image that the autoencoder decodes", OVERFLOWN)


@torch.no_grad()
def latents_of(model: Model, scan: Scan) -> torch.Tensor:
    """A scan as latents (1, C, h, w) of its canvas, on the model's device: what the inversions start from.

    Raises TypeError for what is no Scan, and FloatingPointError for latents that are not finite.
    """
    check_scan("scan", scan)
    return encoded(model, canvas_image(model, scan.values()))


@torch.no_grad()
def reproduce(model: Model, values: np.ndarray) -> np.ndarray:
    """An image as the model's autoencoder gives it back: values (H, W, 3) in [-1, 1] on both sides."""
    latents = encoded(model, canvas_image(model, values))
    return from_canvas(decoded(model, latents)[0], values.shape[:2])


def _area_matrix(source: int, target: int) -> np.ndarray:
    """(target, source): row i holds the shares of cell i's length that each of the source pixels covers."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * (target / source)


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0]
