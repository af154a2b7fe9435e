"""The bootstrap is tested on cases whose answer is known, and a table on values that have no mean."""

import math
import warnings

import numpy as np
import pytest

from composition.benchmark.table import markdown, paired, summarise, tabulate
from composition.benchmark.variants import Line, Lineup, Variant
from composition.metrics import Networks
from composition.metrics.intervals import bootstrap_interval
from composition.settings import Settings


def binomial_quantile(count: int, share: float, level: float) -> int:
    total = 0.0
    for successes in range(count + 1):
        total += math.comb(count, successes) * share**successes * (1 - share) ** (count - successes)
        if total >= level:
            return successes
    raise AssertionError


@pytest.mark.parametrize(("ones", "count"), [(5, 10), (2, 10), (24, 40)])
def test_interval_of_zeros_and_ones_is_the_binomials(ones, count):
    """The resampled mean of such values is a binomial variable: the interval's ends are its quantiles."""
    low, high = bootstrap_interval(np.repeat([1.0, 0.0], [ones, count - ones]))
    # They agree exactly, because no jump of these distributions is within four standard errors (0.006) of either level.
    assert low == pytest.approx(binomial_quantile(count, ones / count, 0.025) / count)
    assert high == pytest.approx(binomial_quantile(count, ones / count, 0.975) / count)


def test_interval_of_many_normal_values():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    # A quantile of 10,000 resamples is off by some 2.7 % of the standard error of the mean: 1.4 % of `half`.
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_interval_is_the_same_every_time_and_of_one_value_that_value():
    values = np.random.default_rng(0).exponential(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)


def test_values_without_a_mean_are_counted():
    summary = summarise([1.0, math.inf, 3.0, math.nan, math.inf])
    assert summary["mean"] == 2 and (summary["low"], summary["high"]) == (1, 3)
    assert (summary["finite"], summary["infinite"], summary["undefined"]) == (2, 2, 1)
    assert (summary["least"], summary["median"], summary["greatest"]) == (1, 2, 3)
    nothing = dict.fromkeys(("mean", "low", "high", "least", "q05", "median", "q95", "greatest"))
    assert summarise([]) == nothing | {"finite": 0, "infinite": 0, "undefined": 0}
    assert summarise([math.nan]) == nothing | {"finite": 0, "infinite": 0, "undefined": 1}


def test_medians_and_worst_cases_of_a_hundred_and_one():
    values = [*range(101)]
    shuffled = np.random.default_rng(0).permutation(values)
    summary = summarise([*shuffled, math.inf])
    # Of 0..100 the quantile q is 100 q; 0.05 and 0.95 are not exact in binary.
    assert [summary[name] for name in ("least", "q05", "median", "q95", "greatest")] == pytest.approx(
        [0, 5, 50, 95, 100], abs=1e-12
    )


def table_of(psnr: list[float], rows: list[int]) -> dict:
    """A table of one line on one dataset."""
    entries = [
        {"id": f"busi-{n:03d}", "dataset": "busi", "variant": "ours", "rows_inversion": spent, "rows_composition": 1}
        | ({"psnr_fg": value} if psnr else {})
        for n, (value, spent) in enumerate(zip(psnr, rows, strict=True))
    ]
    lineup = Lineup("table", "A table", (Line("ours", Variant("ours", "ours", Settings())),), notes=("A note.",))
    return tabulate(lineup, {"busi": len(psnr)}, entries, Networks())


def test_the_markdown_has_a_block_of_medians_and_its_notes():
    text = markdown(table_of([1.0, 2.0, 9.0], [9, 19, 99]))
    block = text.split("Medians [5 %, 95 %]; of rows the median / 95 % / the greatest:\n\n")[1].splitlines()
    assert block[0] == "|  | PSNR fg (dB) ↑ | rows |"
    # Between the second and the third of three: 2 + 0.9 * 7 and 20 + 0.9 * 80; between the first two: 1 + 0.1.
    assert block[2] == "| ours | 2 [1.1, 8.3] | 20 / 92 / 100 |"
    assert "- A note.\n" in text
    infinite = markdown(table_of([math.inf], [1]))
    assert "| ours | ∞ | 2 / 2 / 2 |" in infinite


def test_differences_are_of_the_samples_that_both_have_and_finite():
    ours = {"busi-000": 3.0, "busi-001": math.inf, "busi-002": 5.0, "busi-004": 1.0}
    theirs = {"busi-000": 1.0, "busi-001": math.inf, "busi-002": math.inf, "busi-003": 9.0, "busi-004": 2.0}
    entries = [
        {"id": sample, "dataset": "busi", "variant": variant, "psnr_bg": value}
        for variant, values in (("ours", ours), ("theirs", theirs))
        for sample, value in values.items()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired("theirs", "busi", entries, ["psnr_bg"])
    assert found["samples"] == 4
    assert found["metrics"]["psnr_bg"]["mean"] == 0.5 and found["metrics"]["psnr_bg"]["finite"] == 2
    assert paired("theirs", "br35h", entries, ["psnr_bg"])["metrics"]["psnr_bg"]["mean"] is None
