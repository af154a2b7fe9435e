"""This module holds the Triton kernels that stand in, on a CUDA GPU, for chains of memory-bound operations: norm with
silu, and the gate of the feed-forward. `layers.fused` decides when they run; nothing else needs this module or Triton.

Torch's own group norm wants NCHW memory, so that in channels_last every norm would copy its input and its output.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Shapes of the work, chosen for an H200. They change the speed, and the order of sums in float32, but nothing else.
CHANNELS = 512  # channels of a tile, at most; as many whole groups as fit
TILE = 16384  # values of a tile
WARPS = 8
CHUNKS = 128  # pixel chunks of an image, at most; the second kernel reads all their statistics at once
PROGRAMS = 128  # pixel chunks of a whole batch that fill the GPU; more of them only mean more statistics to merge
GATE_ROWS, GATE_COLUMNS = 4, 512


@triton.jit
def _group_of_lane(lanes, group_channels, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """(LANES, GROUPS): whether a channel of the tile belongs to a group of the tile. A group has 10 channels, or 20:
    no power of two, so that sums over a group cannot be sums over an axis of the tile."""
    return (lanes // group_channels)[:, None] == tl.arange(0, GROUPS)[None, :]


@triton.jit
def _statistics(
    x, shift, means, squares, pixels, channels, groups, group_channels, width, chunk, shift_stride,
    SHIFTED: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The mean of every group over one chunk of pixels, and the sum of squares about this mean.

    All sums are about means, merged pairwise (Chan, Golub and LeVeque 1983): no difference of large sums is taken.
    """
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lanes = tl.arange(0, LANES)
    channel = block * width + lanes
    real = (lanes < width) & (channel < channels)
    first, last = part * chunk, tl.minimum((part + 1) * chunk, pixels)
    x += image.to(tl.int64) * pixels * channels

    count = 0.0
    mean = tl.zeros([LANES], tl.float32)  # of each channel over the pixels so far
    square = tl.zeros([LANES], tl.float32)
    for start in range(first, last, ROWS):
        pixel = start + tl.arange(0, ROWS)
        inside = (pixel < last)[:, None] & real[None, :]
        place = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        rows = tl.minimum(last - start, ROWS).to(tl.float32)
        tile_mean = tl.sum(tile, 0) / rows
        away = tl.where(inside, tile - tile_mean[None, :], 0.0)
        step = tile_mean - mean
        mean += step * (rows / (count + rows))
        square += tl.sum(away * away, 0) + step * step * (count * rows / (count + rows))
        count += rows
    if SHIFTED:  # a constant per channel moves the channel's mean and nothing else
        mean += tl.load(shift + image * shift_stride + channel, mask=real, other=0.0).to(tl.float32)

    belongs = _group_of_lane(lanes, group_channels, LANES, GROUPS)
    group_mean = tl.sum(tl.where(belongs, mean[:, None], 0.0), 0) / group_channels
    spread = tl.where(belongs, mean[:, None] - group_mean[None, :], 0.0)
    group_square = tl.sum(tl.where(belongs, square[:, None], 0.0) + spread * spread * count, 0)
    group = block * GROUPS + tl.arange(0, GROUPS)
    stored = (image * tl.num_programs(0) + part) * groups + group
    tl.store(means + stored, group_mean, mask=group < groups)
    tl.store(squares + stored, group_square, mask=group < groups)


@triton.jit
def _normalise(
    x, out, weight, bias, shift, means, squares,
    pixels, channels, groups, group_channels, width, chunk, shift_stride, eps,
    SILU: tl.constexpr, SHIFTED: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """Merges the statistics of all chunks, then normalises its own chunk of pixels."""
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts = tl.arange(0, PARTS)
    group = block * GROUPS + tl.arange(0, GROUPS)
    known = (parts < tl.num_programs(0))[:, None] & (group < groups)[None, :]
    stored = (image * tl.num_programs(0) + parts)[:, None] * groups + group[None, :]
    part_mean = tl.load(means + stored, mask=known, other=0.0)
    part_square = tl.load(squares + stored, mask=known, other=0.0)
    share = tl.minimum(tl.maximum(pixels - parts * chunk, 0), chunk).to(tl.float32)[:, None] / pixels
    group_mean = tl.sum(part_mean * share, 0)
    away = tl.where(known, part_mean - group_mean[None, :], 0.0)
    variance = tl.sum(part_square / (1.0 * pixels * group_channels) + away * away * share, 0)
    group_scale = 1.0 / tl.sqrt_rn(variance + eps)

    lanes = tl.arange(0, LANES)
    channel = block * width + lanes
    real = (lanes < width) & (channel < channels)
    belongs = _group_of_lane(lanes, group_channels, LANES, GROUPS)
    mean = tl.sum(tl.where(belongs, group_mean[None, :], 0.0), 1)
    scale = tl.sum(tl.where(belongs, group_scale[None, :], 0.0), 1)
    scale *= tl.load(weight + channel, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=real, other=0.0).to(tl.float32)
    if SHIFTED:
        mean -= tl.load(shift + image * shift_stride + channel, mask=real, other=0.0).to(tl.float32)

    first, last = part * chunk, tl.minimum((part + 1) * chunk, pixels)
    start_of_image = image.to(tl.int64) * pixels * channels
    for start in range(first, last, ROWS):
        pixel = start + tl.arange(0, ROWS)
        inside = (pixel < last)[:, None] & real[None, :]
        place = start_of_image + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        y = (tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - mean[None, :]) * scale[None, :]
        y += offset[None, :]
        if SILU:
            y = y * tl.sigmoid(y)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None = None, silu: bool = True
) -> Tensor:
    """silu(group_norm(x + shift)): x (B, C, H, W), shift (B or 1, C) -> (B, C, H, W) in x's dtype, channels_last.

    All arithmetic is in float32, of which only the result is rounded. Another memory format of x costs a copy.
    """
    batch, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    pixels, group_channels = height * width, channels // groups
    if out.numel() == 0:
        return out
    tile_groups = 1  # a power of two, as every extent of a tile
    while 2 * tile_groups * group_channels <= CHANNELS and tile_groups < groups:
        tile_groups *= 2
    width = tile_groups * group_channels
    lanes = triton.next_power_of_2(width)
    rows = max(1, TILE // lanes)
    parts = min(CHUNKS, max(CHUNKS // 4, PROGRAMS // batch))
    chunk = triton.cdiv(triton.cdiv(pixels, parts), rows) * rows
    parts = triton.cdiv(pixels, chunk)
    means, squares = torch.empty(2, batch, parts, groups, dtype=torch.float32, device=x.device)
    given = x if shift is None else shift.contiguous()
    stride = 0 if shift is None or shift.shape[0] == 1 else channels
    sizes = (pixels, channels, groups, group_channels, width, chunk, stride)
    shape = {"SHIFTED": shift is not None, "GROUPS": tile_groups, "LANES": lanes, "ROWS": rows, "num_warps": WARPS}
    grid = (parts, triton.cdiv(groups, tile_groups), batch)
    with torch.cuda.device_of(x):
        _statistics[grid](x, given, means, squares, *sizes, **shape)
        _normalise[grid](x, out, weight, bias, given, means, squares, *sizes, eps, SILU=silu, PARTS=CHUNKS, **shape)
    return out


@triton.jit
def _gate(h, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row[:, None] * (2 * columns) + column[None, :]
    a = tl.load(h + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(h + place + columns, mask=inside, other=0.0).to(tl.float32)
    y = a * (0.5 * b * (1.0 + tl.erf(b * 0.7071067811865476)))
    tl.store(out + row[:, None] * columns + column[None, :], y.to(out.dtype.element_ty), mask=inside)


def geglu(h: Tensor) -> Tensor:
    """a * gelu(b) of the halves (a, b) of the last axis, gelu by erf: (..., 2n) -> (..., n), in h's dtype."""
    h = h.contiguous()
    columns = h.shape[-1] // 2
    out = h.new_empty(*h.shape[:-1], columns)
    rows = out.numel() // columns
    if rows > 0:
        grid = (triton.cdiv(rows, GATE_ROWS), triton.cdiv(columns, GATE_COLUMNS))
        with torch.cuda.device_of(h):
            _gate[grid](h, out, rows, columns, ROWS=GATE_ROWS, COLUMNS=GATE_COLUMNS, num_warps=4)
    return out
