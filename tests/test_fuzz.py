"""A few hundred cases of the fuzzer, on every run of the tests; `python tests/fuzz.py` runs as many as one likes."""

import pytest
from fuzz import LIMIT_BYTES, fuzz, run_case, spread
from fuzz_inputs import KINDS, Kind

EACH = 25


@pytest.mark.parametrize("seed", [15])
def test_every_outcome_is_a_result_or_one_clear_error(seed):
    report = fuzz(spread(EACH * len(KINDS), list(KINDS)), seed)
    told = "\n\n".join(f"{one.kind} {one.number}: {one.what}" for one in report.findings)
    assert not report.findings, told
    assert sum(report.outcomes.values()) == EACH * len(KINDS) and report.worst_bytes[0] < LIMIT_BYTES
    for kind in KINDS:  # a kind that is always refused, or always taken, tries less than it says
        assert report.outcomes[f"{kind}, result"] > 0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "result"),
        (ValueError("one line"), "error"),
        (ValueError(""), "no clear message"),
        (ValueError("two\nlines"), "no clear message"),
        (ValueError("x" * 3000), "no clear message"),
        (KeyError("name"), "Traceback"),
        (AssertionError("wrong"), "Traceback"),
    ],
)
def test_the_fuzzer_sees_what_is_no_clear_outcome(error, outcome):
    def act(draw, folder):
        if error is not None:
            raise error

    assert run_case(Kind(act, (ValueError,)), "any", 0, 0).startswith(outcome)


def test_a_case_depends_on_its_seed_kind_and_number_alone():
    seen = []
    kind = Kind(lambda draw, folder: seen.append(draw.random()), ())
    for name, number, seed in (("a", 1, 2), ("a", 1, 2), ("b", 1, 2), ("a", 2, 2), ("a", 1, 3)):
        run_case(kind, name, number, seed)
    assert seen[0] == seen[1] and len(set(seen)) == 4


KINDS_THAT = {
    "hang": ("while True: pass", "not done after 1 s"),
    "die": ("os._exit(9)", "died with 9"),
    "take memory": ("bytearray(250 << 20)", "it took 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", KINDS_THAT)
def test_hangs_deaths_and_memory_are_findings(monkeypatch, tmp_path, what):
    """The worker is a process of its own and imports the kinds anew, so a module of this name stands in for them."""
    line, told = KINDS_THAT[what]
    (tmp_path / "fuzz_inputs.py").write_text(
        f"""
import os
from types import SimpleNamespace

def act(draw, folder):
    {line}

KINDS = {{"bad": SimpleNamespace(act=act, clear=())}}
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fuzz.LIMIT_SECONDS", 1.0)
    monkeypatch.setattr("fuzz.LIMIT_BYTES", 100 << 20)
    report = fuzz([("bad", 0), ("bad", 1)], 0)
    assert [one.number for one in report.findings] == [0, 1]
    assert all(told in one.what for one in report.findings), report.findings
