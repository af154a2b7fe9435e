"""The denoising UNet of Stable Diffusion 2.1 is assembled here, from the layers it shares with the VAE and from its
transformers. Both have modules of their own, so that this one shows the network's shape and nothing else.

Attribute names are the keys of the published `unet/diffusion_pytorch_model.safetensors`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import HookSlot, SitePlace
from .config import UNetConfig
from .graphs import Graphs
from .layers import Downsample, ResnetBlock, TimestepEmbedding, Upsample, norm_silu, timestep_embedding
from .transformer import SpatialTransformer, TransformerBlock


class DownBlock(nn.Module):
    """One level on the way down: resnets (each with a transformer, if the level has attention), then halve H and W."""

    def __init__(self, resnets: list[ResnetBlock], transformers: list[SpatialTransformer], down: Downsample | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(transformers)  # empty at a level without attention
        self.downsamplers = nn.ModuleList([down] if down is not None else [])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> list[Tensor]:
        """Every intermediate feature map, in order. The up path takes them as skips, and the next level the last
        one."""
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if len(self.attentions) > 0:
                x = self.attentions[i](x, context)
            outputs.append(x)
        for down in self.downsamplers:
            outputs.append(down(outputs[-1]))
        return outputs


class MidBlock(nn.Module):
    def __init__(self, first: ResnetBlock, transformer: SpatialTransformer, last: ResnetBlock):
        super().__init__()
        self.resnets = nn.ModuleList([first, last])
        self.attentions = nn.ModuleList([transformer])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        first, last = self.resnets
        return last(self.attentions[0](first(x, time), context), time)


class UpBlock(nn.Module):
    """One level on the way up: each resnet takes one skip; then resize to the level above."""

    def __init__(self, resnets: list[ResnetBlock], transformers: list[SpatialTransformer], up: Upsample | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(transformers)
        self.upsamplers = nn.ModuleList([up] if up is not None else [])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Tensor) -> Tensor:
        """Removes its skips from the end of `skips`. The last one left then has the size of the level above."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if len(self.attentions) > 0:
                x = self.attentions[i](x, context)
        for up in self.upsamplers:
            x = up(x, size=skips[-1].shape[-2:])  # not 2H x 2W: an odd side was rounded up on the way down
        return x


class UNet(nn.Module):
    """`unet(x, t, context)` predicts eps or v, as the checkpoint was trained to.

    x: latents (B, in_channels, h, w); any h, w. t: training time, 0 to 999, a number or a tensor () or (B,), which need
    not be whole. context: (B or 1, L, cross_attention_dim); any L. Returns (B, out_channels, h, w) in x's dtype;
    computes in the dtype of the weights. Raises ValueError on any other shape.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        widths, levels = config.block_out_channels, len(config.block_out_channels)
        time_dim = 4 * widths[0]

        def resnet(dim_in: int, dim: int) -> ResnetBlock:
            return ResnetBlock(dim_in, dim, groups=config.norm_num_groups, eps=config.norm_eps, time_dim=time_dim)

        def transformer(level: int) -> SpatialTransformer:
            return SpatialTransformer(
                widths[level],
                config.cross_attention_dim,
                heads=config.attention_head_dim[level],
                blocks=config.transformer_layers_per_block[level],
                groups=config.norm_num_groups,
            )

        self.time_embedding = TimestepEmbedding(widths[0], time_dim)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)

        self.down_blocks = nn.ModuleList()
        skip_widths, width = [widths[0]], widths[0]
        for level, kind in enumerate(config.down_block_types):
            resnets, transformers = [], []
            for _ in range(config.layers_per_block[level]):
                resnets.append(resnet(width, widths[level]))
                if kind == "CrossAttnDownBlock2D":
                    transformers.append(transformer(level))
                width = widths[level]
                skip_widths.append(width)
            down = Downsample(width, pad_all_sides=True) if level < levels - 1 else None
            skip_widths += [width] if down is not None else []
            self.down_blocks.append(DownBlock(resnets, transformers, down))

        self.mid_block = MidBlock(resnet(width, width), transformer(levels - 1), resnet(width, width))

        self.up_blocks = nn.ModuleList()
        for level, kind in zip(reversed(range(levels)), config.up_block_types, strict=True):
            resnets, transformers = [], []
            for _ in range(config.layers_per_block[level] + 1):
                resnets.append(resnet(width + skip_widths.pop(), widths[level]))
                if kind == "CrossAttnUpBlock2D":
                    transformers.append(transformer(level))
                width = widths[level]
            self.up_blocks.append(UpBlock(resnets, transformers, Upsample(width) if level > 0 else None))

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

        self.graphs: Graphs | None = None
        # Attributes are registered in the order they run, so that counting the blocks numbers the layers.
        self.hook_slot = HookSlot()
        blocks = [(path, module) for path, module in self.named_modules() if isinstance(module, TransformerBlock)]
        for layer, (path, block) in enumerate(blocks):
            stage = path.split("_")[0]  # down_blocks, mid_block, up_blocks
            block.attn1.placement = SitePlace(f"{path}.attn1", "self", stage, layer, self.hook_slot)
            block.attn2.placement = SitePlace(f"{path}.attn2", "cross", stage, layer, self.hook_slot)

    def forward(self, x: Tensor, t: float | Tensor, context: Tensor) -> Tensor:
        t = _times(t, x.device)
        self._check(x, t, context)
        if self.graphs is not None and self.graphs.can_run(x, t, context):
            return self.graphs.run(x, t, context)
        return self._predict(x, t, context)

    def _predict(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        dtype = self.conv_in.weight.dtype

        time = timestep_embedding(t.reshape(-1), self.config.block_out_channels[0])  # (B or 1, width), float32
        time = F.silu(self.time_embedding(time.to(dtype)))  # every resnet begins with this silu; one is enough
        context = context.to(dtype)

        h = self.conv_in(x.to(dtype=dtype, memory_format=torch.channels_last))  # (B, width, h, w)
        skips = [h]
        for block in self.down_blocks:
            skips += block(skips[-1], time, context)
        h = self.mid_block(skips[-1], time, context)
        for block in self.up_blocks:
            h = block(h, skips, time, context)
        return self.conv_out(norm_silu(self.conv_norm_out, h)).to(x.dtype)

    def use_graphs(self, limit: int | None = 4):
        """From now on, record each forward on a CUDA GPU as a CUDA graph and replay it. See `graphs.Graphs`.

        limit: graphs kept at a time, one for each shape of the inputs; None goes back to plain forwards.
        """
        self.graphs = None if limit is None else Graphs(self, limit)

    def _check(self, x: Tensor, t: Tensor, context: Tensor):
        channels, width = self.config.in_channels, self.config.cross_attention_dim
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"x must be latents (B, {channels}, h, w), got {tuple(x.shape)}")
        if t.ndim > 1 or t.numel() not in (1, len(x)):
            raise ValueError(f"t must be one time or {len(x)}, one per row of x, got shape {tuple(t.shape)}")
        if context.ndim != 3 or context.shape[0] not in (1, len(x)) or context.shape[2] != width:
            raise ValueError(f"context must be ({len(x)} or 1, L, {width}), got {tuple(context.shape)}")


def _times(t: float | Tensor, device: torch.device) -> Tensor:
    """t as float32 on the device. Solvers keep times in float64, which mps lacks."""
    on_host = not isinstance(t, Tensor) or (t.is_cpu and t.ndim == 0 and not t.requires_grad)
    if device.type == "cuda" and on_host and not torch.compiler.is_compiling():
        return torch.full((), float(t), dtype=torch.float32, device=device)  # a copy would wait for the GPU
    return torch.as_tensor(t, dtype=torch.float32).to(device, non_blocking=True)
