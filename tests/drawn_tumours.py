"""Sets of scans with tumours are drawn here, real ones and composites, for the tests of `realism` and of its reader
study: composites from the same distribution as the real ones, and ones that look pasted."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE = 120  # pixels; tumours are so large that their crops are shrunk, and lie within it


def draw_tumour(seed: int, pasted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tissue with a bright tumour, uint8 (SIDE, SIDE), and its mask. pasted: it is flat, with a dark line around it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.uniform(60, 150, (5, 5)).astype(np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx, a, b = rng.uniform([48, 48, 22, 22], [72, 72, 29, 29])
    mask = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1
    soft = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(2))) / 255
    pixels = np.asarray(coarse) + rng.normal(0, 8, (SIDE, SIDE)) + 50 * soft
    if pasted:
        pixels[mask] = 190
        pixels[mask & (((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 > 0.85)] = 30
    return pixels.clip(0, 255).astype(np.uint8), mask


def draw_real(folder: Path, count: int, first: int = 0) -> Path:
    """NAME.png with NAME_mask.png beside it."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels, mask = draw_tumour(first + number)
        Image.fromarray(pixels).save(folder / f"scan {number}.png")
        Image.fromarray(mask).save(folder / f"scan {number}_mask.png")
    return folder


def draw_composites(folder: Path, count: int, first: int, *, pasted: bool = False, objects: Path | None = None) -> Path:
    """What `batch` leaves of its composites. objects: the folder of real scans that they say their objects are from."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels, mask = draw_tumour(first + number, pasted)
        row = {"file_name": f"images/{number}.png", "mask_file_name": f"masks/{number}.png"}
        Image.fromarray(pixels).save(folder / row["file_name"])
        Image.fromarray(mask).save(folder / row["mask_file_name"])
        path = objects and objects / f"scan {number}.png"
        obj = hashlib.sha256(path.read_bytes()).hexdigest() if path else f"object {first + number}"
        background = hashlib.sha256(f"background {first + number}".encode()).hexdigest()
        rows.append({**row, "inputs": {"background": {"sha256": background}, "object": {"sha256": obj}}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def realism_command(sets: Path, out: Path, *more: str) -> list[str]:
    """The command that compares the sets "same" and "pasted", folders in `sets`, with the real scans there."""
    named = [f"{name}={sets / name}" for name in ("same", "pasted")]
    return ["realism", "--real", str(sets / "real"), "--composites", *named, "--out", str(out), *more]
