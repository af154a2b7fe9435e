"""The discrete grids and their runs against diffusers' DPMSolverMultistepScheduler, state by state."""

import pytest
import torch

from solvers import NoiseSchedule, data_prediction, ddim, denoise, discrete, dpm_solver_pp_2m, exponential_ab2

diffusers = pytest.importorskip("diffusers")
# diffusers calls np.array on a tensor, which numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

SPACINGS = ("leading", "trailing", "linspace")
FINALS = ("zero", "sigma_min")
# Our builder, and what diffusers calls the same solver.
SOLVERS = {
    "ddim": (lambda grid, lower_order_final: ddim(grid), dict(solver_order=1)),
    "2m": (dpm_solver_pp_2m, dict(solver_order=2, solver_type="midpoint")),
    "ab2": (exponential_ab2, dict(solver_order=2, solver_type="heun")),
}


def make_scheduler(steps, spacing, final_sigma, **settings):
    scheduler = diffusers.DPMSolverMultistepScheduler(
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
    states = {}
    denoise(x, grid, table, x0_fn, edit=lambda i, x: states.setdefault(i, x))
    return [states[i] for i in range(grid.steps + 1)]


def worst_error(states, expected):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(states, expected, strict=True))


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


@pytest.mark.parametrize("lower_order_final", (False, True))
@pytest.mark.parametrize("prediction_type", ("epsilon", "v_prediction"))
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("final_sigma", FINALS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_states_equal_diffusers(spacing, final_sigma, solver, prediction_type, lower_order_final, x):
    build, settings = SOLVERS[solver]
    context = torch.zeros(1, 1, 1)
    for steps in range(5, 51):
        scheduler = make_scheduler(
            steps,
            spacing,
            final_sigma,
            prediction_type=prediction_type,
            lower_order_final=lower_order_final,
            **settings,
        )
        grid = discrete(schedule_of(scheduler), steps, spacing, final_sigma)
        # diffusers heeds its lower_order_final below 15 steps only; a final sigma of zero is first-order on both sides.
        table = build(grid, lower_order_final=lower_order_final and steps < 15)
        x0_fn = data_prediction(network, grid, prediction_type, context)
        expected = theirs(scheduler, x, lambda x, t: network(x, t, context))
        # Float32 tables in diffusers: h >= 0.05, a difference of logarithms, is off by some 1e-7. Worst seen: 1.4e-6.
        assert worst_error(ours(x, grid, table, x0_fn), expected) < 5e-6, f"{steps} steps"


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
    assert x0_fn.evaluations == 2 * 20 * len(x)
