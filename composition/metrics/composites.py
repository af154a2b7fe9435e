"""This module measures composites by any of the metrics, which it takes by their names in METRICS. It stands above the
table because it decides which metrics the networks at hand allow."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .comparison import Comparison
from .networks import Networks
from .table import METRICS


def measurable(networks: Networks) -> list[str]:
    """The names in METRICS of those that take no network, or whose network is at hand."""
    return [name for name, metric in METRICS.items() if metric.network is None or metric.network in networks.names]


@torch.no_grad()
def measure(comparison: Comparison, names: Sequence[str] | None = None) -> dict[str, float]:
    """The metrics of one composite, by name. names: some of METRICS; None: all that are measurable.

    psnr is inf if nothing changed, and ssim is nan if its window does not fit. Raises ValueError for names that are not
    in METRICS, and for metrics whose network is not at hand.
    """
    possible = measurable(comparison.reference.networks)
    names = possible if names is None else names
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"{', '.join(unknown)}: not among the metrics {', '.join(METRICS)}")
    if lacking := [name for name in names if name not in possible]:
        raise ValueError(f"{', '.join(lacking)}: the network that measures it is not given; see find_networks")
    return {name: float(METRICS[name].function(comparison)) for name in names}
