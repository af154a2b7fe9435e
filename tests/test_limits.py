"""Which labels keep the limits, what is said of one that does not, and what `run` warns of."""

from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from composition import Scan
from composition.focus import Window
from composition.matching import Match
from composition.metrics.label_truth import LabelTruth
from composition.runs.cautions import cautions
from composition.runs.limits import Limits

TRUE = LabelTruth(1.0, 60.0, 60.0, 0.99, -0.5, 40, 0.9, 0.0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"contrast": 0.39}, "min_contrast"),
        ({"contrast": 0.0}, "min_contrast"),
        ({"contrast": -1.5}, "min_contrast"),
        ({"clipped": 0.26}, "max_clipped"),
        ({"cells": 3}, "min_cells"),
    ],
)
def test_the_defaults_refuse_a_label_that_is_not_true(changes, name):
    label = replace(TRUE, **changes)
    assert list(Limits().broken(label)) == [name]
    (fault,) = Limits().faults(label)
    # What was got, what was expected, what to do, and how to keep it.
    assert (
        f"--{name.replace('_', '-')} none to keep it" in fault
        and ", expected " in fault
        and (": use --" in fault or ": see that --" in fault)
    )
    assert Limits(**{name: None}).faults(label) == Limits.off().faults(label) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"contrast": 0.4, "clipped": 0.25, "cells": 4},  # on the limits
        {"contrast": 7.0},  # far above its own
        {"contrast": None, "contrast_composite": None, "contrast_own": 2.0, "correlation": None},
        {"correlation": -1.0, "grey_shift": -200.0},  # off by default
    ],
)
def test_the_defaults_keep_the_others(changes):
    assert Limits().faults(replace(TRUE, **changes)) == []


def test_limits_that_are_off_by_default():
    limits = Limits(min_correlation=0.5, max_grey_shift=10)
    label = replace(TRUE, correlation=0.25, grey_shift=-12.5)
    assert limits.faults(label) == [
        "the tumour's correlation with the placed object is 0.25, expected 0.5 or more: see that "
        "--preserve-object-until and --focus are not off, or use a larger user mask, or --min-correlation none to keep "
        "it",
        "the tumour's grey has moved by -12.5 levels of 255 from the placed object's, expected 10 at most, up or down: "
        "see that --preserve-object-until, --detail and --match are not off, or --max-grey-shift none to keep it",
    ]
    assert list(limits.broken(replace(TRUE, grey_shift=12.5))) == ["max_grey_shift"]
    assert limits.faults(replace(TRUE, correlation=None)) == []


def test_every_limit_is_of_a_measure():
    for one in fields(Limits):
        bound, measure = one.name.split("_", 1)
        assert bound in ("min", "max") and measure in asdict(TRUE) and one.metadata["about"].startswith("refuse ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_contrast": float("nan")},
            "min_contrast is a number from -1000000 to 1000000, or None to turn it off; got nan",
        ),
        ({"max_clipped": "0.2"}, "max_clipped is a number from .*, or None to turn it off; got '0.2'"),
        ({"min_cells": 2.5}, "min_cells is a whole number from .*, or None to turn it off; got 2.5"),
        ({"min_cells": True}, "min_cells is a whole number"),
        ({"min_cells": 10**400}, "min_cells is a whole number"),
        ({"max_grey_shift": -(10**400)}, "max_grey_shift is a number from .* got -1000000000.*[.]{3}$"),
    ],
)
def test_a_limit_is_a_number(changes, message):
    with pytest.raises(ValueError, match=message):
        Limits(**changes)


def test_numbers_of_numpy_are_kept_as_pythons():
    limits = Limits(min_contrast=np.float32(0.5), min_cells=np.int64(9))
    assert limits == Limits(min_contrast=0.5, min_cells=9)
    assert (type(limits.min_contrast), type(limits.min_cells)) == (float, int)


def composed(label=TRUE, window=None, reports=(), match=None, scale=1.0, covered=0.1):
    """What `cautions` reads of a composition on a scan of 100 x 200 pixels."""
    window = window or Window((0, 100), (0, 200), 12.0, 1.4)
    background = Scan(np.arange(20_000, dtype=np.uint16).reshape(100, 200))
    inversion = {name: SimpleNamespace(**report) for name, report in reports}
    return SimpleNamespace(
        label=label,
        window=window,
        sample=SimpleNamespace(background=background, object_mask=np.arange(10) < 10 * covered),
        inversion=inversion,
        match=match or Match("contrast", gain=1.2),
        scale=scale,
    )


def test_nothing_is_said_where_all_is_well():
    assert cautions(composed()) == []  # a whole scan that is enlarged a little is what the paper does
    assert cautions(composed(window=Window((0, 90), (0, 90), 9.0, 1.0))) == []
    report = {"method": "joint", "error": None, "tolerance": 0.05, "converged": None}
    assert cautions(composed(reports=[("object", report)])) == []


def test_what_run_warns_of():
    (said,) = cautions(composed(replace(TRUE, contrast=0.1)))
    assert said.startswith("the tumour keeps 0.10 of the contrast") and "to keep it" not in said  # run keeps it anyway
    (said,) = cautions(composed(replace(TRUE, contrast=None, contrast_own=-3.0)))
    assert "since it is -3.0 grey levels of 255 there, less than 5: look at it" in said
    for missing in ("contrast_own", "contrast_composite"):
        (said,) = cautions(composed(replace(TRUE, contrast=None, **{missing: None})))
        assert "since one of the two scans has no tissue around it: look at it" in said
    (said,) = cautions(composed(window=Window((0, 80), (10, 110), 9.0, 2.56)))
    assert said.startswith("the network sees a window of 100x80 pixels, enlarged 2.6 times")
    (said,) = cautions(composed(window=Window((0, 100), (0, 200), 12.0, 5.0)))
    assert said.startswith("the network sees the scan of 200x100 pixels, enlarged 5.0 times") and "context" not in said
    (said,) = cautions(composed(window=Window((0, 100), (0, 200), 12.0, 0.49)))
    assert said.startswith("the network sees the scan of 200x100 pixels, shrunk 2.0 times") and "--focus window" in said
    (said,) = cautions(composed(window=Window((0, 80), (10, 110), 9.0, 0.25)))
    assert said.startswith("the network sees a window of 100x80 pixels, shrunk 4.0 times") and "-context" in said
    assert cautions(composed(window=Window((0, 100), (0, 200), 12.0, 0.5))) == []
    (said,) = cautions(composed(covered=1))
    assert said == "the object mask covers 100% of its scan: see that it is a mask, and not a scan"
    (said,) = cautions(composed(scale=2.55))
    assert said.startswith("the object is enlarged 2.5 times") or said.startswith("the object is enlarged 2.6 times")
    (said,) = cautions(composed(match=Match("contrast", why="the ring around the object in its own scan is tiny")))
    assert said.startswith("the object's grey values were not matched") and said.endswith("own scan is tiny")


@pytest.mark.parametrize(
    ("method", "advice"), [("joint", "--max-sweeps or --tolerance"), ("naive", "--inversion joint, which `ours` takes")]
)
def test_an_inversion_that_missed_its_tolerance_is_warned_of(method, advice):
    report = {"method": method, "error": 0.123, "tolerance": 0.05, "converged": False}
    assert cautions(composed(reports=[("object", report), ("background", report | {"converged": True})])) == [
        f"the {method} inversion of the object came back with an error of 12.3%, above the tolerance of 5.0%: "
        f"use {advice}"
    ]
