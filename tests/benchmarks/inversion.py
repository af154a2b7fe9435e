"""This program runs the bench of `python -m composition inversions` on the tests' random UNet, which predicts v.

    python tests/benchmarks/inversion.py --out DIR [--images 4] [--steps 20] [--starts 6,20] [--scales 1,2.5]
        [--dtypes float32,float64] [--tolerance 5e-2,1e-3] [--methods joint,naive,...] [--solver dpm_solver_pp_2m]

It stands apart from the command because that network is test code and has no scans: "smooth" latents take their place,
which no run has made, beside latents that the network has generated. Everything is measured, resumed and written as the
command does it.
"""

import argparse
import functools
import shlex
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from analytic_models import sd_schedule  # noqa: E402
from round_trips import smooth_latents  # noqa: E402
from small_models import UNET_JSON, small_unet  # noqa: E402

from composition.inversion_bench.measure import Problem  # noqa: E402
from composition.inversion_bench.run import Task, bench  # noqa: E402
from solvers import INVERSIONS, SOLVERS, data_prediction, sample, time_uniform  # noqa: E402

SHAPE, SEED = (4, 8, 8), 9
LATENTS = 64  # so many smooth latents are drawn together, so that one is the same whatever --images says
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@functools.cache
def network(dtype):
    """(unet, context, null context) of a dtype."""
    generator = torch.Generator().manual_seed(SEED)
    width = UNET_JSON["cross_attention_dim"]
    contexts = torch.randn(2, 1, 1, width, dtype=torch.float64, generator=generator).to(dtype)
    return small_unet().to(dtype).eval(), *contexts


def problem(source, number, dtype, scale, start, steps, solver):
    """The problem of one latent: "smooth", or "generated" by a run from x[start] alone, whose states are the truth."""
    unet, context, null_context = network(DTYPES[dtype])
    grid = time_uniform(sd_schedule(), steps)
    run = grid.until(start)
    x0_fn = data_prediction(unet, grid, "v_prediction", context, null_context=null_context, scale=scale)
    if source == "smooth":
        x0, truth = smooth_latents(LATENTS, SHAPE, DTYPES[dtype])[[number]], None
    else:
        noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(number)).to(DTYPES[dtype])
        with torch.no_grad():
            whole = sample(noise, grid, solver(grid), x0_fn)
            begin = next(x for i, x, _ in whole if i == start)
            states = [x for _, x, _ in sample(begin, run, solver(run), x0_fn)]
        x0, truth = states[-1], torch.cat(states[-2::-1])
    return Problem(x0, run, solver, x0_fn, start == steps, truth)


def tasks(options):
    """One task for each latent, dtype, scale, start and order of the last step."""
    made = []
    for dtype in options.dtypes.split(","):
        for first in (False, True):
            solver = functools.partial(SOLVERS[options.solver], lower_order_final=first)
            for source in ("smooth", "generated"):
                kind = f"{source}, {dtype}" + (", first-order last step" if first else "")
                for scale in map(float, options.scales.split(",")):
                    for start in map(int, options.starts.split(",")):
                        for number in range(options.images):
                            identity = {"group": kind, "source": source, "number": number, "scan": f"{source} {number}"}
                            identity |= {"tumour": False, "prompt": "random", "scale": scale, "start": start}
                            place = f"{kind.replace(', ', '-').replace(' ', '_')}-{number}/scale{scale:g}-start{start}"
                            asked = {"solver": options.solver, "steps": options.steps, "seed": SEED}
                            make = functools.partial(
                                problem, source, number, dtype, scale, start, options.steps, solver
                            )
                            made.append(Task(identity, place, lambda asked=asked: asked, make))
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--solver", choices=SOLVERS, default="dpm_solver_pp_2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--starts", default="6,20")
    parser.add_argument("--scales", default="1,2.5")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--tolerance", default="5e-2,1e-3")
    parser.add_argument("--methods", default=",".join(INVERSIONS))
    parser.add_argument("--max-sweeps", type=int, default=60)
    parser.add_argument("--reference", type=float, default=1e-5)
    options = parser.parse_args()
    if not 1 <= options.images <= LATENTS:
        parser.error(f"--images is a whole number from 1 to {LATENTS}, got {options.images}")
    done = bench(
        lambda: tasks(options),
        options.out,
        shlex.join(sys.orig_argv),
        methods=tuple(options.methods.split(",")),
        tolerances=tuple(map(float, options.tolerance.split(","))),
        max_sweeps=options.max_sweeps,
        reference=options.reference,
    )
    if done is not None:
        print(done[0])


if __name__ == "__main__":
    main()
