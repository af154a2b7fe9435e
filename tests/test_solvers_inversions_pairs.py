"""This module tests the inversions that invert a sampler of their own: EDICT, BDIA and O-BELM with their pairs, and
DDPM with its noises. Each gives the image back with all that it keeps, and does not from one state."""

import functools

import pytest
import torch
from analytic_models import anisotropic_gaussian, mixture, normal, sd_schedule
from measured_orders import uneven
from relative_error import relative_by_image
from round_trips import smooth_latents
from small_models import small_unet

from solvers import (
    INVERSIONS,
    InversionMethod,
    data_prediction,
    ddim,
    denoise,
    discrete,
    dpm_solver_pp_2m,
    invert,
    log_snr,
    sample,
    time_uniform,
)
from solvers.inversions.bdia import bdia_denoise, bdia_from_one_state, solve_bdia
from solvers.inversions.belm import belm_denoise
from solvers.inversions.ddpm import ddpm_coefficients, ddpm_denoise
from solvers.inversions.edict import edict_denoise, edict_from_one_state, solve_edict

SCHEDULE = sd_schedule()
GRID = time_uniform(SCHEDULE, 20)
DATA = mixture()
IMAGES = DATA.sample(8, seed=1)
X0_FN = DATA.x0_fn(GRID)
# The samplers that algebra inverts: their inversions keep more than one state.
OWN = [name for name, method in INVERSIONS.items() if method.sampler and method.sampler.from_one_state]
TWO_STEP = ["bdia", "belm"]


def worst(x, expected):
    return relative_by_image(x, expected).max().item()


@functools.cache
def unet(dtype):
    return small_unet().to(dtype).eval()


def problem(of, dtype):
    """Images, and the x0_fn of their run: the mixture's, or the random UNet's with v prediction, guided or not."""
    if of == "mixture":
        return IMAGES.to(dtype), X0_FN
    context, null_context = normal(2, 1, 1, 48, seed=9).to(dtype)
    scale = {"unet": 1.0, "guided unet": 2.5}[of]
    how = {"null_context": null_context, "scale": scale}
    return smooth_latents(2, (4, 8, 8), dtype), data_prediction(unet(dtype), GRID, "v_prediction", context, **how)


# What is kept returns the image to a few hundred roundings at most: O-BELM divides by (p/q)² on the way up, some 600
# over the grid, and EDICT by p² at every step. Seen: 1e-14 and 5e-6, both guided and from the noise end.
BARS = {torch.float64: 1e-12, torch.float32: 1e-4}


@pytest.mark.parametrize(
    "of, start, dtype",
    [
        *(("mixture", start, dtype) for start in (1, 2, 6, 20) for dtype in BARS),
        *((of, start, torch.float64) for of in ("unet", "guided unet") for start in (2, 6)),
        *(pytest.param(of, 20, dtype, marks=pytest.mark.slow) for of in ("unet", "guided unet") for dtype in BARS),
    ],
)
@pytest.mark.parametrize("method", OWN)
def test_all_that_is_kept_gives_the_image_back_and_one_state_does_not(method, of, start, dtype):
    x0, x0_fn = problem(of, dtype)
    run, sampler = GRID.until(start), INVERSIONS[method].sampler
    inversion = invert(x0, GRID, dpm_solver_pp_2m, x0_fn, start=start, method=method)
    back = sampler.denoise(inversion.kept, run, x0_fn)
    assert back.dtype == dtype and worst(back, x0) < BARS[dtype]
    # Ten times the float32 bar at the least, and a billion times the float64 one: the rest was the information.
    assert worst(sampler.from_one_state(inversion.states[-1], run, x0_fn), x0) > 1e-3
    assert torch.equal(inversion.states[0], x0) and inversion.errors.min() > 1e-3  # nor does the run's own table


@pytest.mark.parametrize("method, keeps", [("edict", 2), ("bdia", 2), ("belm", 2), ("ddpm", 7)])
def test_what_is_kept_and_what_it_costs(method, keeps):
    """A pair, or the state and the noises of six steps; `start` evaluations each way, and twice that for EDICT."""
    calls = []

    def counted(x, i):
        calls.append(i)
        return X0_FN(x, i)

    inversion = invert(IMAGES, GRID, dpm_solver_pp_2m, counted, start=6, method=method)
    assert sum(each.numel() for each in inversion.kept) == keeps * IMAGES.numel()
    up = {"edict": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6], "ddpm": [6, 5, 4, 3, 2, 1]}.get(method, [0, 1, 2, 3, 4, 5])
    assert calls == [*up, 6, 5, 4, 3, 2, 1]  # and the measurement through 2M
    assert inversion.rows.tolist() == [len(calls)] * 8
    down = {"edict": up[::-1], "ddpm": up}.get(method, [5, 4, 3, 2, 1])
    calls.clear()
    INVERSIONS[method].sampler.denoise(inversion.kept, GRID.until(6), counted)
    assert calls == down
    calls.clear()
    INVERSIONS[method].sampler.from_one_state(inversion.states[-1], GRID.until(6), counted)
    assert calls == (down if method in ("edict", "ddpm") else [6, *down])


def noise_of(x, i):
    return (x - GRID.alpha[i] * X0_FN(x, i)) / GRID.sigma[i]


def ddim_step(x, eps, i, to):
    """DDIM as its paper writes it: x0 from eps, and eps at the other time."""
    x0 = (x - GRID.sigma[i] * eps) / GRID.alpha[i]
    return GRID.alpha[to] * x0 + GRID.sigma[to] * eps


@pytest.mark.parametrize("method", TWO_STEP)
def test_the_states_obey_the_papers_rule(method):
    """The first step up is DDIM's, evaluated at t[0]. The papers write the rules in eps, and O-BELM's in y and s."""
    x = invert(IMAGES, GRID, ddim, X0_FN, method=method).states
    torch.testing.assert_close(x[1], ddim_step(x[0], noise_of(x[0], 0), 0, 1), rtol=1e-12, atol=1e-12)
    for i in range(1, 20):
        eps = noise_of(x[i], i)
        if method == "bdia":
            down, up = ddim_step(x[i], eps, i, i - 1), ddim_step(x[i], eps, i, i + 1)
            below = down + 0.94 * (x[i + 1] - up)
        else:
            y, s = x / GRID.alpha[:, None, None], GRID.sigma / GRID.alpha
            h, above = s[i] - s[i - 1], s[i + 1] - s[i]
            below = h**2 / above**2 * y[i + 1] + (above**2 - h**2) / above**2 * y[i] - h * (h + above) / above * eps
            below = GRID.alpha[i - 1] * below
        # The same float64 sums in another order.
        torch.testing.assert_close(x[i - 1], below, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", TWO_STEP)
def test_one_state_begins_with_a_ddim_step(method):
    sampler, run = INVERSIONS[method].sampler, GRID.until(6)
    noise = normal(8, 16, seed=1)
    (_, _, _), (_, lower, _), *_ = sample(noise, run, ddim(run), X0_FN)
    assert torch.equal(sampler.from_one_state(noise, run, X0_FN), sampler.denoise((lower, noise), run, X0_FN))


def test_bdia_without_its_correction_is_ddim_and_has_no_inverse():
    noise = normal(8, 16, seed=1)
    expected = denoise(noise, GRID, ddim(GRID), X0_FN)
    torch.testing.assert_close(bdia_from_one_state(noise, GRID, X0_FN, gamma=0.0), expected, rtol=1e-12, atol=1e-12)
    assert worst(bdia_from_one_state(noise, GRID, X0_FN), expected) > 0.01
    with pytest.raises(ValueError, match="gamma = 0 is DDIM, which algebra does not invert"):
        solve_bdia(None, 0, 0, gamma=0)
    for gamma in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma must be a number from 0 to 1"):
            bdia_from_one_state(noise, GRID, X0_FN, gamma=gamma)


def test_edict_is_its_four_lines():
    """Two steps down from what is kept: x first in the first of them, y first in the second. Both end as the image."""
    x, y = invert(IMAGES, GRID, ddim, X0_FN, start=2, method="edict").kept
    for i in (2, 1):
        a = GRID.alpha[i - 1] / GRID.alpha[i]
        c = GRID.sigma[i - 1] - a * GRID.sigma[i]
        if i == 2:
            x = a * x + c * noise_of(y, i)
            y = a * y + c * noise_of(x, i)
        else:
            y = a * y + c * noise_of(x, i)
            x = a * x + c * noise_of(y, i)
        x = 0.93 * x + 0.07 * y
        y = 0.93 * y + 0.07 * x
    assert worst(x, IMAGES) < 1e-12 and worst(y, IMAGES) < 1e-12  # as above


@pytest.mark.parametrize("p", [0.93, 0.5, 1.0])
def test_edict_is_ddim_where_the_two_states_have_the_same_noise(p):
    """So is every step of it where eps does not depend on the state, and with p = 1 the first step of x."""
    noise = normal(8, 16, seed=1)

    def fixed(x, i):
        return (x - GRID.sigma[i] * torch.sin(GRID.t[i])) / GRID.alpha[i]

    expected = denoise(noise, GRID, ddim(GRID), fixed)
    # To rounding that the division by alpha = 0.07 enlarges at every step.
    torch.testing.assert_close(edict_from_one_state(noise, GRID, fixed, p), expected, rtol=1e-11, atol=1e-11)
    run = GRID.until(1)
    one_step = worst(edict_from_one_state(noise, run, X0_FN, p), denoise(noise, run, ddim(run), X0_FN))
    assert one_step < 1e-12 if p == 1 else one_step > 1e-3


def test_edict_refuses_a_p_that_mixes_nothing_or_cannot_be_undone():
    for p in (0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="p, the part of a state that the mixing keeps, must be above 0"):
            edict_from_one_state(IMAGES, GRID, None, p)
        with pytest.raises(ValueError, match="p, the part of a state"):
            solve_edict(None, 0, 0, p=p)


@pytest.mark.parametrize(
    "sampler, grids, order",
    [
        (belm_denoise, log_snr, 2),
        (belm_denoise, lambda _, steps: uneven(steps), 2),
        (functools.partial(bdia_denoise, gamma=1.0), log_snr, 2),
        (functools.partial(bdia_denoise, gamma=1.0), lambda _, steps: uneven(steps), 1),
        (functools.partial(bdia_denoise, gamma=0.5), log_snr, 1),
        (lambda pair, grid, x0_fn: edict_from_one_state(pair[1], grid, x0_fn), log_snr, 1),
    ],
)
def test_order_on_data_with_a_known_solution(sampler, grids, order):
    """From the exact pair, so that the DDIM step that begins a run from one state is not what is measured. BDIA with
    gamma = 1 is of second order on steps that are even in lam, and on no others."""
    data, errors = anisotropic_gaussian(), []
    noise = normal(16, 4, seed=0)
    for steps in (80, 160, 320, 640):
        grid = grids(SCHEDULE, steps)
        pair = (data.solution(noise, grid, steps, steps - 1), noise)
        exact = data.solution(noise, grid, steps, 0)
        errors.append(worst(sampler(pair, grid, data.x0_fn(grid)), exact))
    orders = (torch.tensor(errors[:-1]) / torch.tensor(errors[1:])).log2()
    assert (orders - order).abs().max() < 0.1, orders


@pytest.mark.parametrize("grid", [GRID, log_snr(SCHEDULE, 7), uneven(10)], ids=lambda grid: grid.name)
def test_ddpm_has_the_marginals_of_the_noising(grid):
    """From x[i] ~ N(alpha[i] x0, sigma[i]²) and the data prediction x0, a step leads to N(alpha[i-1] x0, sigma[i-1]²).
    The noise has the variance of q(x[i-1] | x[i], x0), the paper's (1 - abar') / (1 - abar) (1 - abar / abar')."""
    alpha, sigma = grid.alpha.tolist(), grid.sigma.tolist()
    for i in range(1, grid.steps + 1):
        a, b, spread = ddpm_coefficients(grid, i)
        assert a * alpha[i] + b == pytest.approx(alpha[i - 1], rel=1e-12)
        assert a**2 * sigma[i] ** 2 + spread**2 == pytest.approx(sigma[i - 1] ** 2, rel=1e-12)
        variance = (sigma[i - 1] / sigma[i]) ** 2 * (1 - (alpha[i] / alpha[i - 1]) ** 2)
        assert spread**2 == pytest.approx(variance, rel=1e-10)  # 1 - alpha²/alpha'² loses three digits


def test_the_edit_friendly_noises_are_larger_than_white_and_anticorrelated():
    """Where D is the image itself, z[i] is (sigma[i-1] noise[i-1] - a[i] sigma[i] noise[i]) / spread[i]: of variance
    coth(h[i]), and z[i] and z[i+1] share noise[i] with opposite signs. DDPM's own have variance 1 and share none.
    """
    x0 = normal(1, 20_000, seed=2)
    inversion = invert(x0, GRID, ddim, lambda x, i: x0.expand_as(x), start=8, method="ddpm")
    z = inversion.kept[1][0]
    coth = 1 / torch.tanh(-GRID.lam[:9].diff())
    # The relative spread of a variance is sqrt(2 / 20000) = 0.01; z[1] holds the noise of x[1] alone, as x[0] is exact.
    torch.testing.assert_close(z[1:].var(dim=1), coth[1:], rtol=0.05, atol=0)
    for i in range(1, 8):
        assert torch.corrcoef(z[i - 1 : i + 1])[0, 1] < -0.1  # ten times the spread of a correlation, 1 / sqrt(20000)


def test_ddpms_states_are_drawn_alike_for_every_image_batch_start_and_dtype():
    inversion = invert(IMAGES, GRID, ddim, X0_FN, method="ddpm")
    alpha, sigma = GRID.alpha[1:, None, None], GRID.sigma[1:, None, None]
    noise = (inversion.states[1:] - alpha * IMAGES) / sigma
    assert (noise - noise[:, :1]).abs().max() < 1e-12
    assert noise[:, 0].mean().abs() < 0.2 and 0.8 < noise[:, 0].std() < 1.2  # 320 numbers of N(0, 1)
    assert torch.corrcoef(noise[:, 0]).triu(1).abs().max() < 0.95  # no two states share theirs
    alone = invert(IMAGES[3:4], GRID, ddim, X0_FN, start=6, method="ddpm")
    # Rounding of another batch size, which spread[i] divides.
    torch.testing.assert_close(alone.states, inversion.states[:7, 3:4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone.kept[1][0], inversion.kept[1][3, :6], rtol=1e-10, atol=1e-10)
    single = invert(IMAGES.float(), GRID, ddim, X0_FN, method="ddpm")
    torch.testing.assert_close(single.states.double(), inversion.states, rtol=1e-6, atol=1e-6)  # float32's rounding
    assert torch.equal(invert(IMAGES, GRID, ddim, X0_FN, method="ddpm").states, inversion.states)


def test_ddpms_sampler_passes_the_states_that_were_extracted_to_the_bit():
    """Each noise is taken from the state that the sampler reaches, and not from the one that was drawn."""
    inversion = invert(IMAGES, GRID, ddim, X0_FN, start=6, method="ddpm")
    noises = inversion.kept[1]
    ends = [ddpm_denoise((inversion.states[i], noises[:, :i]), GRID.until(i), X0_FN) for i in range(1, 7)]
    assert all(torch.equal(end, ends[-1]) for end in ends)


def test_ddpm_from_one_state_draws_other_noises_and_the_same_again():
    sampler = INVERSIONS["ddpm"].sampler
    inversion = invert(IMAGES, GRID, ddim, X0_FN, start=6, method="ddpm")
    x, run = inversion.states[-1], GRID.until(6)
    first, again = (sampler.from_one_state(x, run, X0_FN) for _ in range(2))
    drawn = invert(torch.ones_like(IMAGES), GRID, ddim, lambda x, i: torch.ones_like(x), start=6, method="ddpm")
    noise = (drawn.states[1:] - GRID.alpha[1:7, None, None]) / GRID.sigma[1:7, None, None]
    assert torch.equal(first, again)
    # It is not the noise of the states that is drawn again.
    assert worst(ddpm_denoise((x, noise.transpose(0, 1)), run, X0_FN), first) > 0.01


def test_only_what_follows_a_run_is_a_trajectory():
    assert [name for name, method in INVERSIONS.items() if not method.trajectory] == ["ddpm"]


@pytest.mark.parametrize("denoise_kept", [edict_denoise, bdia_denoise, belm_denoise])
def test_bad_pairs_are_named(denoise_kept):
    x = IMAGES
    for pair in (x, (x,), (x, x, x), (x, None), None):
        with pytest.raises(TypeError, match="expected the two states that the inversion kept"):
            denoise_kept(pair, GRID, None)
    for other in (x.float(), x[:2]):
        with pytest.raises(ValueError, match="two states of a pair must agree, got torch"):
            denoise_kept((x, other), GRID, None)
    with pytest.raises(ValueError, match="states must be float32 or float64"):
        denoise_kept((x.half(), x.half()), GRID, None)


def test_bad_noises_are_named():
    x, noises = IMAGES, torch.zeros(8, 6, 16, dtype=torch.float64)
    for kept in (x, (x,), (x, None)):
        with pytest.raises(TypeError, match="expected the state and the noises that the inversion kept"):
            ddpm_denoise(kept, GRID, None)
    for bad in (noises[:, :5], noises.float(), noises[:2]):
        with pytest.raises(ValueError, match=r"at index 6 goes with noises \(8, 6, 16\) of its dtype"):
            ddpm_denoise((x, bad), GRID.until(6), None)


@pytest.mark.parametrize("method", OWN)
def test_a_grid_that_ends_without_noise_is_refused(method):
    sampler, grid = INVERSIONS[method].sampler, discrete(SCHEDULE, 20)
    noises = torch.zeros(8, 20, 16, dtype=torch.float64)
    for call in (
        lambda: sampler.denoise((IMAGES, noises if method == "ddpm" else IMAGES), grid, None),
        lambda: sampler.from_one_state(IMAGES, grid, None),
    ):
        with pytest.raises(ValueError, match=r"ends at sigma\[0\] = 0, from where no step leads up"):
            call()


def test_another_gamma_or_p_is_a_partial_away(monkeypatch):
    for name, solve, backwards in (
        ("bdia1", functools.partial(solve_bdia, gamma=1.0), functools.partial(bdia_denoise, gamma=1.0)),
        ("edict1", functools.partial(solve_edict, p=1.0), functools.partial(edict_denoise, p=1.0)),
    ):
        monkeypatch.setitem(INVERSIONS, name, InversionMethod(solve, exact=False))
        inversion = invert(IMAGES, GRID, ddim, X0_FN, start=6, method=name)
        assert worst(backwards(inversion.kept, GRID.until(6), X0_FN), IMAGES) < 1e-12  # as above
        standard = INVERSIONS[name[:-1]].sampler
        assert worst(standard.denoise(inversion.kept, GRID.until(6), X0_FN), IMAGES) > 1e-3
