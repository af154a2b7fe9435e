"""The metadata record of a composition: enough to tell what made it, and to make it again."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata

import torch

from .canvas import Composition
from .settings import Settings

PACKAGES = ("tumour-composition", "torch", "transformers", "numpy", "pillow")


def provenance(model, settings: Settings) -> dict:
    """What a composition depends on beside its inputs: settings, model (source, revision, file hashes), dtype."""
    return {"settings": asdict(settings), "model": model.identity, "dtype": str(model.dtype).removeprefix("torch.")}


def results(composition: Composition) -> dict:
    """What the run reported of itself, as far as the inputs and `provenance` determine it.

    nfe counts network evaluations, and inversions at their full price even where a stored one was reused: a record says
    what its sample is, not in which order samples were made.
    """
    reports = {who: {k: v for k, v in report.items() if k != "reused"} for who, report in composition.inversion.items()}
    return {
        "canvas": list(composition.canvas),
        "exceptional_token": composition.exceptional_token,
        "clipped": composition.clipped,
        "inversion": reports,
        "nfe": {
            "inversion": sum(report["nfe"] for report in reports.values()),
            "composition": composition.nfe["composition"],
        },
    }


def environment(model) -> dict:
    """The software and the device."""
    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"versions": versions(), "device": {"type": device.type, "name": name}}


def versions() -> dict[str, str | None]:
    """Version of Python and of each package that results depend on; None for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
