"""These tests run `python -m composition inversions`: every combination is a cell, a killed run goes on to the same
bytes, real scans and generated ones stay apart, a bad cell is a line, bad arguments are refused, and a new inversion is
on the bench at once."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_of_inversions import (
    METHODS,
    cell,
    command,
    draw_scans,
    fix,
    rows_of,
    run_whole,
)
from composition_files import tree
from kill_at_every_moment import run as run_killed

import sd21
from composition import cli
from composition.datasets import LeftOut
from composition.inversion_bench import code
from composition.inversion_bench.scans import Chosen, choose
from composition.scans.errors import DatasetError
from solvers import (
    INVERSIONS,
    InversionMethod,
    Solution,
)


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    fix(monkeypatch)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return draw_scans(tmp_path_factory.mktemp("scans") / "some")


@pytest.fixture(scope="module")
def ran(scans, tmp_path_factory):
    return run_whole(scans, tmp_path_factory.mktemp("bench") / "out")


def test_every_combination_is_a_cell_but_guidance_from_null_to_null(ran):
    rows = rows_of(ran)
    keys = [
        tuple(row[name] for name in ("group", "number", "prompt", "scale", "start", "method", "tolerance"))
        for row in rows
    ]
    prompts = 2 * 2 + 1  # exceptional and text at both scales, null at one
    assert len(set(keys)) == len(keys) == 4 * prompts * 2 * 4 * 2
    assert {row["scale"] for row in rows if row["prompt"] == "null"} == {"1.0"}
    assert {row["scan"] for row in rows} == {"some/s0.png", "some/s2.png", "sample 0", "sample 1"}
    assert {row["tumour"] for row in rows if row["scan"] == "some/s2.png"} == {"True"}


def test_real_and_generated_scans_are_never_in_one_table(ran):
    text = (ran / "table.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert len(titles) == 2 * 5 * 2 and len({title.split()[0] for title in titles}) == 2
    for block in text.split("## ")[1:]:
        assert "2 of 2" in block and "4 of 4" not in block
    assert {row["scan"].startswith("sample") for row in rows_of(ran) if row["group"] == "generated"} == {True}


def test_the_same_command_measures_nothing_again_and_what_is_damaged_comes_back_the_same(scans, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(command(scans, out)) == 0
    before, written = tree(out), {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.json")}
    lost, partial = sorted(written)[0], sorted(written)[1]
    lost.write_text(lost.read_text()[:100])
    content = json.loads(partial.read_text())
    del content["figures"]["rows"]
    partial.write_text(json.dumps(content))
    assert cli.main(command(scans, out)) == 0
    assert f"{lost.name} is damaged and will be made again" in capsys.readouterr().err
    after = tree(out)
    assert {name for name in before if before[name] != after[name]} == {"commands.jsonl", "table.md"}  # it names both
    untouched = written.keys() - {lost, partial}
    assert all(path.stat().st_mtime_ns == written[path] for path in untouched)
    # A further method adds its cells and leaves the others; another tolerance of the reference measures all anew.
    assert cli.main(command(scans, out, f"--methods={METHODS},defect")) == 0
    assert all(path.stat().st_mtime_ns == written[path] for path in untouched)


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(scans, tmp_path):
    expected, moment = None, 1
    asked = ["--methods=joint,belm", "--starts=2", "--generated=1", "--count=1"]
    assert cli.main(command(scans, tmp_path / "whole", *asked)) == 0
    expected = {
        name: digest for name, digest in tree(tmp_path / "whole").items() if name not in ("commands.jsonl", "table.md")
    }
    while True:
        out = tmp_path / str(moment)
        status = run_killed(command(scans, out, *asked), moment)
        if not os.WIFSIGNALED(status):
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert os.waitstatus_to_exitcode(run_killed(command(scans, out, *asked), None)) == 0
        found = tree(out)
        assert {name: found[name] for name in expected} == expected
        assert set(found) - set(expected) == {"commands.jsonl", "table.md"}
        moment += 1
    assert moment == 8 + 6 + 1  # eight cells; the log, what was left out, results, table and two plots; the whole run


def test_a_new_inversion_is_on_the_bench_at_once(scans, tmp_path, monkeypatch, capsys):
    def half(run, tol, max_sweeps, progress=None):
        x, _ = run.up(run.x0, run.images)
        return Solution(0.5 * x, [[] for _ in x])

    with pytest.raises(SystemExit):
        cli.main(["inversions", "--help"])
    assert "mine" not in capsys.readouterr().out
    monkeypatch.setitem(INVERSIONS, "mine", InversionMethod(half, exact=False, trajectory=False))
    with pytest.raises(SystemExit):
        cli.main(["inversions", "--help"])
    assert "mine" in capsys.readouterr().out
    out = tmp_path / "out"
    assert cli.main([one for one in command(scans, out) if "--methods" not in one]) == 0
    rows = rows_of(out)
    assert {row["method"] for row in rows} == set(INVERSIONS)
    mine = [row for row in rows if row["method"] == "mine"]
    assert all(float(row["error"]) > 0.05 and row["states_worst"] == "" for row in mine)
    assert "| mine |" in (out / "table.md").read_text()

    def quarter(run, tol, max_sweeps, progress=None):
        x, _ = run.up(run.x0, run.images)
        return Solution(0.25 * x, [[] for _ in x], errors=torch.zeros(len(x), dtype=torch.float64))

    code.digest.cache_clear()
    monkeypatch.setitem(INVERSIONS, "mine", InversionMethod(quarter, exact=False, trajectory=False))
    assert cli.main(command(scans, out, "--methods=mine")) == 0  # an edited method has no figures of the old one
    assert [row["error"] for row in rows_of(out)] != [row["error"] for row in mine]
    told = cell(out, "scans-0000/exceptional-scale1-start2", "mine", "0.05")
    assert told["reported"] == 0 and told["error"] > 0.05 and not told["converged"]  # the bench measures for itself


def test_the_code_of_a_cell_is_that_of_its_method_alone():
    files = {Path(path).name for path in code._modules(["solvers.inversions.belm"])}
    assert {"belm.py", "grids.py", "run.py", "tables.py", "sampling.py"} <= files
    assert not {"frozen.py", "joint.py", "__init__.py"} & files
    assert code.digest("belm") != code.digest("frozen")


@pytest.mark.parametrize("error", [FloatingPointError("the state at i = 3 is not finite"), MemoryError()])
def test_a_bad_cell_is_a_line_and_not_the_end(scans, tmp_path, monkeypatch, capsys, error):
    naive = INVERSIONS["naive"].solve

    def fails(run, tol, max_sweeps, progress=None):
        if run.start == 4:
            raise error
        return naive(run, tol, max_sweeps, progress)

    monkeypatch.setitem(INVERSIONS, "mine", InversionMethod(fails, exact=False))
    out = tmp_path / "out"
    assert cli.main(command(scans, out, "--methods=naive,mine")) == 1
    assert "error: 4 cells failed" in capsys.readouterr().err
    failed = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [(one["method"], one["start"]) for one in failed] == [("mine", 4)] * 4
    assert all(type(error).__name__ in one["error"] for one in failed)
    assert len(rows_of(out)) == 2 * 2 * 2 * 2 - 4
    text = (out / "table.md").read_text()
    assert "| 0.05 | mine | 0 of 2 | – | – |" in text and "4 cells failed and count as not converged" in text
    # Mended, and nothing but what failed is measured.
    monkeypatch.setitem(INVERSIONS, "mine", replace(INVERSIONS["mine"], solve=naive))
    assert cli.main(command(scans, out, "--methods=naive,mine")) == 0
    assert len(rows_of(out)) == 16 and not (out / "errors.jsonl").exists()


def test_a_scan_that_is_gone_costs_its_own_cells(scans, tmp_path, monkeypatch):
    read = Chosen.read

    def gone(self):
        if self.mask is not None:
            raise OSError("the disk is gone")
        return read(self)

    monkeypatch.setattr(Chosen, "read", gone)
    assert cli.main(command(scans, tmp_path / "out", "--methods=naive")) == 1
    lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all("the disk is gone" in line for line in lines)
    assert {row["scan"] for row in rows_of(tmp_path / "out")} == {"some/s0.png"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods=joint,exact"], "--methods: 'exact' is not one of joint, defect, naive"),
        (["--methods="], "--methods: '' is not one of joint"),
        (["--prompts=nul"], "--prompts: 'nul' is not one of exceptional, null, text"),
        (["--starts=2,5"], "start is a whole number from 1 to 4, got 5"),
        (["--starts=0"], "start is a whole number from 1 to 4, got 0"),
        (["--scales=nan"], "guidance_scale is a number from -100.0 to 100.0, got nan"),
        (["--tolerance=0"], "tolerance is a number from 1e-15 to 1.0, got 0.0"),
        (["--reference=2"], "reference is a number from 1e-15 to 1.0, got 2.0"),
        (["--swap-scale=1000"], "swap_scale is a number from -100.0 to 100.0, got 1000.0"),
        (["--max-sweeps=0"], "max_sweeps is a whole number from 1 to 10000, got 0"),
        (["--steps=0"], "steps is a whole number from 1 to 1000, got 0"),
        (["--seed=-1"], "seed is a whole number from 0 to"),
        (["--count=0"], "--count is a whole number from 1 to 100000"),
        (["--generated=-1"], "--generated one from 0 to 100000; got 2 and -1"),
        (["--prompts=null", "--scales=2.5"], "so --prompts null takes --scales 1; got 2.5"),
        (["--prompt= "], "--prompt: expected a text in UTF-8, as 'An MRI scan of a brain', got ' '"),
        (["--swap-prompt=\udcff"], "--swap-prompt: expected a text in UTF-8"),
        (["--br35h=nowhere"], "expected Br35H in its published layout"),
        (["--scans=nowhere"], "nowhere is no folder; expected a folder of scans"),
    ],
)
def test_what_cannot_be_met_is_told_before_the_model_loads(scans, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert cli.main(command(scans, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_other_requests_that_are_refused(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    out = tmp_path / "out"

    def refused(arguments: list[str], message: str) -> None:
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err

    refused(command(None, out), "name scans (--scans, --br35h or --busi), or generate some (--generated N)")
    untold = [one for one in command(scans, out, "--prompts=text") if not one.startswith("--prompt=")]
    refused(untold, 'the prompt "text" takes a text for these scans: --prompt')
    refused(command(scans, scans / "out"), "would lie among the scans of")
    (tmp_path / "empty").mkdir()
    refused(command(tmp_path / "empty", out), "empty holds no scan that can be used")
    out.mkdir()
    (out / "results.csv").write_text("a user's own")
    refused(command(scans, out), "results.csv is there, and no inversions has made it")
    for option, words in (("--starts=2,a", "whole numbers"), ("--scales=", "numbers"), ("--tolerance=1;2", "numbers")):
        with pytest.raises(SystemExit):
            cli.main(command(scans, tmp_path / "new", option))
        assert f"expected {words} with commas between, got" in capsys.readouterr().err


def test_half_of_the_scans_have_a_tumour_as_far_as_there_are_so_many(tmp_path, scans):
    def chosen(count):
        return [one.path.name for one in choose({"scans": scans}, count, None, LeftOut())]

    assert chosen(1) == ["s0.png"] and chosen(2) == ["s0.png", "s2.png"]
    assert chosen(3) == chosen(9) == ["s0.png", "s1.png", "s2.png"]
    for name in ("s2", "s3", "s4"):  # one without, three with a tumour
        for end in (".png", "_mask.png"):
            shutil.copy(scans / f"s2{end}", tmp_path / f"{name}{end}")
    shutil.copy(scans / "s0.png", tmp_path)
    assert [one.mask is not None for one in choose({"scans": tmp_path}, 4, None, LeftOut())] == [False, *[True] * 3]
    left_out = LeftOut()
    choose({"scans": scans}, 3, None, left_out)
    assert not left_out.names  # what has no mask has no tumour, and is no fault
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"no scan that can be used; left out: .*image cannot be read: bad\.png"):
        choose({"scans": tmp_path / "bad"}, 3, None, LeftOut())
