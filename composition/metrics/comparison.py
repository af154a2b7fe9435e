"""A metric looks at a composite, and at the reference of its sample, with which the composite is compared. This module
holds both, so that all metrics see the same images.

A metric's function takes a Comparison. Whatever several metrics share (the crops, the resized images) is a property of
the Comparison, computed when the first metric asks for it. What the composites of one sample share is a property of
their Reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ..placement import Sample, bounding_box, in_common_terms, place, placed_object
from ..scans.images import Scan, values_of
from .label_truth import VALUES, contrast_of, greys_in
from .networks import Networks
from .resize import square

IMAGE_SIDE, CROP_SIDE = 512, 224  # pixels: the paper's size, and AlexNet's and CLIP's own


@dataclass(frozen=True, eq=False)
class Reference:
    """What the composites of one sample that were given the same object are compared with, and the networks that do it.

    background, placed: (1, 3, H, W) in [-1, 1], in the background's pixels. object_mask (of the placed object),
    user_mask: (1, 1, H, W) bool. window: the background's, by which composites are read too. contrast_own: the tumour's
    in its own scan, in grey levels of 255, as `label_truth.contrast_of` has it; None where nobody knows it.
    Raises ValueError for other shapes, or an empty user mask.
    """

    background: torch.Tensor
    placed: torch.Tensor
    object_mask: torch.Tensor
    user_mask: torch.Tensor
    prompt: str | None
    networks: Networks = field(default_factory=Networks)
    window: tuple[float, float] = (0, 255)
    contrast_own: float | None = None

    def __post_init__(self):
        size = self.background.shape[-2:]
        images, masks = (self.background, self.placed), (self.object_mask, self.user_mask)
        if any(of.shape != (1, 3, *size) for of in images) or any(of.shape != (1, 1, *size) for of in masks):
            raise ValueError(
                "expected background and placed (1, 3, H, W), object mask and user mask (1, 1, H, W) of one size, got "
                f"{[tuple(of.shape) for of in (*images, *masks)]}"
            )
        if not self.user_mask.any():
            raise ValueError("the user mask is empty: there is no edited region to measure")

    @classmethod
    def of(
        cls, sample: Sample, networks: Networks, *, fit: str = "box", size: str = "region", match: str = "none"
    ) -> Reference:
        """The reference of a sample's composites whose Settings had this fit, size and match: its object, placed so."""
        sample = in_common_terms(sample)
        placement = place(*tuple(sample)[:4], fit=fit, size=size, match=match)
        window = sample.background.window
        background, placed = (
            _image(pixels, window) for pixels in (sample.background.pixels, placed_object(sample, placement))
        )
        masks = (torch.from_numpy(mask)[None, None] for mask in (placement.object_mask, sample.user_mask))
        own = contrast_of(sample.obj.pixels, sample.object_mask, sample.obj.window)
        return cls(background, placed, *masks, sample.prompt, networks, window, own)

    def compare(self, composite: Scan) -> Comparison:
        """The Comparison of a composite of this sample, given as the pixels that were stored.

        All methods write by the background's window. So the pixels are read by it too, and a pixel that was kept is
        equal.
        """
        # Sums run in the order of memory, so another layout would change the last bits.
        return Comparison(_image(composite.pixels, self.window).contiguous(), self)

    @cached_property
    def box(self) -> tuple[slice, slice]:
        """The rows and columns of the user mask's bounding box, the edited region."""
        x0, y0, x1, y1 = bounding_box(self.user_mask[0, 0].numpy())
        return slice(y0, y1), slice(x0, x1)

    @cached_property
    def edited(self) -> torch.Tensor:
        """The edited region as a mask, (1, 1, H, W) bool."""
        inside = torch.zeros_like(self.user_mask)
        inside[(..., *self.box)] = True
        return inside

    def crop(self, image: torch.Tensor) -> torch.Tensor:
        """The edited region of an image (1, 3, H, W) as the networks see it, (1, 3, 224, 224)."""
        return square(image[(..., *self.box)], CROP_SIDE)

    @cached_property
    def placed_crop(self) -> torch.Tensor:
        """The edited region of the placed object."""
        return self.crop(self.placed)

    @cached_property
    def background_features(self) -> list[torch.Tensor]:
        """The LPIPS features of the whole background."""
        return self.networks.lpips.features(square(self.background, IMAGE_SIDE))

    @cached_property
    def placed_features(self) -> list[torch.Tensor]:
        """The LPIPS features of the placed object's crop."""
        return self.networks.lpips.features(self.placed_crop)


@dataclass(frozen=True, eq=False)
class Comparison:
    """One composite, (1, 3, H, W) in [-1, 1] in the background's pixels, beside its sample's reference.

    Composites go one by one, because the size of a batch changes the order of its sums, and so a figure's last bits.
    Raises ValueError for a composite of another size than the background.
    """

    composite: torch.Tensor
    reference: Reference

    def __post_init__(self):
        got, expected = tuple(self.composite.shape), tuple(self.reference.background.shape)
        if got != expected:
            raise ValueError(f"expected a composite of its background's size, {expected}, got {got}")

    @cached_property
    def crop(self) -> torch.Tensor:
        """The edited region of the composite as the networks see it."""
        return self.reference.crop(self.composite)

    @cached_property
    def outside(self) -> torch.Tensor:
        """The composite at the paper's size with the background in its user region, so that no mask draws an edge."""
        reference = self.reference
        return square(torch.where(reference.user_mask, reference.background, self.composite), IMAGE_SIDE)

    @cached_property
    def contrast(self) -> float | None:
        """The tumour's contrast in the composite, in grey levels of 255, as `label_truth.contrast_of` has it."""
        return contrast_of(_pixels(self.composite), self.reference.object_mask[0, 0].numpy(), VALUES)

    @cached_property
    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """The greys (n,) of composite and placed object inside the object's mask."""
        mask = self.reference.object_mask[0, 0].numpy()
        return tuple(greys_in(_pixels(image), mask, VALUES) for image in (self.composite, self.reference.placed))


def _pixels(image: torch.Tensor) -> np.ndarray:
    """An image (1, 3, H, W) as the values (H, W, 3)."""
    return image[0].permute(1, 2, 0).numpy()


def _image(pixels: np.ndarray, window: tuple[float, float]) -> torch.Tensor:
    return torch.from_numpy(values_of(pixels, window)).permute(2, 0, 1)[None]
