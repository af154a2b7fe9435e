"""The maximum mean discrepancy (Gretton et al., JMLR 2012) between real and composed crops, in the features of the
shift-tolerant network of the metrics: 0 where the two are the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..datasets.grouping import components
from ..metrics.lpips import LPIPS
from .crops import Crop
from .groups import Contest

PERMUTATIONS, SEED = 1000, 0


def features_of(crops: Sequence[Crop], network: LPIPS) -> np.ndarray:
    """The means over the crop of the network's five maps, one after the other: float64 (N, 1152)."""
    found = []
    for crop in crops:
        image = torch.from_numpy(crop.pixels).float().expand(1, 3, -1, -1) / 127.5 - 1
        found.append(torch.cat([part.mean(dim=(2, 3))[0] for part in network.features(image)]))
    return torch.stack(found).double().numpy()


def kernel(features: np.ndarray) -> np.ndarray:
    """exp(-d^2 / (2 m^2)) of all pairs of features (N, D), where d is their distance and m its median."""
    square = (features**2).sum(axis=1)
    distances = np.maximum(square[:, None] + square - 2 * features @ features.T, 0)
    median = np.median(distances[~np.eye(len(features), dtype=bool)])
    return np.exp(-distances / (2 * max(median, 1e-300)))


def mmd(kernel: np.ndarray, labels: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
    """The unbiased estimates of MMD squared, which may be below 0, float64 (...).

    labels: (..., N), 0 or 1. apart: bool (N, N), the pairs that count, which are those of independent crops; by default
    all of two crops.
    """
    apart = (~np.eye(len(kernel), dtype=bool) if apart is None else apart).astype(np.float64)
    real, other = 1.0 - labels, labels.astype(np.float64)

    def mean(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return ((one @ (kernel * apart)) * two).sum(axis=-1) / ((one @ apart) * two).sum(axis=-1)

    return mean(real, real) + mean(other, other) - 2 * mean(real, other)


def permutation_test(contest: Contest, kernel: np.ndarray) -> dict[str, float] | None:
    """MMD squared, and its p: the share of exchanges that give as much. None where no two composites are independent.

    An exchange swaps some composites with the real crops of the same size that they are compared with. Composites with
    a scan in common are swapped together or not at all, as they are not independent. So p is 2 / 2^n or more, of n such
    groups.
    """
    labels, apart, generator = contest.labels, contest.apart, np.random.default_rng(SEED)
    unit = np.array(components([one.tokens for one in contest.others]))
    if not apart[labels == 1][:, labels == 1].any():
        return None
    value = float(mmd(kernel, labels, apart))
    swapped = generator.integers(0, 2, (PERMUTATIONS, unit.max() + 1))[:, unit]
    exchanged = mmd(kernel, labels ^ np.tile(swapped, 2), apart)
    as_much = int((exchanged >= value - 1e-12).sum())  # where all are swapped the value is the same but for rounding
    return {"value": value, "p": (as_much + 1) / (PERMUTATIONS + 1)}
