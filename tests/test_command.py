"""These tests hold the rule of the command lines: a traceback is for a bug of ours, anything else is one line."""

import pytest

from sd21.command import guarded
from sd21.words import one_line, shown


def outcome(error: BaseException | None, capsys, **keywords) -> tuple[int, str]:
    def run() -> int:
        if error is not None:
            raise error
        return 0

    code = guarded(run, "the same command goes on", **keywords)
    output, told = capsys.readouterr()
    assert output == ""
    return code, told


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\nlines"), 2, "error: two lines\n"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "error: [Errno 2] No such file: 'a.png'\n"),
        (ImportError("install it"), 2, "error: install it\n"),
        (OSError(), 2, "error: OSError\n"),
        (FloatingPointError("decode in float16: nan"), 1, "error: decode in float16: nan\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: the same command goes on\n"),
        (None, 0, ""),
    ],
)
def test_each_kind_of_fault_has_its_code_and_one_line(capsys, error, code, line):
    assert outcome(error, capsys) == (code, line)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
)
def test_memory_that_gives_out_is_a_line_with_advice(capsys, error):
    code, told = outcome(error, capsys)
    assert code == 1 and told.startswith("error: out of memory (") and "--max-batch 1" in told and told.count("\n") == 1


def test_a_bug_of_ours_is_no_line(capsys):
    for error in (KeyError("name"), RuntimeError("view size is not compatible with the memory format"), TypeError()):
        with pytest.raises(type(error)):
            outcome(error, capsys)


def test_a_command_may_know_further_failures(capsys):
    def tell(error: Exception) -> str | None:
        return "known" if isinstance(error, KeyError) else None

    assert outcome(KeyError("a"), capsys, tell=tell) == (1, "error: known\n")
    with pytest.raises(TypeError):
        outcome(TypeError(), capsys, tell=tell)


def test_one_process_of_several_speaks_of_an_interruption(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert outcome(KeyboardInterrupt(), capsys) == (130, "")


def test_what_is_huge_is_shown_in_a_line():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a huge list" and shown(10**5000) == "a huge int"
    assert shown("a\nb") == r"'a\nb'" and len(shown("a" * 1000)) == 83
    assert one_line("  a\n\tb  ") == "a b" and one_line("a" * 400) == "a" * 300 + "..."
