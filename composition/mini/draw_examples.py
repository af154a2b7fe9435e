"""This module draws the demo's scans by the small checkpoint: `python -m composition.mini.draw_examples --out FOLDER`.

Each picture follows from its prompt and seed. We outlined the tumours by hand, as ellipses. The drawing is a command of
its own, because it runs once for each checkpoint and the demo runs without it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import sd21
from sd21.files import json_lines, write_text
from sd21.training.data import CAPTIONS, IMAGE_SIZE, to_pixels

from ..datasets.br35h import via_mask
from ..scans.images import write_image
from .card import draw


@dataclass(frozen=True)
class Example:
    """A pair to draw. background, obj: class and seed; tumour: the ellipse cx, cy, rx, ry in pixels of obj; user_box:
    x, y, width, height in pixels of background."""

    name: str
    background: tuple[str, int]
    obj: tuple[str, int]
    tumour: tuple[int, int, int, int]
    user_box: tuple[int, int, int, int]


EXAMPLES = (
    Example("brain", ("no", 3), ("yes", 5), (176, 85, 39, 45), (164, 86, 50, 58)),
    Example("breast", ("normal", 9), ("malignant", 6), (109, 92, 58, 50), (70, 92, 104, 90)),
)


def write_example(model: sd21.StableDiffusion, example: Example, folder: Path) -> dict:
    """Draw both scans, write them and the mask to `folder`; returns the row for the manifest."""
    files = {role: f"{example.name}_{role}.png" for role in ("background", "object", "object_mask")}
    for role, (kind, seed) in (("background", example.background), ("object", example.obj)):
        (image,) = draw(model, CAPTIONS[kind][0], 1, seed)
        write_image(folder / files[role], to_pixels(image).numpy())
    cx, cy, rx, ry = example.tumour
    ellipse = {"shape_attributes": {"name": "ellipse", "cx": cx, "cy": cy, "rx": rx, "ry": ry}}
    write_image(folder / files["object_mask"], via_mask([ellipse], (IMAGE_SIZE, IMAGE_SIZE)))
    prompt = CAPTIONS[example.obj[0]][0]
    return {"id": example.name, **files, "user_box": list(example.user_box), "prompt": prompt}


def main() -> None:
    parser = argparse.ArgumentParser(prog="composition.mini.draw_examples", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini", help='"mini", or the folder of an exported checkpoint')
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = sd21.load(arguments.model)
    rows = [write_example(model, example, arguments.out) for example in EXAMPLES]
    write_text(arguments.out / "manifest.jsonl", json_lines(rows))


if __name__ == "__main__":
    main()
