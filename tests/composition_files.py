"""This module writes what a user of the command line has on disk, in small: scans, masks, a manifest, and a checkpoint
of 64 pixels. The tests of the commands share it."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from small_models import write_small_pipeline

# Few steps and the cheapest inversion: these tests are about files.
FAST = ["--steps", "4", "--start", "2", "--preserve-background-until", "1", "--inversion", "naive"]


def write_scans(folder: Path) -> Path:
    """Grayscale scans s0.png, s1.png, s2.png of 60 x 80 pixels, and the mask m.png of a tumour in any of them."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:60, :80]
    for n in range(3):
        waves = 120 + 60 * np.sin(x / (7 + n)) * np.cos(y / (9 + n)) + (x + n * y) % 11
        Image.fromarray(waves.astype(np.uint8)).save(folder / f"s{n}.png")
    Image.fromarray(np.uint8(255) * ((x - 40) ** 2 + (y - 30) ** 2 < 200)).save(folder / "m.png")
    return folder


def row(number: int, **changes) -> dict:
    """A good row of a manifest beside the scans. All even rows share one background, and all odd rows another."""
    entry = {
        "id": f"case{number}",
        "background": f"s{number % 2}.png",
        "object": "s2.png",
        "object_mask": "m.png",
        "user_box": [10 + number, 12, 40, 32],
        "prompt": "a scan of a brain with a tumour",
    }
    return {name: value for name, value in (entry | changes).items() if value is not None}


def write_manifest(path: Path, rows: list) -> Path:
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in rows))
    return path


def write_tiny_model(folder: Path) -> Path:
    """Write the small random checkpoint. It claims 64 pixels, so that a composition takes tenths of a second."""
    config = write_small_pipeline(folder) / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 8}))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones included, with a hash of its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_command(scans: Path, out: Path, **changes) -> list[str]:
    """The arguments of a `run` on these scans. changes: options, by name; None leaves one out."""
    options = {
        "background": scans / "s0.png",
        "object": scans / "s2.png",
        "object-mask": scans / "m.png",
        "user-box": "20,12,40,32",
        "prompt": "a tumour",
        "out": out,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    return ["run", *(f"--{name}={value}" for name, value in options.items() if value is not None)]
