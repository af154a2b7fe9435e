"""This module holds LPIPS (Zhang et al., CVPR 2018), a distance between images in the feature space of AlexNet. It
loads two kinds of weights into the same network:

- `published_lpips`: the metric itself, from torchvision's AlexNet and the linear weights v0.1 of the `lpips` package.
- `shift_tolerant_lpips`: ST-LPIPS (Ghildyal and Liu, ECCV 2022), the same with an anti-aliased trunk, trained anew. Its
  complete weights come with the package `stlpips-pytorch`, so that it works offline. Its figures are not LPIPS figures:
  wherever they are printed, print `name` beside them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sd21.files import irregular, sha256

from ..scans.errors import WeightsError

CHANNELS = (64, 192, 384, 256, 256)
# ImageNet's mean and deviation per channel, for images in [-1, 1] (LPIPS, v0.1).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The binomial low-pass of BlurPool (Zhang, ICML 2019).
BLUR = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16
SMALLEST = 63  # pixels; below, AlexNet's second pooling has nothing left

ST_PACKAGE, ST_FILE = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
ST_CONVS = ("net.slice1.0", "net.slice2.5", "net.slice3.9", "net.slice4.11", "net.slice5.13")
ST_BLURS = {"net.slice1.1": 64, "net.slice2.4": 64, "net.slice3.8": 192}  # and how many channels repeat the filter
DIGITS = 8  # of a SHA-256; as many as torch's hub puts into its files' names
TORCHVISION_CONVS = ("features.0", "features.3", "features.6", "features.8", "features.10")


class LPIPS(nn.Module):
    """The distances (B,) between images (B, 3, H, W) in [-1, 1] and as many others: 0 for equal ones, and not bounded.

    Features after each of AlexNet's five convolutions are normalised over channels; their squared differences, weighted
    per channel, are averaged over the image and summed over the layers (Zhang et al., Eq. 1). The shift-tolerant trunk
    differs only in its strides: a convolution or pooling has stride 1, and a blur after it takes the stride. `name`
    distinguishes figures of these weights from those of others.
    """

    def __init__(self, name: str, *, shift_tolerant: bool):
        super().__init__()
        self.name, self.shift_tolerant = name, shift_tolerant
        kernels, paddings = (11, 5, 3, 3, 3), (2, 2, 1, 1, 1)
        strides = (1 if shift_tolerant else 4, 1, 1, 1, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(*sizes) for sizes in zip((3, *CHANNELS), CHANNELS, kernels, strides, paddings, strict=False)
        )
        self.linear = nn.ParameterList(torch.empty(1, channels, 1, 1) for channels in CHANNELS)
        self.requires_grad_(False)

    @torch.no_grad()
    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The five maps (B, C, h, w), of unit length at every position."""
        image = image.to(self.linear[0].device, memory_format=torch.channels_last)  # a third faster on a CPU
        shift, scale = (torch.tensor(v, device=image.device).view(1, 3, 1, 1) for v in (SHIFT, SCALE))
        x, maps = (image - shift) / scale, []
        for layer, conv in enumerate(self.convs):
            if layer in (1, 2):
                x = F.max_pool2d(x, kernel_size=3, stride=1 if self.shift_tolerant else 2)
                x = blur_pool(x) if self.shift_tolerant else x
            x = conv(x)
            if layer == 0 and self.shift_tolerant:
                x = blur_pool(x)
            x = F.relu(x)
            maps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return maps

    @torch.no_grad()
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.ndim != 4 or a.shape != b.shape or a.shape[1] != 3 or min(a.shape[2:]) < SMALLEST:
            raise ValueError(
                f"LPIPS compares images (B, 3, H, W) with as many of their shape, at least {SMALLEST} pixels high and "
                f"wide; got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        # Images go one by one: at 512 x 512 the first convolution's map alone takes 66 MB, and a figure then does not
        # depend on the other images of its batch.
        pairs = zip(a.split(1), b.split(1), strict=True)
        return torch.cat([self.distance(self.features(one), self.features(other)) for one, other in pairs])

    @torch.no_grad()
    def distance(self, maps_a: list[torch.Tensor], maps_b: list[torch.Tensor]) -> torch.Tensor:
        """The distances (B,) of two images' `features`, for callers that compare many images with one."""
        maps = zip(maps_a, maps_b, self.linear, strict=True)
        return sum((weight * (a - b) ** 2).sum(dim=1).mean(dim=(1, 2)) for a, b, weight in maps)


def blur_pool(x: torch.Tensor) -> torch.Tensor:
    """Filter low-pass, keep every second pixel. ST-LPIPS pads by 2 mirrored pixels, one more than the filter needs."""
    kernel = BLUR.to(x).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def shift_tolerant_lpips(path: str | Path | None = None) -> LPIPS:
    """ST-LPIPS with its AlexNet trunk. path: alex_shift_tolerant.pth, by default the file of the installed package.

    Raises WeightsError if the file is absent, or if the names, shapes or constants of its tensors are not this
    network's.
    """
    if path is None:
        package = importlib.util.find_spec(ST_PACKAGE)  # finds its folder and runs none of its code
        if package is None:
            raise WeightsError(
                "ST-LPIPS needs the weights that come with stlpips-pytorch; install the extra: "
                'pip install "tumour-composition[metrics]"'
            )
        path = Path(package.submodule_search_locations[0], ST_FILE)
    tensors = _read(path)
    constants = {f"{blur}.filt": BLUR.expand(channels, 1, 3, 3) for blur, channels in ST_BLURS.items()}
    constants["scaling_layer.shift"] = torch.tensor(SHIFT).view(1, 3, 1, 1)
    constants["scaling_layer.scale"] = torch.tensor(SCALE).view(1, 3, 1, 1)
    for key, expected in constants.items():
        if key not in tensors or not torch.equal(tensors.pop(key), expected):
            raise WeightsError(f"{path}: {key} is not the constant of ST-LPIPS; is it another network's file?")
    return _load(LPIPS("ST-LPIPS (alex)", shift_tolerant=True), tensors, ST_CONVS, path)


def published_lpips(alexnet: str | Path, linear: str | Path) -> LPIPS:
    """LPIPS v0.1 with AlexNet, as published.

    alexnet: torchvision's alexnet-owt-7be5be79.pth, whose classifier is not used. linear: weights/v0.1/alex.pth of the
    `lpips` package. Raises WeightsError if one is absent, or if the names or shapes of their tensors are not this
    network's. Other weights can have the same names and shapes, so `name` holds the first digits of each file's
    SHA-256: 7be5be79 and df73285e for the published files.
    """
    trunk = {key: value for key, value in _read(alexnet).items() if not key.startswith("classifier.")}
    tensors = trunk | _read(linear)
    files = ", ".join(sha256(path)[:DIGITS] for path in (alexnet, linear))
    network = LPIPS(f"LPIPS (alex, v0.1; files {files})", shift_tolerant=False)
    return _load(network, tensors, TORCHVISION_CONVS, f"{alexnet} with {linear}")


def _read(path: str | Path) -> dict[str, torch.Tensor]:
    if what := irregular(path):
        raise WeightsError(f"{path}: {what}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive, or a pickle of more than tensors: torch raises half a dozen types
        raise WeightsError(f"{path} cannot be read as a file of weights: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{path} is not a dictionary of tensors")
    return tensors


def _load(network: LPIPS, tensors: dict[str, torch.Tensor], convs: tuple[str, ...], path: str | Path) -> LPIPS:
    names = {f"{conv}.{leaf}": f"convs.{i}.{leaf}" for i, conv in enumerate(convs) for leaf in ("weight", "bias")}
    names |= {f"lin{i}.model.1.weight": f"linear.{i}" for i in range(len(CHANNELS))}
    try:
        network.load_state_dict({names.get(key, key): value for key, value in tensors.items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not hold {network.name}: {error}") from error
    return network.eval().to(memory_format=torch.channels_last)
