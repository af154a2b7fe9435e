"""This module tests the inversions that undo one step after the other: what defines each of them, and what they cost.
That they agree with the authors' public code is tested beside it, in `test_solvers_inversions_authors`."""

import functools
import math

import pytest
import torch
from analytic_models import mixture, normal
from drawn_samples import run as compose
from drawn_samples import sample as drawn_sample
from relative_error import relative_by_image
from round_trips import IMAGES, problem
from small_models import small_unet, write_small_pipeline
from step_problems import GRID, grid_at, noise_prediction, noised, run_of

import sd21
from composition import Settings
from solvers import (
    INVERSIONS,
    InversionMethod,
    data_prediction,
    ddim,
    denoise,
    dpm_solver_pp_2m,
    exponential_ab3,
    invert,
)
from solvers.inversions import exact_dpm, guided_newton
from solvers.inversions.run import BACKWARD_ROWS
from solvers.inversions.steps import held_at_naive, iterate

STEPWISE = [
    "fixed-point", "fixed-point-anderson", "renoise", "guided-newton", "guided-newton-released", "exact-dpm",
]  # fmt: skip
LOWERED = functools.partial(dpm_solver_pp_2m, lower_order_final=True)

# DDIM inversion


@pytest.mark.parametrize("start", [1, 6, 20])
def test_ddim_inversion_is_the_naive_one_of_a_ddim_run_and_of_no_other(start):
    grid, _, x0_fn = problem()
    naive, inverted = (invert(IMAGES, grid, ddim, x0_fn, start=start, method=name) for name in ("naive", "ddim"))
    assert torch.equal(naive.states, inverted.states) and torch.equal(naive.errors, inverted.errors)
    other = invert(IMAGES, grid, dpm_solver_pp_2m, x0_fn, start=start, method="ddim")
    assert torch.equal(other.states, inverted.states)
    naive = invert(IMAGES, grid, dpm_solver_pp_2m, x0_fn, start=start, method="naive")
    assert torch.equal(other.states, naive.states) == (start == 1)  # a run of one step has no history


def test_ddim_inversion_evaluates_the_lower_state_at_the_lower_time():
    """Not at the upper time, as much public code does. From Song et al.'s equation, in y = x / alpha."""
    run = run_of()
    states = invert(IMAGES, GRID, dpm_solver_pp_2m, run.prediction.x0_fn, start=6, method="ddim").states
    y, slope = states / GRID.alpha[:7].view(-1, 1, 1), GRID.sigma / GRID.alpha
    for i in range(1, 7):
        step = (slope[i] - slope[i - 1]) * noise_prediction(run, states[i - 1], i - 1)
        torch.testing.assert_close(y[i], y[i - 1] + step, rtol=0, atol=1e-13)  # float64, one step


def test_ddim_inversions_own_sampler_is_ddim():
    x0_fn, run = mixture().x0_fn(GRID), GRID.until(6)
    inversion = invert(IMAGES, GRID, dpm_solver_pp_2m, x0_fn, start=6, method="ddim")
    sampler = INVERSIONS["ddim"].sampler
    assert torch.equal(inversion.kept, inversion.states[6]) and sampler.from_one_state is None
    assert torch.equal(sampler.denoise(inversion.kept, run, x0_fn), denoise(inversion.kept, run, ddim(run), x0_fn))


# Fixed points


def converging(name, **options):
    """The method with as many iterations as it needs."""
    return functools.partial(INVERSIONS[name].solve, iterations=400, **options)


# The plain iteration contracts by 0.75 in the last step, which is the longest: 400 iterations leave rounding.
@pytest.mark.parametrize("name", ["fixed-point", "fixed-point-anderson"])
@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp_2m, LOWERED, exponential_ab3])
def test_a_fixed_point_solves_its_steps_equation(name, solver):
    run = run_of(solver)
    states = converging(name)(run, 1e-14, 400).states
    _, older = run.naive()
    for i in range(1, 7):
        below = IMAGES if i == 1 else states[:, i - 2]
        a, (own, *weights) = run.table.row(i)
        image = a * states[:, i - 1] + own * run.prediction.x0_fn(states[:, i - 1], i)
        for j, weight in enumerate(weights, start=1):
            if weight:
                image = image + weight * older[:, i + j - 1]
        assert relative_by_image(image, below).max() < 1e-12


@pytest.mark.parametrize("name", ["fixed-point", "fixed-point-anderson"])
@pytest.mark.parametrize("start", [1, 6])
def test_solved_steps_invert_ddim_through_the_unmodified_sampler(monkeypatch, name, start):
    monkeypatch.setitem(INVERSIONS, "long", InversionMethod(converging(name), exact=False))
    x0_fn = mixture().x0_fn(GRID)
    inversion = invert(IMAGES, GRID, ddim, x0_fn, start=start, method="long", tol=1e-14, max_sweeps=400)
    run = GRID.until(start)
    # Residuals of 1e-14 of |x[i-1]|, which the six steps down enlarge some ten times.
    assert relative_by_image(denoise(inversion.states[-1], run, ddim(run), x0_fn), IMAGES).max() < 1e-12
    other = invert(IMAGES, GRID, dpm_solver_pp_2m, x0_fn, start=6, method="long", tol=1e-14, max_sweeps=400)
    assert other.errors.max() > 2e-3  # frozen history: 7.4e-3, as frozen itself


def test_the_methods_differ_from_frozen_in_the_slope():
    """The plain map divides by the slope on data of infinite variance; on such data, D = x / alpha, one step solves."""
    run = run_of(x0_fn=lambda x, i: x / GRID.alpha[torch.as_tensor(i)].view(-1, 1) + 0.3)
    step = held_at_naive(run)(6, IMAGES)
    residual = step.residual(IMAGES, step.data(IMAGES, run.images), run.images)
    x = step.fixed_point(IMAGES, residual)
    assert step.relative(step.residual(x, step.data(x, run.images), run.images), run.images).max() < 1e-14
    assert step.slope < step.noise_slope


def test_the_first_iterate_takes_the_lower_state_to_the_upper_time():
    run = run_of()
    step = held_at_naive(run)(4, IMAGES)
    x, _ = iterate(step, 1, lambda x, residual, size, images: (step.fixed_point(x, residual), size < 0))
    torch.testing.assert_close(x, noised(run, IMAGES, 4, IMAGES), rtol=0, atol=1e-13)  # float64, one step
    # What is bound here is seen: the prediction at the time one index below is another.
    assert (noise_prediction(run, IMAGES, 4) - noise_prediction(run, IMAGES, 3)).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "own"), [("fixed-point", 20), ("fixed-point-anderson", 6)])
def test_iterations_are_the_papers_or_max_sweeps(name, own):
    x0_fn = mixture().x0_fn(GRID)
    for sweeps in (0, 3, 100):
        inversion = invert(IMAGES, GRID, ddim, x0_fn, start=6, method=name, tol=1e-300, max_sweeps=sweeps)
        assert inversion.rows.max() == 6 + 6 * min(own, 1 + sweeps)  # a residual of exactly 0 ends a step earlier
    met = invert(IMAGES, GRID, ddim, x0_fn, start=6, method=name, tol=1e-2)
    assert met.rows.max() < 6 + 6 * own  # images leave where they meet tol


# ReNoise


def test_renoise_averages_what_it_says():
    """Of steps to a time below 250 the first five noise predictions, of the others the ninth and the tenth."""
    run = run_of()
    solution = INVERSIONS["renoise"].solve(run, 1e-9, 100)
    rows = run.prediction.rows.clone()
    below = IMAGES
    for i in range(1, 7):
        x, predictions = below, []
        for _ in range(10):
            predictions.append(noise_prediction(run, x, i))
            x = noised(run, below, i, x)
        mean = torch.stack(predictions[:5] if GRID.t[i] < 250 else predictions[8:]).mean(0)
        ratio = GRID.alpha[i] / GRID.alpha[i - 1]
        expected = ratio * below + (GRID.sigma[i] - ratio * GRID.sigma[i - 1]) * mean
        torch.testing.assert_close(solution.states[:, i - 1], expected, rtol=0, atol=1e-12)  # ten steps of rounding
        below = solution.states[:, i - 1]
    assert (GRID.t[5] < 250) and (GRID.t[6] > 250) and rows.tolist() == [5 * 5 + 10] * 8


# Guided Newton


def unet_problem(scale):
    unet = small_unet().double().eval()
    context, null_context = normal(2, 1, 1, 48, seed=9)
    x0 = normal(2, 4, 8, 8, seed=1)
    return x0, data_prediction(unet, GRID, "v_prediction", context, null_context=null_context, scale=scale)


@pytest.mark.parametrize("problem_of", ["mixture", "unet"])
def test_the_gradient_is_that_of_finite_differences(problem_of):
    x0, x0_fn = (IMAGES[:2], mixture().x0_fn(GRID)) if problem_of == "mixture" else unet_problem(2.5)
    run = run_of(x0=x0, x0_fn=x0_fn)
    step = held_at_naive(run)(5, x0)
    x, direction = x0 + 0.1 * normal(*x0.shape, seed=4), normal(*x0.shape, seed=5)
    gradient = guided_newton.guided_objective(step, x, run.images, 0.1, True).gradient

    def value(length):
        return guided_newton.guided_objective(step, x + length * direction, run.images, 0.1, False).value

    h = 1e-6
    slope, product = (value(h) - value(-h)) / (2 * h), (gradient * direction).flatten(1).sum(dim=1)
    # F rounds to 1e-14 of some 100, h makes that 1e-6; its curvature adds h². None of the kinks lies this near.
    torch.testing.assert_close(product, slope, rtol=1e-6, atol=1e-5)
    without = guided_newton.released_objective(step, x, run.images, 0.1, True).gradient
    assert (without - gradient).abs().max() > 0.01  # the network's part is no trifle


def test_the_newton_step_moves_every_number_as_the_paper_says():
    """F and the prior are written out again here."""
    run = run_of()
    step = held_at_naive(run)(5, IMAGES)
    x = IMAGES + 0.1 * normal(8, 16, seed=4)
    objective = guided_newton.guided_objective(step, x, run.images, 0.1, True)
    gamma = GRID.alpha[5] / GRID.alpha[4]
    residual = (noised(run, IMAGES, 5, x) - x).abs().sum(1)
    value = residual + 0.1 / (1 - gamma**2) * (x - gamma * IMAGES).norm(dim=1)
    torch.testing.assert_close(objective.value, value, rtol=1e-12, atol=0)  # float64
    torch.testing.assert_close(objective.following, noised(run, IMAGES, 5, x), rtol=0, atol=1e-13)  # float64, one step
    moved = guided_newton._newton_step(x, objective)
    expected = x - value[:, None] / 16 / (objective.gradient + 1e-6)
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)  # divided by gradients down to 1e-3


def test_a_state_whose_gradient_vanishes_is_not_moved():
    x = torch.ones(1, 2, dtype=torch.float64)
    objective = guided_newton.Objective(x, x, torch.tensor([2.0]), torch.tensor([[0.0, 0.5]]))
    assert guided_newton._newton_step(x, objective)[0, 0] == 1


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_backward_pass_costs_two_rows_for_each_row(scale):
    x0, x0_fn = unet_problem(scale)
    inversion = invert(x0, GRID, ddim, x0_fn, start=3, method="guided-newton", tol=1e-12)
    # A step is an evaluation that goes back and one that does not; three evaluations measure.
    assert BACKWARD_ROWS == 2
    assert inversion.rows.tolist() == [(3 * (1 + BACKWARD_ROWS + 1) + 3) * (1 if scale == 1 else 2)] * 2
    assert x0_fn.rows == 2 * (3 * 2 + 3) * (1 if scale == 1 else 2)  # forward rows alone
    released = invert(x0, GRID, ddim, x0_fn, start=3, method="guided-newton-released", tol=1e-12)
    assert released.rows.tolist() == [(3 * 2 + 3) * (1 if scale == 1 else 2)] * 2


def test_an_x0_fn_without_a_gradient_is_named():
    x0_fn = torch.no_grad()(mixture().x0_fn(GRID))
    with pytest.raises(TypeError, match="goes back through the network, and the x0_fn keeps no gradient"):
        invert(IMAGES, GRID, ddim, x0_fn, start=3, method="guided-newton")


def test_gradients_are_taken_within_inference_mode():
    x0_fn = mixture().x0_fn(GRID)
    outside = invert(IMAGES, GRID, ddim, x0_fn, start=3, method="guided-newton")
    with torch.inference_mode():
        inside = invert(IMAGES.clone(), GRID, ddim, x0_fn, start=3, method="guided-newton")
    assert torch.equal(inside.states, outside.states)


# Exact inversion of DPM-Solvers


@pytest.mark.parametrize("plateau", [False, True])
def test_step_lengths_are_those_of_the_authors_scheduler(plateau):
    """Whose rule is torch's ReduceLROnPlateau, beneath a warm-up of twenty iterations."""
    weight = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([weight], lr=0.5), factor=0.5, patience=20)
    length, expected = exact_dpm.StepLength(0.5, plateau), 0.5
    generator = torch.Generator().manual_seed(0)
    sums = [*torch.linspace(9, 3, 30).tolist(), *(4 + torch.rand(100, generator=generator)).tolist()]
    for iteration, value in enumerate(sums, start=1):
        rho = length.next(value)
        assert rho == pytest.approx(0.5 * iteration / 20 if iteration <= 20 else expected, rel=1e-12)
        reference.step(value)
        expected = reference.optimizer.param_groups[0]["lr"] if plateau else 0.5
    assert (expected < 0.1) == plateau


@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp_2m, LOWERED, exponential_ab3])
def test_exact_dpm_stops_at_its_own_bound(solver):
    """A sum of squares, so that two images of other sizes are not solved alike, whatever tol says."""
    errors = []
    for tol in (1e-1, 1e-12):
        run = run_of(solver)
        solution = INVERSIONS["exact-dpm"].solve(run, tol, 499)
        errors.append(solution.states)
        for i in range(1, 7):
            below = IMAGES if i == 1 else solution.states[:, i - 2]
            step = exact_dpm._frozen_corrections(run, i, below)
            x = solution.states[:, i - 1]
            residual = step.residual(x, step.data(x, run.images), run.images)
            assert (residual.square().sum(1) < 1e-3 * (1 + 1e-9)).all()
    assert torch.equal(*errors)


def test_what_exact_dpm_freezes():
    """A table's row is a first-order step plus corrections at the data predictions of a DDIM climb from x[i-1]."""
    run = run_of(exponential_ab3)
    step = exact_dpm._frozen_corrections(run, 2, IMAGES)
    a, weights = run.table.row(2)
    y, data = IMAGES, []
    for i in (2, 3, 4):
        y = noised(run, y, i, y)
        data.append(run.prediction.x0_fn(y, i))
    assert all(weights) and (step.a, step.own) == (a, sum(weights))
    expected = IMAGES - weights[1] * (data[1] - data[0]) - weights[2] * (data[2] - data[0])
    torch.testing.assert_close(step.target, expected, rtol=0, atol=1e-12)  # float64, three steps
    assert run.prediction.rows.tolist() == [6] * 8  # three up, three at their ends


def test_exact_dpms_step_lengths_by_row():
    def full(solver, i):
        step = exact_dpm._step_length(run_of(solver), i)
        return step.full, step.plateau

    assert [full(ddim, i) for i in (1, 4)] == [(0.5, True)] * 2
    assert full(LOWERED, 1) == (1.0, True) and full(dpm_solver_pp_2m, 1) == (1.0, False)
    assert full(LOWERED, 3) == (10 / GRID.t[2].item(), False) and full(LOWERED, 6) == (10 / GRID.t[5].item(), True)
    assert exact_dpm._step_length(run_of(LOWERED, grid=grid_at([0, 1, 2, 40, 60, 80, 99])), 2).full == 1.0


def test_exact_dpms_evaluations_are_bounded():
    run = run_of(x0_fn=lambda x, i: 30 * torch.cos(x))
    solution = INVERSIONS["exact-dpm"].solve(run, 1e-9, 3)
    assert all(len(one) == 6 * 4 for one in solution.residuals)


# All of them


@pytest.mark.parametrize("name", STEPWISE)
def test_an_images_result_does_not_depend_on_its_batch(name):
    x0_fn = mixture().x0_fn(GRID)
    whole = invert(IMAGES, GRID, dpm_solver_pp_2m, x0_fn, start=6, method=name, tol=1e-6)
    for image in (0, 5):
        alone = invert(IMAGES[image : image + 1], GRID, dpm_solver_pp_2m, x0_fn, start=6, method=name, tol=1e-6)
        # Sums over one row may run in another order than over eight; the steps enlarge that rounding.
        torch.testing.assert_close(alone.states[:, 0], whole.states[:, image], rtol=0, atol=1e-9)
        assert alone.reports[0].rows == whole.reports[image].rows


@pytest.mark.parametrize("name", STEPWISE)
def test_stepwise_inversions_of_2m_are_no_inverses_and_say_so(name):
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=name)
    assert not inversion.converged.any() and inversion.errors.median() > 2e-3  # frozen: 4.3e-3


@pytest.mark.parametrize("name", ["ddim", "renoise", "guided-newton", "exact-dpm"])
def test_a_composition_takes_the_inversion(tmp_path, name):
    model = sd21.load(write_small_pipeline(tmp_path / "model"), device="cpu")
    for weight in model.unet.conv_out.parameters():  # random weights make a network too rough to have an inverse
        weight.mul_(0.1)
    result = compose(model, drawn_sample(128, 128), Settings(inversion=name, max_sweeps=3))
    reports = list(result.inversion.values())
    assert [report.method for report in reports] == [name] * 2
    assert all(math.isfinite(report.error) and report.rows >= 12 for report in reports)
