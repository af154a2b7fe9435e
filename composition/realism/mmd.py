"""The maximum mean discrepancy (Gretton et al., JMLR 2012) between real and composed crops, in the features of the
shift-tolerant network of the metrics: 0 where the two are the same distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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


def mmd(kernel: np.ndarray, labels: np.ndarray) -> float:
    """The unbiased estimate of MMD squared, which may be below 0. labels: (N,), 0 or 1."""
    means = {}
    for a, b in ((0, 0), (1, 1), (0, 1)):
        part = kernel[np.ix_(labels == a, labels == b)]
        n = len(part)
        means[a, b] = part.mean() if a != b else (part.sum() - np.trace(part)) / (n * (n - 1))
    return float(means[0, 0] + means[1, 1] - 2 * means[0, 1])


def permutation_test(contest: Contest, kernel: np.ndarray) -> dict[str, float]:
    """MMD squared, and the share of permutations of the labels that give as much: p.

    What is permuted is units, the crops of one set that have a group in common: crops of one object are not
    independent.
    """
    labels, units = contest.labels, [*zip(contest.labels.tolist(), contest.groups, strict=True)]
    names = list(dict.fromkeys(units))
    at = np.array([names.index(unit) for unit in units])
    of_unit = np.array([label for label, _ in names])
    value, generator = mmd(kernel, labels), np.random.default_rng(SEED)
    as_much = sum(mmd(kernel, generator.permutation(of_unit)[at]) >= value for _ in range(PERMUTATIONS))
    return {"value": value, "p": (as_much + 1) / (PERMUTATIONS + 1)}
