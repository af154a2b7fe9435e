"""This module finds the networks of the metrics, as far as their weights are at hand.

It looks for them once, before the long work. Only then does it import the networks themselves (torch, transformers), so
that a command line can name them at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..scans.errors import WeightsError

if TYPE_CHECKING:
    from .clip import CLIP
    from .lpips import LPIPS

# The paper does not say which CLIP it used. This is the one that most publications' "CLIP score" means.
CLIP_SOURCE = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Networks:
    """The networks that metrics may take. lpips, clip: None if it is absent, and then `missing` may say why."""

    lpips: LPIPS | None = None
    clip: CLIP | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The name of each network that is here, which tells its figures from others'; print it wherever they are."""
        networks = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: network.name for kind, network in networks.items() if network is not None}


KINDS = tuple(one.name for one in fields(Networks) if one.name != "missing")


def find_networks(
    lpips: tuple[Path, Path] | None, clip: str | None, *, device: str, local_files_only: bool = False
) -> Networks:
    """Load the networks of the metrics.

    lpips: the published metric's two files (published_lpips); None: ST-LPIPS, if its package is installed.
    clip: a folder or hub id; None: CLIP_SOURCE, if it can be had.

    A network that was not asked for may be absent. Raises WeightsError if one that was asked for is absent.
    """
    from .clip import CLIP
    from .lpips import published_lpips, shift_tolerant_lpips

    missing: dict[str, str] = {}

    def load(kind: str, asked: object, network: Callable):
        try:
            return network()
        except WeightsError as error:
            if asked is not None:
                raise
            missing[kind] = " ".join(str(error).split())
            return None

    with_lpips = load("lpips", lpips, lambda: published_lpips(*lpips) if lpips else shift_tolerant_lpips())
    with_clip = load("clip", clip, lambda: CLIP(clip or CLIP_SOURCE, device=device, local_files_only=local_files_only))
    return Networks(with_lpips and with_lpips.to(device), with_clip, missing)
