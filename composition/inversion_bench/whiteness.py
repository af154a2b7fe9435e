"""This module says how far a latent is from white noise, which x[T] would be if it held nothing of an image.

The nearer x[T] is to white noise, the more freely another prompt can make something else of it (Parmar et al.,
"Zero-shot Image-to-Image Translation", arXiv:2302.03027, SIGGRAPH 2023, measure and enforce it in their inversion).
"""

from __future__ import annotations

import torch
from torch import Tensor

MEASURES = ("norm", "flatness", "neighbours", "channels")
DRAWS, SEED = 16, 0


def whiteness(x: Tensor) -> dict[str, float | None]:
    """The measures of a latent (C, h, w), of which white noise of unit variance has 1, about 1, about 0 and about 0.

    norm: |x| / sqrt(n), where n is the number of its values.
    flatness: of the power spectrum, averaged over rings of whole frequencies and over the channels, the geometric mean
        over the arithmetic mean, without the ring at 0. It is 1 where every ring has the same power.
    neighbours: the correlation of values that are neighbours in a row or a column, over all channels.
    channels: the mean of the absolute correlations of two channels.
    What a latent is too small for, or does not determine, is None.
    """
    x = x.detach().to("cpu", torch.float64)
    return {
        "norm": (x.norm() / x.numel() ** 0.5).item(),
        "flatness": _flatness(x),
        "neighbours": _neighbours(x),
        "channels": _channels(x),
    }


def white_noise(shape: tuple[int, int, int]) -> dict[str, float | None]:
    """The median of the measures over DRAWS draws of white noise of this shape: the floor."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = [whiteness(torch.randn(shape, dtype=torch.float64, generator=generator)) for _ in range(DRAWS)]
    some = {name: [one[name] for one in drawn if one[name] is not None] for name in MEASURES}
    return {name: torch.tensor(values).quantile(0.5).item() if values else None for name, values in some.items()}


def _flatness(x: Tensor) -> float | None:
    height, width = x.shape[1:]
    power = torch.fft.fft2(x).abs().square().mean(dim=0)
    rows, columns = (torch.fft.fftfreq(side, 1 / side, dtype=torch.float64) for side in (height, width))
    ring = (rows[:, None] ** 2 + columns[None] ** 2).sqrt().round().long()
    rings = range(1, min(height, width) // 2 + 1)  # the larger ones are not whole
    means = torch.stack([power[ring == one].mean() for one in rings]) if len(rings) > 1 else None
    if means is None or not (means > 0).all():
        return None
    return (means.log().mean().exp() / means.mean()).item()


def _neighbours(x: Tensor) -> float | None:
    centred = x - x.mean(dim=(1, 2), keepdim=True)
    pairs = [(centred[:, :, 1:], centred[:, :, :-1]), (centred[:, 1:], centred[:, :-1])]
    a, b = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
    return _correlation(a, b)


def _channels(x: Tensor) -> float | None:
    centred = x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True)
    found = [_correlation(centred[one], centred[other]) for one in range(len(x)) for other in range(one + 1, len(x))]
    if not found or None in found:
        return None
    return sum(map(abs, found)) / len(found)


def _correlation(a: Tensor, b: Tensor) -> float | None:
    """Of values whose means are 0."""
    length = (a.norm() * b.norm()).item()
    return (a @ b).item() / length if length > 0 else None
