"""These tests check that the command lines answer every fault with one line and the right code, and lose nothing."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_files import draw
from benchmark_files import run as benchmark
from composition_files import FAST, row, run_command, tree, write_manifest, write_scans, write_tiny_model
from drawn_scans import draw_scans
from fake_model import FakeModel
from full_disk import full_disk

import sd21
from composition import cli
from sd21.folders import FolderError, owned
from sd21.training.__main__ import main as train

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


def given(scans: Path, out: Path, **changes) -> list[str]:
    run, *options = run_command(scans, out, **changes)
    return [run, "-q", *FAST, *options]


def refused(arguments: list[str], capsys, code: int = 2) -> str:
    """The one line of the error."""
    assert cli.main(arguments) == code
    output, told = capsys.readouterr()
    assert output == "" and told.count("\n") == 1 and told.startswith("error: "), told
    return told


@pytest.mark.parametrize("name", ["composite.png", "mask.png", "figure.png", "record.json"])
def test_run_never_takes_the_place_of_an_input(scans, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (scans / "s0.png").rename(scans / name)
    (tmp_path / "out").symlink_to(scans)  # a folder under another name
    before = tree(scans)
    for out in (scans, tmp_path / "out"):
        told = refused(given(scans, out, background=scans / name), capsys)
        assert f"{name} would take the place of the input" in told
    assert tree(scans) == before


def test_a_failed_load_leaves_no_folder_and_an_old_result_as_it_was(scans, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise ValueError("the load failed")

    monkeypatch.setattr(sd21, "load", fails)
    assert "the load failed" in refused(given(scans, tmp_path / "new" / "out"), capsys)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    assert cli.main(given(scans, tmp_path / "out")) == 0
    before = tree(tmp_path / "out")
    capsys.readouterr()
    monkeypatch.setattr(sd21, "load", fails)
    refused(given(scans, tmp_path / "out"), capsys)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("device", ["fpga", "cuda:99", "meta", "", "cpu:x", "9999999999999999999999"])
@pytest.mark.parametrize("name", ["run", "batch", "benchmark"])
def test_a_device_that_is_not_there_is_said_first(scans, tmp_path, capsys, name, device):
    arguments = {
        "run": given(scans, tmp_path / "out"),
        "batch": ["batch", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")],
        "benchmark": ["benchmark", "--busi", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
    }[name]
    assert "device" in refused([*arguments, f"--device={device}"], capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"background": "/dev/zero"}, "this is no regular file: /dev/zero"),
        ({"background": "pipe"}, "this is no regular file: pipe"),
        ({"object": "."}, "this is no regular file: ."),
        ({"object_mask": "n" * 5000}, "there is no such file: nnn"),
        ({"prompt": "half \ud83d"}, "the prompt is no text"),
        ({"feather": 10**9}, "feather is a whole number from 0 to 4096, got 1000000000"),
        ({"guidance_scale": 1e300}, "guidance_scale is a number from -100.0 to 100.0, got 1e+300"),
        ({"tolerance": "inf"}, "tolerance is a number from"),
        ({"steps": 10**6}, "steps is a whole number from 1 to 1000"),
        ({"cache": "file"}, "file is a file; name a folder to keep inversions in"),
        ({"out": "file"}, "file is a file, or lies under one"),
        ({"out": "file/below"}, "file/below is a file, or lies under one"),
    ],
)
def test_what_cannot_be_met_is_one_line(scans, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    os.mkfifo("pipe")
    Path("file").write_text("kept")
    assert message in refused(given(scans, changes.pop("out", tmp_path / "out"), **changes), capsys)
    assert Path("file").read_text() == "kept" and not (tmp_path / "out").exists()


def test_a_number_of_thousands_of_digits_is_the_parsers_matter(scans, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(given(scans, tmp_path / "out", steps="1" * 5000))
    assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_an_overflow_is_one_line_and_no_picture(scans, tmp_path, monkeypatch, capsys):
    model = FakeModel(64)
    model.decode = lambda latent: FakeModel.decode(model, latent) * float("nan")
    monkeypatch.setattr(sd21, "load", lambda *_, **__: model)
    told = refused(given(scans, tmp_path / "out"), capsys, code=1)
    assert told.startswith(
        "error: decode, the network in float32: the image that the autoencoder decodes is not finite"
    )
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_that_names_the_file(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    with full_disk(500):
        told = refused(given(scans, tmp_path / "out"), capsys, code=1)
    assert "File too large; it was not written" in told and "composite.png" in told
    assert cli.main(given(scans, tmp_path / "out")) == 0


def test_two_runs_on_one_folder(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    manifest = write_manifest(scans / "manifest.jsonl", [row(0)])
    with owned(tmp_path / "out"):
        for arguments in (
            given(scans, tmp_path / "out"),
            ["demo", "--out", str(tmp_path / "out")],
            ["batch", str(manifest), "--out", str(tmp_path / "out")],
        ):
            assert "another run is at work on" in refused(arguments, capsys)


def test_a_file_name_that_is_no_text_is_told(scans, tmp_path, monkeypatch):
    """stdout is strict about text, unlike stderr, and the name of the folder goes there."""
    out = tmp_path / os.fsdecode(b"out\xff")
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sd21
from drawn_scans import draw_scans
from fake_model import FakeModel
from composition import cli
sd21.load = lambda *_, **__: FakeModel(64)
sys.exit(cli.main([one for one in sys.argv[1:] if one != "-q"]))
"""
    command = [sys.executable, "-c", program, *given(scans, out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, env=os.environ | {"PYTHONUTF8": "1"})
    assert done.returncode == 0 and b"out\\udcff: composite.png" in done.stdout, done.stderr
    assert (out / "record.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_says_how_to_go_on(tmp_path, processes):
    """Sent to a batch that has made its first row; the same command then makes the rest."""
    scans, model = write_scans(tmp_path / "scans"), write_tiny_model(tmp_path / "model")
    rows, out = [row(n % 20, id=f"row{n}") for n in range(40)], tmp_path / "out"
    manifest = write_manifest(scans / "manifest.jsonl", rows)
    command = [sys.executable, "-m", "composition", "batch", manifest, "--out", out, "--model", model, "-q"]
    command += ["--device", "cpu", "--min-contrast", "none", *FAST]
    command += ["--processes", processes]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not list(out.glob("records/row*.json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    output, told = process.communicate(timeout=300)
    assert process.returncode == 130 and output == ""
    interrupted, again = told.strip().splitlines()
    assert interrupted.endswith("what is whole stays, and the same command goes on where this one stopped:")
    assert shlex.split(again) == list(map(str, command))
    made = len(list(out.glob("records/row*.json")))
    assert 0 < made < 40 and not (out / "metadata.jsonl").exists() and not list(out.rglob(".*"))
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 40


def training(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def test_the_training_answers_in_one_line_too(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vae.pt").write_bytes(b"PK\x03\x04 and no more")
    data = ("--data", tmp_path / "data", "--out", tmp_path / "new")
    for arguments, message in (
        (training("vae", *data), f"no images in {tmp_path / 'data'}"),
        (training("latents", *data), f"no images in {tmp_path / 'data'}"),
        (training("diffusion", *data), f"no images in {tmp_path / 'data'}"),
        (
            training("export", "--out", tmp_path / "none", "--to", tmp_path / "m"),
            "vae.pt; run the stage vae first",
        ),
        (training("export", "--out", tmp_path / "run", "--to", tmp_path / "m"), "vae.pt is damaged"),
        (training("export", "--out", tmp_path / "run", "--to", tmp_path), "exists; move it away first"),
    ):
        assert train(arguments) == 2
        output, told = capsys.readouterr()
        assert output == "" and told.startswith("error: ") and told.count("\n") == 1 and message in told, told
    assert not (tmp_path / "new").exists() and not (tmp_path / "m").exists()


def test_run_takes_the_place_of_no_file_that_no_run_has_made(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    for name in ("composite.png", "mask.png", "figure.png"):
        path = tmp_path / name.removesuffix(".png") / name
        path.parent.mkdir()
        path.write_text("a user's")
        assert f"{name} is there, and no run has made it" in refused(given(scans, path.parent), capsys)
        assert path.read_text() == "a user's" and len(list(path.parent.iterdir())) == 1
    assert cli.main(given(scans, tmp_path / "out")) == cli.main(given(scans, tmp_path / "out")) == 0


@pytest.mark.parametrize("name", ["table.md", "samples.csv", "errors.jsonl"])
def test_the_benchmark_takes_the_place_of_no_file_that_it_has_not_made(tmp_path, name):
    parts = draw(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("a user's")
    with pytest.raises(FolderError, match=rf"{name} is there, and no benchmark has made it"):
        benchmark(parts, tmp_path / "out", "copy-paste")
    assert tree(tmp_path / "out").keys() == {name}


def test_an_unset_variable_is_no_folder(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(given(scans, ""))
    told = capsys.readouterr().err
    assert stop.value.code == 2 and "expected the name of a folder, got an empty text" in told and told.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_takes_no_more_costs_no_result(tmp_path, stream):
    command = [sys.executable, "-m", "composition", "demo", "--out", str(tmp_path / "out"), *FAST]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, timeout=300, **{stream: full})
    assert done.returncode == 0 and (tmp_path / "out" / "record.json").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 1e300), ("lr", "nan"), ("batch", 10**27), ("seed", 10**23), ("seed", -1), ("minutes", -1), ("crop", 7)],
)
def test_the_training_refuses_numbers_of_no_use(tmp_path, capsys, option, value):
    draw_scans(tmp_path / "data", each=1)
    assert train(training("vae", "--data", tmp_path / "data", "--out", tmp_path / "run", f"--{option}={value}")) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {option}") and told.count("\n") == 1 and not (tmp_path / "run").exists()


def test_ctrl_c_while_the_training_starts_is_one_line(tmp_path):
    """The imports take seconds."""
    program = "import sys, signal, os; from sd21.training.__main__ import main; import threading, time\n"
    program += "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
    program += f"sys.exit(main(['vae', '--data', {str(tmp_path)!r}, '--out', {str(tmp_path / 'run')!r}]))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130 and done.stderr.strip().startswith("interrupted: "), done.stderr


def test_a_record_is_never_of_other_pictures(scans, tmp_path, monkeypatch, capsys):
    """A run that ends between two of its files leaves no record, of an earlier run neither."""
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    assert cli.main(given(scans, tmp_path / "out")) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert json.loads((tmp_path / "out" / "record.json").read_text())["prompt"] == "a tumour"
    capsys.readouterr()  # the warnings of the first run
    room = max(sizes["composite.png"], sizes["mask.png"])
    assert room < sizes["figure.png"]
    with full_disk(room):
        refused(given(scans, tmp_path / "out", prompt="another"), capsys, code=1)
    assert not (tmp_path / "out" / "record.json").exists()
