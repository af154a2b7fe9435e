"""Stable Diffusion 2.1, written by hand: the networks, their weights, and a hook into every attention layer."""

from .attention import Site, attention_hook, attention_logits, attention_map, default_kernel, record_maps
from .config import ConfigError
from .model import StableDiffusion, load
from .weights import CheckpointError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "Site",
    "StableDiffusion",
    "attention_hook",
    "attention_logits",
    "attention_map",
    "default_kernel",
    "load",
    "record_maps",
]
