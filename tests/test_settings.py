"""These tests check what Settings take, what they make of it, and what they refuse."""

import numpy as np
import pytest

from composition import Settings
from composition.matching import MATCHES
from composition.settings import BOUNDS
from solvers import GRIDS, INVERSIONS, SOLVERS


def test_numpys_numbers_are_kept_as_pythons():
    numpys = Settings(steps=np.int64(20), guidance_scale=np.float32(2.5), lower_order_final=np.bool_(True))
    assert numpys == Settings(lower_order_final=True)
    assert type(numpys.steps) is int and type(numpys.guidance_scale) is float and numpys.lower_order_final is True


@pytest.mark.parametrize(
    ("name", "table"), [("solver", SOLVERS), ("grid", GRIDS), ("inversion", INVERSIONS), ("match", MATCHES)]
)
def test_what_has_a_table_may_be_any_entry_of_it_and_one_that_is_made_later(monkeypatch, name, table):
    for entry in table:
        assert getattr(Settings(**{name: entry}), name) == entry
    with pytest.raises(ValueError, match=f"{name} is one of {', '.join(table)}; got 'my_own'"):
        Settings(**{name: "my_own"})
    monkeypatch.setitem(table, "my_own", None)
    assert getattr(Settings(**{name: np.str_("my_own")}), name) == "my_own"


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
