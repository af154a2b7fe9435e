"""These tests check that no kept trajectory is ever taken for another's."""

import dataclasses
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_samples import TOKEN, run, run_of, sample
from fake_model import FakeModel
from small_models import write_small_pipeline

import sd21
from composition import Settings, inversions
from composition.inversions import CODE, KEYED, NOT_KEYED, digest_of, inversion_key
from sd21 import attention_hook, default_kernel, record_maps
from solvers import INVERSIONS, SOLVERS, InversionMethod, StepTable, ddim, discrete


def key_of(model, image, settings, token=TOKEN, until=7, solver=None):
    grid, _ = run_of(model, settings)
    return inversion_key(model, image, token, settings, grid.until(until), solver or settings.build_table)


def test_every_setting_is_in_the_key_or_is_declared_to_be_irrelevant_to_it():
    assert {field.name for field in dataclasses.fields(Settings)} == KEYED | NOT_KEYED
    assert not KEYED & NOT_KEYED


def test_the_key_is_of_content_model_run_and_the_inversions_settings():
    model, image, settings = FakeModel(), torch.zeros(3, 16, 16), Settings()
    key = key_of(model, image, settings)
    assert key == key_of(FakeModel(), image.clone(), replace(settings, preserve="pixels", guidance_scale=5))
    other = FakeModel()
    other.identity = {**model.identity, "revision": "another"}
    changed = [
        key_of(other, image, settings),
        key_of(model, image + 1, settings),
        key_of(model, image.view(3, 32, 8), settings),
        key_of(model, image, settings, token=7),
        key_of(model, image, settings, until=6),
        *(key_of(model, image, replace(settings, **{name: value})) for name, value in [
            ("steps", 25), ("grid", "log_snr"), ("tolerance", 0.5), ("inversion", "defect"), ("max_batch", 3),
            ("lower_order_final", True), *(("solver", name) for name in SOLVERS if name != settings.solver),
        ]),
    ]  # fmt: skip
    assert len({key, *changed}) == 1 + len(changed)


def test_another_solver_under_the_same_name_does_not_reuse_a_trajectory():
    def almost(grid):
        table = Settings().build_table(grid)
        return StepTable(table.name, table.a, table.b * (1 + 1e-12))

    def upwards(grid):  # the same table down, another one up: the naive inversion differs
        return ddim(grid) if grid.lam[0] < grid.lam[-1] else Settings().build_table(grid)

    model, kept, one = FakeModel(), {}, sample()
    run(model, one, inversions=kept)
    for solver in (almost, upwards):
        assert not any(run(model, one, inversions=kept, table=solver).reused.values())
    assert all(run(model, one, inversions=kept, table=Settings().build_table).reused.values())


def test_a_grid_that_ends_without_noise_is_refused_by_the_inversion_and_not_by_the_key():
    for kept in (None, {}):
        with pytest.raises(ValueError, match=r"ends at sigma\[0\] = 0: its last step forgets x\[1\]"):
            run(FakeModel(), sample(), grid=discrete, inversions=kept)


def test_under_an_attention_hook_nothing_is_kept_and_nothing_kept_is_used(tmp_path):
    """A hook may change what the network does, and a recorder has to see every call."""
    model = sd21.load(write_small_pipeline(tmp_path / "model"), device="cpu")
    one, settings, kept = sample(128, 128), Settings(inversion="naive"), {}
    plain = run(model, one, settings)
    with attention_hook(model.unet, lambda site, q, k, v: 0.5 * default_kernel(q, k, v)):
        hooked = run(model, one, settings, inversions=kept)
    assert not kept and not np.array_equal(hooked.image, plain.image)
    run(model, one, settings, inversions=kept)
    inverted_at = set()
    recorder = record_maps(
        lambda site: site.call.stage == "inversion", lambda site, attention: inverted_at.update(site.call.i)
    )
    with attention_hook(model.unet, recorder):
        again = run(model, one, settings, inversions=kept)
    assert len(kept) == 2 and inverted_at == set(range(7)) and not any(again.reused.values())


def own_inversion(path, text):
    """An inversion method that was written to a file and loaded from there."""
    path.write_text(text)
    scope = {}
    exec(compile(text, str(path), "exec"), scope)
    return scope["solve"]


def test_an_inversion_whose_code_was_edited_does_not_reuse_its_old_results(tmp_path, monkeypatch):
    """Researchers edit inversions, and a folder of kept ones outlives the edit. What counts is the code as loaded."""
    model, image = FakeModel(), torch.zeros(3, 16, 16)

    def key_with(solve):
        monkeypatch.setitem(INVERSIONS, "own", InversionMethod(solve, exact=False))
        return key_of(model, image, Settings(inversion="own"))

    old = own_inversion(tmp_path / "own.py", "def solve(run, tol, max_sweeps, progress): return 1")
    new = own_inversion(tmp_path / "own.py", "def solve(run, tol, max_sweeps, progress): return 2")
    typed, other = lambda *_: 1, lambda *_: 2
    keys = [key_with(solve) for solve in (old, new, typed, other, partial(new, tol=1), partial(new, tol=2))]
    assert len(set(keys)) == len(keys)
    assert key_with(old) == keys[0] and key_with(partial(new, tol=1)) == keys[4]

    class Callable:
        def __call__(self, run, tol, max_sweeps, progress):
            return 3

    assert key_with(Callable()) not in keys
    plain = key_of(model, image, Settings())
    monkeypatch.setattr(inversions, "CODE", "edited")
    assert key_of(model, image, Settings()) != plain


def test_the_code_in_the_key_is_all_that_inverts(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = digest_of(tmp_path.glob("*.py"))
    (tmp_path / "b.py").write_text("2")
    second = digest_of(tmp_path.glob("*.py"))
    (tmp_path / "a.py").write_text("3")
    assert len({first, second, digest_of(tmp_path.glob("*.py"))}) == 3
    root = Path(inversions.__file__).parent.parent
    paths = [*(root / "sd21").glob("*.py"), *(root / "solvers").rglob("*.py")]
    assert digest_of([*paths, *(root / "composition" / f"{n}.py" for n in ("calls", "inversions", "prompts"))]) == CODE


def test_a_hook_that_a_method_sets_itself_is_seen_too(tmp_path):
    model = sd21.load(write_small_pipeline(tmp_path / "model"), device="cpu")

    def hooked(frame):
        with attention_hook(model.unet, lambda site, q, k, v: 0.5 * default_kernel(q, k, v)):
            frame.invert(2)
        return frame.composition(frame.sample.background.pixels)

    kept = {}
    run(model, sample(128, 128), Settings(steps=4, start=2, inversion="naive"), method=hooked, inversions=kept)
    assert not kept
