"""This module holds the layers that the UNet and the VAE share, so that each is written once. Feature maps are
(B, C, H, W), in channels_last memory."""

import functools
import math
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of real times t (N,) -> (N, dim): cosines, then sines, of t * 10000^(-2j/dim).

    It is computed in float32 and in the order of operations of the published training code: the trained weights have
    seen the rounding of that code, about 6e-5 at t = 999.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def fused(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """The module of Triton kernels, if they can take x in an operation with these others, else None.

    They have no derivatives, autocast does not know them, and torch.compile fuses the same operations by itself, into
    kernels of its own.
    """
    if not x.is_cuda or x.dtype == torch.float64 or torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return None
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *others)):
        return None
    return _kernels()


@functools.cache
def _kernels() -> ModuleType | None:
    """Triton comes with torch for CUDA on Linux, and not everywhere else."""
    try:
        from . import kernels
    except ImportError:
        return None
    return kernels


def norm_silu(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """silu(norm(x + shift)), or norm(x + shift): x (B, C, H, W), shift (B or 1, C)."""
    if (kernels := fused(x, norm.weight, shift)) is not None:
        return kernels.group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift, silu)
    x = norm(x if shift is None else x + shift[:, :, None, None])
    return F.silu(x) if silu else x


class TimestepEmbedding(nn.Module):
    """The MLP behind the sinusoidal embedding: (N, dim_in) -> (N, dim)."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps H and W.

    On a CPU, torch's convolution copies its weights into another layout on every call. If there are fewer pixels than
    output channels, as at the UNet's coarse levels, this copy costs more than gathering each pixel's 3x3 neighbourhood
    and taking one matrix product with the weights as they lie in channels_last memory.
    """

    def __init__(self, dim_in: int, dim: int):
        super().__init__(dim_in, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        if not x.is_cpu or batch * height * width >= self.out_channels:
            return super().forward(x)
        neighbours = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)  # (B, C, H, W, 3, 3), a view
        rows = rearrange(neighbours, "b c h w i j -> b h w (i j c)")
        out = F.linear(rows, rearrange(self.weight, "o c i j -> o (i j c)"), self.bias)  # (B, H, W, dim)
        return out.permute(0, 3, 1, 2)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))). `time_dim` is None in the VAE, which knows no time."""

    def __init__(self, dim_in: int, dim: int, *, groups: int, eps: float, time_dim: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, dim_in, eps)
        self.conv1 = Conv3x3(dim_in, dim)
        if time_dim is not None:
            self.time_emb_proj = nn.Linear(time_dim, dim)
        self.norm2 = nn.GroupNorm(groups, dim, eps)
        self.conv2 = Conv3x3(dim, dim)
        self.conv_shortcut = nn.Conv2d(dim_in, dim, 1) if dim_in != dim else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, dim_in, H, W), time (B or 1, time_dim) after its silu -> (B, dim, H, W)."""
        h = norm_silu(self.norm1, x)
        shift = None if time is None else self.time_emb_proj(time)
        if fused(h, self.conv1.bias, shift) is None:
            h = self.conv1(h)
        else:  # torch's CUDA convolution adds its bias in another pass over memory; the norm adds a shift for nothing
            h = F.conv2d(h, self.conv1.weight, padding=1)
            shift = self.conv1.bias[None] if shift is None else shift + self.conv1.bias
        h = self.conv2(norm_silu(self.norm2, h, shift))
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """Halves H and W by a strided convolution. The VAE pads on the right and below only, the UNet on all sides."""

    def __init__(self, dim: int, *, pad_all_sides: bool):
        super().__init__()
        self.pad_all_sides = pad_all_sides
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1 if pad_all_sides else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.pad_all_sides else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour resize to `size`, then a convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = Conv3x3(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
