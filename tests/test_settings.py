"""These tests check what Settings take, what they make of it, and what they refuse."""

import argparse

import numpy as np
import pytest

from composition import Settings
from composition.matching import MATCHES
from composition.options import add_fields
from composition.settings import BOUNDS, TRAJECTORIES
from solvers import GRIDS, INVERSIONS, SOLVERS, InversionMethod


def test_numpys_numbers_are_kept_as_pythons():
    numpys = Settings(steps=np.int64(20), guidance_scale=np.float32(2.5), lower_order_final=np.bool_(True))
    assert numpys == Settings(lower_order_final=True)
    assert type(numpys.steps) is int and type(numpys.guidance_scale) is float and numpys.lower_order_final is True


@pytest.mark.parametrize(
    ("name", "table", "names", "entry"),
    [
        ("solver", SOLVERS, SOLVERS, None),
        ("grid", GRIDS, GRIDS, None),
        ("inversion", INVERSIONS, TRAJECTORIES, InversionMethod(INVERSIONS["naive"].solve, exact=False)),
        ("match", MATCHES, MATCHES, None),
    ],
)
def test_what_has_a_table_may_be_any_entry_of_it_and_one_that_is_made_later(monkeypatch, name, table, names, entry):
    for one in names:
        assert getattr(Settings(**{name: one}), name) == one
    with pytest.raises(ValueError, match=f"{name} is one of {', '.join(names)}; got 'my_own'"):
        Settings(**{name: "my_own"})
    monkeypatch.setitem(table, "my_own", entry)
    assert getattr(Settings(**{name: np.str_("my_own")}), name) == "my_own"


def test_an_inversion_without_a_trajectory_is_refused_and_is_no_choice_of_the_command_line(capsys):
    without = [name for name in INVERSIONS if name not in TRAJECTORIES]
    assert without == [name for name, method in INVERSIONS.items() if not method.trajectory] == ["ddpm"]
    with pytest.raises(
        ValueError, match=r"inversion ddpm gives states that do not follow one another .*take one of jo"
    ):
        Settings(inversion="ddpm")
    parser = argparse.ArgumentParser()
    add_fields(parser, "settings", Settings)
    assert parser.parse_args(["--inversion", "edict"]).inversion == "edict"
    with pytest.raises(SystemExit):
        parser.parse_args(["--inversion", "ddpm"])
    assert "invalid choice: 'ddpm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("start", 0), ("start", 21), ("start", 6.0), ("start", None), ("preserve_background_until", -1),
     ("preserve_object_until", -1), ("focus_context", 1.9), ("focus_context", float("nan")), ("match", "all"),
     ("fit", None), ("focus", "target"), ("detail", 1), ("detail", "yes"), ("max_sweeps", 0), ("on_failure", None),
     ("feather", -1), ("max_batch", 0), ("grid", "karras"), ("solver", "euler"), ("inversion", "exact"),
     ("history", "keep"), ("preserve", "all"), ("tolerance", 0), ("tolerance", float("nan")), ("tolerance", None),
     ("tolerance", float("inf")), ("guidance_scale", float("inf")), ("guidance_scale", "2.5"), ("steps", True),
     ("exceptional_token", -1), ("guidance_scale", 10**400), ("guidance_scale", b"2.5"), ("steps", 10**6),
     ("solver", np.array(["ddim", "unip3"])), ("lower_order_final", 1),
     ("guidance_scale", 1e300), ("guidance_scale", -(10**400)), ("guidance_scale", float("nan")), ("feather", 10**9),
     ("tolerance", 1.01), ("focus_context", float("inf")), ("max_sweeps", 10**5), ("max_batch", 10**400),
     ("preserve_background_until", 10**7), ("exceptional_token", 10**8), pytest.param("steps", 10**5000, id="huge"),
     pytest.param("grid", "g" * 10_000, id="long")],
)  # fmt: skip
def test_settings_refuse_what_they_cannot_mean(name, value):
    with pytest.raises(ValueError, match=name) as refused:
        Settings(**{name: value})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


def test_the_ends_of_every_range_are_in_it():
    for name, ends in BOUNDS.items():
        for end in ends:
            assert getattr(Settings(**{"start": 1, name: end}), name) == end
    assert (Settings(steps=1000, start=1000).start, Settings(steps=1, start=1).steps) == (1000, 1)
