"""This package holds the paper's four metrics (section 5.2), with their definitions made explicit, and measures that
need no network.

The paper names LPIPS_bg, LPIPS_fg, CLIP_Image and CLIP_Text and says what each is for, but not how it is computed.
Here:

- The background is what lies outside the user mask. For LPIPS_bg the composite's user region is filled with the
  background's own pixels, so that the mask itself draws no edge; both are brought to 512 x 512, the paper's size.
- The foreground is the crop of the user mask's bounding box ("the edited region"), from the composite and from the
  placed object: the object's scan, scaled and moved by the placement that all methods share, so that the crops
  correspond pixel by pixel. For the networks each crop is brought to 224 x 224, AlexNet's and CLIP's own size.
- CLIP_Text compares the whole composite with the prompt, and CLIP_Image the two crops; both are 100 times the cosine.

All resizing is bicubic with antialiasing and does not keep the aspect (TF-ICON's canvas is square, and so is the
paper's). PSNR, SSIM, the seam and the label's measures are taken on the background's own pixels, without resizing.

label_truth.py measures whether the label of a composite is true; contrast, correlation and grey shift are columns as
well.

METRICS (table.py) is the one table of them. `measure` computes any of them by name, for a Comparison (comparison.py).
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "clip": ("CLIP",),
        "comparison": ("Comparison", "Reference"),
        "composites": ("measurable", "measure"),
        "fidelity": ("psnr", "seam", "ssim"),
        "label_truth": ("LabelTruth", "measure_label"),
        "lpips": ("LPIPS", "published_lpips", "shift_tolerant_lpips"),
        "networks": ("Networks", "find_networks"),
        "table": ("METRICS", "Metric"),
    },
)
