"""These tests check that numbers which are not finite end in one clear error, in every method and every inversion, and
never in a picture."""

import numpy as np
import pytest
import torch
from drawn_samples import run, sample
from fake_model import FakeModel

from composition import METHODS, Settings
from composition.canvas import latents_of, reproduce
from composition.methods import Frame
from solvers import INVERSIONS, InversionError, NoiseSchedule, dpm_solver_pp_2m, invert, time_uniform

QUICK = Settings(steps=4, start=2, preserve_background_until=1, max_sweeps=4)
WITH_A_NETWORK = [name for name in METHODS if name not in ("copy-paste", "tf-icon")]  # the double has no attention


class Overflowing(FakeModel):
    """A model of which one part gives `value` in one place, as half precision does. part: encode, decode or unet."""

    dtype = torch.float16

    def __init__(self, part: str, value: float):
        super().__init__()
        sound = getattr(self, part)

        def overflows(*arguments):
            values = sound(*arguments).clone()
            values.view(-1)[0] = value
            return values

        setattr(self, part, overflows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", WITH_A_NETWORK)
@pytest.mark.parametrize(
    ("part", "stages"), [("encode", ["encode"]), ("unet", ["inversion", "composition"]), ("decode", ["decode"])]
)
def test_every_method_names_the_stage_and_the_dtype(method, part, stages, value):
    with pytest.raises(
        FloatingPointError, match=rf"^({'|'.join(stages)}), the network in float16: .* not finite.*float32"
    ):
        run(Overflowing(part, value), sample(), QUICK, method=method)


def test_pasting_takes_no_network():
    assert run(Overflowing("decode", np.nan), sample(), QUICK, method="copy-paste").image.any()


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_what_has_no_frame_says_it_too(part):
    model, scan = Overflowing(part, np.nan), sample().background
    with pytest.raises(FloatingPointError, match=r"not finite \(nan or inf\), in float32"):
        latents_of(model, scan) if part == "encode" else reproduce(model, scan.values())


def test_a_method_of_somebodys_own_is_told_its_stage():
    def mine(frame: Frame):
        with frame.stage("mine"):
            raise FloatingPointError("overflow")

    with pytest.raises(FloatingPointError, match=r"^mine, the network in float32: overflow$"):
        run(FakeModel(), sample(), QUICK, method=mine)


def prediction(kind: str, value: float, at: int):
    """An x0_fn that spoils its call number `at`, or one that is so wild that iterates leave what a dtype holds."""
    calls = []

    def x0_fn(x: torch.Tensor, i) -> torch.Tensor:
        calls.append(i)
        if kind == "wild":
            return torch.sin(x * value) * value
        x0 = 0.5 * x
        if len(calls) == at:
            x0 = x0 * value if kind == "all" else x0.index_fill(0, torch.tensor([0]), value)
        return x0

    return x0_fn


@pytest.mark.parametrize("method", INVERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [1.0, 1e30, 3e38])
def test_an_inversion_gives_finite_states_or_one_error(method, dtype, magnitude):
    """Never an assertion of the least squares, of which a library would tell."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    grid = time_uniform(NoiseSchedule.from_alphas_cumprod((1 - betas).cumprod(0)), 20).until(6)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 1, 2, 2, generator=generator, dtype=dtype) * magnitude
    outcomes = []
    for kind in ("one", "all", "wild"):
        for value in (np.nan, np.inf, 1e38, 1e20):
            for at in (1, 6, 7, 13, 20, 40):
                try:
                    found = invert(
                        x0, grid, dpm_solver_pp_2m, prediction(kind, value, at), method=method, max_sweeps=30
                    )
                except (FloatingPointError, InversionError) as error:
                    assert str(error)
                    outcomes.append(type(error))
                else:
                    assert torch.isfinite(found.states).all()
                    outcomes.append(None)
    assert FloatingPointError in outcomes
