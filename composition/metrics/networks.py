"""The networks of the metrics, as far as their weights are here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..metrics import CLIP, LPIPS, WeightsError, published_lpips, shift_tolerant_lpips
from ..metrics.clip import SOURCE


@dataclass(frozen=True)
class Networks:
    """lpips, clip: None where it is absent, and then `missing` says why, by the name of the metric."""

    lpips: LPIPS | None
    clip: CLIP | None
    missing: dict[str, str]

    @property
    def names(self) -> dict[str, str]:
        """What the figures of each metric come from; goes wherever they are printed."""
        networks = {"lpips": self.lpips, "clip": self.clip}
        return {kind: network.name for kind, network in networks.items() if network is not None}


def find_networks(
    lpips: tuple[Path, Path] | None, clip: str | None, *, device: str, local_files_only: bool = False
) -> Networks:
    """lpips: the published metric's two files (published_lpips); None: ST-LPIPS, where its package is installed.
    clip: a folder or hub id; None: metrics.clip.SOURCE, where it can be had.

    What was not asked for may be absent. Raises WeightsError for what was.
    """
    missing: dict[str, str] = {}

    def load(kind: str, asked, network):
        try:
            return network()
        except WeightsError as error:
            if asked is not None:
                raise
            missing[kind] = " ".join(str(error).split())
            return None

    with_lpips = load("lpips", lpips, lambda: published_lpips(*lpips) if lpips else shift_tolerant_lpips())
    with_clip = load(
        "clip", clip, lambda: CLIP(clip or SOURCE, device=torch.device(device), local_files_only=local_files_only)
    )
    return Networks(with_lpips and with_lpips.to(device), with_clip, missing)
