"""This program prints the inversion table, by method, start, scale and dtype, as Markdown.

    python tests/benchmarks/inversion.py [--model small|mini|FOLDER] [--images 4] [--steps 20] [--starts 6,20]
        [--solver dpm_solver_pp_2m]
    python tests/benchmarks/inversion.py --scans ../shared/data [--images 16] [--max-sweeps 20]

The second form inverts held-out scans through the small checkpoint, to start = 6, as compositions do: --images of each
modality, half of them backgrounds and half of them scans with a tumour.

An error is that of the worst image's round trip through the unmodified sampler, from x[start] alone. Rows are those
that an image takes through the network: a guided evaluation counts two, and the measured round trips count. Time is in
multiples of the naive inversion's. "small" is the tests' random UNet; any other model is what `sd21.load` takes.
"""

import argparse
import functools
import platform
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from analytic_models import sd_schedule  # noqa: E402
from relative_error import relative_by_image  # noqa: E402
from round_trips import smooth_latents  # noqa: E402

from solvers import (  # noqa: E402
    INVERSIONS,
    SOLVERS,
    NoiseSchedule,
    data_prediction,
    denoise,
    invert,
    time_uniform,
)

# naive first, whose time is the unit
METHODS = sorted((name for name in INVERSIONS if INVERSIONS[name].measured), key=lambda name: INVERSIONS[name].exact)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def network_and_contexts(model, dtype):
    """(unet, schedule, prediction type, context, null context, latent shape) of a source."""
    if model == "small":
        from small_models import small_unet

        generator = torch.Generator().manual_seed(9)
        contexts = torch.randn(2, 1, 1, 48, dtype=torch.float64, generator=generator).to(dtype)
        unet = small_unet().to(dtype).eval()
        return unet, sd_schedule(), "v_prediction", *contexts, (4, 8, 8)
    import sd21

    loaded = sd21.load(model, device="cpu", dtype=torch.float32)
    context, null_context = loaded.embed(["a brain mri with a tumour", ""]).to(dtype).split(1)
    side = loaded.image_size // 8
    unet = loaded.unet.to(dtype)
    schedule = NoiseSchedule.from_alphas_cumprod(loaded.alphas_cumprod)
    return unet, schedule, loaded.prediction_type, context, null_context, (4, side, side)


def own_round_trips(method, inversion, run, x0_fn):
    """The worst round trip through the method's own sampler, with all that it keeps and from x[start] alone."""
    sampler, x0 = INVERSIONS[method].sampler, inversion.states[0]
    results = {
        f"{method}'s own sampler, all kept": sampler.denoise(inversion.kept, run, x0_fn),
        f"{method}'s own sampler, x[start] alone": sampler.from_one_state(inversion.states[-1], run, x0_fn),
    }
    return {name: relative_by_image(x, x0).max() for name, x in results.items()}


def print_scans(folder, count, max_sweeps):
    """Rows, errors and the number that converged, for held-out scans of both modalities at two tolerances."""
    import sd21
    from composition import exceptional_context, latents_of, read_scan
    from composition.datasets import read_br35h, read_busi
    from composition.mini.pairs import held_out_part
    from sd21.training.data import held_out_names

    model = sd21.load("mini", device="cpu")
    grid = time_uniform(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod), 20)
    x0_fn = data_prediction(model.unet, grid, model.prediction_type, exceptional_context(model))
    print("| scans | tolerance | method | converged | error: median, worst | rows: median, worst |")
    print("|---" * 6 + "|")
    for name, read in (("br35h", read_br35h), ("busi", read_busi)):
        part = held_out_part(read(folder / name), held_out_names())
        paths = part.backgrounds[: count // 2] + [obj.path for obj in part.objects[: count // 2]]
        latents = [latents_of(model, read_scan(path)) for path in paths]
        for tol in (5e-2, 1e-3):
            for method in METHODS:
                how = {"start": 6, "method": method, "tol": tol, "max_sweeps": max_sweeps, "on_failure": "return"}
                reports = [invert(x0, grid, SOLVERS["dpm_solver_pp_2m"], x0_fn, **how).reports[0] for x0 in latents]
                errors, rows = (torch.tensor([getattr(one, of) for one in reports]) for of in ("error", "rows"))
                converged = f"{sum(one.converged for one in reports)}/{len(reports)}"
                figures = f"{errors.median():.1e}, {errors.max():.1e} | {rows.median()}, {rows.max()}"
                print(f"| {len(reports)} {name} | {tol:.0e} | {method} | {converged} | {figures} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="small")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--solver", choices=SOLVERS, default="dpm_solver_pp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--starts", default="6,20")
    parser.add_argument("--scales", default="1,2.5,5")
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--max-sweeps", type=int, default=100)
    parser.add_argument("--scans", type=Path, help="the folder that holds br35h and busi")
    options = parser.parse_args()
    if options.scans:
        print_scans(options.scans, options.images, options.max_sweeps)
        return
    print(
        f"{options.model} UNet, {options.images} images, {options.solver} on time_uniform({options.steps}); torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}\n"
    )
    columns = ["latents", "dtype", "scale", "start", "last step", "method", "worst error", "converged"]
    print("|", " | ".join([*columns, "rows (mean, max)", "time"]), "|")
    print("|---" * 10 + "|")
    for dtype_name in options.dtypes.split(","):
        dtype = DTYPES[dtype_name]
        unet, schedule, prediction_type, context, null_context, shape = network_and_contexts(options.model, dtype)
        grid = time_uniform(schedule, options.steps)
        for scale in map(float, options.scales.split(",")):
            x0_fn = data_prediction(unet, grid, prediction_type, context, null_context=null_context, scale=scale)
            for lower_order_final in (False, True):
                solver = functools.partial(SOLVERS[options.solver], lower_order_final=lower_order_final)
                noise = torch.randn(options.images, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
                with torch.no_grad():
                    sources = {
                        "smooth": smooth_latents(options.images, shape, dtype),
                        "generated": denoise(noise, grid, solver(grid), x0_fn),
                    }
                for source, x0 in sources.items():
                    for start in map(int, options.starts.split(",")):
                        last = "first order" if lower_order_final else "full order"
                        row = f"| {source} | {dtype_name} | {scale:g} | {start} | {last} |"
                        print_rows(row, x0, grid, solver, x0_fn, start, options.max_sweeps)


def print_rows(row, x0, grid, solver, x0_fn, start, max_sweeps):
    naive_seconds = None
    for method in METHODS:
        began = time.perf_counter()
        limits = {"max_sweeps": max_sweeps, "on_failure": "return"}
        inversion = invert(x0, grid, solver, x0_fn, start=start, method=method, **limits)
        seconds = time.perf_counter() - began
        naive_seconds = naive_seconds or seconds
        cost = f"{inversion.rows.double().mean():.0f}, {inversion.rows.max()} | {seconds / naive_seconds:.1f}"
        converged = f"{inversion.converged.sum()}/{len(x0)} at {inversion.reports[0].tolerance:.0e}"
        print(f"{row} {method} | {inversion.errors.max():.1e} | {converged} | {cost} |", flush=True)
        if INVERSIONS[method].sampler is not None and not solver.keywords["lower_order_final"]:
            for name, error in own_round_trips(method, inversion, grid.until(start), x0_fn).items():
                print(f"{row} {name} | {error:.1e} | | | |", flush=True)


if __name__ == "__main__":
    main()
