"""The inversion table: method x start x scale x dtype, as Markdown.

    python tests/benchmarks/inversion.py [--model small|mini|FOLDER] [--images 4] [--steps 20] [--starts 6,20]

Errors are round trips through the unmodified sampler from x[start] alone, the worst image. Evaluations are per image,
guided ones counted twice and the measured round trips included. Time is in multiples of the naive inversion's.
"small" is the tests' random UNet; any other model is what `sd21.load` takes.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from solvers import (  # noqa: E402
    NoiseSchedule,
    belm_denoise,
    belm_image_pair,
    belm_invert,
    belm_start,
    data_prediction,
    denoise,
    dpm_solver_pp_2m,
    invert,
    time_uniform,
)

METHODS = ("naive", "frozen", "joint", "defect")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def network_and_contexts(model, dtype):
    """(unet, schedule, prediction type, context, null context, latent shape) of a source."""
    if model == "small":
        from small_models import small_unet

        generator = torch.Generator().manual_seed(9)
        contexts = torch.randn(2, 1, 1, 48, dtype=torch.float64, generator=generator).to(dtype)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        unet = small_unet().to(dtype).eval()
        return unet, NoiseSchedule.from_betas(betas), "v_prediction", *contexts, (4, 8, 8)
    import sd21

    loaded = sd21.load(model, device="cpu", dtype=torch.float32)
    context, null_context = loaded.embed(["a brain mri with a tumour", ""]).to(dtype).split(1)
    side = loaded.image_size // 8
    unet = loaded.unet.to(dtype)
    schedule = NoiseSchedule.from_alphas_cumprod(loaded.alphas_cumprod)
    return unet, schedule, loaded.prediction_type, context, null_context, (4, side, side)


def smooth_latents(count, shape):
    """Latents that no sampler made: noise with the 1/f spectrum of photographs, of unit variance; seed 5."""
    noise = torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    height, width = shape[1:]
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2).sqrt()
    latents = torch.fft.irfft2(torch.fft.rfft2(noise) / (0.4 / height + frequency), s=(height, width))
    return latents / latents.std()


def worst(x, reference):
    return ((x - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).max().item()


def belm_rows(x0, grid, x0_fn, start):
    """O-BELM's round trip with its pair, and with x[start] alone."""
    began = time.perf_counter()
    pair = belm_invert(belm_image_pair(x0, grid, x0_fn), grid, x0_fn, start=start)
    seconds = time.perf_counter() - began
    with_pair = worst(belm_denoise(pair, grid, x0_fn, start=start)[0], x0)
    alone = worst(belm_denoise(belm_start(pair[1], grid, x0_fn, start=start), grid, x0_fn, start=start)[0], x0)
    return seconds, (("O-BELM (another sampler), pair kept", with_pair), ("O-BELM, x[start] alone", alone))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--starts", default="6,20")
    parser.add_argument("--scales", default="1,2.5,5")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--max-sweeps", type=int, default=100)
    options = parser.parse_args()
    print(
        f"{options.model} UNet, {options.images} images, DPM-Solver++(2M) on time_uniform({options.steps}); torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n"
    )
    columns = ["latents", "dtype", "scale", "start", "last step", "method", "worst error", "converged"]
    print("|", " | ".join([*columns, "evaluations (mean, max)", "time"]), "|")
    print("|---" * 10 + "|")
    for dtype_name in options.dtypes.split(","):
        dtype = DTYPES[dtype_name]
        unet, schedule, prediction_type, context, null_context, shape = network_and_contexts(options.model, dtype)
        grid = time_uniform(schedule, options.steps)
        for scale in map(float, options.scales.split(",")):
            x0_fn = data_prediction(unet, grid, prediction_type, context, null_context=null_context, scale=scale)
            for order in (2, 1):
                table = dpm_solver_pp_2m(grid, lower_order_final=order == 1)
                noise = torch.randn(options.images, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
                with torch.no_grad():
                    sources = {
                        "smooth": smooth_latents(options.images, shape).to(dtype),
                        "generated": denoise(noise, grid, table, x0_fn),
                    }
                for source, x0 in sources.items():
                    for start in map(int, options.starts.split(",")):
                        row = f"| {source} | {dtype_name} | {scale:g} | {start} | order {order} |"
                        print_rows(row, x0, grid, table, x0_fn, start, options.max_sweeps)


def print_rows(row, x0, grid, table, x0_fn, start, max_sweeps):
    naive_seconds = None
    for method in METHODS:
        began = time.perf_counter()
        limits = {"max_sweeps": max_sweeps, "on_failure": "return"}
        report = invert(x0, grid, table, x0_fn, start=start, method=method, **limits).report
        seconds = time.perf_counter() - began
        naive_seconds = naive_seconds or seconds
        cost = f"{report.nfe.double().mean():.0f}, {int(report.nfe.max())} | {seconds / naive_seconds:.1f}"
        converged = f"{int(report.converged.sum())}/{len(x0)} at {report.tol:.0e}"
        print(f"{row} {method} | {report.residual.max():.1e} | {converged} | {cost} |", flush=True)
    if "lower_order_final" not in table.name:
        seconds, results = belm_rows(x0, grid, x0_fn, start)
        for name, error in results:
            cost = f"{start * x0_fn.rows_per_state} | {seconds / naive_seconds:.1f}"
            print(f"{row} {name} | {error:.1e} | | {cost} |", flush=True)


if __name__ == "__main__":
    main()
