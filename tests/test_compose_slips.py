"""These tests check that a caller's slips, and inputs that do not fit, are told in one clear error before any work."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_samples import box, run, sample
from fake_model import FakeModel

from composition import PlacementError, Scan, ScanError, Settings, compose, latents_of
from solvers import NoiseSchedule, ddim, log_snr


def test_what_cannot_be_composed_is_told_before_the_network_runs():
    model, one = FakeModel(), sample()
    speck = replace(one, user_mask=box((120, 160), 50, 50, 3, 3))
    for bad, error, message in [
        (speck, PlacementError, "covers 9 pixels of scan, less than half of any cell of the 14x18 latent grid"),
        (replace(one, user_mask=one.user_mask.T), PlacementError, "user mask has"),
        (replace(one, object_mask=one.object_mask & False), PlacementError, "object mask of scan is empty"),
    ]:
        with pytest.raises(error, match=message):
            run(model, bad, Settings(focus="scan"))
    with pytest.raises(ScanError, match="blank"):
        Scan(np.zeros((120, 160), np.uint8))
    with pytest.raises(ValueError, match="not one of the model's 49408 tokens"):
        run(model, one, Settings(exceptional_token=50000))
    assert model.rows == 0


def test_slips_get_one_clear_type_error_or_just_work():
    model, one = FakeModel(), sample()
    inputs = dict(zip(("background", "obj", "object_mask", "user_mask", "prompt"), one, strict=True))
    for change, message in [
        ({"background": one.background.pixels}, "background is an array, uint8 .*; expected a Scan"),
        ({"obj": "tumour.png"}, "obj is 'tumour.png', a str; expected a Scan: read_scan"),
        ({"prompt": ["a lesion"]}, "the prompt is a list; expected a text"),
        ({"method": "sd-edit"}, "method is one of copy-paste, .*ours, or a function of a Frame; got 'sd-edit'"),
        ({"method": None}, "method is one of"),
        ({"settings": {"start": 4}}, "settings is a dict; expected Settings"),
        ({"table": ddim(log_snr_of(model))}, "table is a StepTable; expected a function from a grid to a StepTable"),
        ({"table": "ddim"}, "table is a str; .*settings.solver takes a name"),
        ({"grid": log_snr_of(model)}, "grid is a Grid; expected a function of a schedule and a number of steps"),
        ({"grid": "log_snr"}, "grid is a str; .*settings.grid takes a name"),
        ({"on_state": []}, "on_state is a list; expected a function"),
        ({"inversions": "folder"}, "inversions is 'folder'; expected a mapping"),
        ({"inversions": []}, r"inversions is \[\]; expected a mapping"),
    ]:
        with pytest.raises(TypeError, match=message):
            compose(model, **inputs | change)
    assert model.rows == 0
    assert np.array_equal(compose(model, **inputs, settings=None).image, run(model, one, Settings()).image)
    for change, message in [
        ({"table": lambda grid: None}, "the table's builder returned None; expected a StepTable"),
        ({"grid": lambda schedule, steps: None}, "the grid's builder returned None; expected a Grid"),
        ({"grid": lambda schedule, steps: log_snr(schedule, steps).reversed()}, "expected a Grid whose index 0 is"),
        ({"progress": True}, "progress is a bool; expected a function that wraps an iterable"),
        ({"method": lambda frame: None}, r"the method .* returned None; a method returns frame\.finish"),
    ]:
        with pytest.raises(TypeError, match=message):
            run(model, one, **change)
    with pytest.raises(TypeError, match=r"model is 'mini'; expected a model, as sd21\.load returns"):
        compose("mini", **inputs)
    with pytest.raises(TypeError, match=r"scan is 'brain\.png', a str; expected a Scan: read_scan"):
        latents_of(model, "brain.png")


def log_snr_of(model):
    return log_snr(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod), 20)
