"""This module says how sure a figure is. It is the one home of the level and of the draws of all intervals: those of
`benchmark`, `realism` and `utility`.

A bootstrap draws with replacement what is independent: samples, groups of near-duplicates, or crops with a scan in
common. Its draws are the same every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

LEVEL, RESAMPLES, SEED = 0.95, 10_000, 0
BLOCK = 250  # draws that are computed at once, which bounds the memory


def ends(values: np.ndarray) -> tuple[float, float]:
    """The ends between which LEVEL of the values lie, those that are no number left out. Of resampled figures they are
    the percentile interval (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(values[~np.isnan(values)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def basic(value: float, resampled: np.ndarray) -> tuple[float, float]:
    """The basic interval of a figure that is never below 0: twice its value less the quantiles, and no less than 0.

    A resample makes a distance larger than it is, as it adds noise to noise; this takes that away.
    """
    low, high = ends(resampled)
    return max(0.0, 2 * value - high), max(0.0, 2 * value - low)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of the mean of independent values (n,)."""
    # It draws indices and not weights, as the benchmark's published intervals were drawn.
    chosen = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    return ends(values[chosen].mean(axis=1))


def drawn_groups(count: int) -> np.ndarray:
    """How often each of `count` groups comes in each of RESAMPLES draws of as many, int64 (RESAMPLES, count)."""
    return np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)


def drawn_weights(columns: Sequence[Sequence[Hashable | None]]) -> Iterator[np.ndarray]:
    """How often each of N things counts in each of RESAMPLES draws, in blocks of float64 (BLOCK or fewer, N).

    columns: the groups of the things by one factor, or by several that cross, as objects and backgrounds do. The groups
    of each factor are drawn by themselves, and a thing counts as often as the product says (the pigeonhole bootstrap,
    Owen 2007); a factor whose group is None leaves it alone. Where factors cross, such intervals are wider than LEVEL
    rather than narrower.
    """
    generator, factors = np.random.default_rng(SEED), []
    for column in columns:
        number = {group: index for index, group in enumerate(dict.fromkeys(one for one in column if one is not None))}
        draws = generator.multinomial(len(number), np.full(len(number), 1 / len(number)), RESAMPLES)
        at = [len(number) if group is None else number[group] for group in column]
        factors.append((np.column_stack([draws, np.ones(RESAMPLES)]), at))
    for first in range(0, RESAMPLES, BLOCK):
        yield np.prod([draws[first : first + BLOCK, at] for draws, at in factors], axis=0)


def resampled(figure: Callable[[np.ndarray], np.ndarray], columns: Sequence[Sequence[Hashable | None]]) -> np.ndarray:
    """The figures (RESAMPLES, ...) of all draws. figure: takes weights (n, N) of `drawn_weights` and returns (n, ...),
    not a number where a draw lacks what it needs."""
    with np.errstate(invalid="ignore"):
        return np.concatenate([figure(weights) for weights in drawn_weights(columns)])


def of_components(value: float, components: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The interval of a mean whose variance is a sum of independent parts.

    components: (variance of the mean, degrees of freedom) of each part. The half widths of the parts' own t intervals
    add up as squares do (Howe 1974). With one t of common degrees (Satterthwaite) the interval is too narrow where the
    part of fewest degrees is the largest. Takes scipy, which the extra `utility` brings.
    """
    from scipy.special import stdtrit

    half = math.sqrt(sum(variance * stdtrit(degrees, (1 + LEVEL) / 2) ** 2 for variance, degrees in components))
    return value - half, value + half


def exact_binomial(successes: int, count: int) -> tuple[float, float]:
    """The exact interval of a share at LEVEL (Clopper and Pearson 1934), from so many successes of `count`."""

    def between(share: float, first: int, last: int) -> float:
        """The probability of first to last successes."""
        return sum(math.comb(count, n) * share**n * (1 - share) ** (count - n) for n in range(first, last + 1))

    tail = (1 - LEVEL) / 2
    low = 0.0 if successes == 0 else _root(lambda share: between(share, successes, count) - tail)
    high = 1.0 if successes == count else _root(lambda share: tail - between(share, 0, successes))
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function of a share is 0, to the last bit."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
