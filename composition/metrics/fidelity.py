"""This module holds the measures that need no network: PSNR and SSIM inside a region, and the visibility of a mask's
edge. They are arithmetic on tensors alone.

Images are (B, 3, H, W) in [-1, 1], masks and regions (B, 1, H, W) bool; every measure is (B,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

RANGE = 2.0  # the images' peak to peak
GREY_LEVELS = 255 / RANGE

# Wang et al. 2004, section III.C.
WINDOW, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: torch.Tensor, b: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB over the region's pixels and all channels; infinite if they are equal."""
    _check(region, a, b)
    squared = torch.where(region, (a.double() - b.double()) ** 2, 0).sum(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / (squared / (3 * region.sum(dim=(1, 2, 3)))))


def ssim(a: torch.Tensor, b: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004): 1 for equal images, at least -1.

    Local means, variances and covariance are those under an 11 x 11 Gaussian window of sigma 1.5; the index is averaged
    over the windows that lie wholly inside the region, and over the channels. It is nan if no window does.
    """
    _check(region, a, b)
    if min(a.shape[2:]) < WINDOW:
        return torch.full((len(a),), torch.nan, dtype=torch.float64, device=a.device)
    a, b = a.double(), b.double()
    mean_a, mean_b = _windowed(a), _windowed(b)
    # The differences of squares cancel: double precision keeps the variances of flat parts at zero.
    variance_a, variance_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    index = (luminance * contrast_structure).mean(dim=1, keepdim=True)
    whole = F.max_pool2d((~region).double(), WINDOW, stride=1) == 0
    return torch.where(whole, index, 0).sum(dim=(1, 2, 3)) / whole.sum(dim=(1, 2, 3))


def seam(composite: torch.Tensor, background: torch.Tensor, placed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much harder the composite steps across the mask's edge than either parent does, in grey levels of 255.

    It looks at all pairs of neighbouring pixels (left-right and above-below) of which one is in the mask and one is
    not, and averages max(0, |step of the composite| - max(|step of the background|, |step of the placed object|)) over
    pairs and channels. It is 0 if the composite is one of its parents there, or anything smoother, and nan if there is
    no edge. A tumour's own contrast is a step of the placed object, so it does not count against the composite.
    """
    _check(mask, composite, background, placed)
    total, pairs = 0, 0
    for axis in (2, 3):
        crossing = mask.diff(dim=axis)  # of bools: True where two neighbours differ
        steps = [image.double().diff(dim=axis).abs() for image in (composite, background, placed)]
        excess = (steps[0] - torch.maximum(steps[1], steps[2])).clamp(min=0)
        total = total + torch.where(crossing, excess, 0).sum(dim=(1, 2, 3))
        pairs = pairs + 3 * crossing.sum(dim=(1, 2, 3))
    return GREY_LEVELS * total / pairs


def _windowed(x: torch.Tensor) -> torch.Tensor:
    """Averages of (B, C, H, W) under the Gaussian window, where it lies wholly on the image: (B, C, H-10, W-10)."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, WINDOW)
    x = F.conv2d(x, weights.unsqueeze(2), groups=x.shape[1])
    return F.conv2d(x, weights.unsqueeze(3), groups=x.shape[1])


def _check(region: torch.Tensor, *images: torch.Tensor) -> None:
    batch, _, height, width = images[0].shape
    shapes = [tuple(image.shape) for image in images]
    if any(shape != (batch, 3, height, width) for shape in shapes):
        raise ValueError(f"expected images (B, 3, H, W) of one shape, got {shapes}")
    if region.dtype != torch.bool or region.shape != (batch, 1, height, width):
        expected = (batch, 1, height, width)
        raise ValueError(f"expected a bool region {expected}, got {region.dtype} {tuple(region.shape)}")
