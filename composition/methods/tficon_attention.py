"""This module holds TF-ICON's attention hook, which injects background, object and what lies between them into the
composite. It stands apart from `tficon`, because it knows of attention alone and nothing of solvers.

All streams of a sample run in one batch, so that a layer finds what it injects in its own q, k and v: nothing is kept
from one layer to the next. The rows of the batch are BACKGROUND, OBJECT, CROSS, TEXT, and where the composite is guided
also its null row, which nothing is injected into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sd21.attention import Site, attention_logits, default_kernel

BACKGROUND, OBJECT, CROSS, TEXT = range(4)


@dataclass(frozen=True)
class Tokens:
    """Indices, int64, into the tokens of one attention grid, row by row.

    obj: inside M_obj. outside: not inside M_user.
    """

    obj: torch.Tensor
    outside: torch.Tensor


def tokens(m_obj: torch.Tensor, m_user: torch.Tensor, height: int, width: int) -> Tokens:
    """The index sets on a grid of height x width, of masks (1, h, w) on the latent grid.

    A coarser grid takes every second, fourth or eighth cell, as TF-ICON does; a small object may then have none.
    """
    inside = [
        F.interpolate(mask[None], size=(height, width), mode="nearest").flatten() > 0.5 for mask in (m_obj, m_user)
    ]
    return Tokens(inside[0].nonzero().flatten(), (~inside[1]).nonzero().flatten())


def composite_logits(q: torch.Tensor, k: torch.Tensor, where: Tokens) -> torch.Tensor:
    """The composite's self-attention before the softmax, of one sample: q, k (4 or 5, heads, N, d) -> (heads, N, N).

    Later lines win: the composite's own; between two tokens outside M_user the background's; from every token to the
    object's those of the pseudo cross-attention, and from the object's to every token the same, transposed; among the
    object's own tokens the object's. Logits and not maps are injected, so that the rows of the map still sum to one.
    """
    composite, out, obj = attention_logits(q[TEXT], k[TEXT]), where.outside, where.obj
    composite[:, out[:, None], out] = attention_logits(q[BACKGROUND][:, out], k[BACKGROUND][:, out])
    pseudo_cross = attention_logits(q[CROSS], k[OBJECT][:, obj])
    composite[:, :, obj] = pseudo_cross
    composite[:, obj] = pseudo_cross.transpose(1, 2)
    composite[:, obj[:, None], obj] = attention_logits(q[OBJECT][:, obj], k[OBJECT][:, obj])
    return composite


class Injection:
    """An attention hook for the streams of one sample. m_obj, m_user: (1, h, w) of zeros and ones.

    The stream CROSS attends to the object's tokens of the stream OBJECT (to all of them where a coarse grid has none
    inside M_obj), and TEXT by `composite_logits`; all else, and every layer that is not self-attention, as usual.
    """

    def __init__(self, m_obj: torch.Tensor, m_user: torch.Tensor):
        self.m_obj, self.m_user = m_obj, m_user

    def __call__(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = default_kernel(q, k, v)
        if site.kind == "cross":
            return out
        where = tokens(self.m_obj, self.m_user, site.height, site.width)
        seen = where.obj if len(where.obj) else slice(None)
        # A batch of one row each: the kernel takes four axes.
        cross = (q[CROSS], k[OBJECT][:, seen], v[OBJECT][:, seen])
        out[CROSS] = default_kernel(*(x[None] for x in cross))[0]
        maps = composite_logits(q, k, where).softmax(dim=-1)
        out[TEXT] = maps @ v[TEXT].to(maps.dtype)
        return out
