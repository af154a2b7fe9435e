"""This module draws the before/after figure of one composition, and the panels that all other figures use.

A `Composition` shows its figure in a notebook, so the module stands beside the method's parts and not with the runs.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from .placement import Sample

PANEL_HEIGHT = 384  # pixels
GAP = 8
CAPTION_HEIGHT = 28
USER_COLOUR = (80, 200, 255)
TUMOUR_COLOUR = (255, 200, 40)


def before_after(sample: Sample, image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Four captioned RGB panels: background with user mask, object with mask, composite without and with its mask.

    image, mask: the composite and the tumour's mask, of the background's size.
    """
    window = sample.background.window
    background = eight_bit(sample.background.pixels, window)
    composite = eight_bit(image, window)
    obj = eight_bit(sample.obj.pixels, sample.obj.window)
    panels = [
        ("background, target region", outlined(background, sample.user_mask, USER_COLOUR)),
        ("object, tumour mask", outlined(obj, sample.object_mask, TUMOUR_COLOUR)),
        ("composite", outlined(composite)),
        ("composite, tumour mask", outlined(composite, mask, TUMOUR_COLOUR)),
    ]
    width = sum(panel.width for _, panel in panels) + GAP * (len(panels) + 1)
    figure = Image.new("RGB", (width, PANEL_HEIGHT + CAPTION_HEIGHT + GAP), "white")
    draw, font, x = ImageDraw.Draw(figure), ImageFont.load_default(size=16), GAP
    for caption, panel in panels:
        draw.text((x + panel.width // 2, CAPTION_HEIGHT // 2), caption, fill="black", font=font, anchor="mm")
        figure.paste(panel, (x, CAPTION_HEIGHT))
        x += panel.width + GAP
    return figure


def eight_bit(pixels: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """Stored pixels as RGB; window: the values that are black and white. What is no number is black."""
    black, white = window
    scaled = np.nan_to_num((pixels.astype(np.float64) - black) * (255 / (white - black)))
    return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8)).convert("RGB")


def outlined(
    image: Image.Image,
    mask: np.ndarray | None = None,
    colour: tuple[int, int, int] = (0, 0, 0),
    *,
    size: tuple[int, int] | None = None,
    line: int = 2,
) -> Image.Image:
    """The image at a size (width, height), by default at the panel's height, with the outline of the mask drawn on top,
    so many pixels wide and inside it."""
    size = size or (max(1, round(image.width * PANEL_HEIGHT / image.height)), PANEL_HEIGHT)
    panel = image.resize(size, Image.Resampling.BICUBIC)
    if mask is not None:
        inside = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
        panel.paste(colour, mask=ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(2 * line + 1))))
    return panel
