"""These tests run the code of the solvers' README as it stands, and check what the README says about it."""

import re
from pathlib import Path

import pytest
import torch
from analytic_models import normal, sd_schedule
from measured_orders import uneven
from relative_error import relative_by_image

from solvers import exponential_ab2, log_snr

README = (Path(__file__).parent.parent / "solvers" / "README.md").read_text(encoding="utf-8")
*USE, NEW_SOLVER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_shown_code_runs_and_agrees_with_itself():
    shown = {
        "alphas_cumprod": torch.exp(2 * sd_schedule().log_alphas),
        "network": lambda x, t, context: torch.tanh(x + context[:, 0]) + 0.1 * torch.sin(t[:, None] / 100),
        "x": normal(2, 4, seed=0),
        "context": normal(1, 1, 4, seed=1),
        "null_context": normal(1, 1, 4, seed=2),
    }
    results = []
    for block in USE:
        exec(block, shown)
        results.append(shown["x0"])
    whole, yielded, restarted, continued, inverted, own = results
    assert torch.equal(whole, yielded) and torch.equal(shown["states"][0], whole)
    assert not torch.allclose(restarted, whole, rtol=1e-4)  # its first step is first-order
    # The history is solved for from the states, which costs some roundings; seen: 1e-15.
    torch.testing.assert_close(continued, whole, rtol=1e-12, atol=1e-12)
    # float64's default tolerance, of |x0|; an own sampler gives the image back to rounding, with all that it keeps.
    assert relative_by_image(shown["x0_again"], inverted).max() <= 1e-11
    assert torch.equal(own, inverted)
    assert relative_by_image(shown["x0_own"], own).max() <= 1e-12
    assert relative_by_image(shown["x0_misses"], own).max() > 1e-4


def test_the_new_solver_is_ab2_and_has_the_order_it_shows():
    shown = {}
    exec(NEW_SOLVER, shown)
    torch.testing.assert_close(shown["orders"], torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=0.1)
    for grid in (uneven(20), uneven(20).reversed(), log_snr(sd_schedule(), 1)):
        mine, ours = shown["my_ab2"](grid), exponential_ab2(grid)
        for i in range(1, grid.steps + 1):
            assert mine.row(i)[0] == pytest.approx(ours.row(i)[0], rel=1e-12)
            assert mine.row(i)[1] == pytest.approx(ours.row(i)[1], rel=1e-12)
