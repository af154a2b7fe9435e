"""This module trains the segmenter: a small U-Net of MONAI, on a CPU, for a number of steps that is the same for all.

Every training of one seed begins with the same weights. MONAI comes with the optional extra `utility`, so it is
imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice

import numpy as np

from ..fields import check_ranges, ranged
from .arms import Arm
from .data import Case

GROUPS = 4  # of channels in a norm


@dataclass(frozen=True)
class Training:
    """How every arm is trained. Raises ValueError, naming the field, for values that fit no training."""

    steps: int = ranged(500, "steps of a training, the same for every arm", 1, 10**6)
    batch: int = ranged(8, "scans in a batch", 1, 1024)
    added: int = ranged(2, "how many scans of a batch are the added ones, where an arm adds any", 1, 1023)
    negatives: int = ranged(0, "how many of the added ones are tumour-free scans in the arms with composites", 0, 1022)
    until: float = ranged(1.0, "share of the steps after which the added scans leave the batch to real ones", 0.01, 1.0)
    side: int = ranged(128, "pixels along a side of what the segmenter sees; a multiple of 16", 32, 2048)
    width: int = ranged(16, "channels of the U-Net at full resolution, a multiple of 4", GROUPS, 1024)
    rate: float = ranged(1e-3, "greatest learning rate of AdamW, which falls along half a cosine", 1e-8, 1.0)

    def __post_init__(self):
        check_ranges(self)
        if self.side % 16:
            raise ValueError(f"side is a multiple of 16, as the U-Net halves it four times; got {self.side}")
        if self.width % GROUPS:
            raise ValueError(f"width is a multiple of {GROUPS}, got {self.width}")
        if self.added >= self.batch:
            raise ValueError(f"added is at least 1 and below batch {self.batch}, got {self.added}")
        if self.negatives >= self.added:
            raise ValueError(f"negatives is below added {self.added}, of which it is a part; got {self.negatives}")


def check_extra() -> None:
    """Raise ImportError, which says what to do, if the extra is missing. Call it before the long work."""
    for package in ("monai", "scipy", "matplotlib"):
        if find_spec(package) is None:  # which is quicker than to import it
            raise ImportError(f'utility takes {package}; install the extra: pip install "tumour-composition[utility]"')


def train(arm: Arm, training: Training, seed: int, look: Callable[[int, float, Callable], None]) -> None:
    """Train a segmenter on what the arm holds.

    look: is called after each step with its number, from 1, the loss, and `predict`, which takes cases and returns
    their predicted masks, bool (N, side, side).
    Raises FloatingPointError for a loss that is no number. The same on the same software with as many threads.
    """
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    width = training.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Norms over groups of channels cost a quarter less time here than BasicUNet's own, over single ones.
        features = (width, width, 2 * width, 4 * width, 8 * width, width)
        network = BasicUNet(2, 1, 1, features=features, norm=("group", {"num_groups": GROUPS}))
    network = network.to(memory_format=torch.channels_last)  # a fifth less time on a CPU
    # Over the whole batch, so that tumour-free scans count: alone, their Dice is 0 whatever is predicted.
    criterion = DiceCELoss(sigmoid=True, batch=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    for step, (images, masks) in enumerate(_batches(arm, training, seed), start=1):
        network.train()
        optimiser.zero_grad()
        loss = criterion(network(images), masks)
        loss.backward()
        optimiser.step()
        schedule.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of {arm.name} is no number at step {step}; lower --rate")
        look(step, loss.item(), lambda cases: _predict(network, cases))


def _predict(network, cases: list[Case]) -> np.ndarray:
    import torch

    network.eval()
    images = torch.stack([_tensor(case) for case in cases])
    with torch.inference_mode():
        return np.concatenate([(network(part)[:, 0] > 0).numpy() for part in images.split(16)])


def _tensor(case: Case):
    """The image (1, side, side), float32, of mean 0 and standard deviation 1, as MONAI's NormalizeIntensity has it."""
    import torch
    from monai.transforms import NormalizeIntensity

    return torch.as_tensor(NormalizeIntensity()(torch.from_numpy(case.image[None].astype(np.float32)))).float()


def _batches(arm: Arm, training: Training, seed: int) -> Iterator[tuple]:
    """The batches of a training: images and masks, float32 (batch, 1, side, side), augmented."""
    import torch

    draw = np.random.default_rng(seed)
    change = _augmentation(training.side, seed)
    added = training.added if arm.added else 0
    negatives = training.negatives if added and arm.negatives else 0
    real, others = _endless(arm.base, draw), _endless(arm.added, draw)
    free = _endless(arm.negatives, draw)
    tensors: dict[int, dict] = {}
    for step in range(training.steps):
        if step >= training.until * training.steps:
            added = negatives = 0
        changed = []
        for stream, count in ((real, training.batch - added), (others, added - negatives), (free, negatives)):
            for case in islice(stream, count):
                if id(case) not in tensors:
                    mask = torch.from_numpy(case.mask[None].astype(np.float32))
                    tensors[id(case)] = {"image": _tensor(case), "mask": mask}
                changed.append(change(tensors[id(case)]))
        yield tuple(torch.stack([torch.as_tensor(one[name]).float() for one in changed]) for name in ("image", "mask"))


def _endless(cases: list[Case], draw: np.random.Generator) -> Iterator[Case]:
    """The cases in a new random order each time round."""
    while True:
        for number in draw.permutation(len(cases)):
            yield cases[number]


def _augmentation(side: int, seed: int):
    """The usual augmentation: scans are mirrored, turned by up to 15 degrees, scaled by 0.85 to 1.15 and moved by up to
    a sixteenth of their side; contrast, brightness and gamma change, and noise is added."""
    from monai.transforms import (
        Compose,
        RandAdjustContrastd,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    both = ("image", "mask")
    return Compose(
        [
            RandFlipd(both, prob=0.5, spatial_axis=1),
            RandAffined(
                both,
                prob=0.8,
                rotate_range=math.radians(15),
                scale_range=(0.15, 0.15),
                translate_range=(side / 16, side / 16),
                mode=("bilinear", "nearest"),
                padding_mode=("border", "zeros"),
            ),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandScaleIntensityd("image", factors=0.25, prob=0.5),
            RandShiftIntensityd("image", offsets=0.25, prob=0.5),
            RandGaussianNoised("image", prob=0.2, std=0.1),
        ]
    ).set_random_state(seed)
