"""Scans with lesions are drawn here by arithmetic, for an experiment that has to see whether composites help.

A scan is grainy ground with a disc on it. Real scans to learn from have bright discs in the left half alone; the test
scans have bright and dark ones anywhere. Composites are written as `batch` writes them, with the hash of the scan that
each says its disc is of.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48
GROUND, BRIGHT, DARK = 120, 90, -90  # grey levels: of the ground, and of a disc against it


def draw_scan(seed: int, *, difference: int = 0, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A scan, uint8, and the bool mask of its disc. difference: of the disc from the ground, 0 for no disc."""
    generator = np.random.default_rng(seed)
    # Grain of two sizes: no two scans are near-duplicates.
    coarse = np.kron(generator.normal(0, 14, (SIDE // 4, SIDE // 4)), np.ones((4, 4)))
    pixels = GROUND + coarse + generator.normal(0, 6, (SIDE, SIDE))
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = generator.integers(5, 9)
    column = generator.integers(10, SIDE // 2 - 4) if left else generator.integers(10, SIDE - 10)
    mask = (x - column) ** 2 + (y - generator.integers(10, SIDE - 10)) ** 2 <= radius**2
    mask &= difference != 0
    pixels[mask] += difference
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_labelled(folder: Path, seeds: range, differences: tuple[int, ...], *, left: bool = False) -> Path:
    """A labelled scan of each seed, with the differences in turn, and its mask beside it."""
    folder.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        pixels, mask = draw_scan(seed, difference=differences[number % len(differences)], left=left)
        Image.fromarray(pixels).save(folder / f"s{seed}.png")
        Image.fromarray(mask).save(folder / f"s{seed}_mask.png")
    return folder


def write_tumour_free(folder: Path, seeds: range) -> Path:
    folder.mkdir(parents=True)
    for seed in seeds:
        Image.fromarray(draw_scan(seed)[0]).save(folder / f"n{seed}.png")
    return folder


def write_composites(
    folder: Path, real: Path, tumour_free: Path, each: int, *, wrong: bool, seed: int = 10_000
) -> Path:
    """`each` composites for every labelled scan of `real`: bright and dark discs anywhere, which is what the test scans
    show. wrong: the masks are where no disc is, mirrored from left to right and top to bottom."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    backgrounds = sorted(tumour_free.glob("*.png"))
    entries = []
    for scan in sorted(path for path in real.glob("*.png") if "_mask" not in path.name):
        for _ in range(each):
            number = len(entries)
            pixels, mask = draw_scan(seed + number, difference=(DARK, BRIGHT)[number % 2])
            name = f"{number:04d}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            Image.fromarray(_elsewhere(mask) if wrong else mask).save(folder / "masks" / name)
            files = {"object": scan, "background": backgrounds[number % len(backgrounds)]}
            inputs = {role: {"file": path.name, "sha256": _sha256(path)} for role, path in files.items()}
            entries.append({"file_name": f"images/{name}", "mask_file_name": f"masks/{name}", "inputs": inputs})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def _elsewhere(mask: np.ndarray) -> np.ndarray:
    """The mask, moved by half the scan along both sides."""
    return np.roll(mask, (SIDE // 2, SIDE // 2), axis=(0, 1))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
