"""This module holds METRICS, the one table of metrics.

A new metric takes one function of a Comparison and one entry of METRICS; the benchmark's columns, tables and plots
follow from it. The package's docstring has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import label_truth
from .comparison import Comparison
from .fidelity import psnr, seam, ssim
from .networks import KINDS


@dataclass(frozen=True)
class Metric:
    """An entry of METRICS.

    heading: the heading of its column. "{network}" in it stands for the network's name, if figures must not be read
    without it. more_is_better: whether greater values are better; None where one value is right, which the heading
    says. function: takes a Comparison and returns a number or
    a tensor of one number, which may be inf or nan if the composite has no finite value. network: the field of Networks
    that it takes, if it takes one.
    """

    heading: str
    more_is_better: bool | None
    function: Callable[[Comparison], torch.Tensor | float]
    network: str | None = None

    def __post_init__(self):
        if self.network not in (None, *KINDS):
            raise ValueError(f"{self.heading}: {self.network!r} is no network of Networks: {', '.join(KINDS)}")

    def title(self, networks: dict[str, str]) -> str:
        """The heading of the column. networks: Networks.names; a network not among them is called by its kind."""
        kind = self.network or ""
        return self.heading.replace("{network}", networks.get(kind, kind.upper()))


def lpips_bg(c: Comparison) -> torch.Tensor:
    lpips = c.reference.networks.lpips
    return lpips.distance(lpips.features(c.outside), c.reference.background_features)


def lpips_fg(c: Comparison) -> torch.Tensor:
    lpips = c.reference.networks.lpips
    return lpips.distance(lpips.features(c.crop), c.reference.placed_features)


def clip_text(c: Comparison) -> torch.Tensor:
    return c.reference.networks.clip.text_similarity(c.composite, [c.reference.prompt])


def clip_image(c: Comparison) -> torch.Tensor:
    return c.reference.networks.clip.image_similarity(c.crop, c.reference.placed_crop)


def psnr_bg(c: Comparison) -> torch.Tensor:
    return psnr(c.composite, c.reference.background, ~c.reference.user_mask)


def psnr_fg(c: Comparison) -> torch.Tensor:
    return psnr(c.composite, c.reference.placed, c.reference.edited)


def psnr_object(c: Comparison) -> torch.Tensor:
    return psnr(c.composite, c.reference.placed, c.reference.object_mask)


def ssim_bg(c: Comparison) -> torch.Tensor:
    return ssim(c.composite, c.reference.background, ~c.reference.user_mask)


def ssim_fg(c: Comparison) -> torch.Tensor:
    return ssim(c.composite, c.reference.placed, c.reference.edited)


def seam_object(c: Comparison) -> torch.Tensor:
    return seam(c.composite, c.reference.background, c.reference.placed, c.reference.object_mask)


def seam_user(c: Comparison) -> torch.Tensor:
    return seam(c.composite, c.reference.background, c.reference.placed, c.reference.user_mask)


def contrast(c: Comparison) -> float:
    return _number(label_truth.contrast_kept(c.contrast, c.reference.contrast_own))


def correlation(c: Comparison) -> float:
    return _number(label_truth.correlation(*c.inside))


def grey_shift(c: Comparison) -> float:
    return label_truth.grey_shift(*c.inside)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


METRICS = {
    "lpips_bg": Metric("{network} bg", False, lpips_bg, "lpips"),
    "lpips_fg": Metric("{network} fg", False, lpips_fg, "lpips"),
    "clip_text": Metric("CLIP text", True, clip_text, "clip"),
    "clip_image": Metric("CLIP image", True, clip_image, "clip"),
    "psnr_bg": Metric("PSNR bg (dB)", True, psnr_bg),
    "psnr_fg": Metric("PSNR fg (dB)", True, psnr_fg),
    "psnr_object": Metric("PSNR object (dB)", True, psnr_object),
    "ssim_bg": Metric("SSIM bg", True, ssim_bg),
    "ssim_fg": Metric("SSIM fg", True, ssim_fg),
    "seam_object": Metric("seam of object", False, seam_object),
    "seam_user": Metric("seam of user mask", False, seam_user),
    "contrast": Metric("contrast (1 is right)", None, contrast),
    "correlation": Metric("correlation", True, correlation),
    "grey_shift": Metric("grey shift (0 is right)", None, grey_shift),
}
