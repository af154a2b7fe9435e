"""This module tests what `invert` reports and counts, what the calls of the network are told, and what `invert`
refuses."""

import pickle
from contextlib import contextmanager

import pytest
import torch
from analytic_models import sd_schedule
from round_trips import IMAGES, problem, round_trip_errors

from solvers import (
    INVERSIONS,
    InversionError,
    InversionMethod,
    InversionReport,
    data_prediction,
    ddim,
    discrete,
    dpm_solver_pp_2m,
    invert,
    sample,
    time_uniform,
)
from solvers.inversions.run import BACKWARD_ROWS

SCHEDULE = sd_schedule()


def rows_of(x):
    """What a state costs: one row, and as a rule two more where a gradient is taken back to it."""
    return 1 + (BACKWARD_ROWS if x.requires_grad else 0)


def test_every_evaluation_is_counted_on_its_image():
    grid, solver, x0_fn = problem()
    spent = 0

    def counting(x, i):
        nonlocal spent
        spent += len(x) * rows_of(x)
        return x0_fn(x, i)

    leaving = set()
    for method in INVERSIONS:
        spent = 0
        inversion = invert(IMAGES, grid, solver, counting, start=6, method=method, tol=1e-9)
        assert int(inversion.rows.sum()) == spent
        if method == "naive-unmeasured":
            assert inversion.rows.tolist() == [6] * 8
        elif method == "naive":
            assert inversion.rows.tolist() == [12] * 8  # six up, six for the measured round trip
        elif len(set(inversion.rows.tolist())) > 1:  # images leave the batch when they are done
            leaving.add(method)
            evaluations = torch.tensor([len(report.residuals) for report in inversion.reports])
            assert torch.equal(inversion.rows.argsort(stable=True), evaluations.argsort(stable=True))
    assert leaving == {"joint", "defect", "frozen", "fixed-point", "fixed-point-anderson", "exact-dpm"}
    counting.rows_per_state = 2
    assert invert(IMAGES, grid, solver, counting, start=6, method="naive").rows.tolist() == [24] * 8


@pytest.mark.parametrize("method", INVERSIONS)
def test_a_report_is_plain_and_says_what_happened(method):
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, tol=1e-9)
    assert [type(report) for report in inversion.reports] == [InversionReport] * 8
    measured = INVERSIONS[method].measured
    for report in inversion.reports:
        types = [type(value) for value in vars(report).values()]
        assert types == [str, float, int, int, *([float, bool] if measured else [type(None)] * 2), tuple]
        sweeps = max(0, len(report.residuals) - 1)  # after the first evaluation, if there is one
        assert (report.method, report.tolerance, report.sweeps) == (method, 1e-9, sweeps)
        if measured:
            assert report.converged == (report.error <= 1e-9) == INVERSIONS[method].exact
    tensors = {"error": inversion.errors, "rows": inversion.rows, "converged": inversion.converged}
    for name, values in tensors.items():
        if measured or name == "rows":
            assert values.tolist() == [getattr(report, name) for report in inversion.reports]
    assert measured or (inversion.errors.isnan().all() and not inversion.converged.any())
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

    @contextmanager
    def on_call(rows):
        nonlocal largest
        largest, network.rows = max(largest, len(rows.i)), rows
        yield

    def network(x, t, context):
        images = network.rows.images
        assert torch.equal(context[:, 0, 0].long(), images)
        spent.index_add_(0, images, torch.full_like(images, rows_of(x)))
        return 0.1 * torch.sin(x + context[:, 0] + t[:, None] / 500)

    x0_fn = data_prediction(network, grid, "v_prediction", contexts, on_call=on_call, max_batch=5)
    for method in INVERSIONS:
        spent.zero_()
        inversion = invert(IMAGES, grid, dpm_solver_pp_2m, x0_fn, start=6, method=method, tol=1e-9)
        assert torch.equal(spent, inversion.rows)
    assert largest == 5


def test_a_miss_raises_with_the_reports_or_returns_when_told():
    grid, solver, x0_fn = problem()
    with pytest.raises(InversionError, match=r"joint: 0 of 8 images below a round-trip error of 1\.0e-12") as caught:
        invert(IMAGES, grid, solver, x0_fn, start=6, tol=1e-12, max_sweeps=1)
    reports = caught.value.reports
    assert [report.sweeps for report in reports] == [1] * 8
    assert all(not report.converged and report.error > 1e-12 for report in reports)
    worst = max(range(8), key=lambda image: reports[image].error)
    assert f"worst {reports[worst].error:.1e} (image {worst}, {reports[worst].rows} rows)" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reports == reports  # it may have to leave a worker process
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, tol=1e-12, max_sweeps=1, on_failure="return")
    error = round_trip_errors(inversion.states, grid, solver, x0_fn)
    torch.testing.assert_close(inversion.errors, error, rtol=0, atol=1e-14)  # as above: another batch size
    assert error.max() < invert(IMAGES, grid, solver, x0_fn, start=6, method="naive").errors.max()


@pytest.mark.parametrize("method", ["joint", "defect"])
@pytest.mark.parametrize("max_sweeps", [0, 1, 3])
def test_the_cap_on_sweeps_bounds_the_rows(method, max_sweeps):
    """Every iterate is measured on the way: up and down once for each of them, and for the naive inversion before."""
    grid, solver, x0_fn = problem()
    limits = {"tol": 1e-15, "max_sweeps": max_sweeps, "on_failure": "return"}
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, **limits)
    assert inversion.rows.tolist() == [12 * (1 + max_sweeps)] * 8
    assert [report.sweeps for report in inversion.reports] == [max_sweeps] * 8
    assert all(report.error == min(report.residuals) for report in inversion.reports)


@pytest.mark.parametrize("method", ["joint", "defect"])
def test_the_naive_inversion_is_accepted_where_it_meets_the_tolerance(method):
    """Its state x[start] and the price of measuring it; the images that miss go on."""
    grid, solver, x0_fn = problem()
    naive = invert(IMAGES, grid, solver, x0_fn, start=6, method="naive")
    middle = naive.errors.median().item()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, tol=middle)
    accepted = naive.errors <= middle
    assert 0 < accepted.sum() < 8 and inversion.converged.all()
    assert (inversion.rows == 12)[accepted].all() and (inversion.rows > 12)[~accepted].all()
    assert torch.equal(inversion.states[6][accepted], naive.states[6][accepted])
    assert [report.sweeps == 0 for report in inversion.reports] == accepted.tolist()


@pytest.mark.parametrize("method", ["joint", "defect"])
def test_the_states_are_a_run_of_the_sampler_that_ends_as_far_off_as_reported(method):
    grid, solver, x0_fn = problem()
    inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, tol=1e-3)
    run = grid.until(6)
    states = torch.stack([x for _, x, _ in sample(inversion.states[6], run, solver(run), x0_fn)][::-1])
    # The same sampler from the same states; an image that left the batch was run with fewer others.
    torch.testing.assert_close(inversion.states[1:], states[1:], rtol=1e-12, atol=1e-12)
    errors = (states[0] - IMAGES).norm(dim=1) / IMAGES.norm(dim=1)
    torch.testing.assert_close(inversion.errors, errors, rtol=0, atol=1e-12)


def test_the_unmeasured_naive_inversion_is_the_naive_one_and_says_that_it_is_unmeasured():
    grid, solver, x0_fn = problem()
    naive, unmeasured = (
        invert(IMAGES, grid, solver, x0_fn, start=6, method=method) for method in ("naive", "naive-unmeasured")
    )
    assert torch.equal(naive.states, unmeasured.states)
    assert all((report.error, report.converged) == (None, None) for report in unmeasured.reports)
    assert unmeasured.rows.tolist() == [6] * 8


def test_an_exact_method_is_measured():
    with pytest.raises(ValueError, match="an exact method promises a tolerance, so its error has to be measured"):
        InversionMethod(INVERSIONS["naive"].solve, exact=True, measured=False)


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


def test_progress_wraps_the_loop_and_says_what_is_counted():
    grid, solver, x0_fn = problem()
    for method in INVERSIONS:
        seen = []
        counts = "sweep" if INVERSIONS[method].exact else "step"

        def progress(loop, counted, seen=seen, counts=counts):
            assert counted == counts
            return (seen.append(i) or i for i in loop)

        inversion = invert(IMAGES, grid, solver, x0_fn, start=6, method=method, progress=progress)
        # The six steps of a run; or the sweeps of the image that takes most, and the turn that finds no image left.
        sweeps = max(report.sweeps for report in inversion.reports)
        assert len(seen) == (sweeps + 1 if counts == "sweep" else 6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"start": 0}, r"start must be an index of 1\.\.20"),
        ({"start": 21}, r"start must be an index of 1\.\.20"),
        ({"method": "exact"}, f"method must be one of {', '.join(INVERSIONS)}, got 'exact'"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'return', got 'ignore'"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"max_sweeps": -1}, "max_sweeps 0 or more"),
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
