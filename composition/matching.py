"""stub, replaced by the study's module"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Match:
    how: str
    gain: float = 1.0
    offset: float = 0.0
    own: float | None = None
    target: float | None = None
    why: str | None = None

    def apply(self, values):
        if self.gain == 1 and self.offset == 0:
            return values
        return np.clip((values + 1) * self.gain + 2 * self.offset - 1, -1, 1).astype(np.float32)


def _dilate(mask, n):
    for _ in range(n):
        m = np.pad(mask, 1)
        mask = m[1:-1, 1:-1] | m[:-2, 1:-1] | m[2:, 1:-1] | m[1:-1, :-2] | m[1:-1, 2:]
    return mask


def ring(mask):
    size = np.sqrt(mask.sum())
    return _dilate(mask, 2 + max(2, round(size / 4))) & ~_dilate(mask, 2)


def match(background, placed_mask, obj, object_mask, how):
    if how == "none":
        return Match("none")
    a, b = (np.median((v[ring(m)].mean(1) + 1) / 2) for v, m in ((obj, object_mask), (background, placed_mask)))
    if a < 0.02 or b < 0.02:
        return Match("none", why="ring is black")
    return Match(how, float(np.clip(b / a, 0.4, 2.5)), 0.0, float(a), float(b))
