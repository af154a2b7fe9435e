"""This program times the full-size UNet against diffusers' UNet2DConditionModel, on the same weights and inputs.
Both run in one process.

    python tests/benchmarks/unet_speed.py                                   # CPU: float32, batch 1
    python tests/benchmarks/unet_speed.py --device cuda                     # GPU: bfloat16, batch 2, eager and compiled

Forwards of the two alternate, and the figure is the ratio of their median times, ours / diffusers'. Below 1 we are
faster; the aim is 0.9 on a CPU, and never above 1. On a CPU it also prints the ratio of processor time, which is the
steadier one on a machine that has other work to do. On a GPU it prints the share of the peak, (2 * multiply-adds) /
time / peak, where the peak is the rate of a large matrix product in the same dtype, measured in the same run.
"""

import argparse
import platform
import statistics
import time
from dataclasses import asdict

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from sd21.config import UNetConfig
from sd21.unet import UNet


def build(device: str, dtype: torch.dtype) -> tuple[UNet, UNet2DConditionModel]:
    """Both networks on one set of weights; ours then re-lays its convolutions out, as sd21.load does."""
    config = UNetConfig()
    with torch.device("meta"):
        ours, reference = UNet(config), UNet2DConditionModel(**asdict(config))
    reference.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.normal_(0, 0.02, generator=generator)
    ours.load_state_dict(reference.state_dict(), assign=True)
    return ours.to(memory_format=torch.channels_last).eval(), reference.eval()


def clock(device: str, forward) -> tuple[float, float]:
    """Seconds of wall clock and of processor time."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    wall, processor = time.perf_counter(), time.process_time()
    forward()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(device: str, rounds: int, forwards: dict) -> dict[str, tuple[float, float]]:
    """Median seconds (wall, processor) per forward, by name, after two rounds to warm up."""
    for forward in (*forwards.values(), *forwards.values()):
        forward()
    times = {name: [] for name in forwards}
    for _ in range(rounds):
        for name, forward in forwards.items():
            times[name].append(clock(device, forward))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in times.items()}


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    side = 8192 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = compare(device, 10, {"product": lambda: a @ a})["product"][0]
    return 2 * side**3 / seconds


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, help="timed forwards of each (default: 5 on a CPU, 30 on a GPU)")
    args = parser.parse_args()
    device, gpu = args.device, args.device == "cuda"
    dtype, batch, rounds = (torch.bfloat16, 2, args.rounds or 30) if gpu else (torch.float32, 1, args.rounds or 5)

    ours, reference = build(device, dtype)
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(batch, 4, 64, 64, device=device, dtype=dtype, generator=generator)
    context = torch.randn(batch, 77, 1024, device=device, dtype=dtype, generator=generator)
    t = torch.tensor(500.0, device=device)
    with FlopCounterMode(display=False) as counter:
        expected = reference(x, t, context).sample
    difference = (ours(x, t, context) - expected).norm() / expected.norm()
    operations = counter.get_total_flops()
    peak = matmul_peak(device, dtype)

    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(
        f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__}; {dtype}, batch {batch}, 64x64 latents"
    )
    print(
        f"outputs differ by {difference:.1e}; {operations / 1e12:.2f} Tflop a forward; peak {peak / 1e12:.2f} Tflop/s"
    )

    for mode in ("eager", "compiled") if gpu else ("eager",):
        f, g = (torch.compile(ours), torch.compile(reference)) if mode == "compiled" else (ours, reference)
        medians = compare(
            device, rounds, {"sd21": lambda f=f: f(x, t, context), "diffusers": lambda g=g: g(x, t, context)}
        )
        for which, (wall, _) in medians.items():
            print(f"{mode:8} {which:9} {1e3 * wall:8.1f} ms   {operations / wall / peak:5.1%} of the peak")
        wall, processor = (a / b for a, b in zip(medians["sd21"], medians["diffusers"], strict=True))
        print(f"{mode:8} ratio     {wall:8.3f}" + ("" if gpu else f"      (processor time {processor:.3f})"))


if __name__ == "__main__":
    main()
