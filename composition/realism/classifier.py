"""The two-sample classifier (Lopez-Paz and Oquab, ICLR 2017): a small network learns to tell real crops from composed
ones, and is scored on crops that it has not seen.

If no network can do better than one half, the two are the same distribution. Every comparison takes the same network,
steps and numbers of crops. Figures are of crops in cross-validation, over several seeds.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..metrics.intervals import ends, resampled
from . import groups
from .groups import Contest, Placed

WIDTHS = (1, 8, 16, 32, 64)
BATCH, RATE, DECAY = 32, 2e-3, 0.05
SHIFT = 2  # pixels that a crop is moved by at most in training, so that no border is learned by heart


def network() -> nn.Module:
    """Logits (B,) of crops (B, 1, H, W): how much they look composed."""
    layers = [
        part
        for dim_in, dim in pairwise(WIDTHS)
        for part in (nn.Conv2d(dim_in, dim, 3, padding=1), nn.MaxPool2d(2), nn.GroupNorm(8, dim), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 1), nn.Flatten(0))


def scores(contest: Contest, folds: int, steps: int, seed: int) -> dict:
    """The logit of every crop of a contest by the network that has not seen its scans: {"logit": (2 n), "fold": (2 n)},
    in the order of contest.crops. seed: of the folds, the weights and the batches."""
    images = as_images(np.stack([one.crop.pixels for one in contest.crops]))
    labels = torch.from_numpy(contest.labels)
    logit, fold = np.zeros(len(labels)), np.zeros(len(labels), dtype=int)
    for number, (training, test) in enumerate(groups.folds(contest, folds, seed)):
        trained = train(images[training], labels[training], steps, seed * 1000 + number)
        with torch.no_grad():
            logit[test] = trained(images[test, :, SHIFT:-SHIFT, SHIFT:-SHIFT]).double().numpy()
        fold[test] = number
    return {"logit": logit.tolist(), "fold": fold.tolist()}


def as_images(pixels: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W) as the network takes them: float32 (N, 1, H, W), about -1 to 1."""
    return torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


def train(images: torch.Tensor, labels: torch.Tensor, steps: int, seed: int) -> nn.Module:
    """The network that tells images (N, 1, H, W) with label 1 from those with label 0. Half of every batch is of each,
    and images are moved by up to SHIFT pixels and mirrored."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    kinds = [(labels == kind).nonzero()[:, 0] for kind in (0, 1)]
    target = torch.arange(2.0).repeat_interleave(BATCH // 2)
    height, width = (side - 2 * SHIFT for side in images.shape[2:])
    for _ in range(steps):
        batch = torch.cat([of[torch.randint(len(of), (BATCH // 2,), generator=generator)] for of in kinds])
        y, x, mirrored = (torch.randint(n, (), generator=generator).item() for n in (2 * SHIFT + 1, 2 * SHIFT + 1, 2))
        some = images[batch, :, y : y + height, x : x + width]
        loss = F.binary_cross_entropy_with_logits(model(some.flip(3) if mirrored else some), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return model.eval()


def accuracy_and_auc(found: list[dict], labels: list[np.ndarray], crops: list[list[Placed]]) -> dict[str, dict]:
    """Of the scores of several seeds: the share of crops told right, both kinds counting the same, and the area under
    the ROC curve, each a mean over folds and seeds, with an interval by resampling what the crops depend on.

    labels, crops: those of each seed; the floor is another split for each.
    """
    # Of each fold: which crops of both kinds are told right, which is above which, and where they are in all crops.
    tests, first = [], 0
    for one, label in zip(found, labels, strict=True):
        logit, fold = np.array(one["logit"]), np.array(one["fold"])
        for number in np.unique(fold):
            at = [np.flatnonzero((fold == number) & (label == kind)) for kind in (0, 1)]
            if all(len(which) for which in at):
                real, other = (logit[which] for which in at)
                tests.append((real < 0, other >= 0, above(real, other), *(first + which for which in at)))
        first += len(label)

    def both(weights: np.ndarray) -> np.ndarray:
        """weights: (n, N), how often each crop counts. Returns (n, 2): accuracy and AUC."""
        found = []
        for real, other, order, at_real, at_other in tests:
            w0, w1 = weights[:, at_real], weights[:, at_other]
            total0, total1 = w0.sum(axis=1), w1.sum(axis=1)
            right = (w0 @ real / total0 + w1 @ other / total1) / 2
            found.append(np.stack([right, ((w1 @ order) * w0).sum(axis=1) / (total0 * total1)], axis=1))
        there = ~np.isnan(found)  # a fold of which one kind was not drawn says nothing
        return np.where(there, found, 0).sum(axis=0) / there.sum(axis=0)

    value = both(np.ones((1, first)))[0]
    draws = resampled(both, groups.drawn_by([one for some in crops for one in some]))
    told = {}
    for number, name in enumerate(("accuracy", "auc")):
        low, high = ends(draws[:, number])
        told[name] = {"value": float(value[number]), "low": low, "high": high}
    return told


def above(real: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of the others is greater than each real one, float64 (others, real); equal ones are 1/2."""
    return (others[:, None] > real) + 0.5 * (others[:, None] == real)
