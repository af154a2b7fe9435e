"""Training-free tumour composition: placement, prompts, inversion and Eq. 7-9 of the paper, on real scans.

model = sd21.load()
background, obj = read_scan("healthy.png"), read_scan("patient.png")
user_mask = box_mask((300, 120, 90, 90), background.size)  # x, y, width, height
result = compose(model, background, obj, read_mask("tumour.png"), user_mask, "An MRI scan of a cancerous brain")
write_image("composite.png", result.image)
write_image("mask.png", result.mask)
"""

from .compose import Composition, Sample, compose, compose_batch
from .images import Scan, ScanError, box_mask, read_mask, read_scan, write_image
from .placement import PlacementError
from .settings import Settings

__all__ = [
    "Composition",
    "PlacementError",
    "Sample",
    "Scan",
    "ScanError",
    "Settings",
    "box_mask",
    "compose",
    "compose_batch",
    "read_mask",
    "read_scan",
    "write_image",
]
