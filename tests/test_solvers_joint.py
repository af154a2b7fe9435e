"""The joint method is tested here in its parts: its equations, its Jacobian, Anderson mixing and Newton-GMRES."""

import pytest
import torch
from analytic_models import Gaussian, mixture, normal, sd_schedule

from solvers import SOLVERS, dpm_solver_pp_2m, invert, sample, time_uniform
from solvers.anderson import AndersonMixing, Search, anderson_solve
from solvers.joint import TrajectoryEquations
from solvers.newton import gmres, newton_gmres

GRID = time_uniform(sd_schedule(), 20)
UNIT = Gaussian(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))


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
def test_jacobian_is_that_of_unit_gaussian_data(start, solver, lower_order_final):
    x0_fn, run = UNIT.x0_fn(GRID), GRID.until(start)
    equations = TrajectoryEquations.of_run(run, solver(run, lower_order_final))
    x0 = torch.ones(1, 4, dtype=torch.float64)

    def residual(x):
        x = x.view(1, start, 1).expand(1, start, 4)
        return equations.residual(x0, x, sweep(x0_fn, x))[0, :, 0]

    derivative = torch.autograd.functional.jacobian(residual, normal(start, seed=0))
    torch.testing.assert_close(equations.jacobian, derivative, rtol=1e-13, atol=1e-13)  # a few roundings


@by_table[1]
def test_unit_gaussian_data_take_one_newton_step(solver):
    reports = invert(UNIT.sample(3, seed=1), GRID, solver, UNIT.x0_fn(GRID), tol=1e-12).reports
    assert [report.sweeps for report in reports] == [2, 2, 2]  # the second one sees that the first was enough


def test_the_first_step_is_measured_at_the_price_of_one_evaluation():
    """The naive run has evaluated all states but its last; the Newton step from it is then free, and it is measured."""
    data = mixture()
    x0, x0_fn = data.sample(4, seed=1), data.x0_fn(GRID)
    naive = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, start=6, method="naive")
    inversion = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, start=6, tol=5e-2)
    assert [report.sweeps for report in inversion.reports] == [1] * 4
    assert inversion.rows.tolist() == [6 + 1 + 6] * 4  # up, the last state, down
    assert (inversion.errors < naive.errors).all()


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

    x, (search,) = anderson_solve(batched, torch.zeros(1, 40).double(), 1e-9, max_iterations=100)
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

    anderson_solve(equation, torch.zeros(2, 6).double(), 1e-9, max_iterations=20)
    assert sizes[:2] == [[0, 1], [0, 1]] and sizes[2:] == [[1]] * len(sizes[2:])


def test_a_known_first_evaluation_is_not_made_again():
    _, _, solution = linear(dim=6, spread=0.5)
    seen = []

    def equation(x, images):
        seen.append(x)
        g = (x - solution) * torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
        return g, g.norm(dim=1)

    begin = torch.zeros(1, 6).double()
    x, (search,) = anderson_solve(equation, begin, 1e-9, max_iterations=20)
    asked = [y.clone() for y in seen]
    seen.clear()
    y, (again,) = anderson_solve(equation, begin, 1e-9, max_iterations=20, first=equation(begin, torch.tensor([0])))
    assert torch.equal(x, y) and search.residuals == again.residuals
    assert len(seen) == len(asked) and all(map(torch.equal, seen, asked))  # the first of them is ours


def test_a_measured_error_decides_and_shrinks_the_bound_until_it_is_met():
    asked = []
    search = Search(tol=1e-3, measure=lambda x: asked.append(x) or 10 * x)  # the error is ten times the residual
    search.judge(x=1e-2, residual=1e-2)
    assert not search.solved and asked == []  # not worth asking
    search.judge(x=1e-3, residual=1e-3)
    assert not search.solved and asked == [1e-3] and search.error == 1e-2
    assert search.bound == pytest.approx(1e-4)
    search.judge(x=5e-4, residual=5e-4)
    assert not search.solved and asked == [1e-3]
    search.judge(x=9e-5, residual=9e-5)
    assert search.solved and search.error == pytest.approx(9e-4)


def test_the_error_that_is_measured_is_that_of_the_iterate_which_is_returned():
    """The iterate after the one whose residual was small: it is the solution here, and the one before is not."""
    _, _, solution = linear(dim=6, spread=0.5)
    errors = []

    def measure(x, image):
        errors.append((image, (x - solution).norm().item()))
        return errors[-1][1]

    def equation(x, images):
        return x - solution, torch.full((len(x),), 1e-3)

    x, searches = anderson_solve(equation, torch.zeros(2, 6).double(), 1e-3, max_iterations=20, measure=measure)
    assert errors == [(0, 0.0), (1, 0.0)] and [search.error for search in searches] == [0.0, 0.0]
    assert torch.equal(x, torch.stack([solution, solution]))
