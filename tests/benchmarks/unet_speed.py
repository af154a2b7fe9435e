"""This program times the full-size UNet against diffusers' UNet2DConditionModel, on the same weights and inputs. Both
run in one process.

    python tests/benchmarks/unet_speed.py                                   # CPU: float32, batch 1
    python tests/benchmarks/unet_speed.py --device cuda                     # GPU: bfloat16, batch 2, eager and compiled
    python tests/benchmarks/unet_speed.py --device cuda --latents 64 96 --batches 1 2 8 16 --modes eager graphs \\
        --cudnn-benchmark both --profile --out DIR
    python tests/benchmarks/unet_speed.py --tiny --modes eager compiled --profile     # tries the program, in minutes

Forwards of the two alternate, and the figure is the ratio of their median times, diffusers' / ours. Above 1 we are
faster; the aim is 1.1, and never below 1. On a CPU it also prints the ratio of processor time, which is the steadier
one on a machine that has other work to do. Of each it prints the share of the peak, (2 * multiply-adds) / time / peak,
where the peak is the rate of a large matrix product in the same dtype, measured in the same run.

On a GPU diffusers is at its best, in channels_last memory and with fused projections (--reference best); on a CPU it is
as its users get it (--reference plain). "compiled" runs both through torch.compile, and "graphs" replays a CUDA graph
of each. A compilation takes a minute or more for each network and shape. So the modes are the outermost loop, the
compiled one last, and after --minutes no further measurement begins. On a GPU the attention of the finest level is
timed too, alone, by every fused kernel that torch has.

A measurement that fails says so in its line. DIR gets `unet_speed.csv`, a row for each line, `attention.csv`, and with
--profile the profiler's tables.
"""

import argparse
import csv
import gc
import itertools
import platform
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from small_models import UNET_JSON  # noqa: E402

from sd21.config import UNetConfig  # noqa: E402
from sd21.unet import UNet  # noqa: E402
from sd21.words import one_line  # noqa: E402

NETWORKS = ("sd21", "diffusers")
MODES = ("eager", "graphs", "compiled")  # in the order they run, the slowest to prepare last
KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
ATTENTION = (16, 5, 4096, 64)  # batch, heads, tokens, head_dim: the finest level at 512 pixels
TINY_ATTENTION = (1, 2, 256, 16)
COLUMNS = (
    *("mode", "latents", "batch", "cudnn_benchmark", "sd21_ms", "diffusers_ms", "ratio", "processor_ratio"),
    *("sd21_share", "diffusers_share", "difference", "teraflop", "sd21_prepared_s", "diffusers_prepared_s", "failed"),
)


class Table:
    """A CSV file that grows row by row, so that a run that is stopped loses nothing. Without a folder there is none."""

    def __init__(self, folder: Path | None, name: str, columns: tuple[str, ...]):
        self.file = None if folder is None else (folder / name).open("w", newline="", encoding="utf-8")
        self.writer = None if self.file is None else csv.DictWriter(self.file, columns)
        if self.file is not None:
            self.writer.writeheader()

    def add(self, row: dict):
        if self.file is not None:
            self.writer.writerow(row)
            self.file.flush()


def say(text: str):
    print(text, flush=True)


def why(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 200)


def build(
    config: UNetConfig, device: str, dtype: torch.dtype, *, best: bool = False
) -> tuple[UNet, UNet2DConditionModel]:
    """Both networks on one set of weights; ours then re-lays its convolutions out, as sd21.load does. best: diffusers'
    too, and it fuses its projections of queries, keys and values."""
    with torch.device("meta"):
        ours, reference = UNet(config), UNet2DConditionModel(**asdict(config))
    reference.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.normal_(0, 0.02, generator=generator)
    ours.load_state_dict(reference.state_dict(), assign=True)  # before the fusion, which adds weights of other names
    if best:
        reference.to(memory_format=torch.channels_last).fuse_qkv_projections()
    return ours.to(memory_format=torch.channels_last).eval(), reference.eval()


def draw_inputs(config: UNetConfig, device: str, dtype: torch.dtype, batch: int, latents: int) -> tuple:
    """x, t and the context, for both networks."""
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(batch, 4, latents, latents, device=device, dtype=dtype, generator=generator)
    context = torch.randn(batch, 77, config.cross_attention_dim, device=device, dtype=dtype, generator=generator)
    return x.to(memory_format=torch.channels_last), torch.tensor(500.0, device=device), context


def count_operations(config: UNetConfig, batch: int, latents: int) -> int:
    """Of one forward. The meta device takes attention apart into products, all of which are counted."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x, context = torch.empty(batch, 4, latents, latents), torch.empty(batch, 77, config.cross_attention_dim)
        UNet(config)(x, 500.0, context)
    return counter.get_total_flops()


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


def prepare(mode: str, network, inputs: tuple, compile_mode: str):
    """A function without arguments that runs the network in this mode and returns its output."""
    if mode == "compiled":
        network = torch.compile(network, dynamic=False, mode=compile_mode)

    def forward():
        output = network(*inputs)
        return output if isinstance(output, torch.Tensor) else output.sample

    return capture(forward) if mode == "graphs" else forward


def capture(forward):
    """The forward as a CUDA graph, whose replay fills one and the same output."""
    before, side = torch.cuda.current_stream(), torch.cuda.Stream()
    try:
        side.wait_stream(before)
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels and take their workspaces here, and not in the capture
                forward()
        before.wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = forward()
    finally:
        torch.cuda.set_stream(before)  # a capture that fails may leave its own stream behind

    def replay():
        graph.replay()
        return output

    return replay


def measure(mode: str, networks: dict, inputs: tuple, device: str, rounds: int, compile_mode: str) -> dict:
    """The columns that a measurement finds out. What fails is in "failed"."""
    forwards, outputs, found, failed = {}, {}, {}, []
    if mode == "compiled":
        torch._dynamo.reset()  # a shape that comes late would meet the limit of recompilations, and run eagerly
    for name, network in networks.items():
        begin = time.perf_counter()
        try:
            forward = prepare(mode, network, inputs, compile_mode)
            outputs[name] = forward().clone()
            forwards[name] = forward
        except Exception as error:  # whatever is wrong with one of the two, the other is still timed
            failed.append(f"{name}: {why(error)}")
        found[f"{name}_prepared_s"] = time.perf_counter() - begin
    try:
        medians = compare(device, rounds, forwards) if forwards else {}
        for name, (wall, _) in medians.items():
            found[f"{name}_ms"] = 1e3 * wall
        if len(medians) == 2:
            ours, theirs = (medians[name] for name in NETWORKS)
            found["ratio"] = theirs[0] / ours[0]
            found["processor_ratio"] = theirs[1] / ours[1]
            expected = outputs["diffusers"].float()
            found["difference"] = ((outputs["sd21"].float() - expected).norm() / expected.norm()).item()
    except Exception as error:
        failed.append(why(error))
    return found | {"failed": "; ".join(failed)}


def line_of(row: dict, gpu: bool) -> str:
    """A measurement as a line of text."""
    parts = [f"{row['mode']:8} {row['latents']}x{row['latents']} batch {row['batch']:2}"]
    if gpu:
        parts.append(f"cudnn.benchmark {'on' if row['cudnn_benchmark'] else 'off'}")
    for name in NETWORKS:
        if f"{name}_ms" in row:
            parts.append(f"{name} {row[f'{name}_ms']:.2f} ms ({row[f'{name}_share']:.1%} of the peak)")
    if "ratio" in row:
        parts.append(f"diffusers/sd21 {row['ratio']:.3f}")
        parts += [] if gpu else [f"processor time {row['processor_ratio']:.3f}"]
        parts.append(f"outputs differ by {row['difference']:.1e}")
    if row["mode"] == "compiled":
        parts.append(f"compiled in {row['sd21_prepared_s']:.0f} and {row['diffusers_prepared_s']:.0f} s")
    parts += [f"FAILED: {row['failed']}"] if row["failed"] else []
    return ", ".join(parts)


def time_attention(device: str, dtype: torch.dtype, rounds: int, peak: float, shape: tuple, out: Path | None):
    """A line for each of torch's fused kernels, and for the one it chooses, on inputs laid out as in the network."""
    table = Table(out, "attention.csv", ("kernel", "ms", "share", "failed"))
    batch, heads, tokens, dim = shape
    operations = 4 * batch * heads * tokens**2 * dim
    q, k, v = (
        torch.randn(batch, tokens, heads * dim, device=device, dtype=dtype).unflatten(-1, (heads, dim)).transpose(1, 2)
        for _ in range(3)
    )

    def run(kernel: str | None):
        if kernel is None:
            return scaled_dot_product_attention(q, k, v)
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            return scaled_dot_product_attention(q, k, v)

    for kernel in (None, *KERNELS):
        name, row = kernel or "torch's choice", {"failed": ""}
        try:
            seconds = compare(device, rounds, {"attention": lambda kernel=kernel: run(kernel)})["attention"][0]
            row |= {"ms": 1e3 * seconds, "share": operations / seconds / peak}
            said = f"{row['ms']:.3f} ms ({row['share']:.1%} of the peak)"
        except Exception as error:
            row["failed"] = why(error)
            said = f"FAILED: {row['failed']}"
        table.add({"kernel": name} | row)
        say(f"attention {tuple(shape)} {name}: {said}")


def profile(name: str, network, inputs: tuple, device: str, out: Path | None):
    """Print the profiler's table of three eager forwards, and write it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    gpu = device == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    forward = prepare("eager", network, inputs, "default")
    for _ in range(3):
        forward()
    with profiled(activities=activities) as found:
        for _ in range(3):
            clock(device, forward)
    averages = found.key_averages()
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    text = averages.table(sort_by=order, row_limit=30, max_name_column_width=80)
    if out is not None:
        (out / f"profile_{name}.txt").write_text(text, encoding="utf-8")
    say(f"\n{name}, eager, three forwards at {tuple(inputs[0].shape)}, by {order}\n{text}")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--latents", type=int, nargs="+", default=[64], metavar="SIDE", help="sides (default: 64)")
    parser.add_argument("--batches", type=int, nargs="+", help="rows (default: 1 on a CPU, 2 on a GPU)")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: eager, and on a GPU compiled")
    parser.add_argument("--rounds", type=int, help="timed forwards of each (default: 5 on a CPU, 30 on a GPU)")
    parser.add_argument("--reference", choices=("plain", "best"), help="default: plain on a CPU, best on a GPU")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode, for both (default: default)")
    parser.add_argument("--cudnn-benchmark", choices=("off", "on", "both"), default="off", help="default: off")
    parser.add_argument("--profile", action="store_true", help="also profile both, at the largest batch")
    parser.add_argument("--minutes", type=float, help="begin no further measurement after so many minutes")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--tiny", action="store_true", help="the tests' small network, to try the program")
    args = parser.parse_args()
    device, gpu, begin = args.device, args.device == "cuda", time.perf_counter()
    dtype, rounds = (torch.bfloat16, args.rounds or 30) if gpu else (torch.float32, args.rounds or 5)
    batches = args.batches or [2 if gpu else 1]
    modes = args.modes or (["eager", "compiled"] if gpu else ["eager"])
    best = (args.reference or ("best" if gpu else "plain")) == "best"
    tuned = {"off": (False,), "on": (True,), "both": (False, True)}[args.cudnn_benchmark]
    config = UNetConfig.from_dict(UNET_JSON) if args.tiny else UNetConfig()
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)

    networks = dict(zip(NETWORKS, build(config, device, dtype, best=best), strict=True))
    peak = matmul_peak(device, dtype)
    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    kind = "channels_last, fused projections" if best else "as its users get it"
    say(f"{name}; torch {torch.__version__}, diffusers {diffusers.__version__} ({kind}); {dtype}")
    say(f"peak {peak / 1e12:.2f} Tflop/s, a matrix product's")
    if gpu or args.tiny:
        time_attention(device, dtype, rounds, peak, TINY_ATTENTION if args.tiny else ATTENTION, args.out)

    table = Table(args.out, "unet_speed.csv", COLUMNS)
    in_order = [mode for mode in MODES if mode in modes]
    for mode, latents, batch, benchmark in itertools.product(in_order, args.latents, batches, tuned):
        row = {"mode": mode, "latents": latents, "batch": batch, "cudnn_benchmark": benchmark}
        if args.minutes is not None and time.perf_counter() - begin > 60 * args.minutes:
            say(f"{mode:8} {latents}x{latents} batch {batch:2}: left out, after {args.minutes:g} minutes")
            continue
        torch.backends.cudnn.benchmark = benchmark
        try:
            operations = count_operations(config, batch, latents)
            inputs = draw_inputs(config, device, dtype, batch, latents)
            row |= measure(mode, networks, inputs, device, rounds, args.compile_mode)
            row["teraflop"] = operations / 1e12
            for which in NETWORKS:
                if f"{which}_ms" in row:
                    row[f"{which}_share"] = operations / row[f"{which}_ms"] * 1e3 / peak
        except Exception as error:
            row["failed"] = why(error)
        table.add(row)
        say(line_of(row, gpu))
        gc.collect()  # a graph's memory goes with the graph, and closures hold it in cycles
        if gpu:
            torch.cuda.empty_cache()

    torch.backends.cudnn.benchmark = tuned[0]
    for which, network in networks.items() if args.profile else ():
        try:
            profile(which, network, draw_inputs(config, device, dtype, max(batches), args.latents[0]), device, args.out)
        except Exception as error:
            say(f"the profile of {which} FAILED: {why(error)}")


if __name__ == "__main__":
    main()
