"""These tests run `python -m composition benchmark`: its options, its errors before the model loads, kills, and real
scans."""

import csv
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from benchmark_files import SETTINGS, draw, run
from composition_files import tree

import sd21
from composition import cli
from composition.benchmark import command as benchmark_command
from composition.benchmark import variants
from composition.methods import METHODS
from composition.settings import Settings
from sd21.files import TEMPORARY

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))


def command(folder: Path, *more: str) -> list[str]:
    parts = draw(folder / "data")
    counts = [text for name, (at, count) in parts.items() for text in (f"--{name}", at, f"--{name}-samples", count)]
    return ["benchmark", *map(str, counts), "--out", str(folder / "out"), "--local-files-only", *more]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--clip", "nowhere"], "no CLIP model from nowhere"),
        (["--lpips", "a.pth", "b.pth"], "a.pth: there is no such file"),
        (["--busi", "nowhere"], "expected BUSI in its published layout"),
        (["--busi-samples", "0"], "the samples of busi are a whole number from 1 up, got 0"),
        (["--ablation-samples", "0"], "an ablation has a whole number of samples from 1 up, got 0"),
        (["--br35h-samples", "3"], "2 samples can be drawn, 3 were asked for"),
        (
            ["--ablations", "start", "--steps", "12"],
            "the ablation start runs T' = 18, 12, 6 and needs --steps 18 or more",
        ),
        (["--ablations", "tau", "--start", "4"], "needs --start 5 or more, got 4: raise --start, or leave tau out of"),
    ],
)
def test_what_cannot_be_met_is_told_before_the_model_loads(tmp_path, no_model, capsys, more, message):
    assert cli.main(command(tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_no_dataset_and_unknown_methods(tmp_path, no_model, capsys):
    assert cli.main(["benchmark", "--out", str(tmp_path)]) == 2
    assert "name the folder of a dataset: --br35h or --busi" in capsys.readouterr().err
    assert cli.main([*command(tmp_path), "--methods", "ours,dream"]) == 2
    assert "dream: not among the methods copy-paste, blended" in capsys.readouterr().err


def test_ablations_are_asked_for_by_name_or_all_at_once(tmp_path):
    plain = command(tmp_path)

    def asked(*more: str) -> tuple[str, ...]:
        return benchmark_command.request_of(cli.build_parser("benchmark").parse_args([*plain, *more])).ablations

    assert (asked(), asked("--ablations"), asked("--ablations", "tau")) == ((), ("start", "tau", "steps"), ("tau",))


def test_targets_are_shrunk_by_a_number_or_a_fraction_and_ablations_take_fewer_samples(tmp_path, capsys):
    plain = command(tmp_path)

    def asked(*more: str):
        return benchmark_command.request_of(cli.build_parser("benchmark").parse_args([*plain, *more]))

    assert (asked().target_scale, asked().ablation_samples) == (1, None)
    assert asked("--target-scale", "1/3").target_scale == Fraction(1, 3)
    assert asked("--target-scale", "0.3333").target_scale == Fraction(3333, 10000)
    assert asked("--ablation-samples", "100").ablation_samples == 100
    for text in ("third", "1/0", "2", "1e-300", "1e999999"):
        with pytest.raises(SystemExit):
            asked("--target-scale", text)
        assert f"expected a number or a fraction from 1/1000 to 1, as 1/3, got '{text}'" in capsys.readouterr().err


def test_plots_need_their_extra_before_the_work(tmp_path, no_model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(command(tmp_path, "--ablations")) == 2
    assert 'pip install "tumour-composition[plots]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "module", ["composition.benchmark.command", "composition.datasets", "composition.metrics.networks", "sd21.files"]
)
def test_what_options_and_files_take_imports_no_torch(module):
    script = f"import {module}, sys; sys.exit(bool({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_a_folder_holds_one_benchmark(tmp_path, no_model, capsys):
    arguments = command(tmp_path)
    (tmp_path / "out" / "samples").mkdir(parents=True)
    (tmp_path / "out" / "samples" / "manifest.jsonl").write_text("another\n")
    assert cli.main(arguments) == 2
    assert "holds another benchmark" in capsys.readouterr().err


def test_ablations_run_what_differs_from_the_defaults_once():
    start, tau = variants.start_ablation(SETTINGS), variants.tau_ablation(SETTINGS)
    assert [(line.value, line.variant.name) for line in start.lines] == [
        (18, "ours_start_18"),
        (12, "ours_start_12"),
        (6, "ours"),
        (None, "published"),
    ]
    assert all(line.variant.settings.preserve_background_until == 3 for line in start.lines)
    names = {line.variant.name for line in tau.lines}
    assert names == {"ours", *(f"ours_preserve_background_until_{tau}" for tau in (1, 5)), "published"}
    later = variants.tau_ablation(Settings(start=8))
    assert [line.variant.settings.preserve_background_until for line in later.lines[:6]] == [1, 3, 5, 7, 5, 3]
    assert [line.variant.name for line in later.lines[6:]] == ["published", "paper"]


def results(out: Path) -> dict[str, str]:
    """The hashes of all files except inversions, because safetensors writes its metadata in random order."""
    return {name: digest for name, digest in tree(out).items() if not name.endswith(".safetensors")}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path):
    """It is killed before every fifth of its files: among the samples, composites, measures and tables."""
    script = Path(__file__).parent / "kill_benchmark.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "5"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 60  # files of four samples by two methods, so that kills fell in every stage
    expected = results(tmp_path / str(last))
    assert not any(TEMPORARY in name for name in expected)
    for moment in range(1, last, 5):
        assert results(tmp_path / str(moment)) == expected, f"killed before file {moment}"


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path):
    """Several batches run one after another, and each shares its rows out anew."""
    parts = draw(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, Path(__file__).parent / "benchmark_files.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert run(parts, tmp_path / "alone", "copy-paste", "sdedit", "ours") == []
    assert results(tmp_path / "ranks") == results(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the scans are not at {DATA}")
def test_real_scans_on_the_small_checkpoint(tmp_path, capsys):
    pytest.importorskip("stlpips_pytorch")
    counts = ["--br35h-samples", "1", "--busi-samples", "1"]
    folders = ["--br35h", DATA / "br35h", "--busi", DATA / "busi" / "Dataset_BUSI_with_GT", *counts]
    short = ["--steps", "7", "--start", "6", "--inversion", "naive"]  # at T' = 6 both readings of tau run the same
    shown = ["--reproduce", "--ablations", "tau", "--out", tmp_path / "out"]
    arguments = ["benchmark", "--model", "mini", "--device", "cpu", "--local-files-only", *folders, *short, *shown]
    assert cli.main([str(argument) for argument in arguments]) == 0
    with (tmp_path / "out" / "samples.csv").open(newline="") as file:
        entries = list(csv.DictReader(file))
    matched = [f"{name}_matched" for name in METHODS if name not in ("blended", "ours")]
    ran = [*METHODS, *matched, "paper", *(f"ours_preserve_background_until_{tau}" for tau in (1, 3, 5))]
    assert sorted((entry["id"], entry["variant"]) for entry in entries) == sorted(
        (f"{dataset}-000", name) for dataset in ("br35h", "busi") for name in ran
    )
    assert all(0 <= float(entry["lpips_bg"]) and 0 < float(entry["lpips_fg"]) for entry in entries)
    text = capsys.readouterr().out
    assert text.startswith("# Methods") and "| tf-icon | " in text and "ST-LPIPS (alex) bg ↓" in text
    assert "- The columns of CLIP are left out: no CLIP model from openai/clip-vit-base-patch32" in text
    assert "Selection of tau" in (tmp_path / "out" / "ablation_tau.md").read_text()
