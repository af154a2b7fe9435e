"""This module says how sure a figure is: bootstrap intervals over groups of crops that have a scan in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

LEVEL, RESAMPLES, SEED = 0.95, 1000, 0


def bootstrap(figure: Callable[[np.ndarray], np.ndarray], groups: int) -> np.ndarray:
    """The figures of RESAMPLES draws of as many groups with replacement (Efron 1979), stacked; the same every time.

    figure: takes how often each group was drawn, float64 (groups,).
    """
    generator = np.random.default_rng(SEED)
    draws = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return np.stack([figure(draw.astype(np.float64)) for draw in draws])


def interval(value: float, resampled: np.ndarray, *, distance: bool = False) -> dict[str, float]:
    """A figure with its interval at LEVEL.

    distance: the figure is never below 0, and a resample makes it larger than it is, as it adds noise to noise. The
    interval is then the basic one, twice the value less the quantiles, which takes that away, and ends at 0.
    """
    low, high = np.quantile(resampled[np.isfinite(resampled)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if distance:
        low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
    return {"value": float(value), "low": float(low), "high": float(high)}


def range_of(values: Sequence[float]) -> dict[str, float]:
    """The mean of a figure over many draws of the data, and the ends between which LEVEL of them lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high)}
