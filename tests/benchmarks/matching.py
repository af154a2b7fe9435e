"""This program compares ways to match an object's greys to the tissue it goes into, on samples of the benchmark.

    OMP_NUM_THREADS=1 python tests/benchmarks/matching.py --data DATA [--samples N] [--network] [--only TEXT] --out FILE

DATA holds the folders br35h and busi, as published. The samples are the first of the benchmark's own draw (300 of
Br35H, 100 of BUSI, seed 0). Without a network it places the object, matches it, and pastes it inside its mask on the
background; the match could as well come first, but for clipping. With --network it composes the samples by the small
checkpoint instead (naive inversion), some of the matches only.

What it measures, in grey levels of 255 and in shares:
- contrast: (median inside the mask - median of the ring around it), of the result over that of the object's own scan,
  for samples whose own contrast is 8 levels or more. 1 is right; below 0.4 a tumour can hardly be seen, below 0 it has
  turned from brighter to darker than its tissue or back.
- white, black: the share of the tumour's pixels at 255 (0), less that in its own scan, where it is more; and in how
  many samples this is over 5 %.
- step: the mean absolute step across the mask's edge of the paste, less that of the object's own scan.
- seam: metrics.fidelity.seam of the paste, the matched object being a parent.
- texture: the standard deviation inside the mask over that before the match; median, least and greatest.
"""

import argparse
import functools
import platform
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2])]

from composition import matching  # noqa: E402
from composition.datasets import DATASETS  # noqa: E402
from composition.datasets.drawing import draw_pairs  # noqa: E402
from composition.matching import WIDTH, ring, ring_greys  # noqa: E402
from composition.metrics.fidelity import seam  # noqa: E402
from composition.placement import Sample, place  # noqa: E402
from composition.scans.images import Scan, box_mask, read_scan  # noqa: E402

WIDTHS = (1 / 8, 1 / 4, 1 / 2)
LEAST_OWN = 8  # grey levels: a ratio to a smaller contrast says nothing
COLUMNS = (
    "contrast: median",
    "5 %",
    "least",
    "95 %",
    "< 0.4",
    "< 0",
    "white %",
    "> 5 %",
    "black %",
    "> 5 %",
    "step",
    "seam",
    "texture",
)


def affine(estimator):
    """An estimator of gain and offset as one of the map of greys."""

    def fitted(background, obj, tumour):
        gain, offset = estimator(background, obj, tumour)
        return lambda greys: gain * greys + offset

    return fitted


def offset(background, obj, tumour):
    return 1, np.median(background) - np.median(obj)


def gain(low, high):
    return lambda background, obj, tumour: (np.clip(np.median(background) / np.median(obj), low, high), 0)


def gain_and_offset(low, high):
    """The ratio of the rings within limits, and the rest by an offset."""

    def fitted(background, obj, tumour):
        ratio = np.clip(np.median(background) / np.median(obj), low, high)
        return ratio, np.median(background) - ratio * np.median(obj)

    return fitted


def spread(low, high):
    """Median to median, and median absolute deviation to median absolute deviation within limits."""

    def fitted(background, obj, tumour):
        target, own = np.median(background), np.median(obj)
        ratio = np.median(abs(background - target)) / max(np.median(abs(obj - own)), 1e-3)
        return np.clip(ratio, low, high), target - np.clip(ratio, low, high) * own

    return fitted


def quantile_pair(low, high):
    """The 10 % and 90 % quantiles to each other: their middles, and their distance within limits."""

    def fitted(background, obj, tumour):
        (b0, b1), (o0, o1) = (np.quantile(greys, (0.1, 0.9)) for greys in (background, obj))
        ratio = np.clip((b1 - b0) / max(o1 - o0, 1e-3), low, high)
        return ratio, (b0 + b1) / 2 - ratio * (o0 + o1) / 2

    return fitted


def fitted_gain(low, high):
    """gain_and_offset, lowered to the room that black and white leave, as `contrast` is."""

    def fitted(background, obj, tumour):
        target, own = np.median(background), np.median(obj)
        ratio = min(float(np.clip(target / own, low, high)), room(target, own, tumour))
        return max(ratio, matching.LEAST_GAIN), target - max(ratio, matching.LEAST_GAIN) * own

    return fitted


def room(target, own, tumour):
    """The gain at which the tumour's far end reaches white or black."""
    low, high = np.quantile(tumour, (matching.TAIL, 1 - matching.TAIL))
    space, reach = (1 - target, high - own) if np.median(tumour) > own else (target, own - low)
    return space / reach if reach > 0 else np.inf


def histograms(background, obj, tumour):
    """Every quantile of one ring to that of the other; beyond the object's ring the map has a slope of one."""
    shares = np.linspace(0, 1, 257)
    source, target = np.quantile(obj, shares), np.quantile(background, shares)

    def mapped(greys):
        beyond = np.clip(greys - source[-1], 0, None) + np.clip(greys - source[0], None, 0)
        return np.interp(greys, source, target) + beyond

    return mapped


ESTIMATORS = {
    "none": affine(lambda background, obj, tumour: (1, 0)),
    "offset": affine(offset),
    "gain in [0.4, 2.5]": affine(gain(0.4, 2.5)),
    "gain in [0.5, 2]": affine(gain(0.5, 2)),
    "gain in [0.67, 1.5]": affine(gain(0.67, 1.5)),
    "gain in [0.67, 1.5], rest by offset": affine(gain_and_offset(0.67, 1.5)),
    "gain in [0.8, 1.25], rest by offset": affine(gain_and_offset(0.8, 1.25)),
    "median and MAD, gain in [0.5, 2]": affine(spread(0.5, 2)),
    "median and MAD, gain in [0.8, 1.25]": affine(spread(0.8, 1.25)),
    "quantiles 10 and 90 %, gain in [0.5, 2]": affine(quantile_pair(0.5, 2)),
    "histograms": histograms,
    "gain in [0.8, 1.25] as far as it fits, rest by offset": affine(fitted_gain(0.8, 1.25)),
    "gain 1 as far as it fits, rest by offset": affine(fitted_gain(1, 1)),
    "**contrast**: gain in [1, 1.5] as far as it fits, rest by offset": affine(matching.keep_contrast),
}
COMPOSED = ("none", "gain in [0.4, 2.5]", *list(ESTIMATORS)[-3:])


class Case:
    """A sample, its placement before the match, and the greys of its rings by their width."""

    def __init__(self, sample):
        self.sample, self.original = sample, place(*list(sample)[:4])
        self.mask, self.background = self.original.object_mask, sample.background.values()
        own = sample.obj.values()
        self.tumour = (own[sample.object_mask].mean(axis=1) + 1) / 2
        self.target = {width: ring_greys(self.background, self.mask, "place", width)[0] for width in WIDTHS}
        self.own = {width: ring_greys(own, sample.object_mask, "tumour", width)[0] for width in WIDTHS}

    def map(self, estimator, width=WIDTH):
        """The map of values in [-1, 1] that the estimator finds, rounded to 8 bits as a scan's are."""
        found = estimator(self.target[width], self.own[width], self.tumour)
        return lambda values: np.rint(np.clip(found((values + 1) / 2), 0, 1) * 255).astype(np.float32) / 127.5 - 1

    def pasted(self, estimator, width=WIDTH, widths=(WIDTH,)):
        placed = self.map(estimator, width)(self.original.image)
        return self.measures(np.where(self.mask[..., None], placed, self.background), placed, widths)

    def composed(self, estimator, model, inversions):
        from composition import Settings, compose

        sample, mapped = self.sample, self.map(estimator)
        matched = Scan(sample.obj.render(mapped(sample.obj.values()), grayscale=sample.obj.grayscale))
        scans_and_masks = (sample.background, matched, sample.object_mask, sample.user_mask)
        settings = Settings(inversion="naive", match="none")  # the object is matched already
        image = compose(model, *scans_and_masks, sample.prompt, settings, inversions=inversions).image
        return self.measures(Scan(image).values(), place(*scans_and_masks).image, (WIDTH,))

    def measures(self, result, placed, widths):
        """The measures of a result, values (H, W, 3) like `placed`, against rings of these widths."""
        greys, before = ((values[self.mask] + 1) / 2 for values in (result, self.original.image))
        own, target = (np.mean([np.median(greys[width]) for width in widths]) for greys in (self.own, self.target))
        contrast = np.median(self.tumour) - own
        ends = [(part >= 254.5 / 255, part <= 0.5 / 255) for part in (greys, before)]
        white, black = (max(0.0, new.mean() - old.mean()) for new, old in zip(*ends, strict=True))
        parents = [torch.from_numpy(values).permute(2, 0, 1)[None] for values in (result, self.background, placed)]
        return {
            "own": 255 * contrast,
            "contrast": 255 * (np.median(greys) - target),
            "white": white,
            "black": black,
            "step": edge_step(result, self.mask) - edge_step(self.original.image, self.mask),
            "seam": float(seam(*parents, torch.from_numpy(self.mask)[None, None])),
            "texture": greys.std() / before.std(),
        }


def edge_step(values, mask):
    crossing = [np.diff(mask, axis=axis) for axis in (0, 1)]
    steps = [np.abs(np.diff(values, axis=axis))[there] for axis, there in zip((0, 1), crossing, strict=True)]
    return 127.5 * np.concatenate(steps).mean()


def row(name, dataset, found):
    column = {key: np.array([one[key] for one in found]) for key in found[0]}
    counts = abs(column["own"]) >= LEAST_OWN
    ratio = column["contrast"][counts] / column["own"][counts]
    texture = column["texture"]
    cells = [f"{value:.2f}" for value in (np.median(ratio), np.quantile(ratio, 0.05), ratio.min())]
    cells += [f"{np.quantile(ratio, 0.95):.2f}", str((ratio < 0.4).sum()), str((ratio < 0).sum())]
    for end in ("white", "black"):
        cells += [f"{100 * column[end].mean():.1f}", str((column[end] > 0.05).sum())]
    cells += [f"{column['step'].mean():.1f}", f"{column['seam'].mean():.1f}"]
    cells += [f"{np.median(texture):.2f} [{texture.min():.2f}, {texture.max():.2f}]"]
    return f"| {name} | {dataset}, {len(ratio)} | " + " | ".join(cells) + " |"


def header():
    return ["| match | data set, contrasts | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]


def rings(cases):
    """How far rings of two scans lie apart, and how far parts of a ring lie from the whole, in grey levels."""
    apart, parts = [], {name: [] for name in ("half", "quarter", "eighth", "64 pixels")}
    random = np.random.default_rng(0)
    for case in cases:
        middles, sample = [], case.sample
        for values, inside in ((case.background, case.mask), (sample.obj.values(), sample.object_mask)):
            there = ring(inside)
            greys = 127.5 * (values[there].mean(axis=1) + 1)
            bright = greys > 255 * matching.BLACK
            middles.append(np.median(greys[bright]))
            rows, columns = (index - np.nonzero(inside)[axis].mean() for axis, index in enumerate(np.nonzero(there)))
            angle = np.arctan2(rows, columns)
            for name, turn in (("half", np.pi / 2), ("quarter", np.pi / 4), ("eighth", np.pi / 8)):
                for middle in np.arange(8) * (np.pi / 4):
                    part = bright & (abs(np.angle(np.exp(1j * (angle - middle)))) <= turn)
                    if part.sum() >= matching.LEAST_PIXELS:
                        parts[name].append(abs(np.median(greys[part]) - middles[-1]))
            drawn = random.choice(greys[bright], (8, 64))
            parts["64 pixels"] += list(abs(np.median(drawn, axis=1) - middles[-1]))
        apart.append(abs(middles[0] - middles[1]))
    return {"two scans": apart} | parts


def cases_of(data, name, count):
    pairs, _ = draw_pairs(DATASETS[name].read(data / name), DATASETS[name].samples, seed=0)
    cases = []
    for pair in pairs[:count]:
        scans = (read_scan(pair.background), read_scan(pair.obj.path))
        cases.append(Case(Sample(*scans, pair.obj.mask, box_mask(pair.user_box, pair.size), pair.dataset.prompt)))
    return cases


def table(title, names, cases, measured):
    """A table of the matches of these names. measured: from a case and an estimator to its measures."""
    yield from ("", title, "", *header())
    for name in names:
        for dataset, several in cases.items():
            yield row(name, dataset, [measured(one, ESTIMATORS[name]) for one in several])


def pastes(cases, only):
    yield from table("## Pasted", [name for name in ESTIMATORS if only in name], cases, Case.pasted)
    yield from ("", "## Widths of the ring, measured on the mean of rings of all three widths", "", *header())
    for width in WIDTHS:
        for dataset, several in cases.items():
            found = [one.pasted(affine(matching.keep_contrast), width, WIDTHS) for one in several]
            yield row(f"contrast, ring of {width:g}", dataset, found)
    yield from ("", "## Medians of rings and of parts of rings: how far apart, in grey levels (median, 95 %)", "")
    for dataset, several in cases.items():
        for name, apart in rings(several).items():
            yield f"- {dataset}, {name}: {np.median(apart):.1f}, {np.quantile(apart, 0.95):.1f}"


def composites(cases, only):
    import sd21

    model, kept = sd21.load("mini"), {}
    measured = functools.partial(Case.composed, model=model, inversions=kept)
    yield from table("## Composed", [name for name in COMPOSED if only in name], cases, measured)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100, help="of each data set (default: %(default)s)")
    parser.add_argument("--network", action="store_true", help="compose instead of pasting")
    parser.add_argument("--only", default="", help="matches whose names hold this text (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cases = {name: cases_of(options.data, name, options.samples) for name in DATASETS}
    with options.out.open("w", encoding="utf-8") as file:
        for line in (composites if options.network else pastes)(cases, options.only):
            print(line, file=file, flush=True)
        command = " ".join(["OMP_NUM_THREADS=1 python tests/benchmarks/matching.py", *sys.argv[1:]])
        versions = f"numpy {np.__version__}, torch {torch.__version__}"
        print(f"\n`{command}`, {platform.machine()}, CPU, {versions}.", file=file)


if __name__ == "__main__":
    main()
