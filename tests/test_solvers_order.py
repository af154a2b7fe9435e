"""The measured order of every step table, on data whose sampling ODE has a known solution."""

import re
from pathlib import Path

import pytest
import torch
from analytic_models import anisotropic_gaussian, mixture, sd_schedule

from solvers import Grid, StepTable, ddim, denoise, dpm_solver_pp_2m, exponential_ab2, log_snr

SCHEDULE = sd_schedule()

REFINEMENTS = (40, 80, 160, 320, 640)


def even(steps):
    return log_snr(SCHEDULE, steps)


def uneven(steps):
    """Steps in lam of lengths h, 2h, h, 2h, ...: on even ones r is 1, and a table that forgets it is as good."""
    fine = log_snr(SCHEDULE, steps // 2 * 3)
    keep = torch.arange(fine.steps + 1) % 3 != 2
    return Grid(f"uneven({steps})", fine.t[keep], fine.alpha[keep], fine.sigma[keep], fine.lam[keep])


def noise(dim):
    return torch.randn(8, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gaussian_problem():
    data = anisotropic_gaussian()
    x = noise(4)
    return data, x, data.solution(x, even(1), 1, 0)


def mixture_problem():
    data = mixture(dim=3, components=4, width=0.7)
    x = noise(3)
    return data, x, data.solution(x, SCHEDULE)


def measured_order(build, make_grid, problem):
    """Slope of log(error) over log(1 / steps), by least squares over four doublings of the steps."""
    data, x, exact = problem
    errors = []
    for steps in REFINEMENTS:
        grid = make_grid(steps)
        errors.append((denoise(x, grid, build(grid), data.x0_fn(grid)) - exact).norm().item())
    log_steps, log_errors = torch.tensor(REFINEMENTS).double().log(), torch.tensor(errors).double().log()
    log_steps, log_errors = log_steps - log_steps.mean(), log_errors - log_errors.mean()
    return -(log_steps @ log_errors / (log_steps @ log_steps)).item()


@pytest.fixture(scope="module", params=(gaussian_problem, mixture_problem), ids=("gaussian", "mixture"))
def problem(request):
    return request.param()


@pytest.mark.parametrize("make_grid", (even, uneven))
@pytest.mark.parametrize("build, order", ((ddim, 1), (dpm_solver_pp_2m, 2), (exponential_ab2, 2)))
def test_measured_order(build, order, make_grid, problem):
    assert measured_order(build, make_grid, problem) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("build", (dpm_solver_pp_2m, exponential_ab2))
def test_a_first_order_last_row_keeps_the_order(build, problem):
    """One step of local error h² among many: lower_order_final costs accuracy, not order."""
    assert measured_order(lambda grid: build(grid, lower_order_final=True), even, problem) == pytest.approx(2, abs=0.1)


def with_history_weight(factor):
    """2M with its history weight multiplied by factor(grid), b keeping the row consistent."""

    def build(grid):
        table = dpm_solver_pp_2m(grid)
        c = table.c * factor(grid)
        c[0], c[-1] = torch.nan, 0
        return StepTable("wrong", table.a, table.b + table.c - c, c)

    return build


def step_ratio(grid):
    h = -grid.lam.diff()  # starts with h[1]
    r = torch.ones_like(grid.lam)
    r[1:-1] = h[1:] / h[:-1]
    return r


WRONG = {
    "history weight 0.9": (even, lambda grid: 0.9),
    "history weight -1": (even, lambda grid: -1),
    "step ratio taken as 1": (uneven, step_ratio),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_coefficient_shows(mistake, problem):
    """The problems above are worth nothing if a wrong table passes on them."""
    make_grid, factor = WRONG[mistake]
    assert measured_order(with_history_weight(factor), make_grid, problem) < 1.5
    assert measured_order(with_history_weight(lambda grid: 1), make_grid, problem) == pytest.approx(2, abs=0.1)


def test_the_mixture_solution_is_converged():
    """At half its steps it is off by 16 times its own error; even that is far below the 3e-5 of the finest 2M run."""
    data, x, exact = mixture_problem()
    assert (data.solution(x, SCHEDULE, steps=250) - exact).norm() < 1e-7


def test_the_readmes_new_solver_has_the_order_it_shows():
    readme = (Path(__file__).parent.parent / "solvers" / "README.md").read_text()
    block = re.search(r"<!-- a new solver -->\n```python\n(.*?)```", readme, re.DOTALL).group(1)
    shown = {}
    exec(block, shown)
    torch.testing.assert_close(shown["orders"], torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=0.1)
    grid = uneven(20)
    mine, ours = shown["my_ab2"](grid), exponential_ab2(grid)
    for row in range(1, grid.steps + 1):
        assert mine.row(row) == pytest.approx(ours.row(row), rel=1e-12)
