"""These tests follow the whole experiment on a drawn BUSI, up to the trainings: what it writes, the commands it gives,
and that each of them is one that the command line takes. Nothing is composed: a batch is played."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn_lesions import BRIGHT, draw_scan
from PIL import Image

from composition.cli import build_parser, main
from composition.datasets import LeftOut
from composition.options import made_of
from composition.runs.limits import Limits
from composition.settings import Settings
from composition.utility import command as utility_command
from composition.utility import experiment
from composition.utility.run import _jobs, read_all
from composition.utility.training import Training
from sd21.command import INTERRUPTED, STEP
from sd21.files import read_json_lines, sha256
from sd21.training.data import held_out_names


@pytest.fixture
def busi(tmp_path):
    """BUSI's folders, with two scans of a kind that are held out and six or four that are not."""
    held_out, root = held_out_names(), tmp_path / "busi"
    for kind, others, base in (("benign", 6, 0), ("normal", 4, 100), ("malignant", 0, 200)):
        (root / kind).mkdir(parents=True)
        names = sorted(name for name in held_out if name.startswith(f"{kind}/"))[:2]
        every = (f"{kind}/{kind} ({number}).png" for number in range(1, 400))
        names += [name for name in every if name not in held_out][:others]
        for number, name in enumerate(names):
            pixels, mask = draw_scan(base + number, difference=0 if kind == "normal" else BRIGHT)
            Image.fromarray(pixels).save(root / name)
            Image.fromarray(mask).save((root / name).with_name(f"{Path(name).stem}_mask.png"))
    return root


@pytest.fixture
def commands(monkeypatch):
    """The commands that were given. A batch is played: its composites are the objects themselves."""
    given = []

    def step(command: list[str], ranks: int, work: Path, done: Path | None = None, told: list[str] = ()) -> None:
        given.append(command)
        assert not [word for word in told if ".partial" in word]
        if command[0] == "pair" or "--draw-only" in command:
            assert main(command) == 0
        elif command[0] == "batch":
            options = build_parser("batch").parse_args(command)
            entries = []
            for row in read_json_lines(options.manifest):
                files = {role: options.manifest.parent / row[role] for role in ("object", "background")}
                inputs = {role: {"sha256": sha256(path)} for role, path in files.items()}
                entries.append(
                    {"file_name": files["object"].name, "mask_file_name": f"{row['id']}.png", "inputs": inputs}
                )
                options.out.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files["object"], options.out / files["object"].name)
                shutil.copyfile(options.manifest.parent / row["object_mask"], options.out / f"{row['id']}.png")
            done.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        else:
            work.joinpath("utility").mkdir(exist_ok=True)
            work.joinpath("utility", "table.md").write_text("the table")

    monkeypatch.setattr(experiment, "_step", step)
    return given


def run(busi: Path, work: Path, *more: str) -> int:
    few = ["--sizes", "2", "3", "--seeds", "2", "1", "--per-scan", "1", "--pool", "5"]
    return experiment.main(["--busi", str(busi), "--out", str(work), *few, *more])


def test_the_experiment_gives_every_arm_what_it_needs(busi, tmp_path, commands):
    work = tmp_path / "work"
    assert run(busi, work) == 0
    counts = json.loads((work / "scans" / "scans.json").read_text())["scans"]
    assert counts == {"real": 5, "seen": 1, "held-out": 4, "tumour-free": 4, "seen-free": 0, "held-out-free": 2}
    names = {path.name for path in (work / "scans" / "held-out").iterdir() if "_mask" not in path.name}
    assert {f"{name.split(' ')[0]}/{name}" for name in names} <= held_out_names() and len(names) == 4
    assert [one[0] for one in commands].count("batch") == len(experiment.KINDS)
    options = build_parser("utility").parse_args(commands[-1])
    request = utility_command.request_of(options, made_of(options, Training))
    left_out = LeftOut()
    material, tests = read_all(request, left_out)
    assert left_out.counts == {} and {test.part for test in tests} == {"held-out", "seen"}
    jobs, told = _jobs(request, material)  # which raises an error where composites are too few
    assert {(draw["size"], draw["seed"]) for draw in told} == {(2, 0), (2, 1), (3, 0)}
    assert all(draw["composites_used"] == draw["size"] for draw in told)
    all_arms = {"real", "real + tumour-free", "+ more real", "ours alone", *(f"+ {name}" for name in experiment.KINDS)}
    assert {arm.name for arm, size, _ in jobs if size == 2} == all_arms
    assert {arm.name for arm, size, _ in jobs if size == 3} == {"real", "+ ours", "+ copy-paste", "+ more real"}


def test_a_second_run_draws_nothing_again_and_another_experiment_is_refused(busi, tmp_path, commands):
    work = tmp_path / "work"
    run(busi, work)
    commands.clear()
    assert run(busi, work) == 0
    assert [one[0] for one in commands] == ["batch"] * len(experiment.KINDS) + ["utility"]
    commands.clear()
    for changes, message in {
        ("--pool", "4"): "holds another experiment, see experiment.json in it: pool was 5 and is 4 now",
        ("--steps", "9"): "holds another experiment, see experiment.json in it: steps was 300 and is 9 now",
        ("--compared", "paper"): "at_all_sizes: ours was True and is False now",
        (
            "--kinds",
            "paper",
            "--compared",
            "ours",
        ): "--compared names ours, which is none of --kinds; got --kinds paper",
        ("--steps", "0"): "steps is a whole number from 1 to 1000000, got 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            run(busi, work, *changes)
    (work / "commands.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"commands\.jsonl is damaged"):
        run(busi, work)
    assert commands == []


def test_kinds_without_any_that_all_sizes_have(busi, tmp_path, commands):
    """All sizes after the first have real scans alone; another line may be added later."""
    work = tmp_path / "work"
    assert run(busi, work, "--kinds", "paper") == 0
    options = build_parser("utility").parse_args(commands[-1])
    request = utility_command.request_of(options, made_of(options, Training))
    assert request.compared == () and list(request.composites) == ["paper"]
    jobs, _ = _jobs(request, read_all(request, LeftOut())[0])
    assert {arm.name for arm, size, _ in jobs if size == 3} == {"real", "+ more real"}
    assert run(busi, work, "--kinds", "paper", "ours") == 0
    options = build_parser("utility").parse_args(commands[-1])
    assert utility_command.request_of(options, made_of(options, Training)).compared == ("ours",)


def test_a_step_is_written_down_as_a_user_would_type_it_and_leaves_the_last_word(tmp_path):
    program = "import sys, sd21.command as c\ndef stop(): raise KeyboardInterrupt\nsys.exit(c.guarded(stop, 'go on'))"
    script = tmp_path / "interrupted.py"
    script.write_text(program)
    for environment, said in ((os.environ, "\ninterrupted: go on\n"), (os.environ | {STEP: "1"}, "")):
        done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (INTERRUPTED, said)
    with pytest.raises(ValueError, match="the exit code 2: python -m composition pair of a user; mend it"):
        experiment._step(["pair", "--nothing"], 1, tmp_path, told=["pair", "of", "a", "user"])
    (entry,) = read_json_lines(tmp_path / "commands.jsonl")
    assert entry["command"] == "python -m composition pair of a user" and entry["code"] == 2


def test_the_kinds_are_what_their_names_say():
    made = {}
    for name, kind in experiment.KINDS.items():
        options = build_parser("batch").parse_args(["batch", "m.jsonl", "--out", "o", *kind.options])
        made[name] = options.method, made_of(options, Settings), made_of(options, Limits)
    assert made["ours"] == made["ours-unvaried"] == ("ours", Settings(), Limits())
    assert made["paper"] == ("ours", Settings.paper(), Limits.off())
    for name in ("copy-paste", "tf-icon", "sdedit", "blended"):
        assert made[name] == (name, Settings(), Limits.off())
