"""This program counts what Stable Diffusion 2.1 takes at its own size, 512 px. Its tensors have no storage, so it needs
no weights and no GPU.

    python tests/benchmarks/full_size_cost.py

For each network it prints the arithmetic of a pass, the weights, and the most that the pass holds beside them. The
dtypes are those of a GPU: bfloat16, and float32 for the VAE. The fused attention kernel keeps no maps. The figures
leave out what the allocator and cuDNN need.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from sd21.config import TextConfig, UNetConfig, VAEConfig
from sd21.text import TextEncoder
from sd21.unet import UNet
from sd21.vae import VAE


def unet_pass(rows: int) -> Callable:
    return lambda unet: unet(torch.randn(rows, 4, 64, 64), 500.0, torch.randn(rows, 77, 1024))


def decode(vae: VAE) -> torch.Tensor:
    return vae.decode(torch.randn(1, 4, 64, 64))


def encode(vae: VAE) -> torch.Tensor:
    return vae.encoder(torch.randn(1, 3, 512, 512))  # past VAE.encode's checks, which read values


def embed(encoder: TextEncoder) -> torch.Tensor:
    return encoder.text_model(torch.zeros(1, 77, dtype=torch.long), True)  # past the checks, as in `encode`


PASSES = {
    "UNet, 1 row": (lambda: UNet(UNetConfig()), torch.bfloat16, unet_pass(1)),
    "UNet, 2 rows": (lambda: UNet(UNetConfig()), torch.bfloat16, unet_pass(2)),
    "UNet, 8 rows": (lambda: UNet(UNetConfig()), torch.bfloat16, unet_pass(8)),
    "VAE, decoding": (lambda: VAE(VAEConfig()), torch.float32, decode),
    "VAE, encoding": (lambda: VAE(VAEConfig()), torch.float32, encode),
    "text tower, a prompt": (lambda: TextEncoder(TextConfig()), torch.bfloat16, embed),
}


def build(network: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return network()
    finally:
        torch.set_default_dtype(default)


@torch.no_grad()
def teraflop(network: Callable, dtype: torch.dtype, forward: Callable) -> float:
    # The meta device takes attention apart into products, which are counted; a fused one would not be.
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        forward(build(network, dtype))
    return counter.get_total_flops() / 1e12


@torch.no_grad()
def gibibytes(network: Callable, dtype: torch.dtype, forward: Callable) -> tuple[float, float]:
    """Of the weights, and of what the pass holds at its peak."""
    with FakeTensorMode():
        module = build(network, dtype)
        tracker = MemTracker()
        tracker.track_external(module)
        with tracker:
            forward(module)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    weights = sum(weight.nbytes for weight in module.parameters())
    return weights / 2**30, (peak["Total"] - weights) / 2**30


def main() -> None:
    print(f"{'':22}{'TFLOP':>8}{'weights GiB':>13}{'pass GiB':>10}")
    for name, (network, dtype, forward) in PASSES.items():
        weights, held = gibibytes(network, dtype, forward)
        print(f"{name:22}{teraflop(network, dtype, forward):8.3f}{weights:13.2f}{held:10.2f}")


if __name__ == "__main__":
    main()
