"""The joint method is tested here in its parts: its equations, its Jacobian, Anderson mixing and Newton-GMRES."""

import pytest
import torch
from analytic_models import Gaussian, mixture, normal, sd_schedule

from solvers import SOLVERS, dpm_solver_pp_2m, invert, sample, time_uniform
from solvers.inversions.anderson import AndersonMixing, Search, anderson_solve
from solvers.inversions.joint import DATA_VARIANCE, TrajectoryEquations
from solvers.inversions.newton import gmres, newton_gmres

GRID = time_uniform(sd_schedule(), 20)
WIDE = Gaussian(torch.zeros(4, dtype=torch.float64), torch.full((4,), DATA_VARIANCE, dtype=torch.float64))


def sweep(x0_fn, x):
    start = x.shape[1]
    return x0_fn(x.flatten(0, 1), torch.arange(1, start + 1).repeat(len(x))).view_as(x)


by_table = [
    pytest.mark.parametrize("lower_order_final", [False, True]),
    pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS),
    pytest.mark.parametrize("start", [1, 2, 3, 6, 20]),
]


@by_table[0]
@by_table[1]
@by_table[2]
def test_a_sampled_trajectory_solves_the_equations_and_no_other_does(start, solver, lower_order_final):
    data, run = mixture(), GRID.until(start)
    table, x0_fn = solver(run, lower_order_final), data.x0_fn(GRID)
    x0, *upper = [x for _, x, _ in sample(data.sample(3, seed=0), run, table, x0_fn)][::-1]
    x = torch.stack(upper, 1)
    equations = TrajectoryEquations.of_run(run, table)
    # The sampler's own arithmetic in another order: some roundings of terms up to 14 times the state.
    assert equations.relative(x0, x, equations.residual(x0, x, sweep(x0_fn, x))).max() < 5e-14
    for i in range(start):
        moved = x.clone()
        moved[:, i] *= 1.001
        assert equations.relative(x0, moved, equations.residual(x0, moved, sweep(x0_fn, moved))).min() > 1e-6


@by_table[0]
@by_table[1]
@by_table[2]
def test_jacobian_is_that_of_gaussian_data_of_its_variance(start, solver, lower_order_final):
    x0_fn, run = WIDE.x0_fn(GRID), GRID.until(start)
    equations = TrajectoryEquations.of_run(run, solver(run, lower_order_final))
    x0 = torch.ones(1, 4, dtype=torch.float64)

    def residual(x):
        x = x.view(1, start, 1).expand(1, start, 4)
        return equations.residual(x0, x, sweep(x0_fn, x))[0, :, 0]

    derivative = torch.autograd.functional.jacobian(residual, normal(start, seed=0))
    torch.testing.assert_close(equations.jacobian, derivative, rtol=1e-13, atol=1e-13)  # a few roundings


@by_table[1]
@pytest.mark.parametrize("start", [6, 20])
def test_one_newton_step_solves_gaussian_data_of_that_variance(solver, start):
    """From any states, since the equations are linear then. Those of another variance are not solved by it."""
    run = GRID.until(start)
    equations, x = TrajectoryEquations.of_run(run, solver(run)), normal(3, start, 4, seed=2)
    for data, solved in ((WIDE, True), (Gaussian(WIDE.mean, WIDE.variance / 10), False)):
        x0, x0_fn = data.sample(3, seed=1), data.x0_fn(GRID)
        moved = x - equations.newton_step(equations.residual(x0, x, sweep(x0_fn, x)))
        left = equations.relative(x0, moved, equations.residual(x0, moved, sweep(x0_fn, moved)))
        # Roundings of states that the last row's weights of up to 14 enlarge; seen: 3e-14.
        assert (left < 1e-12).all() if solved else (left > 1e-3).all()


def test_newton_takes_up_the_rows_where_the_mixing_stalls_and_stays_within_the_cap(monkeypatch):
    """Here the mixing is taken to have stalled at once. Newton-GMRES solves Gaussian data of the Jacobian's variance in
    one step, from the naive inversion on: an evaluation, two for the rounding, one of the Krylov space, one for the
    iterate, and its measurement."""
    monkeypatch.setattr(Search, "stalled", True)
    x0 = WIDE.sample(3, seed=1)
    reports = invert(x0, GRID, dpm_solver_pp_2m, WIDE.x0_fn(GRID), start=6, tol=1e-7).reports
    assert [report.sweeps for report in reports] == [6, 6, 6] and all(report.converged for report in reports)
    # Up and down for the naive inversion; up again, five sweeps, down.
    assert [report.rows for report in reports] == [12 + 6 + 30 + 6] * 3
    for cap in range(8):
        limits = {"tol": 1e-7, "max_sweeps": cap, "on_failure": "return"}
        for report in invert(x0, GRID, dpm_solver_pp_2m, WIDE.x0_fn(GRID), start=6, **limits).reports:
            assert report.sweeps <= cap and report.rows <= 12 * (1 + cap)
            assert report.converged == (cap >= 6)


def linear(dim, spread, seed=0):
    """g(x) = A x - b with eigenvalues of A in [1 - spread, 1 + spread], and its solution."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    matrix = q @ torch.diag(torch.linspace(1 - spread, 1 + spread, dim, dtype=torch.float64)) @ q.T
    solution = torch.randn(dim, dtype=torch.float64, generator=generator)
    return matrix, matrix @ solution, solution


def test_anderson_solves_a_linear_system_in_its_dimension_where_the_plain_iteration_diverges():
    matrix, rhs, solution = linear(dim=8, spread=1.5)
    x, mixing = torch.zeros_like(rhs), AndersonMixing(depth=8)
    for _ in range(10):  # GMRES in disguise (Walker and Ni): dimension + 1 iterates, and one for rounding
        x = mixing.step(x, matrix @ x - rhs)
    # The condition number of the secants is some 1e3 here.
    torch.testing.assert_close(x, solution, rtol=0, atol=1e-9)


def test_a_residual_grown_threefold_restarts_from_the_best_iterate_with_half_the_step():
    search = Search(1e-9)
    best, step = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.5, 0.25]).double()
    search.advance(best, step, 1.0)
    search.advance(best - step, torch.tensor([-0.3, 0.1]).double(), 2.9)
    assert search.restarts == 0 and len(search.mixing.x) == 2
    after = search.advance(best + 5, torch.tensor([7.0, 7.0]).double(), 3.1)
    assert search.restarts == 1 and len(search.mixing.x) == 1
    torch.testing.assert_close(after, best - 0.5 * step, rtol=0, atol=0)


def test_gmres_solves_to_its_tolerance_and_stops():
    matrix, rhs, solution = linear(dim=30, spread=0.5)
    products = []
    y = gmres(lambda v: products.append(v) or matrix @ v, rhs, max_vectors=30, tol=1e-10)
    assert (matrix @ y - rhs).norm() < 1e-10 * rhs.norm()
    assert len(products) < 25  # a condition number of 3: a factor of 3.7 an iteration
    torch.testing.assert_close(y, solution, rtol=0, atol=1e-9)


def test_newton_solves_what_anderson_does_not():
    """x³ + A x = b, whose plain step is a bad guide: the mixture stalls, Newton ends in a few steps."""
    matrix, rhs, _ = linear(dim=40, spread=0.999)
    scale = torch.linspace(1, 30, 40, dtype=torch.float64)

    def g(x):
        return scale * (x**3 + matrix @ x - 10 * rhs)

    def batched(x, images):
        return torch.stack([g(row) for row in x]), torch.stack([g(row).norm() for row in x])

    x, (search,) = anderson_solve(batched, torch.zeros(1, 40).double(), 1e-9, max_steps=100)
    assert not search.solved
    found = newton_gmres(lambda x: (g(x), g(x).norm().item()), x[0], search, max_evaluations=600)
    assert search.solved and g(found).norm() <= 1e-9


def test_evaluations_of_newton_are_bounded_and_counted():
    matrix, rhs, _ = linear(dim=40, spread=0.999)
    calls = []

    def equation(x):
        calls.append(x)
        g = x**3 + matrix @ x - 10 * rhs
        return g, g.norm().item()

    for allowed in (1, 2, 7, 40):
        calls.clear()
        search = Search(1e-14)
        newton_gmres(equation, torch.zeros(40).double(), search, max_evaluations=allowed)
        assert len(calls) == len(search.residuals) <= allowed
        assert not search.solved


def test_images_of_one_batch_do_not_see_each_other_and_leave_when_done():
    _, _, solution = linear(dim=6, spread=0.5)
    sizes = []

    def equation(x, images):
        sizes.append(images.tolist())
        g = (x - torch.stack([solution, solution])[images]) * (1 + images[:, None])  # image 0 is solved by one step
        return g, g.norm(dim=1)

    anderson_solve(equation, torch.zeros(2, 6).double(), 1e-9, max_steps=20)
    assert sizes[:2] == [[0, 1], [0, 1]] and sizes[2:] == [[1]] * len(sizes[2:])
