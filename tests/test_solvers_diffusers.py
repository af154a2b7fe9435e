"""Here the discrete grids and the runs on them are compared with diffusers' schedulers, state by state."""

import pytest
import torch
from relative_error import relative

from solvers import (
    SOLVERS,
    NoiseSchedule,
    data_prediction,
    discrete,
    dpm_solver_pp_2m,
    sample,
)

diffusers = pytest.importorskip("diffusers")
# diffusers calls np.array on a tensor, which numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

SPACINGS = ("leading", "trailing", "linspace")
FINALS = ("zero", "sigma_min")
# What diffusers calls the solvers.
DPM_SOLVERS = {
    "ddim": dict(solver_order=1),
    "dpm_solver_pp_2m": dict(solver_order=2, solver_type="midpoint"),
    "exponential_ab2": dict(solver_order=2, solver_type="heun"),
    "dpm_solver_pp_3m": dict(solver_order=3, solver_type="midpoint"),
}
# Float32 tables in diffusers: h >= 0.05, a difference of logarithms, is off by some 1e-7. Worst seen: 1.4e-6 up to
# order 2, and 3.1e-6 at order 3, which divides by h once more.
BAR = 5e-6
# On both sides of 15 steps, below which diffusers' DPM-Solver heeds its lower_order_final. Slow tests take them all.
STEPS = (5, 14, 15, 20)
ALL_STEPS = range(5, 51)


def make_scheduler(steps, spacing, final_sigma, kind="DPMSolverMultistepScheduler", **settings):
    scheduler = getattr(diffusers, kind)(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing=spacing,
        final_sigmas_type=final_sigma,
        **settings,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def schedule_of(scheduler):
    """From their float32 alphas_cumprod: the rounding of their betas is not what is compared here."""
    return NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)


CONTEXT = torch.zeros(1, 1, 1)


def network(x, t, context):
    """A bounded, smooth stand-in for eps or v, different at every time and for every context."""
    return torch.sin(x + 0.5 * x.roll(1, dims=1) + (t.to(x.dtype) / 500)[:, None] + context[:, 0])


def theirs(scheduler, x, predict):
    """States 0..steps by index of ours: the last one first."""
    states = [x]
    for t in scheduler.timesteps:
        x = scheduler.step(predict(x, t.expand(len(x))), t, x).prev_sample
        states.append(x)
    return states[::-1]


def ours(x, grid, table, x0_fn):
    """States by index."""
    return [x for _, x, _ in sample(x, grid, table, x0_fn)][::-1]


def worst_error(states, expected):
    return max(relative(a, b) for a, b in zip(states, expected, strict=True))


@pytest.fixture
def x():
    return torch.randn(2, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("final_sigma", FINALS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_grids_equal_diffusers_at_every_step_count(spacing, final_sigma):
    for steps in range(5, 51):
        offset = 1 if spacing == "leading" else 0
        scheduler = make_scheduler(steps, spacing, final_sigma, steps_offset=offset)
        grid = discrete(schedule_of(scheduler), steps, spacing, final_sigma, steps_offset=offset)
        assert grid.t.flip(0)[:-1].tolist() == scheduler.timesteps.tolist()
        # They keep sigma / alpha in float32: one rounding is 6e-8.
        torch.testing.assert_close(
            (grid.sigma / grid.alpha).flip(0), scheduler.sigmas.double(), rtol=2e-7, atol=0, msg=f"{steps} steps"
        )


def compare_with_dpm_solver(x, all_steps, spacing, final_sigma, solver, prediction_type, lower_order_final):
    for steps in all_steps:
        scheduler = make_scheduler(
            steps,
            spacing,
            final_sigma,
            prediction_type=prediction_type,
            lower_order_final=lower_order_final,
            **DPM_SOLVERS[solver],
        )
        grid = discrete(schedule_of(scheduler), steps, spacing, final_sigma)
        # diffusers heeds its lower_order_final below 15 steps only; a final sigma of zero is first-order on both sides.
        table = SOLVERS[solver](grid, lower_order_final=lower_order_final and steps < 15)
        x0_fn = data_prediction(network, grid, prediction_type, CONTEXT)
        expected = theirs(scheduler, x, lambda x, t: network(x, t, CONTEXT))
        assert worst_error(ours(x, grid, table, x0_fn), expected) < BAR, f"{steps} steps"


by_solver = pytest.mark.parametrize("solver", DPM_SOLVERS)
by_grid = [pytest.mark.parametrize("spacing", SPACINGS), pytest.mark.parametrize("final_sigma", FINALS)]


@pytest.mark.parametrize("lower_order_final", (False, True))
@by_solver
@by_grid[1]
@by_grid[0]
def test_states_equal_diffusers(spacing, final_sigma, solver, lower_order_final, x):
    compare_with_dpm_solver(x, STEPS, spacing, final_sigma, solver, "epsilon", lower_order_final)


@pytest.mark.slow
@pytest.mark.parametrize("lower_order_final", (False, True))
@pytest.mark.parametrize("prediction_type", ("epsilon", "v_prediction"))
@by_solver
@by_grid[1]
@by_grid[0]
def test_states_equal_diffusers_at_every_step_count(
    spacing, final_sigma, solver, prediction_type, lower_order_final, x
):
    compare_with_dpm_solver(x, ALL_STEPS, spacing, final_sigma, solver, prediction_type, lower_order_final)


def compare_with_unipc(x, all_steps, spacing, final_sigma, lower_order_final):
    for steps in all_steps:
        scheduler = make_scheduler(
            steps,
            spacing,
            final_sigma,
            kind="UniPCMultistepScheduler",
            solver_order=3,
            solver_type="bh2",
            lower_order_final=lower_order_final,
            disable_corrector=list(range(steps)),
        )
        grid = discrete(schedule_of(scheduler), steps, spacing, final_sigma)
        table = SOLVERS["unip3"](grid, lower_order_final=lower_order_final)
        expected = theirs(scheduler, x, lambda x, t: network(x, t, CONTEXT))
        error = worst_error(ours(x, grid, table, data_prediction(network, grid, "epsilon", CONTEXT)), expected)
        assert error < BAR, f"{steps} steps"


# At a final sigma of zero and without lower_order_final diffusers' weights are not finite.
UNIPC_FINALS = (("zero", True), ("sigma_min", True), ("sigma_min", False))


@pytest.mark.parametrize("final_sigma, lower_order_final", UNIPC_FINALS)
@by_grid[0]
def test_states_of_unip3_equal_diffusers_without_corrector(spacing, final_sigma, lower_order_final, x):
    compare_with_unipc(x, STEPS, spacing, final_sigma, lower_order_final)


@pytest.mark.slow
@pytest.mark.parametrize("final_sigma, lower_order_final", UNIPC_FINALS)
@by_grid[0]
def test_states_of_unip3_equal_diffusers_at_every_step_count(spacing, final_sigma, lower_order_final, x):
    compare_with_unipc(x, ALL_STEPS, spacing, final_sigma, lower_order_final)


@pytest.mark.parametrize("prediction_type", ("epsilon", "v_prediction"))
def test_guided_run_equals_the_pipelines_formula(prediction_type, x):
    text, null = torch.full((1, 1, 1), 0.8), torch.full((1, 1, 1), -0.3)

    def pipeline(x, t):
        output_uncond, output_text = network(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([null, null, text, text])
        ).chunk(2)
        return output_uncond + 2.5 * (output_text - output_uncond)

    scheduler = make_scheduler(20, "linspace", "sigma_min", prediction_type=prediction_type)
    grid = discrete(schedule_of(scheduler), 20, "linspace", "sigma_min")
    x0_fn = data_prediction(network, grid, prediction_type, text, null_context=null, scale=2.5)
    # Guidance multiplies the rounding by about its scale; the bound is the unguided one.
    assert worst_error(ours(x, grid, dpm_solver_pp_2m(grid), x0_fn), theirs(scheduler, x, pipeline)) < 5e-6
    assert x0_fn.rows == 2 * 20 * len(x)
