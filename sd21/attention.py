"""This module holds the attention layers, and the hook through which a method can see or replace what they compute. The
hook stands beside the layers because they call it.

Every attention layer of the UNet computes `out = kernel(q, k, v)`. The kernel is torch's fused attention, but within

    with attention_hook(unet, fn):
        unet(x, t, context)

the layer computes `out = fn(site, q, k, v)` in its place.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """Where in the UNet an attention layer sits, the grid its queries lie on in this call, and what the call is for.

    call: what the caller of the network said about the call by `describe_call`, or None if it said nothing. Inside a
        composition it is a `composition.Call`: the stage, and for every row of q, k and v the index i, the image and
        the context.
    """

    name: str  # the layer's module path, e.g. "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    kind: Literal["self", "cross"]
    stage: Literal["down", "mid", "up"]
    layer: int  # transformer blocks counted from 0 in the order they run; a block's self and cross site share it
    height: int
    width: int
    call: object | None = None


AttentionFn = Callable[[Site, Tensor, Tensor, Tensor], Tensor]


@dataclass
class HookSlot:
    """The one place where a UNet keeps its hook and what its caller says of the call; all attention layers read it."""

    fn: AttentionFn | None = None
    call: object | None = None


@dataclass
class SitePlace:
    """The part of a Site that does not change from call to call, and the slot of the UNet it belongs to."""

    name: str
    kind: Literal["self", "cross"]
    stage: Literal["down", "mid", "up"]
    layer: int
    slot: HookSlot = field(repr=False)

    def at(self, height: int, width: int) -> Site:
        return Site(self.name, self.kind, self.stage, self.layer, height, width, self.slot.call)


def default_kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v. q (B, heads, Tq, d), k and v (B, heads, Tk, d) -> (B, heads, Tq, d).

    Half-precision inputs are safe, although the logits of Stable Diffusion 2.1 overflow float16 (the published
    `upcast_attention`). Torch's fused kernels, and since 2.5 its unfused one, keep logits and softmax in float32 and
    round only the result. A hook that forms logits itself must form them in float32, by `attention_logits`.
    """
    return F.scaled_dot_product_attention(q, k, v)


def attention_logits(q: Tensor, k: Tensor) -> Tensor:
    """q k^T / sqrt(head_dim), at least float32: (..., Tq, d), (..., Tk, d) -> (..., Tq, Tk)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (q.to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).transpose(-1, -2)


def attention_map(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)), at least float32: (B, heads, Tq, d), (B, heads, Tk, d) -> (B, heads, Tq, Tk)."""
    return attention_logits(q, k).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head attention of x (B, Tq, dim) to a context (B or 1, Tk, context_dim), or to itself."""

    def __init__(self, dim: int, context_dim: int, heads: int, *, qkv_bias: bool = False):
        super().__init__()
        self.heads = heads
        self.placement: SitePlace | None = None  # only the UNet sets it; no hook reaches other layers
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list because the published key is "to_out.0"

    def forward(self, x: Tensor, context: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        context = x if context is None else context
        q = self._split_heads(self.to_q(x))  # (B, heads, Tq, head_dim)
        k = self._split_heads(self.to_k(context))  # (B, heads, Tk, head_dim)
        v = self._split_heads(self.to_v(context))
        if k.shape[0] != q.shape[0]:  # one context for the whole batch: projected once, viewed B times
            k, v = k.expand(q.shape[0], -1, -1, -1), v.expand(q.shape[0], -1, -1, -1)
        fn = None if self.placement is None else self.placement.slot.fn
        out = default_kernel(q, k, v) if fn is None else _call_hook(fn, self.placement.at(*grid), q, k, v)
        out = out.transpose(1, 2).flatten(2)  # (B, Tq, dim)
        return self.to_out[0](out)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _call_hook(fn: AttentionFn, site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = fn(site, q, k, v)
    if not isinstance(out, Tensor) or out.shape != q.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"attention hook at {site.name}: expected a tensor of shape {tuple(q.shape)}, got {got}")
    return out.to(q.dtype)


@contextmanager
def attention_hook(unet: nn.Module, fn: AttentionFn):
    """Within the block, every attention layer of `unet` computes `out = fn(site, q, k, v)`.

    q, k, v: (B, heads, tokens, head_dim), in the network's dtype; k and v may be expanded views, so do not write
    into them. `fn` returns a tensor of q's shape. `default_kernel(q, k, v)` is what runs without a hook.

    Leaving the block, also by an exception, restores what was there before. Blocks nest: the innermost `fn` alone is
    called. Raises ValueError in the forward pass if `fn` returns anything of another shape.
    """
    slot = unet.hook_slot
    before, slot.fn = slot.fn, fn
    try:
        yield
    finally:
        slot.fn = before


def has_hook(unet: nn.Module) -> bool:
    """Whether a hook is set on this network. A network that takes no hooks has none."""
    return _slot_of(unet).fn is not None


@contextmanager
def describe_call(unet: nn.Module, call: object):
    """Within the block, hooks find `call` at `site.call`. Leaving the block restores what was there before.

    Whoever calls the network uses it around each call, so that a hook need not count calls to know which one it is in.
    A network that takes no hooks has nobody to tell, and nothing happens.
    """
    slot = _slot_of(unet)
    before, slot.call = slot.call, call
    try:
        yield
    finally:
        slot.call = before


def _slot_of(unet: nn.Module) -> HookSlot:
    """The slot of this network, or an empty one that nothing reads for a network that takes no hooks."""
    return getattr(unet, "hook_slot", None) or HookSlot()


def record_maps(select: Callable[[Site], bool], sink: Callable[[Site, Tensor], None]) -> AttentionFn:
    """A hook that changes nothing and hands the attention maps of chosen sites to `sink(site, map)`, one at a time.

    map: (B, heads, Tq, Tk), float32 or better. It exists only while `sink` runs, unless `sink` keeps it; at 512 pixels
    the largest self-attention map of one image takes 0.3 GB, and all 32 maps together 1.8 GB.

        maps = {}
        record = record_maps(lambda site: site.height == 16, lambda site, m: maps.update({site.name: m.mean(1)}))
        with attention_hook(unet, record):
            unet(x, t, context)
    """

    def hook(site: Site, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if select(site):
            sink(site, attention_map(q, k))
        return default_kernel(q, k, v)

    return hook
