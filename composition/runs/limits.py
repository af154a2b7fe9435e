"""This module holds the limits that a label must keep. `batch` refuses a row that falls short; `run` warns.

The command line makes its options of the fields of Limits, as it does of those of Settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

from sd21.words import shown

from ..metrics.label_truth import LabelTruth

BEYOND_ANY_MEASURE = 1_000_000


def _limit(default: float | None, about: str, sentence: Callable[[LabelTruth, float], str], advice: str):
    """A field, what it means, what is said of a label that falls short, and what then helps."""
    return field(default=default, metadata={"about": about, "choices": (), "sentence": sentence, "advice": advice})


@dataclass(frozen=True)
class Limits:
    """What a label has to keep; None turns a limit off. A field is min_ or max_ and the name of one of LabelTruth's.

    What is undefined (None in LabelTruth) breaks no limit. Raises ValueError, naming the field, for what is no number
    or lies beyond BEYOND_ANY_MEASURE.
    """

    # Where the grey values are matched and the target is large enough, no real lesion of the prototypes was below it;
    # a vanished one is at 0, and one whose contrast has turned round is negative.
    min_contrast: float | None = _limit(
        0.4,
        "refuse a tumour with less than this share of the contrast that it has in its own scan: at 0 it is gone, and "
        "below 0 it is dark where it was bright, or bright where it was dark",
        lambda label, limit: (
            f"the tumour keeps {label.contrast:.2f} of the contrast of its own scan, expected {limit:g} or more"
        ),
        "see that --match and --focus are not off, or use a larger user mask",
    )
    # A tumour that has lost a quarter still shows most of its outline. Cuts of 26 to 61 % used to go unsaid.
    max_clipped: float | None = _limit(
        0.25,
        "refuse an object of which more than this share lay outside the user mask and was cut off",
        lambda label, limit: (
            f"{label.clipped:.0%} of the object lay outside the user mask and was cut off, expected {limit:.0%} at most"
        ),
        "use --fit inside or a larger user mask",
    )
    # Two cells by two are the least that has a shape at all, which the network could draw.
    min_cells: int | None = _limit(
        4,
        "refuse an object on fewer latent cells than this; the network sees too little of it",
        lambda label, limit: (
            f"the network sees the object on {label.cells} of its latent cells, expected {limit} or more"
        ),
        "see that --focus is not scan, or use a larger user mask",
    )
    # What is a high correlation depends on the modality: nobody has measured a threshold for all.
    min_correlation: float | None = _limit(
        None,
        "refuse a tumour whose correlation with the placed object is less than this",
        lambda label, limit: (
            f"the tumour's correlation with the placed object is {label.correlation:.2f}, expected {limit:g} or more"
        ),
        "see that --preserve-object-until and --focus are not off, or use a larger user mask",
    )
    max_grey_shift: float | None = _limit(
        None,
        "refuse a tumour that has become brighter or darker than the placed object by more than this, in grey levels "
        "of 255",
        lambda label, limit: (
            f"the tumour's grey has moved by {label.grey_shift:+.1f} levels of 255 from the placed "
            f"object's, expected {limit:g} at most, up or down"
        ),
        "see that --preserve-object-until, --detail and --match are not off",
    )

    def __post_init__(self):
        for one in fields(self):
            value, whole = getattr(self, one.name), one.type.startswith("int")
            if value is None:
                continue
            number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not number or not -BEYOND_ANY_MEASURE <= value <= BEYOND_ANY_MEASURE:
                expected = (
                    f"{'a whole number' if whole else 'a number'} from {-BEYOND_ANY_MEASURE} to {BEYOND_ANY_MEASURE}"
                )
                raise ValueError(f"{one.name} is {expected}, or None to turn it off; got {shown(value)}")
            object.__setattr__(self, one.name, int(value) if whole else float(value))

    @classmethod
    def off(cls) -> Limits:
        """No limit at all, for whoever measures what comes out."""
        return cls(**{one.name: None for one in fields(cls)})

    def broken(self, label: LabelTruth) -> dict[str, str]:
        """The limits that a label does not keep, by name: what was got, what was expected, and what to do."""
        said = {}
        for one in fields(self):
            limit, (bound, measure) = getattr(self, one.name), one.name.split("_", 1)
            value = getattr(label, measure)
            if limit is None or value is None:
                continue
            if value < limit if bound == "min" else abs(value) > limit:
                said[one.name] = f"{one.metadata['sentence'](label, limit)}: {one.metadata['advice']}"
        return said

    def faults(self, label: LabelTruth) -> list[str]:
        """The sentences of `broken`, each with the option that keeps such a row."""
        return [
            f"{sentence}, or --{name.replace('_', '-')} none to keep it"
            for name, sentence in self.broken(label).items()
        ]
