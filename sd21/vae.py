"""The autoencoder of Stable Diffusion 2.1 maps images (B, 3, H, W) in [-1, 1] to latents (B, 4, H/8, W/8) and back. It
has a module of its own because the UNet sees only its latents.

Attribute names are the keys that diffusers writes today. The published files are older and call the two attention
layers' weights `query`, `key`, `value` and `proj_attn`; loading renames them.
"""

import torch
from torch import Tensor, nn

from .attention import Attention
from .config import VAEConfig
from .layers import Downsample, ResnetBlock, Upsample, norm_silu

NORM_EPS = 1e-6  # the eps of every norm in the published VAE, whose config has no field for it
RANGE_SLACK = 1 / 255  # half a grey level of an 8-bit image: such an excess is rounding, not another range


class PixelAttention(Attention):
    """One head of attention between all H*W pixels, as a residual branch of (B, dim, H, W)."""

    def __init__(self, dim: int, groups: int):
        super().__init__(dim, dim, heads=1, qkv_bias=True)
        self.group_norm = nn.GroupNorm(groups, dim, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        h = norm_silu(self.group_norm, x, silu=False).permute(0, 2, 3, 1).flatten(1, 2)  # (B, C, H, W) -> (B, H*W, C)
        h = super().forward(h)
        return x + h.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)


class MidBlock(nn.Module):
    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(dim, dim, groups=groups, eps=NORM_EPS) for _ in range(2))
        self.attentions = nn.ModuleList([PixelAttention(dim, groups)])

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.resnets
        return last(self.attentions[0](first(x)))


class Level(nn.Module):
    """Resnets at one resolution; then, in all but the last level, a change of resolution."""

    def __init__(self, dim_in: int, dim: int, resnets: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(dim_in if i == 0 else dim, dim, groups=groups, eps=NORM_EPS) for i in range(resnets)
        )

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class DownLevel(Level):
    def __init__(self, dim_in: int, dim: int, resnets: int, groups: int, *, last: bool):
        super().__init__(dim_in, dim, resnets, groups)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(dim, pad_all_sides=False)])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for down in self.downsamplers:
            x = down(x)
        return x


class UpLevel(Level):
    def __init__(self, dim_in: int, dim: int, resnets: int, groups: int, *, last: bool):
        super().__init__(dim_in, dim, resnets, groups)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(dim)])

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for up in self.upsamplers:
            x = up(x, size=(2 * x.shape[-2], 2 * x.shape[-1]))
        return x


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(dim_in, dim, config.layers_per_block, groups, last=i == len(widths) - 1)
            for i, (dim_in, dim) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)  # means and log variances

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return self.conv_out(norm_silu(self.conv_norm_out, h))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups  # coarsest first
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpLevel(dim_in, dim, config.layers_per_block + 1, groups, last=i == len(widths) - 1)
            for i, (dim_in, dim) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            h = block(h)
        return self.conv_out(norm_silu(self.conv_norm_out, h))


class VAE(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """The mean of the posterior, not scaled: image (B, 3, H, W) in [-1, 1] -> (B, 4, H/8, W/8), in image's dtype.

        Raises ValueError for another shape, for sides that 8 (config.factor) does not divide, and for values outside
        [-1, 1] by more than RANGE_SLACK, NaN included.
        """
        self._check_image(image)
        x = image.to(dtype=self.quant_conv.weight.dtype, memory_format=torch.channels_last)
        mean, _ = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean.to(image.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, 4, h, w), not scaled -> image (B, 3, 8h, 8w), not clamped, in latent's dtype."""
        channels = self.config.latent_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(f"latent must be (B, {channels}, h, w), got {tuple(latent.shape)}")
        x = latent.to(dtype=self.quant_conv.weight.dtype, memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(x)).to(latent.dtype)

    def _check_image(self, image: Tensor):
        channels, factor = self.config.in_channels, self.config.factor
        if image.ndim != 4 or image.shape[1] != channels or not image.is_floating_point():
            raise ValueError(
                f"image must be a float tensor (B, {channels}, H, W), got {tuple(image.shape)} {image.dtype}"
            )
        height, width = image.shape[-2:]
        if height % factor or width % factor:
            fit = f"{height - height % factor}x{width - width % factor}"
            raise ValueError(f"image sides must be multiples of {factor}, got {height}x{width}; crop to {fit} or pad")
        low, high = (value.item() for value in image.aminmax())
        if not (low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK):  # written so that NaN fails
            raise ValueError(f"image values must lie in [-1, 1], got [{low:g}, {high:g}]; map 0..255 by x / 127.5 - 1")
