"""Grey levels and texture of tumours, inside the mask and on its rim: how far composed ones are from real ones.

The features are the first-order and co-occurrence ones of radiomics (Haralick 1973; IBSI's definitions where they have
names in common). No light library has them under a mask: scikit-image counts co-occurrences of whole images, and
pyradiomics is built for volumes and does not install on current Pythons. They are few lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.intervals import basic, ends, resampled
from .crops import Crop
from .groups import Contest, drawn_by

LEVELS = 16  # grey levels of the co-occurrences, over 0 to 255
OFFSETS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours, rows and columns
FEATURES = (
    *("mean", "sd", "skewness", "kurtosis", "entropy"),
    *("contrast", "homogeneity", "energy", "correlation"),
)
REGIONS = ("inside", "rim")
# Where each measure stands in what `distances` returns.
MEASURES = {
    f"{name} {region}": (r, m)
    for r, region in enumerate(REGIONS)
    for m, name in enumerate(("wasserstein", "difference", *FEATURES))
}


def first_order(values: np.ndarray) -> list[float]:
    """Mean, standard deviation, skewness, excess kurtosis (both 0 for equal values), and the entropy in bits of the
    histogram of LEVELS grey levels. values: uint8 (N,)."""
    mean, deviation = values.mean(), values.std()
    scaled = (values - mean) / deviation if deviation > 0 else np.zeros(len(values))
    share = np.bincount(values // (256 // LEVELS), minlength=LEVELS) / len(values)
    share = share[share > 0]
    moments = [(scaled**3).mean(), (scaled**4).mean() - 3 * (deviation > 0)]
    return [mean, deviation, *moments, -(share * np.log2(share)).sum()]


def co_occurrences(pixels: np.ndarray, mask: np.ndarray, levels: int = LEVELS) -> np.ndarray:
    """How often grey levels are neighbours within a mask, (levels, levels), symmetric, of sum 1; zeros where no two
    pixels of it are neighbours. pixels: whole numbers below `levels`, (H, W)."""
    counts = np.zeros((levels, levels))
    height, width = pixels.shape
    for down, right in OFFSETS:
        here = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        there = slice(down, height), slice(max(0, right), width + min(0, right))
        both = mask[here] & mask[there]
        np.add.at(counts, (pixels[here][both], pixels[there][both]), 1)
    counts += counts.T
    return counts / max(1, counts.sum())


def texture(pixels: np.ndarray, mask: np.ndarray, levels: int = LEVELS) -> list[float]:
    """Contrast, homogeneity, energy and correlation of the co-occurrences, as scikit-image defines them (correlation 1
    where all pixels are of one level)."""
    share = co_occurrences(pixels, mask, levels)
    i, j = np.mgrid[:levels, :levels]
    mean = (share * i).sum()
    variance = (share * (i - mean) ** 2).sum()
    correlation = (share * (i - mean) * (j - mean)).sum() / variance if variance > 1e-12 else 1.0
    return [(share * (i - j) ** 2).sum(), (share / (1 + (i - j) ** 2)).sum(), np.sqrt((share**2).sum()), correlation]


def features_of(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The FEATURES of uint8 pixels (H, W) within a mask, float64."""
    return np.array(first_order(pixels[mask]) + texture(pixels // (256 // LEVELS), mask))


@dataclass(frozen=True, eq=False)
class Measured:
    """Of N crops: features (N, 2, 9) by region, and the cumulative histograms of their grey levels (N, 2, 256)."""

    features: np.ndarray
    cumulative: np.ndarray

    def of(self, which: np.ndarray) -> Measured:
        return Measured(self.features[which], self.cumulative[which])


def measure(crops: Sequence[Crop]) -> Measured:
    """What is measured of each crop by itself."""
    features, histograms = [], []
    for crop in crops:
        features.append([features_of(crop.pixels, region) for region in (crop.mask, crop.rim)])
        counts = [np.bincount(crop.pixels[region], minlength=256) for region in (crop.mask, crop.rim)]
        histograms.append([np.cumsum(count) / count.sum() for count in counts])
    return Measured(np.array(features), np.array(histograms))


def distances(of: Measured, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What tells crops with label 1 from those with label 0, (..., 2, 2 + 9) by region: the 1-Wasserstein distance of
    their grey levels, in levels of 255; the mean over FEATURES of the absolute standardised differences; and those
    differences themselves. Not a number where no crop of a label counts.

    A standardised difference is that of the means over the pooled standard deviation of crops (Cohen's d). labels:
    (N,); weights: (..., N), how often each crop counts.
    """
    means, variances, histograms = [], [], []
    for kind in (0, 1):
        which = labels == kind
        some, w = of.of(which), weights[..., which] / weights[..., which].sum(axis=-1, keepdims=True)
        middle = some.features.mean(axis=0)  # less which, squares keep their digits
        mean = np.tensordot(w, some.features - middle, 1)
        means.append(mean + middle)
        variances.append(np.tensordot(w, (some.features - middle) ** 2, 1) - mean**2)
        histograms.append(np.tensordot(w, some.cumulative, 1))
    deviation = np.sqrt(np.maximum((variances[0] + variances[1]) / 2, 0))
    difference = means[1] - means[0]
    # Where every crop has one value there is no deviation: no difference then, or one beyond any measure.
    standard = np.where(np.abs(difference) <= 1e-9, 0, difference / np.maximum(deviation, 1e-9))
    wasserstein = np.abs(histograms[1] - histograms[0]).sum(axis=-1)
    both = np.stack([wasserstein, np.abs(standard).mean(axis=-1)], axis=-1)
    return np.concatenate([both, standard], axis=-1)


def radiomics(contest: Contest) -> dict[str, dict]:
    """The distances of a contest, by the names of MEASURES, with their intervals."""
    of, labels = measure([one.crop for one in contest.crops]), contest.labels
    value = distances(of, labels, np.ones(len(labels)))
    draws = resampled(lambda weights: distances(of, labels, weights), drawn_by(contest.crops))
    found = {}
    for name, (region, number) in MEASURES.items():
        one, some = float(value[region, number]), draws[:, region, number]
        low, high = basic(one, some) if number < 2 else ends(some)  # the first two are never below 0
        found[name] = {"value": one, "low": low, "high": high}
    return found
