"""This package is Stable Diffusion 2.1, written by hand. It holds the networks, loads their weights, and offers a hook
into every attention layer."""

from .lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "attention": (
            "Site",
            "attention_hook",
            "attention_logits",
            "attention_map",
            "default_kernel",
            "record_maps",
        ),
        "config": ("ConfigError",),
        "model": ("StableDiffusion", "load"),
        "weights": ("CheckpointError",),
    },
)
