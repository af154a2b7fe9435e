"""Round trips on data whose denoiser is exact, through the sampler as it is, by method, steps, start, solver, dtype."""

import functools
import pickle

import pytest
import torch
from analytic_models import Mixture, mixture, normal, sd_schedule
from round_trips import round_trip_errors

from solvers import (
    INVERSIONS,
    SOLVERS,
    InversionError,
    InversionReport,
    data_prediction,
    ddim,
    denoise,
    discrete,
    dpm_solver_pp_2m,
    guided,
    invert,
    log_snr,
    sample,
    time_uniform,
)

SCHEDULE = sd_schedule()
DATA = mixture()
IMAGES = DATA.sample(8, seed=1)
# Asked of the exact methods. float64: some thousands of roundings, of which the sampler passes on some hundreds.
# float32: the bar set for networks, ten times what a good case leaves.
BAR = {torch.float64: 1e-12, torch.float32: 1e-5}
# What is no inverse must not come near it: 2e-3 is half of the smallest error seen (4.2e-3, 50 steps, frozen 3.6e-3).
NO_INVERSE = 2e-3


def problem(steps=20, lower_order_final=False, build_grid=time_uniform):
    grid = build_grid(SCHEDULE, steps)
    return grid, functools.partial(dpm_solver_pp_2m, lower_order_final=lower_order_final), DATA.x0_fn(grid)


def generated(grid, solver, x0_fn, dtype=torch.float64):
    return denoise(normal(8, 16, seed=2), grid, solver(grid), x0_fn).to(dtype)


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize(
    "steps, start, dtype",
    [(*run, torch.float64) for run in [(10, 6), (10, 10), (20, 6), (20, 20), (50, 6)]]
    # (10, 10) is left out in float32: one image there passes rounding on thirtyfold, and ends at 2.5e-5.
    + [(*run, torch.float32) for run in [(10, 6), (20, 6), (20, 20), (50, 6)]],
)
def test_joint_returns_every_image_to_itself(steps, start, dtype, lower_order_final):
    grid, solver, x0_fn = problem(steps, lower_order_final)
    for source, x0 in {"data": IMAGES.to(dtype), "generated": generated(grid, solver, x0_fn, dtype)}.items():
        inversion = invert(x0, grid, solver, x0_fn, start=start, tol=BAR[dtype])
        error = round_trip_errors(inversion.states, grid, solver, x0_fn)
        assert error.max() <= BAR[dtype], f"{source}: worst {error.max():.1e}"
        assert inversion.states.dtype == dtype
        assert inversion.states.shape == (start + 1, *x0.shape)
        assert torch.equal(inversion.states[0], x0)
        # The same sampler from the same state, but image by image: the batch size moves a rounding.
        torch.testing.assert_close(inversion.errors, error, rtol=0, atol=BAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("steps, start", [(20, 6), (20, 20), (50, 6)])
def test_defect_is_exact_where_it_converges(steps, start, dtype):
    grid, solver, x0_fn = problem(steps)
    x0 = IMAGES.to(dtype)
    inversion = invert(x0, grid, solver, x0_fn, start=start, method="defect", tol=BAR[dtype])
    assert round_trip_errors(inversion.states, grid, solver, x0_fn).max() <= BAR[dtype]


@pytest.mark.parametrize("method", ["naive", "frozen"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("steps, start", [(10, 6), (20, 6), (20, 20), (50, 6)])
def test_naive_and_frozen_are_no_inverses_and_say_so(steps, start, lower_order_final, method):
    grid, solver, x0_fn = problem(steps, lower_order_final)
    inversion = invert(IMAGES, grid, solver, x0_fn, start=start, method=method, tol=BAR[torch.float64])
    error = round_trip_errors(inversion.states, grid, solver, x0_fn)
    assert error.max() > NO_INVERSE
    assert not inversion.converged.any()
    # Measured by the same calls; 1e-14 leaves room for another batch size inside a matrix product.
    torch.testing.assert_close(inversion.errors, error, rtol=0, atol=1e-14)


def test_frozen_solves_its_own_equations_tightly_and_gains_nothing():
    """Per-step convergence certifies nothing: 1e-13 in every step, 1e-3 in the round trip."""
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method="frozen", tol=1e-13)
    for report in inversion.reports:
        assert sum(residual <= 1e-13 for residual in report.residuals) == 6  # one per step
    assert inversion.errors.max() > NO_INVERSE


@pytest.mark.parametrize("name", SOLVERS)
def test_frozen_solves_every_row_with_the_naive_runs_older_predictions(name):
    grid, x0_fn = time_uniform(SCHEDULE, 20), DATA.x0_fn(time_uniform(SCHEDULE, 20))
    naive, frozen = (
        invert(IMAGES, grid, SOLVERS[name], x0_fn, start=6, method=method, tol=1e-13).states
        for method in ("naive", "frozen")
    )
    table = SOLVERS[name](grid.until(6))
    for i in range(1, 7):
        a, (own, *older) = table.row(i)
        step = a * frozen[i] + own * x0_fn(frozen[i], i)
        for j, weight in enumerate(older[: 6 - i], 1):
            step = step + weight * x0_fn(naive[i + j], i + j)
        # The tolerance of its solve, and the roundings of weights up to 14.
        torch.testing.assert_close(step, frozen[i - 1], rtol=0, atol=1e-12)


def test_frozen_is_exact_where_rows_weigh_no_older_prediction():
    """For DDIM step by step is the whole problem, so that frozen's failure elsewhere is due to what it holds."""
    grid, _, x0_fn = problem()
    inversion = invert(IMAGES, grid, ddim, x0_fn, start=6, method="frozen", tol=1e-13)
    assert inversion.errors.max() < 1e-11  # six solves to 1e-13, of which the sampler passes some tens on


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("start", [6, 20])
def test_noise_to_image_to_noise_recovers_the_state_the_run_began_with(start, lower_order_final):
    grid, solver, x0_fn = problem(20, lower_order_final)
    began = grid.alpha[start] * IMAGES + grid.sigma[start] * normal(8, 16, seed=4)
    run = grid.until(start)
    trajectory = [x for _, x, _ in sample(began, run, solver(run), x0_fn)]
    inversion = invert(trajectory[-1], grid, solver, x0_fn, start=start, tol=1e-13)
    # The way up amplifies what the way down contracts: seen up to 24 times the tolerance, a hundredfold is allowed.
    difference = inversion.states - torch.stack(trajectory[::-1])
    assert (difference.norm(dim=2) / inversion.states.norm(dim=2)).max() < 1e-11


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "build_grid",
    [
        time_uniform,
        log_snr,
        lambda schedule, steps: discrete(schedule, steps, "leading", "sigma_min", steps_offset=1),
        lambda schedule, steps: discrete(schedule, steps, "trailing", "sigma_min"),
    ],
    ids=["time_uniform", "log_snr", "leading", "trailing"],
)
@pytest.mark.parametrize("method", ["joint", "defect"])
def test_any_solver_on_any_grid_is_inverted(method, build_grid, name):
    grid, solver = build_grid(SCHEDULE, 20), SOLVERS[name]
    x0_fn = DATA.x0_fn(grid)
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, tol=1e-12)
    assert round_trip_errors(inversion.states, grid, solver, x0_fn).max() <= 1e-12


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_any_solver_is_inverted_from_the_noise_end(name, lower_order_final):
    """To float64's default tolerance. With weights of 14 in the last row, ab3 and unip3 are the hard ones."""
    grid, solver = time_uniform(SCHEDULE, 20), functools.partial(SOLVERS[name], lower_order_final=lower_order_final)
    x0_fn = DATA.x0_fn(grid)
    inversion = invert(IMAGES, grid, solver, x0_fn)
    assert round_trip_errors(inversion.states, grid, solver, x0_fn).max() <= 1e-11
    frozen = invert(IMAGES, grid, solver, x0_fn, method="frozen")
    assert (frozen.errors.max() > NO_INVERSE) == (name != "ddim")


@pytest.mark.parametrize("name", SOLVERS)
def test_naive_is_the_same_solver_on_the_reversed_grid(name):
    grid, x0_fn, solver = time_uniform(SCHEDULE, 20), DATA.x0_fn(time_uniform(SCHEDULE, 20)), SOLVERS[name]
    up = grid.until(6).reversed()
    states = [x for _, x, _ in sample(IMAGES, up, solver(up), lambda x, j: x0_fn(x, 6 - j))]
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method="naive")
    assert torch.equal(inversion.states, torch.stack(states))


@pytest.mark.parametrize("lower_order_final", [False, True])
def test_naive_is_2m_written_for_growing_noise(lower_order_final):
    """From its own formulas. A first-order last step downwards is the first upwards, which is first-order anyway."""
    grid, solver, x0_fn = problem(20, lower_order_final)
    x, older, lam = IMAGES, None, grid.lam
    for i in range(1, 7):
        h = lam[i] - lam[i - 1]  # negative: upwards
        data = x0_fn(x, i - 1)
        r = (lam[i - 1] - lam[i - 2]) / h if older is not None else None
        ahead = data if older is None else (1 + 1 / (2 * r)) * data - older / (2 * r)
        x, older = grid.sigma[i] / grid.sigma[i - 1] * x - grid.alpha[i] * torch.expm1(-h) * ahead, data
    states = invert(IMAGES, grid, solver, x0_fn, start=6, method="naive").states
    torch.testing.assert_close(states[6], x, rtol=1e-12, atol=1e-12)  # the same numbers in another order of operations


def test_every_evaluation_is_counted_on_its_image():
    grid, solver, x0_fn = problem()
    spent = 0

    def counting(x, i):
        nonlocal spent
        spent += len(x)
        return x0_fn(x, i)

    for method in INVERSIONS:
        spent = 0
        inversion = invert(IMAGES, grid, solver, counting, start=6, method=method, tol=1e-9)
        assert int(inversion.rows.sum()) == spent
        if method == "naive":
            assert inversion.rows.tolist() == [12] * 8  # six up, six for the measured round trip
        else:
            assert len(set(inversion.rows.tolist())) > 1  # images leave the batch when they are done
    counting.rows_per_state = 2
    assert invert(IMAGES, grid, solver, counting, start=6, method="naive").rows.tolist() == [24] * 8


@pytest.mark.parametrize("method", INVERSIONS)
def test_a_report_is_plain_and_says_what_happened(method):
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, tol=1e-9)
    assert [type(report) for report in inversion.reports] == [InversionReport] * 8
    for report in inversion.reports:
        types = [type(value) for value in vars(report).values()]
        assert types == [str, float, int, int, float, bool, tuple]
        assert (report.method, report.tolerance, report.sweeps) == (method, 1e-9, len(report.residuals))
        assert report.converged == (report.error <= 1e-9) == INVERSIONS[method].exact
    tensors = {"error": inversion.errors, "rows": inversion.rows, "converged": inversion.converged}
    for name, values in tensors.items():
        assert values.tolist() == [getattr(report, name) for report in inversion.reports]
    assert [values.dtype for values in tensors.values()] == [torch.float64, torch.int64, torch.bool]


def test_the_tolerance_is_the_line_between_converged_and_not():
    grid, solver, x0_fn = problem()
    errors = invert(IMAGES, grid, solver, x0_fn, start=6, method="naive").errors
    middle = errors.median().item()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method="naive", tol=middle)
    assert torch.equal(inversion.converged, errors <= middle) and 0 < inversion.converged.sum() < 8


def test_the_calls_of_the_network_name_every_image():
    """Through `data_prediction`: every call of an inversion, sweeps of images that are left among them, says whose rows
    they are, and an image's own row of the context goes with them."""
    grid = time_uniform(SCHEDULE, 20)
    spent, contexts = torch.zeros(8, dtype=torch.int64), torch.arange(8, dtype=torch.float64).view(8, 1, 1)
    largest = 0

    def on_call(rows):
        nonlocal largest
        spent.index_add_(0, rows.images, torch.ones_like(rows.images))
        largest, network.rows = max(largest, len(rows.i)), rows

    def network(x, t, context):
        assert torch.equal(context[:, 0, 0].long(), network.rows.images)
        return 0.1 * torch.sin(x + context[:, 0] + t[:, None] / 500)

    x0_fn = data_prediction(network, grid, "v_prediction", contexts, on_call=on_call, max_batch=5)
    for method in INVERSIONS:
        spent.zero_()
        inversion = invert(IMAGES, grid, dpm_solver_pp_2m, x0_fn, start=6, method=method, tol=1e-9)
        assert torch.equal(spent, inversion.rows)
    assert largest == 5


def test_same_bits_twice_and_a_batch_equals_single_images():
    grid, solver, x0_fn = problem()
    first, second = (invert(IMAGES, grid, solver, x0_fn, start=6).states for _ in range(2))
    assert torch.equal(first, second)
    singles = torch.cat([invert(x0[None], grid, solver, x0_fn, start=6).states for x0 in IMAGES], dim=1)
    # An image's iteration does not see the others; what remains is a solve to 1e-11, amplified upwards by some tens.
    torch.testing.assert_close(singles, first, rtol=0, atol=1e-9)


def test_a_miss_raises_with_the_reports_or_returns_when_told():
    grid, solver, x0_fn = problem()
    with pytest.raises(InversionError, match=r"joint: 0 of 8 images below a round-trip error of 1\.0e-12") as caught:
        invert(IMAGES, grid, solver, x0_fn, start=6, tol=1e-12, max_sweeps=3)
    reports = caught.value.reports
    assert [report.sweeps for report in reports] == [3] * 8
    assert all(not report.converged and report.error > 1e-12 for report in reports)
    worst = max(range(8), key=lambda image: reports[image].error)
    assert f"worst {reports[worst].error:.1e} (image {worst}, {reports[worst].rows} rows)" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reports == reports  # it may have to leave a worker process
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, tol=1e-12, max_sweeps=3, on_failure="return")
    error = round_trip_errors(inversion.states, grid, solver, x0_fn)
    torch.testing.assert_close(inversion.errors, error, rtol=0, atol=1e-14)  # as above: another batch size
    assert error.max() < invert(IMAGES, grid, solver, x0_fn, start=6, method="naive").errors.max()


def test_what_is_not_solved_is_measured_once():
    """One sweep, no mixing worth measuring, no Newton: the naive run, the sweep's one evaluation more, and then the
    round trips of the last iterate and of the naive run, which stands for it if it is the better one."""
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, tol=1e-12, max_sweeps=1, on_failure="return")
    assert inversion.rows.tolist() == [6 + 1 + 6 + 6] * 8


def test_a_tolerance_below_the_arithmetic_is_seen_to_be_so():
    """The solve ends with a report where rounding ends it, in float32 and with a network in half precision."""
    grid, solver, x0_fn = problem()
    x0 = IMAGES.float()
    with pytest.raises(InversionError) as caught:
        invert(x0, grid, solver, x0_fn, start=6, tol=1e-9)
    assert max(report.sweeps for report in caught.value.reports) < 40  # of the 200 allowed; seen: 22
    assert max(report.error for report in caught.value.reports) < 1e-6

    def half_precision(x, i):
        return x0_fn(x, i).half().to(x)

    with pytest.raises(InversionError):
        invert(x0, grid, solver, half_precision, start=6)
    assert invert(x0, grid, solver, half_precision, start=6, tol=3e-3).converged.all()


def test_nothing_worse_than_the_naive_inversion_is_returned():
    """Strong guidance from the noise end up: some images are not solved, and the last iterate may be far off."""
    grid, solver, x0_fn = problem(lower_order_final=True)
    condition = Mixture(DATA.means[:4], DATA.variance)
    text = condition.x0_fn(grid)
    x0 = condition.sample(8, seed=1)

    def of_scale_5(x, i):
        return guided(text(x, i), x0_fn(x, i), 5.0)

    naive = invert(x0, grid, solver, of_scale_5, method="naive")
    inversion = invert(x0, grid, solver, of_scale_5, max_sweeps=40, on_failure="return")
    assert not inversion.converged.all()
    assert max(report.sweeps for report in inversion.reports) == 40  # Newton-GMRES goes to the limit and not past it
    assert (inversion.errors <= naive.errors).all()
    # The error that is reported is that of the states that are returned; seen up to 3, and rounding passed on by 1e4.
    torch.testing.assert_close(
        inversion.errors, round_trip_errors(inversion.states, grid, solver, of_scale_5), rtol=1e-9, atol=1e-9
    )


def test_progress_wraps_the_loop():
    grid, solver, x0_fn = problem()
    for method in INVERSIONS:
        seen = []
        progress = lambda loop, seen=seen: (seen.append(i) or i for i in loop)  # noqa: E731
        invert(IMAGES, grid, solver, x0_fn, start=6, method=method, progress=progress)
        assert len(seen) >= 6 or method == "defect"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"start": 0}, r"start must be an index of 1\.\.20"),
        ({"start": 21}, r"start must be an index of 1\.\.20"),
        ({"method": "exact"}, "method must be one of joint, defect, naive, frozen, got 'exact'"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'return', got 'ignore'"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"max_sweeps": 0}, "max_sweeps 1 or more"),
        ({"x0": IMAGES.half()}, "states must be float32 or float64"),
        ({"x0": torch.zeros(2, 16)}, "all finite and none zero"),
        ({"x0": IMAGES * torch.nan}, "all finite and none zero"),
        ({"solver": lambda grid: ddim(time_uniform(SCHEDULE, 10))}, "has 10 steps, grid .* has 20"),
    ],
)
def test_bad_arguments_are_named_before_the_network_runs(change, message):
    grid = time_uniform(SCHEDULE, 20)
    arguments = {"x0": IMAGES, "grid": grid, "solver": dpm_solver_pp_2m, "x0_fn": None}  # None cannot be called
    arguments |= change
    with pytest.raises(ValueError, match=message):
        invert(**arguments)


def test_a_table_in_the_solvers_place_is_refused():
    grid = time_uniform(SCHEDULE, 20)
    with pytest.raises(TypeError, match=r"got the table dpm_solver_pp_2m on time_uniform\(20\)\. Pass"):
        invert(IMAGES, grid, dpm_solver_pp_2m(grid), None)


def test_a_grid_that_ends_without_noise_cannot_be_inverted():
    grid = discrete(SCHEDULE, 20)
    with pytest.raises(ValueError, match=r"ends at sigma\[0\] = 0: its last step forgets x\[1\]"):
        invert(IMAGES, grid, dpm_solver_pp_2m, None, start=6)


@pytest.mark.parametrize("method", INVERSIONS)
def test_a_network_that_returns_nan_or_another_dtype_is_named(method):
    grid, solver, x0_fn = problem()
    with pytest.raises(FloatingPointError, match="i = 3 is not finite"):
        invert(IMAGES, grid, solver, lambda x, i: nan_at(3, x0_fn(x, i), i), start=6, method=method)
    with pytest.raises(ValueError, match=r"returned torch\.float32"):
        invert(IMAGES, grid, solver, lambda x, i: x0_fn(x, i).float(), start=6, method=method)


def nan_at(bad, data, i):
    rows = torch.as_tensor(i).expand(len(data)) == bad
    return torch.where(rows[:, None], torch.nan, data)
