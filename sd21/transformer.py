"""Between the UNet's convolutions stand transformers, in which image tokens attend to each other and to the context.
This module holds them apart from `layers` because the VAE does not use them."""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .layers import fused, norm_silu


class GEGLU(nn.Module):
    """(a, b) = proj(x); a * gelu(b). Shazeer 2020, "GLU Variants Improve Transformer"."""

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj(x)
        if (kernels := fused(h)) is not None:
            return kernels.geglu(h)
        a, b = h.chunk(2, dim=-1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        # Index 1 is dropout in the published layout: it has no keys, and does nothing outside training.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each on a normalised copy and added back."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor, grid: tuple[int, int]) -> Tensor:
        """x (B, H*W, dim), context (B or 1, L, context_dim), grid (H, W) -> (B, H*W, dim)."""
        x = x + self.attn1(self.norm1(x), grid=grid)
        x = x + self.attn2(self.norm2(x), context, grid=grid)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the H*W pixels of a feature map (B, dim, H, W), as a residual branch."""

    def __init__(self, dim: int, context_dim: int, *, heads: int, blocks: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)  # not the config's norm_eps, which is the resnets'
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(dim, context_dim, heads) for _ in range(blocks))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        grid = x.shape[-2:]
        # In channels_last memory, pixels are already rows of channels: both changes of layout are views.
        h = norm_silu(self.norm, x, silu=False).permute(0, 2, 3, 1).flatten(1, 2)  # (B, C, H, W) -> (B, H*W, C)
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context, grid)
        h = self.proj_out(h)
        return x + h.unflatten(1, grid).permute(0, 3, 1, 2)  # (B, H*W, C) -> (B, C, H, W)
