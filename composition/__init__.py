"""This package composes tumours into tumour-free scans, with a pretrained network and no training.

`compose` is the method and all its baselines; `Settings` holds their constants, and the other names read what it takes
and write what it gives. A composition is a few lines:

model = sd21.load()
background, obj = read_scan("healthy.png"), read_scan("patient.png")
user_mask = box_mask((300, 120, 90, 90), background.size)  # x, y, width, height
result = compose(model, background, obj, read_mask("tumour.png"), user_mask, "An MRI scan of a cancerous brain")
write_image("composite.png", result.image)
write_image("mask.png", result.mask)
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "calls": ("Call",),
        "canvas": ("latents_of",),
        "methods": ("METHODS", "Composition", "Frame", "compose"),
        "placement": ("Sample",),
        "prompts": ("exceptional_context", "token_positions"),
        "scans.errors": ("PlacementError", "ScanError"),
        "scans.images": ("Scan", "box_mask", "read_mask", "read_scan", "write_image"),
        "settings": ("Settings",),
    },
)
