"""This module finds the scans that the small checkpoint is trained on, gives them captions, and splits them into
training and held-out scans. All stages of the training share it, so that no stage sees a scan that another holds out.

The data are Br35H (brain MRI, `yes`/`no`) and BUSI (breast ultrasound, `benign`/`malignant`/`normal`) in their
published layouts. The images of Br35H's Mask-RCNN folders are copies of `yes/y0`-`y700` and are not read.

Br35H repeats itself: nearly every slice occurs several times, re-encoded, with another contrast or mirrored. A split by
file would leave a twin of nine in ten held-out scans in the training set. So twins are grouped first, and a group is
held out as a whole. The file `held_out.txt` keeps the resulting list, so that the split is the same whatever part of
the data is at hand.
"""

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..files import irregular
from ..words import one_line

IMAGE_SIZE = 256
FOLDERS = {
    "no": "br35h/no",
    "yes": "br35h/yes",
    "normal": "busi/Dataset_BUSI_with_GT/normal",
    "benign": "busi/Dataset_BUSI_with_GT/benign",
    "malignant": "busi/Dataset_BUSI_with_GT/malignant",
}
# The first caption of a class is its prompt in evaluations; the others teach other words for the same thing. A benign
# tumour is not cancer, so no caption of that class says "cancer".
CAPTIONS = {
    "no": (
        "An MRI scan of a healthy brain",
        "An MRI scan of a brain without a tumour",
        "A brain MRI showing no tumor",
        "A magnetic resonance image of a normal brain",
        "An MRI scan of a brain",
    ),
    "yes": (
        "An MRI scan of a cancerous brain",
        "An MRI scan of a brain with a tumour",
        "A brain MRI showing a tumor",
        "A magnetic resonance image of a brain with cancer",
        "An MRI scan of a brain",
    ),
    "normal": (
        "An ultrasound image of a healthy breast",
        "An ultrasound image of a breast without a tumour",
        "A breast ultrasound showing no tumor",
        "A sonogram of a normal breast",
        "An ultrasound image of a breast",
    ),
    "benign": (
        "An ultrasound image of a breast with a benign tumour",
        "An ultrasound image of a breast with a benign lesion",
        "A breast ultrasound showing a benign tumor",
        "A sonogram of a breast with a benign mass",
        "An ultrasound image of a breast",
    ),
    "malignant": (
        "An ultrasound image of a cancerous breast",
        "An ultrasound image of a breast with a malignant tumour",
        "A breast ultrasound showing a malignant tumor",
        "A sonogram of a breast with cancer",
        "An ultrasound image of a breast",
    ),
}
KINDS = tuple(CAPTIONS)
MODALITY = {"no": "mri", "yes": "mri", "normal": "ultrasound", "benign": "ultrasound", "malignant": "ultrasound"}

HELD_OUT_LIST = Path(__file__).with_name("held_out.txt")
HELD_OUT_SHARE = 10  # one group in this many is held out
# Two scans count as twins if their 32 x 32 thumbnails correlate by more than this. We looked at a sample of such pairs:
# each showed one slice in two contrasts.
TWIN_CORRELATION = 0.95


@dataclass(frozen=True)
class Scan:
    """One image file: `name` is "kind/file name", `kind` a key of CAPTIONS."""

    path: Path
    kind: str

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.path.name}"


def find_scans(root: str | Path) -> list[Scan]:
    """All scans under the data folder, in a fixed order, without masks. Raises FileNotFoundError for a missing
    class."""
    scans = []
    for kind, folder in FOLDERS.items():
        paths = [p for p in sorted((Path(root) / folder).glob("*.*")) if "_mask" not in p.name]
        if not paths:
            raise FileNotFoundError(f"no images in {Path(root) / folder}; expected Br35H and BUSI as published")
        scans += [Scan(path, kind) for path in paths]
    return scans


def held_out_names() -> set[str]:
    """The names of the scans that are held out, "kind/file name"."""
    return set(HELD_OUT_LIST.read_text().splitlines())


def split(scans: list[Scan]) -> tuple[list[Scan], list[Scan]]:
    """(training scans, held-out scans), by the list in `held_out.txt`."""
    held_out = held_out_names()
    return [s for s in scans if s.name not in held_out], [s for s in scans if s.name in held_out]


def evenly(scans: list[Scan], count: int) -> list[Scan]:
    """`count` scans of each modality, evenly spaced in the list, or all of them if there are fewer."""
    chosen = []
    for modality in ("mri", "ultrasound"):
        some = [scan for scan in scans if MODALITY[scan.kind] == modality]
        chosen += some[:: max(1, len(some) // count)][:count]
    return chosen


def load_pixels(scans: list[Scan], size: int = IMAGE_SIZE) -> torch.Tensor:
    """Grey levels (N, size, size), uint8; scans are stretched to the square."""
    pixels = np.empty((len(scans), size, size), np.uint8)
    for i, scan in enumerate(scans):
        try:
            if what := irregular(scan.path):
                raise OSError(what)
            with Image.open(scan.path) as image:
                pixels[i] = np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS))
        except Exception as error:  # Pillow raises a dozen types for damaged files
            raise ValueError(f"{scan.path} cannot be read as an image: {one_line(str(error))}") from error
    return torch.from_numpy(pixels)


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels (B, H, W), uint8, as images for the VAE: (B, 3, H, W), float32 in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (..., 3, H, W) in [-1, 1] as grey levels (..., H, W), uint8."""
    return ((images.mean(-3) + 1) * 127.5).round().to(torch.uint8)


def twin_groups(pixels: torch.Tensor) -> list[int]:
    """For each of the images (N, H, W), the first index in its group. Twins, also mirrored ones, share a group."""
    thumbnails = F.adaptive_avg_pool2d(pixels[:, None].float(), 32)[:, 0]
    thumbnails = thumbnails - thumbnails.mean((1, 2), keepdim=True)
    thumbnails = thumbnails / thumbnails.norm(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    flat, mirrored = thumbnails.flatten(1), thumbnails.flip(2).flatten(1)
    correlation = torch.maximum(flat @ flat.T, flat @ mirrored.T)
    first = list(range(len(pixels)))

    def root(i: int) -> int:
        while first[i] != i:
            i = first[i]
        return i

    for i, j in (correlation > TWIN_CORRELATION).triu(1).nonzero().tolist():
        low, high = sorted((root(i), root(j)))
        first[high] = low
    return [root(i) for i in range(len(pixels))]


def choose_held_out(scans: list[Scan], groups: list[int]) -> list[str]:
    """The names of the scans to hold out. groups: the scans' `twin_groups`. The hash of the name of its first scan
    decides whether a group is held out."""
    digest = {g: int(hashlib.sha256(scans[g].name.encode()).hexdigest(), 16) for g in set(groups)}
    return [scan.name for scan, g in zip(scans, groups, strict=True) if digest[g] % HELD_OUT_SHARE == 0]


def sampling_weights(scans: list[Scan]) -> torch.Tensor:
    """Weights of the scans, (N,) float64: a class is drawn in proportion to the square root of its size.

    That lies between drawing all scans and drawing all classes equally often. Class sizes differ twelvefold.
    """
    size = Counter(scan.kind for scan in scans)
    return torch.tensor([size[scan.kind] ** -0.5 for scan in scans], dtype=torch.float64)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mild random changes of images (B, 3, H, W): mirrored, turned by up to 5 degrees, shifted by 3 %, contrast 10 %.

    Height and width are zoomed independently, each by 1 to 1.2: a composition shows the network scans with their own
    aspect, while the training stretches them to squares.
    """
    n = len(images)
    zoom_x, zoom_y, angle, dx, dy, contrast, mirror = torch.rand(7, n, generator=generator)
    angle = math.radians(5) * (2 * angle - 1)
    x = torch.where(mirror < 0.5, -1.0, 1.0) / (1 + 0.2 * zoom_x)
    y = 1 / (1 + 0.2 * zoom_y)
    rows = [x * angle.cos(), -y * angle.sin(), 0.06 * dx - 0.03, x * angle.sin(), y * angle.cos(), 0.06 * dy - 0.03]
    theta = torch.stack(rows, dim=1).view(n, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    gain = (0.9 + 0.2 * contrast).view(-1, 1, 1, 1).to(images.device)
    return ((moved + 1) * gain - 1).clamp(-1, 1)
