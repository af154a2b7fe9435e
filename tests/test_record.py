"""These tests check that files are whole or absent, and what a record says of a composition."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from fake_model import FakeModel

from composition import Sample, Scan, Settings, box_mask, compose
from composition.figures import before_after
from composition.runs import record


@pytest.fixture(scope="module")
def composed():
    rng = np.random.default_rng(0)
    background = Scan(rng.integers(1000, 3000, (60, 90), dtype=np.uint16))
    obj = Scan(rng.integers(0, 256, (50, 40, 3), dtype=np.uint8))
    user_mask = box_mask((20, 10, 40, 40), background.size)
    sample = Sample(background, obj, box_mask((10, 10, 20, 20), obj.size), user_mask, "a tumour")
    inversions = {}
    twice = [compose(FakeModel(64), *sample, inversions=inversions) for _ in range(2)]
    return sample, *twice


def test_a_record_says_what_the_sample_is_not_in_which_order_samples_were_made(composed):
    _, first, second = composed
    assert not first.reused["background"] and second.reused["background"]
    assert second.rows["inversion"] < first.rows["inversion"]
    assert record.results(first) == record.results(second)
    assert record.results(second)["rows"] == first.rows
    assert "seconds" not in json.dumps(record.results(first))


def test_a_record_says_whether_a_pixel_may_be_a_scans_own(composed):
    sample, first, _ = composed
    assert record.results(first)["decoded"] is False  # with its detail
    assert record.results(compose(FakeModel(64), *sample, Settings.paper()))["decoded"] is True
    pixels, window = Settings.paper(preserve="pixels"), Settings.paper(focus="window", focus_context=2)
    for changes in ({"settings": pixels}, {"settings": window}, {"method": "copy-paste"}):
        assert record.results(compose(FakeModel(64), *sample, **changes))["decoded"] is False


def test_a_record_tells_of_label_match_and_window_in_plain_json(composed):
    _, first, _ = composed
    entry = json.loads(json.dumps(record.results(first), allow_nan=False))
    assert entry["label"] == asdict(first.label) and record.label_of(entry) == first.label
    assert entry["scale"] == first.scale and entry["match"] == asdict(first.match)
    window = first.window
    about = {"rows": list(window.rows), "columns": list(window.columns), "cells": window.cells, "zoom": window.zoom}
    assert entry["window"] == about
    assert (
        record.label_of({}) is record.label_of({"label": {"contrast": 1.0}}) is record.label_of({"label": None}) is None
    )


def test_an_error_of_ours_is_told_with_its_place():
    def fail():
        raise KeyError("x0")

    texts = []
    for function in (fail, lambda: box_mask((0, 0, 9, 9), (3, 3))):
        try:
            function()
        except Exception as error:
            texts.append(record.told(error))
    assert re.fullmatch(r"KeyError: 'x0' \(fail in .*test_record\.py, line \d+\)", texts[0])
    assert texts[1].startswith("ScanError: the box") and "line" not in texts[1]


def test_provenance_and_environment_are_plain_json():
    model = FakeModel(64)
    entry = {**record.provenance(model, Settings(start=4)), **record.environment(model)}
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert (entry["settings"]["start"], entry["model"], entry["dtype"]) == (4, model.identity, "float32")
    assert entry["device"]["type"] == "cpu" and entry["versions"]["torch"] == torch.__version__


def test_the_figure_shows_the_background_and_the_result_with_their_masks(composed):
    sample, composition, _ = composed
    figure = np.asarray(before_after(sample, composition.image, composition.mask)).astype(int)
    height, width = 384, 576  # of the background's panels, 60 x 90 pixels enlarged 6.4 times
    first, third, fourth = 8, figure.shape[1] - 2 * (width + 8), figure.shape[1] - (width + 8)

    def panel(left):
        return figure[28 : 28 + height, left : left + width]

    def outlined(left):  # scans in gray have equal channels
        return np.ptp(panel(left), axis=2) > 0

    assert not outlined(third).any()
    for left, mask in ((first, sample.user_mask), (fourth, composition.mask)):
        rows, columns = np.nonzero(outlined(left))
        y, x = np.nonzero(mask)
        bounds = [value * 6.4 for value in (y.min(), y.max() + 1, x.min(), x.max() + 1)]
        assert np.allclose([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], bounds, atol=1)
    assert np.array_equal(panel(third)[~outlined(fourth)], panel(fourth)[~outlined(fourth)])
