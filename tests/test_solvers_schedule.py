"""This module tests the schedule's interpolation and its inverse, and what `solvers` may import."""

import subprocess
import sys

import pytest
import torch
from analytic_models import sd_schedule

from solvers import NoiseSchedule


def test_training_times_are_the_published_numbers():
    schedule = sd_schedule()
    alphas_cumprod = torch.exp(2 * schedule.log_alphas)
    # Stable Diffusion's first and last alphas_cumprod: 1 - 0.00085, and the 0.00466 its users know.
    assert alphas_cumprod[0].item() == pytest.approx(1 - 0.00085, rel=1e-14)
    assert alphas_cumprod[-1].item() == pytest.approx(0.0046600, abs=5e-7)


def test_betas_and_alphas_cumprod_agree():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    from_betas = NoiseSchedule.from_betas(betas)
    from_products = NoiseSchedule.from_alphas_cumprod(torch.cumprod(1 - betas, 0))
    # A product of 1000 factors rounds 1000 times: 1000 * 2.2e-16.
    torch.testing.assert_close(from_betas.log_alphas, from_products.log_alphas, rtol=1e-11, atol=2.3e-13)


def test_log_alpha_is_linear_between_training_times():
    schedule = sd_schedule()
    n = torch.tensor([0, 1, 499, 998])
    exact = schedule.log_alpha((n.double() + 1) / 1000)
    between = schedule.log_alpha((n.double() + 1.25) / 1000)
    expected = 0.75 * schedule.log_alphas[n] + 0.25 * schedule.log_alphas[n + 1]
    # A time rounds by 1e-16, against spacings of 1e-3: 1e-13 of a spacing.
    torch.testing.assert_close(exact, schedule.log_alphas[n], rtol=1e-12, atol=0)
    torch.testing.assert_close(between, expected, rtol=1e-12, atol=0)


def test_time_inverts_lam():
    schedule = sd_schedule()
    t = torch.linspace(0.001, 1, 4001, dtype=torch.float64)
    # log(alpha) is -4e-4 near the clean end and known to 1e-16 / sigma², relative 1e-12 there.
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=1e-10, atol=0)


def test_lam_is_the_half_log_snr():
    schedule = sd_schedule()
    n = torch.arange(1000)
    alphas_cumprod = torch.exp(2 * schedule.log_alphas)
    lam = 0.5 * torch.log(alphas_cumprod / (1 - alphas_cumprod))
    # 1 - alphas_cumprod loses three digits at the clean end; ours does not.
    torch.testing.assert_close(schedule.lam((n.double() + 1) / 1000), lam, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", (0.0, 0.0009, 1.0001, float("nan")))
def test_times_outside_the_training_range_are_refused(t):
    with pytest.raises(ValueError, match=r"continuous time must lie in \[0.001, 1\]"):
        sd_schedule().lam(torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("lam", (-3.0, 4.0, float("nan")))
def test_lam_outside_the_schedule_is_refused(lam):
    with pytest.raises(ValueError, match="lam must lie in"):
        sd_schedule().time(torch.tensor(lam, dtype=torch.float64))


@pytest.mark.parametrize(
    "alphas_cumprod",
    ([0.9, 0.5, 0.0], [0.9, 0.9, 0.1], [1.0, 0.5], [0.9, float("nan")], [0.1, 0.9]),
    ids=("zero terminal snr", "flat", "no noise", "nan", "rising"),
)
def test_schedules_that_do_not_fall_inside_0_1_are_refused(alphas_cumprod):
    with pytest.raises(ValueError, match="must fall strictly, inside"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor(alphas_cumprod))


def test_a_schedule_in_float32_or_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule(torch.tensor([-0.1, -0.2]))
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        NoiseSchedule.from_alphas_cumprod(torch.tensor([[0.9, 0.1]]))


@pytest.mark.slow
def test_solvers_imports_with_torch_and_numpy_alone():
    """Unlike test_layout's check of what `solvers` adds to torch, this one knows of tqdm, which torch loads itself."""
    blocked = "transformers safetensors huggingface_hub diffusers einops PIL tqdm sd21 composition".split()
    # None in sys.modules makes an import of that name fail; torch itself does without them all.
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import solvers"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
