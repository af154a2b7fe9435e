"""This program prints the solver table as Markdown: the error at 20 steps by solver and grid, and the measured orders.

    python tests/benchmarks/solver_errors.py [--steps 20] [--images 256]

The data are the Gaussian mixture of the tests (four components in three dimensions, each of standard deviation 0.7),
whose denoiser is exact. An error is |x[0] - exact| / |exact|, where the exact ODE runs between the grid's own ends; it
is the mean over noises of seed 0, everything in float64. Orders are slopes over doublings of the steps on log_snr, with
the first-order start of an ordinary run and with a start whose history is exact.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from analytic_models import normal  # noqa: E402
from measured_orders import PROBLEMS, SCHEDULE, measured_order  # noqa: E402
from relative_error import relative_by_image  # noqa: E402

from solvers import SOLVERS, denoise, discrete, log_snr, time_uniform  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    grids = [
        time_uniform(SCHEDULE, options.steps),
        log_snr(SCHEDULE, options.steps),
        discrete(SCHEDULE, options.steps, final_sigma="sigma_min"),
    ]
    problem = PROBLEMS["mixture"]
    x = normal(options.images, problem.x.shape[1], seed=0)
    exact = {grid.name: problem.data.solution(x, grid, grid.steps, 0) for grid in grids}
    print("| solver |", " | ".join(grid.name for grid in grids), "| order, first-order start | order, exact start |")
    print("|---" * (len(grids) + 3) + "|")
    for name, solver in SOLVERS.items():
        for lower_order_final in (False, True)[: 1 if name == "ddim" else 2]:
            build = functools.partial(solver, lower_order_final=lower_order_final)
            cells = [f"`{name}`" + ", lower_order_final" * lower_order_final]
            for grid in grids:
                x0 = denoise(x, grid, build(grid), problem.data.x0_fn(grid))
                cells.append(f"{relative_by_image(x0, exact[grid.name]).mean():.1e}")
            cells += [f"{measured_order(problem, build, start=start):.2f}" for start in ("first-order", "exact")]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
