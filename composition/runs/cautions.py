"""This module says what a user should know of a single composition that was made and may not be what it seems."""

from __future__ import annotations

from solvers import INVERSIONS

from ..methods import Composition
from ..metrics.label_truth import LEAST_OWN_CONTRAST
from ..placement import knows_millimetres
from .limits import Limits
from .summary import LEAST_ZOOM

# What is enlarged more than this shows its lack of fine texture.
MOST_ENLARGED = 1.5
# Grey steps between slices, over the object's own, up to which a volume is one.
MOST_UNEVEN = 1.25
MOST_CONTRAST = 2.0
LEAST_GAIN_UNSAID = 0.65
MOST_COVERED = 0.9  # the share of its scan that a tumour may cover; a scan taken for a mask covers all of it


def volume_cautions(told: dict) -> list[str]:
    """Sentences on what is doubtful in a composed volume; told: what `run_volume` returns."""
    said, limits = [], Limits()
    if told["covered"] > MOST_COVERED:
        said.append(
            f"the object mask covers {told['covered']:.0%} of its volume: see that it is a mask, and not a scan"
        )
    if told["clipped"] > limits.max_clipped:
        said.append(f"{told['clipped']:.0%} of the tumour lay outside the target and was cut off: use a larger target")
    contrasts = [label["contrast"] for label in told["labels"].values() if label["contrast"] is not None]
    low = [contrast for contrast in contrasts if contrast < limits.min_contrast]
    if low:
        said.append(
            f"in {len(low)} of {len(told['labels'])} slices the tumour keeps less than {limits.min_contrast:g} of its "
            f"contrast, {min(low):.2f} at least: look at them"
        )
    if told["scale"] < 0.99:
        said.append(f"the tumour is made smaller, to {told['scale']:.2f} of its size, to fit the target")
    if told["match"]["why"] is not None:
        said.append(f"the tumour's grey values were not matched to the tissue around it: {told['match']['why']}")
    steps = told["steps"]
    if steps["ratio"] is not None and steps["ratio"] > MOST_UNEVEN:
        said.append(
            f"greys step from slice to slice {steps['ratio']:.2f} times as much as in the object, by "
            f"{steps['composite']:.1f} levels of 255: look at the planes of the figure"
        )
    elif steps["composite"] is not None and steps["ratio"] is None:
        said.append("the tumour has hardly any texture where it lies, as where it is plain white or black: look at it")
    return said


def cautions(composition: Composition) -> list[str]:
    """Sentences on what is doubtful; an empty list where all is well.

    They tell of a label that falls short of the default limits, a contrast that nobody can measure, greys that could
    not be matched, an object or a window that is enlarged, and an inversion that missed its tolerance.
    """
    label, window = composition.label, composition.window
    said = list(Limits().broken(label).values())
    if label.contrast is not None and label.contrast > MOST_CONTRAST:
        said.append(f"the tumour has {label.contrast:.1f} times the contrast of its own scan: look at it")
    if composition.match.gain < LEAST_GAIN_UNSAID:
        said.append(
            f"the object's greys were brought to {composition.match.gain:.2f} of their range, since the tissue it goes "
            "into is nearly white or black: use another place, or --match none"
        )
    if knows_millimetres(composition.sample) and not composition.true_size:
        said.append("the object does not keep its size in millimetres: the target is smaller, or --size is region")
    covered = composition.sample.object_mask.mean()
    if covered > MOST_COVERED:
        said.append(f"the object mask covers {covered:.0%} of its scan: see that it is a mask, and not a scan")
    if label.contrast is None:
        why = "one of the two scans has no tissue around it"
        if label.contrast_own is not None and label.contrast_composite is not None:
            why = f"it is {label.contrast_own:+.1f} grey levels of 255 there, less than {LEAST_OWN_CONTRAST:g}"
        said.append(f"nobody can say whether the tumour keeps the contrast of its own scan, since {why}: look at it")
    if composition.scale > MOST_ENLARGED:
        said.append(
            f"the object is enlarged {composition.scale:.1f} times to fill the target, and is smoother than the scan "
            "it goes into: use a smaller target"
        )
    if composition.match.why is not None:
        said.append(f"the object's grey values were not matched to the tissue around it: {composition.match.why}")
    whole = window.covers(composition.sample.background)
    if window.zoom > (MOST_ENLARGED if whole else 1):
        height, width = window.size
        said.append(
            f"the network sees {'the scan' if whole else 'a window'} of {width}x{height} pixels, enlarged "
            f"{window.zoom:.1f} times: it sees no finer texture than the scan has"
            + ("" if whole else "; a larger --focus-context enlarges it less")
        )
    if window.zoom < LEAST_ZOOM:
        said.append(
            f"the network sees {'the scan' if whole else 'a window'} of {window.size[1]}x{window.size[0]} pixels, "
            f"shrunk {1 / window.zoom:.1f} times, so that what it draws lacks the scan's finest texture; "
            + ("use --focus window, which shows it the target alone" if whole else "use a smaller --focus-context")
        )
    for name, report in composition.inversion.items():
        if report.converged is False:  # and not None, of one that nobody has measured
            advice = (
                "--max-sweeps or --tolerance"
                if INVERSIONS[report.method].exact
                else "--inversion joint, which `ours` takes"
            )
            said.append(
                f"the {report.method} inversion of the {name} came back with an error of {report.error:.1%}, above the "
                f"tolerance of {report.tolerance:.1%}: use {advice}"
            )
    return said
