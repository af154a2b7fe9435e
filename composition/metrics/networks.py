"""The networks of the metrics, as far as their weights are at hand.

They are looked for once, before the long work. The networks themselves (torch, transformers) are imported only then, so
that a command line can speak of them at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    """The networks that metrics may take. lpips, clip: None where it is absent, and then `missing` may say why."""

    lpips: LPIPS | None = None
    clip: CLIP | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Of each network that is here what tells its figures from others'; goes wherever they are printed."""
        networks = {"lpips": self.lpips, "clip": self.clip}
        return {kind: network.name for kind, network in networks.items() if network is not None}


def find_networks(
    lpips: tuple[Path, Path] | None, clip: str | None, *, device: str, local_files_only: bool = False
) -> Networks:
    """lpips: the published metric's two files (published_lpips); None: ST-LPIPS, where its package is installed.
    clip: a folder or hub id; None: CLIP_SOURCE, where it can be had.

    What was not asked for may be absent. Raises WeightsError for what was.
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
