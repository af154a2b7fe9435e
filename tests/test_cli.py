"""`python -m composition` is tested here: its options, the files it writes, and its errors in one line before the model
loads."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from composition_files import FAST, row, run_command, write_manifest, write_scans, write_tiny_model
from fake_model import FakeModel
from PIL import Image

import sd21
from composition import Settings, box_mask, cli, commands, compose, read_mask, read_scan
from composition.mini import demo
from composition.options import made_of
from composition.placement import place
from composition.runs.limits import Limits
from sd21.files import sha256


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: pytest.fail("the model was loaded"))


def test_run_from_files_to_files(scans, tmp_path):
    """The command runs as a user calls it, with a checkpoint on disk."""
    model = write_tiny_model(tmp_path / "model")
    out = tmp_path / "new" / "out"
    arguments = [*run_command(scans, out, model=model, device="cpu", preserve="pixels"), *FAST]
    done = subprocess.run(
        [sys.executable, "-m", "composition", *arguments],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"composite.png", "mask.png", "figure.png", "record.json"}
    background, composite = read_scan(scans / "s0.png").pixels, read_scan(out / "composite.png").pixels
    outside = np.ones((60, 80), dtype=bool)
    outside[12:44, 20:60] = False
    assert np.array_equal(composite[outside], background[outside]) and not np.array_equal(composite, background)
    placed = place(read_scan(scans / "s0.png"), read_scan(scans / "s2.png"), read_mask(scans / "m.png"), ~outside)
    assert np.array_equal(read_mask(out / "mask.png"), placed.object_mask)

    record = json.loads((out / "record.json").read_text())
    expected = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive", preserve="pixels")
    assert record["settings"] == asdict(expected)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert record["model"]["source"] == str(model) and record["model"]["files"][weights] == sha256(model / weights)
    assert record["inputs"]["object"] == {"file": "s2.png", "sha256": sha256(scans / "s2.png")}
    assert (record["prompt"], record["user_box"]) == ("a tumour", [20, 12, 40, 32])
    assert (record["dtype"], record["device"]["type"]) == ("float32", "cpu")
    assert record["rows"] == {"inversion": 8, "composition": 4}  # up to 2 and a round trip, twice; 2 guided steps
    assert set(record["seconds"]) == {"load", "encode", "inversion", "composition", "decode"}
    assert set(record["versions"]) >= {"python", "torch", "transformers"}


def test_a_cache_spares_the_background_and_changes_nothing(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    counts = []
    for name in ("first", "second"):
        assert cli.main([*run_command(scans, tmp_path / name, cache=tmp_path / "cache"), "-q"]) == 0
        counts.append(json.loads((tmp_path / name / "record.json").read_text())["reused"])
    assert counts == [{"background": again, "object": again} for again in (False, True)]
    assert sha256(tmp_path / "first" / "composite.png") == sha256(tmp_path / "second" / "composite.png")
    assert capsys.readouterr() == ("", "")  # -q


@pytest.mark.parametrize("method", ["copy-paste", "sdedit"])
def test_run_and_batch_by_a_baseline(scans, tmp_path, monkeypatch, method):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    assert cli.main([*run_command(scans, tmp_path / "one", method=method), *FAST, "-q"]) == 0
    entry = json.loads((tmp_path / "one" / "record.json").read_text())
    assert entry["method"] == method and entry["rows"]["inversion"] == 0 and entry["reused"] == {}
    background, obj, mask = read_scan(scans / "s0.png"), read_scan(scans / "s2.png"), read_mask(scans / "m.png")
    user_mask = box_mask((20, 12, 40, 32), background.size)
    settings = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive")
    given = (FakeModel(64), background, obj, mask, user_mask, "a tumour", settings)
    expected = compose(*given, method=method).image
    assert np.array_equal(read_scan(tmp_path / "one" / "composite.png").pixels, expected)
    assert not np.array_equal(compose(*given).image, expected)

    rows = [row(0, user_box=[20, 12, 40, 32], prompt="a tumour")]
    manifest = write_manifest(scans / "manifest.jsonl", rows)
    many = ["batch", str(manifest), "--out", str(tmp_path / "many"), "--method", method, *FAST, "-q"]
    assert cli.main([*many, "--min-contrast", "none"]) == 0  # whether a baseline keeps the tumour is not asked here
    assert np.array_equal(read_scan(tmp_path / "many" / "images" / "case0.png").pixels, expected)


def test_run_warns_and_batch_refuses_where_the_tumour_is_lost(scans, tmp_path, monkeypatch, capsys):
    """A tumour brighter than its tissue is pasted on tissue that is as bright."""
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    texture, tumour = np.indices((60, 80)).sum(axis=0) % 2, read_mask(scans / "m.png")
    Image.fromarray(np.uint8(120 + texture)).save(scans / "bright.png")
    Image.fromarray(np.uint8(60 + 60 * tumour + texture)).save(scans / "dark.png")
    options = ["--method", "copy-paste", "--match", "none", *FAST, "-q"]
    files = {"background": scans / "bright.png", "object": scans / "dark.png"}
    assert cli.main([*run_command(scans, tmp_path / "one", **files), *options]) == 0
    output, warned = capsys.readouterr()
    # The medians of a texture of one level differ by one at most, of 60.
    assert output == "" and re.fullmatch(
        r"warning: the tumour keeps -?0\.\d\d of the contrast of .* user mask\n", warned
    )
    entry = json.loads((tmp_path / "one" / "record.json").read_text())
    assert abs(entry["label"]["contrast"]) < 0.02 and entry["label"]["cells"] >= 4 and entry["label"]["clipped"] == 0
    assert (entry["window"]["rows"], entry["window"]["columns"]) == ([0, 60], [0, 80])
    assert {"how", "gain", "offset", "why"} <= set(entry["match"])

    manifest = write_manifest(scans / "manifest.jsonl", [row(0, background="bright.png", object="dark.png")])
    many = ["batch", str(manifest), "--out", str(tmp_path / "many"), *options]
    assert cli.main(many) == 1
    errors = tmp_path / "many" / "errors.jsonl"
    assert capsys.readouterr() == ("", f"error: 1 of 1 rows failed or were refused, see {errors}\n")
    assert json.loads(errors.read_text())["error"].startswith("refused: the tumour keeps ")
    assert cli.main([*many, "--min-contrast", "none"]) == 0 and not errors.exists()
    (entry,) = map(json.loads, (tmp_path / "many" / "metadata.jsonl").read_text().splitlines())
    assert abs(entry["label"]["contrast"]) < 0.02


BAD = [
    ({"background": "none.png"}, "no such file: none.png"),
    ({"object_mask": "black.png"}, "the mask is empty"),
    ({"background": "black.png"}, "blank"),
    ({"background": "text.png"}, "cannot be read as an image"),
    ({"user_box": "60,12,40,32"}, "does not lie wholly on the 80x60 scan"),
    ({"user_box": None, "user_mask": "small.png"}, "its scan"),
    ({"start": 30}, "start is a whole number from 1 to 20, got 30"),
    ({"tolerance": -1}, "tolerance"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input_is_one_line_before_the_model_loads(scans, tmp_path, monkeypatch, capsys, no_model, changes, message):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (80, 60)).save("black.png")
    Image.new("L", (20, 20), 255).save("small.png")
    Path("text.png").write_text("not an image")
    assert cli.main(run_command(scans, tmp_path / "out", **changes)) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and errors.startswith("error: ") and message in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_mask": "m.png"}, "not allowed with argument"),
        ({"user_box": None}, "one of the arguments --user-mask --user-box is required"),
        ({"user_box": "1,2,3"}, "expected 4 whole numbers X,Y,W,H, got '1,2,3'"),
        ({"history": "keep"}, "invalid choice: 'keep'"),
        ({"dtype": "int8"}, "invalid choice: 'int8'"),
    ],
)
def test_bad_options(scans, tmp_path, capsys, no_model, changes, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(run_command(scans, tmp_path / "out", **changes))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_model_that_is_not_there(scans, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(run_command(scans, tmp_path / "out", model=tmp_path / "empty")) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_an_inversion_that_misses_its_tolerance(scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    asked = [*run_command(scans, tmp_path / "out", tolerance=1e-12), "-q"]
    assert cli.main([*asked, "--on-failure", "raise"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: joint: 0 of 2 images below") and "--max-sweeps" in error
    assert not (tmp_path / "out" / "record.json").exists()
    assert cli.main(asked) == 0  # by default the best that was found, whose error is said
    assert "above the tolerance" in capsys.readouterr().err
    reports = json.loads((tmp_path / "out" / "record.json").read_text())["inversion"].values()
    assert all(report["converged"] is False and report["error"] > 1e-12 for report in reports)
    assert max(report["sweeps"] for report in reports) == Settings().max_sweeps
    assert cli.main([*asked, "--max-sweeps", "1"]) == 0
    reports = json.loads((tmp_path / "out" / "record.json").read_text())["inversion"].values()
    assert max(report["sweeps"] for report in reports) == 1


def test_a_manifest_that_is_not_there(tmp_path, capsys, no_model):
    assert cli.main(["batch", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_every_setting_has_an_option_with_its_default_and_help(capsys):
    parser = cli.build_parser("run")
    required = ["--background", "b", "--object", "o", "--object-mask", "m", "--user-box", "1,2,3,4", "--prompt", "p"]
    options = parser.parse_args(["run", *required, "--out", "d"])
    assert commands.settings_of(options) == Settings()
    changed = ["--lower-order-final", "--exceptional-token", "7", "--guidance-scale", "5", "--max-batch", "8"]
    options = cli.build_parser("batch").parse_args(["batch", "m.jsonl", "--out", "d", *changed])
    expected = replace(Settings(), lower_order_final=True, exceptional_token=7, guidance_scale=5.0, max_batch=8)
    assert commands.settings_of(options) == expected
    for name in ("run", "batch", "demo"):
        with pytest.raises(SystemExit):
            cli.build_parser(name).parse_args([name, "--help"])
        text = capsys.readouterr().out
        assert all(f"--{field.replace('_', '-')}" in text for field in asdict(Settings()))


def test_the_help_tells_between_which_numbers_a_number_lies(capsys):
    with pytest.raises(SystemExit):
        cli.build_parser("realism").parse_args(["realism", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "smaller ones are left out (63 to 512; default: 64)" in text
    assert "10 composites that can be used, and 40 or more" in text


def test_every_limit_has_an_option_of_batch_alone(capsys):
    def limits(*given):
        return made_of(cli.build_parser("batch").parse_args(["batch", "m.jsonl", "--out", "d", *given]), Limits)

    assert limits() == Limits()
    off = [text for name in asdict(Limits()) for text in (f"--{name.replace('_', '-')}", "none")]
    assert limits(*off) == Limits.off()
    assert limits("--min-contrast", "0.7", "--min-cells", "9") == Limits(min_contrast=0.7, min_cells=9)
    for name, offers in (("batch", True), ("run", False)):
        with pytest.raises(SystemExit):
            cli.build_parser(name).parse_args([name, "--help"])
        assert ("--max-clipped" in capsys.readouterr().out) == offers
    with pytest.raises(SystemExit):
        limits("--min-cells", "few")
    assert "invalid int or none value: 'few'" in capsys.readouterr().err


def test_the_demo_without_its_files_says_what_to_do(tmp_path, monkeypatch, capsys, no_model):
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path / "manifest.jsonl")
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "manifest.jsonl") in error and "python -m composition run --help" in error


def test_the_demo_composes_the_first_example(scans, tmp_path, monkeypatch, capsys):
    """On a stand-in for the small checkpoint and the example scans."""
    row = {"background": "s0.png", "object": "s2.png", "object_mask": "m.png", "user_mask": "m.png", "prompt": "a scan"}
    (scans / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(demo, "EXAMPLES", scans / "manifest.jsonl")
    monkeypatch.setattr(demo, "MINI", scans)
    loaded = []
    monkeypatch.setattr(sd21, "load", lambda source, **_: loaded.append(source) or FakeModel(64))
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 0
    assert loaded == ["mini"] and (tmp_path / "out" / "figure.png").exists()
    assert "rows through the network" in capsys.readouterr().out
