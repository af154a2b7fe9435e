"""This program prints what a window around the target is worth, by its size and by the target's, as Markdown.

    python tests/benchmarks/focus.py --data ../shared/data [--pairs 8] [--scales 1/3,3/5,1] [--contexts 2,4,6]

It composes the first --pairs pairs of the benchmark's draw of each data set by the small checkpoint, at the defaults,
with the target shrunk about its centre. A context of 0 is the whole scan. The step at the window's edge is how much
harder neighbouring pixels differ across it than they do in the scan itself, in grey levels of 255; the seam's
definition with the scan as both parents.
"""

import argparse
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

import sd21
from composition import Composition, PlacementError, Settings, compose
from composition.datasets import DATASETS, build_benchmark
from composition.metrics import Networks, Reference, measure, seam
from composition.runs.manifest import read_manifest
from composition.scans.images import Scan, values_of

MEASURES = ("psnr_object", "psnr_bg", "seam_object", "contrast")
FOLDERS = {"br35h": "br35h", "busi": "busi/Dataset_BUSI_with_GT"}


def edge_step(composition: Composition) -> float:
    """The step across the window's edge beyond the scan's own, in grey levels; 0 where there is no window."""
    background = composition.sample.background
    inside = np.zeros(background.size, dtype=bool)
    inside[composition.window.part] = True
    if inside.all():
        return 0.0
    before, after = (
        torch.from_numpy(values_of(pixels, background.window)).permute(2, 0, 1)[None]
        for pixels in (background.pixels, composition.image)
    )
    return seam(after, before, before, torch.from_numpy(inside)[None, None]).item()


def figures(model, samples, settings) -> dict:
    found, lost = [], 0
    for sample in samples:
        try:
            composition = compose(model, *sample, settings)
        except PlacementError:  # the target covers no cell of the whole scan
            lost += 1
            continue
        reference = Reference.of(sample, Networks(), fit=settings.fit, match=settings.match)
        values = measure(reference.compare(Scan(composition.image, levels=sample.background.window)), MEASURES)
        found.append(values | {"cells": composition.window.cells, "edge": edge_step(composition)})
    return {name: np.array([values[name] for values in found]) for name in found[0]} | {"lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--scales", default="1/3,3/5,1")
    parser.add_argument("--contexts", default="0,2,4,6")
    options = parser.parse_args()
    model = sd21.load("mini")
    heads = ["pairs", "target", "window", "cells", "object PSNR", "background PSNR", "seam of object"]
    heads += ["contrast: median, least", "step at the edge, worst"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    for name, scale in ((name, scale) for name in FOLDERS for scale in options.scales.split(",")):
        with TemporaryDirectory() as folder:
            part = DATASETS[name].read(options.data / FOLDERS[name]), options.pairs
            built = build_benchmark(folder, [part], target_scale=Fraction(scale))
            rows, _ = read_manifest(built.manifest, Settings())
            samples = [row.request.read() for row in rows]
        for context in tqdm([float(text) for text in options.contexts.split(",")], desc=f"{name} {scale}"):
            window = {"focus": "window", "focus_context": context} if context else {"focus": "scan"}
            of = figures(model, samples, Settings(**window))
            middle = {key: np.nanmedian(of[key]) for key in (*MEASURES, "cells")}
            print(
                f"| {options.pairs} {name}, {of['lost']} lost | {scale} | {f'{context:g}' if context else 'scan'} "
                f"| {middle['cells']:.1f} | {middle['psnr_object']:.1f} | {middle['psnr_bg']:.1f} "
                f"| {middle['seam_object']:.1f} | {middle['contrast']:.2f}, {np.nanmin(of['contrast']):.2f} "
                f"| {of['edge'].max():.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
