"""Round trips on data whose denoiser is exact, through the sampler as it is, by method, steps, start, table, dtype."""

import pytest
import torch
from analytic_models import Mixture, mixture, sd_schedule

from solvers import (
    InversionError,
    ddim,
    denoise,
    discrete,
    dpm_solver_pp_2m,
    exponential_ab2,
    guided,
    invert,
    log_snr,
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


def round_trip_error(inversion, x0, grid, table, x0_fn):
    """Measured here, not read from the report; the worst image."""
    start = len(inversion.states) - 1
    back = denoise(inversion.states[-1], grid, table, x0_fn, start=start)
    return ((back - x0).norm(dim=1) / x0.norm(dim=1)).double()


def problem(steps=20, lower_order_final=False, build_grid=time_uniform):
    grid = build_grid(SCHEDULE, steps)
    return grid, dpm_solver_pp_2m(grid, lower_order_final), DATA.x0_fn(grid)


def generated(grid, table, x0_fn, dtype=torch.float64):
    noise = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return denoise(noise, grid, table, x0_fn).to(dtype)


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize(
    "steps, start, dtype",
    [(*run, torch.float64) for run in [(10, 6), (10, 10), (20, 6), (20, 20), (50, 6)]]
    # (10, 10) is left out in float32: one image there passes rounding on thirtyfold, and ends at 2.5e-5.
    + [(*run, torch.float32) for run in [(10, 6), (20, 6), (20, 20), (50, 6)]],
)
def test_joint_returns_every_image_to_itself(steps, start, dtype, lower_order_final):
    grid, table, x0_fn = problem(steps, lower_order_final)
    for source, x0 in {"data": IMAGES.to(dtype), "generated": generated(grid, table, x0_fn, dtype)}.items():
        inversion = invert(x0, grid, table, x0_fn, start=start, tol=BAR[dtype])
        error = round_trip_error(inversion, x0, grid, table, x0_fn)
        assert error.max() <= BAR[dtype], f"{source}: worst {error.max():.1e}"
        assert inversion.states.dtype == dtype
        assert inversion.states.shape == (start + 1, *x0.shape)
        assert torch.equal(inversion.states[0], x0)
        # The same sampler from the same state, but image by image: the batch size moves a rounding.
        torch.testing.assert_close(inversion.report.residual, error, rtol=0, atol=BAR[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("steps, start", [(20, 6), (20, 20), (50, 6)])
def test_defect_is_exact_where_it_converges(steps, start, dtype):
    grid, table, x0_fn = problem(steps)
    x0 = IMAGES.to(dtype)
    inversion = invert(x0, grid, table, x0_fn, start=start, method="defect", tol=BAR[dtype])
    assert round_trip_error(inversion, x0, grid, table, x0_fn).max() <= BAR[dtype]


@pytest.mark.parametrize("method", ["naive", "frozen"])
@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("steps, start", [(10, 6), (20, 6), (20, 20), (50, 6)])
def test_naive_and_frozen_are_no_inverses_and_say_so(steps, start, lower_order_final, method):
    grid, table, x0_fn = problem(steps, lower_order_final)
    inversion = invert(IMAGES, grid, table, x0_fn, start=start, method=method, tol=BAR[torch.float64])
    error = round_trip_error(inversion, IMAGES, grid, table, x0_fn)
    assert error.max() > NO_INVERSE
    assert not inversion.report.converged.any()
    # Measured by the same calls; 1e-14 leaves room for another batch size inside a matrix product.
    torch.testing.assert_close(inversion.report.residual, error, rtol=0, atol=1e-14)


def test_frozen_solves_its_own_equations_tightly_and_gains_nothing():
    """Per-step convergence certifies nothing: 1e-13 in every step, 1e-3 in the round trip."""
    grid, table, x0_fn = problem()
    report = invert(IMAGES, grid, table, x0_fn, start=6, method="frozen", tol=1e-13).report
    assert all(sum(residual <= 1e-13 for residual in history) == 6 for history in report.history)  # one per step
    assert report.residual.max() > NO_INVERSE


@pytest.mark.parametrize("lower_order_final", [False, True])
@pytest.mark.parametrize("start", [6, 20])
def test_noise_to_image_to_noise_recovers_the_state_the_run_began_with(start, lower_order_final):
    grid, table, x0_fn = problem(20, lower_order_final)
    noise = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    began = grid.alpha[start] * IMAGES + grid.sigma[start] * noise
    trajectory = []
    denoise(began, grid, table, x0_fn, start=start, edit=lambda i, x: trajectory.append(x) or x)
    inversion = invert(trajectory[-1], grid, table, x0_fn, start=start, tol=1e-13)
    # The way up amplifies what the way down contracts: seen up to 24 times the tolerance, a hundredfold is allowed.
    difference = inversion.states - torch.stack(trajectory[::-1])
    assert (difference.norm(dim=2) / inversion.states.norm(dim=2)).max() < 1e-11


@pytest.mark.parametrize("build_table", [ddim, exponential_ab2])
@pytest.mark.parametrize(
    "build_grid",
    [
        log_snr,
        lambda schedule, steps: discrete(schedule, steps, "leading", "sigma_min", steps_offset=1),
        lambda schedule, steps: discrete(schedule, steps, "trailing", "sigma_min"),
    ],
    ids=["log_snr", "leading", "trailing"],
)
def test_any_table_on_any_grid_is_inverted(build_grid, build_table):
    grid = build_grid(SCHEDULE, 20)
    table, x0_fn = build_table(grid), DATA.x0_fn(grid)
    inversion = invert(IMAGES, grid, table, x0_fn, start=6, tol=1e-12)
    assert round_trip_error(inversion, IMAGES, grid, table, x0_fn).max() <= 1e-12


def test_naive_is_the_solver_run_on_the_reversed_grid():
    """DPM-Solver++(2M) written for growing noise, from its own formulas, against `naive`."""
    grid, table, x0_fn = problem()
    x, older, lam = IMAGES, None, grid.lam
    for i in range(1, 7):
        h = lam[i] - lam[i - 1]  # negative: upwards
        data = x0_fn(x, i - 1)
        r = (lam[i - 1] - lam[i - 2]) / h if older is not None else None
        ahead = data if older is None else (1 + 1 / (2 * r)) * data - older / (2 * r)
        x, older = grid.sigma[i] / grid.sigma[i - 1] * x - grid.alpha[i] * torch.expm1(-h) * ahead, data
    states = invert(IMAGES, grid, table, x0_fn, start=6, method="naive").states
    torch.testing.assert_close(states[6], x, rtol=1e-12, atol=1e-12)  # the same numbers in another order of operations


def test_every_evaluation_is_counted_on_its_image():
    grid, table, x0_fn = problem()
    spent = 0

    def counting(x, i):
        nonlocal spent
        spent += len(x)
        return x0_fn(x, i)

    for method in ("joint", "defect", "naive", "frozen"):
        spent = 0
        report = invert(IMAGES, grid, table, counting, start=6, method=method, tol=1e-9).report
        assert int(report.nfe.sum()) == spent
        if method == "naive":
            assert report.nfe.tolist() == [12] * 8  # six up, six for the measured round trip
        else:
            assert len(set(report.nfe.tolist())) > 1  # images leave the batch when they are done
        assert report.sweeps.tolist() == [len(history) for history in report.history]
    counting.rows_per_state = 2
    assert invert(IMAGES, grid, table, counting, start=6, method="naive").report.nfe.tolist() == [24] * 8


def test_max_batch_bounds_the_rows_of_a_call_and_changes_nothing():
    grid, table, x0_fn = problem()
    largest = 0

    def watched(x, i):
        nonlocal largest
        largest = max(largest, len(x))
        return x0_fn(x, i)

    whole = invert(IMAGES, grid, table, watched, start=6).states
    assert largest == 6 * 8
    largest = 0
    pieces = invert(IMAGES, grid, table, watched, start=6, max_batch=5).states
    assert largest == 5
    # Both end within 1e-11 of the same trajectory in the round trip, some tens of that in the states above.
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-9)


def test_same_bits_twice_and_a_batch_equals_single_images():
    grid, table, x0_fn = problem()
    first, second = (invert(IMAGES, grid, table, x0_fn, start=6).states for _ in range(2))
    assert torch.equal(first, second)
    singles = torch.cat([invert(x0[None], grid, table, x0_fn, start=6).states for x0 in IMAGES], dim=1)
    # An image's iteration does not see the others; what remains is a solve to 1e-11, amplified upwards by some tens.
    torch.testing.assert_close(singles, first, rtol=0, atol=1e-9)


def test_a_miss_raises_with_the_report_or_returns_when_told():
    grid, table, x0_fn = problem()
    with pytest.raises(InversionError, match=r"joint: 0 of 8 images below a round-trip error of 1\.0e-12") as caught:
        invert(IMAGES, grid, table, x0_fn, start=6, tol=1e-12, max_sweeps=3)
    report = caught.value.report
    assert not report.converged.any() and report.sweeps.tolist() == [3] * 8
    assert (report.residual > 1e-12).all()
    inversion = invert(IMAGES, grid, table, x0_fn, start=6, tol=1e-12, max_sweeps=3, on_failure="return")
    error = round_trip_error(inversion, IMAGES, grid, table, x0_fn)
    torch.testing.assert_close(inversion.report.residual, error, rtol=0, atol=1e-14)  # as above: another batch size
    assert error.max() < invert(IMAGES, grid, table, x0_fn, start=6, method="naive").report.residual.max()


def test_a_tolerance_below_the_arithmetic_is_seen_to_be_so():
    """The solve ends with a report where rounding ends it, in float32 and with a network in half precision."""
    grid, table, x0_fn = problem()
    x0 = IMAGES.float()
    with pytest.raises(InversionError) as caught:
        invert(x0, grid, table, x0_fn, start=6, tol=1e-9)
    assert caught.value.report.sweeps.max() < 40  # of the 200 allowed; seen: 22
    assert caught.value.report.residual.max() < 1e-6

    def half_precision(x, i):
        return x0_fn(x, i).half().to(x)

    with pytest.raises(InversionError):
        invert(x0, grid, table, half_precision, start=6)
    assert invert(x0, grid, table, half_precision, start=6, tol=3e-3).report.converged.all()


def test_nothing_worse_than_the_naive_inversion_is_returned():
    """Strong guidance from the noise end up: some images are not solved, and the last iterate may be far off."""
    grid, table, x0_fn = problem(lower_order_final=True)
    condition = Mixture(DATA.means[:4], DATA.variance)
    text = condition.x0_fn(grid)
    x0 = condition.sample(8, seed=1)

    def of_scale_5(x, i):
        return guided(text(x, i), x0_fn(x, i), 5.0)

    naive = invert(x0, grid, table, of_scale_5, method="naive").report.residual
    report = invert(x0, grid, table, of_scale_5, on_failure="return").report
    assert not report.converged.all()
    assert (report.residual <= naive).all()


def test_progress_wraps_the_loop():
    grid, table, x0_fn = problem()
    for method in ("joint", "defect", "naive", "frozen"):
        seen = []
        progress = lambda loop, seen=seen: (seen.append(i) or i for i in loop)  # noqa: E731
        invert(IMAGES, grid, table, x0_fn, start=6, method=method, progress=progress)
        assert len(seen) >= 6 or method == "defect"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"start": 0}, r"start must be an index of 1\.\.20"),
        ({"start": 21}, r"start must be an index of 1\.\.20"),
        ({"method": "exact"}, "method must be one of joint, defect, naive, frozen, got 'exact'"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'return', got 'ignore'"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"max_sweeps": 0}, "max_sweeps and max_batch 1 or more"),
        ({"max_batch": 0}, "max_sweeps and max_batch 1 or more"),
        ({"x0": IMAGES.half()}, "states must be float32 or float64"),
        ({"x0": torch.zeros(2, 16)}, "all finite and none zero"),
        ({"x0": IMAGES * torch.nan}, "all finite and none zero"),
        ({"table": ddim(time_uniform(SCHEDULE, 10))}, "has 10 steps, grid .* has 20"),
    ],
)
def test_bad_arguments_are_named_before_the_network_runs(change, message):
    grid = time_uniform(SCHEDULE, 20)
    arguments = {"x0": IMAGES, "grid": grid, "table": dpm_solver_pp_2m(grid), "x0_fn": None}  # None cannot be called
    arguments |= change
    with pytest.raises(ValueError, match=message):
        invert(**arguments)


def test_a_grid_that_ends_without_noise_cannot_be_inverted():
    grid = discrete(SCHEDULE, 20)
    with pytest.raises(ValueError, match=r"ends at sigma\[0\] = 0: its last step forgets x\[1\]"):
        invert(IMAGES, grid, dpm_solver_pp_2m(grid), None, start=6)


@pytest.mark.parametrize("method", ["joint", "defect", "naive", "frozen"])
def test_a_network_that_returns_nan_or_another_dtype_is_named(method):
    grid, table, x0_fn = problem()
    with pytest.raises(FloatingPointError, match="i = 3 is not finite"):
        invert(IMAGES, grid, table, lambda x, i: nan_at(3, x0_fn(x, i), i), start=6, method=method)
    with pytest.raises(ValueError, match=r"returned torch\.float32"):
        invert(IMAGES, grid, table, lambda x, i: x0_fn(x, i).float(), start=6, method=method)


def nan_at(bad, data, i):
    rows = torch.as_tensor(i).expand(len(data)) == bad
    return torch.where(rows[:, None], torch.nan, data)
