"""The paper's four metrics (section 5.2) with their definitions made explicit, and measures that need no network.

The paper names LPIPS_bg, LPIPS_fg, CLIP_Image and CLIP_Text and says what each is for, not how it is computed. Here:

- The background is what lies outside the user mask. For LPIPS_bg the composite's user region is filled with the
  background's own pixels, so that the mask itself draws no edge; both are brought to 512 x 512, the paper's size.
- The foreground is the crop of the user mask's bounding box ("the edited region"), from the composite and from the
  placed object: the object's scan, scaled and moved by the placement that all methods share, so that the crops
  correspond pixel by pixel. For the networks each crop is brought to 224 x 224, AlexNet's and CLIP's own size.
- CLIP_Text compares the whole composite with the prompt, and CLIP_Image the two crops; both are 100 times the cosine.

All resizing is bicubic with antialiasing, without keeping the aspect (TF-ICON's and so the paper's canvas is square).
PSNR, SSIM and the seam are taken in the background's own pixels.
"""

from __future__ import annotations

import torch

from .clip import CLIP
from .fidelity import psnr, seam, ssim
from .lpips import LPIPS, WeightsError, published_lpips, shift_tolerant_lpips
from .resize import square

__all__ = [
    "CLIP",
    "COLUMNS",
    "LPIPS",
    "WeightsError",
    "measure",
    "psnr",
    "published_lpips",
    "seam",
    "shift_tolerant_lpips",
    "ssim",
]

IMAGE_SIDE, CROP_SIDE = 512, 224

# Every column of `measure`, and whether more of it is better.
COLUMNS = {
    "lpips_bg": False,
    "lpips_fg": False,
    "clip_text": True,
    "clip_image": True,
    "psnr_bg": True,
    "psnr_fg": True,
    "ssim_bg": True,
    "ssim_fg": True,
    "seam_object": False,
    "seam_user": False,
}


def measure(
    composites: torch.Tensor,
    background: torch.Tensor,
    placed: torch.Tensor,
    object_mask: torch.Tensor,
    user_mask: torch.Tensor,
    prompt: str,
    *,
    lpips: LPIPS | None = None,
    clip: CLIP | None = None,
) -> list[dict[str, float]]:
    """The COLUMNS of composites of one sample, by as many methods; those of a network that is not given are absent.

    composites (N, 3, H, W), background, placed (1, 3, H, W): in [-1, 1], in the background's pixels. object_mask (of
    the placed object), user_mask: (1, 1, H, W) bool. psnr is inf where nothing changed, ssim is nan where its
    window does not fit. Raises ValueError for other shapes, or an empty user mask.
    """
    if composites.ndim != 4 or any(image.shape != (1, 3, *composites.shape[2:]) for image in (background, placed)):
        shapes = [tuple(image.shape) for image in (composites, background, placed)]
        raise ValueError(
            f"expected composites (N, 3, H, W), background and placed (1, 3, H, W) of one size, got {shapes}"
        )
    rows, columns = bounding_slices(user_mask)
    edited = torch.zeros_like(user_mask)
    edited[..., rows, columns] = True
    reference = square(placed[..., rows, columns], CROP_SIDE)

    def of_one(composite: torch.Tensor) -> dict[str, torch.Tensor]:
        values = {
            "psnr_bg": psnr(composite, background, ~user_mask),
            "psnr_fg": psnr(composite, placed, edited),
            "ssim_bg": ssim(composite, background, ~user_mask),
            "ssim_fg": ssim(composite, placed, edited),
            "seam_object": seam(composite, background, placed, object_mask),
            "seam_user": seam(composite, background, placed, user_mask),
        }
        if clip is not None:
            values["clip_text"] = clip.text_similarity(composite, [prompt])
            values["clip_image"] = clip.image_similarity(square(composite[..., rows, columns], CROP_SIDE), reference)
        return values

    # One by one: how a batch is summed, and so the last bits, depends on its size.
    found = [of_one(composite) for composite in composites.split(1)]
    if lpips is not None:  # it goes one by one itself, and takes the reference's features once
        outside = square(torch.where(user_mask, background, composites), IMAGE_SIDE)
        crops = square(composites[..., rows, columns], CROP_SIDE)
        distances = (lpips(outside, square(background, IMAGE_SIDE)), lpips(crops, reference))
        for values, background_distance, crop_distance in zip(found, *distances, strict=True):
            values |= {"lpips_bg": background_distance, "lpips_fg": crop_distance}
    return [{name: float(values[name]) for name in COLUMNS if name in values} for values in found]


def bounding_slices(mask: torch.Tensor) -> tuple[slice, slice]:
    """The rows and columns of a mask's bounding box."""
    if not mask.any():
        raise ValueError("the user mask is empty: there is no edited region to measure")
    spans = [mask.flatten(0, 1).any(dim=0).any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0)]
    return tuple(slice(span[0], span[-1] + 1) for span in spans)
