"""A run of `volume` that ends on the way is resumed here, shared out over processes, and kept off files that it has not
made; and it holds a few slices in memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from composition_files import FAST, tree, write_tiny_model
from drawn_volumes import ellipsoid, spaced, write_pair
from fake_model import FakeModel
from medical_files import nifti_file
from volume_runs import BOX, QUICK, arguments, series_pair, volume

from composition import cli, commands
from composition.runs import volume as runs
from sd21.folders import LOCK, owned

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def double(monkeypatch):
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: FakeModel(64))


def counted(monkeypatch, stop=None):
    """The list of slices that are composed from now on; Ctrl-C is pressed in place of the one after `stop` of them."""
    composed, compose = [], runs.compose

    def counting(model, background, *rest, **keywords):
        if len(composed) == stop:
            raise KeyboardInterrupt
        composed.append(background.name)
        return compose(model, background, *rest, **keywords)

    monkeypatch.setattr(runs, "compose", counting)
    return composed


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch, kind, stop):
    if kind == "nifti":
        write_pair(tmp_path)
        options, suffix = [*BOX, *QUICK], ".nii.gz"
    else:
        series_pair(tmp_path)
        options, suffix = ["--user-box", "8,10,2,20,20,8", *QUICK], ""
    number = len(volume(tmp_path, *options, out="undisturbed", suffix=suffix)["slices"])
    with monkeypatch.context() as patch:
        composed = counted(patch, stop)
        assert cli.main(arguments(tmp_path, *options, suffix=suffix)) == 130
        assert len(composed) == stop and not (tmp_path / "out" / "record.json").exists()
    composed = counted(monkeypatch)
    volume(tmp_path, *options, suffix=suffix)
    assert len(composed) == number - stop and number > 3
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    volume(tmp_path, *options, suffix=suffix)
    assert len(composed) == number - stop  # a finished run composes nothing again


@pytest.mark.parametrize(
    "damage", ["pixels cut", "pixels gone", "record cut", "record gone", "pixels of another slice"]
)
def test_a_damaged_slice_is_made_again(tmp_path, monkeypatch, capsys, damage):
    write_pair(tmp_path)
    number = volume(tmp_path, *BOX, *QUICK)["slices"][2]
    before = tree(tmp_path / "out")
    pixels, entry = (tmp_path / "out" / "slices" / f"{number:05d}.{end}" for end in ("npz", "json"))
    if damage == "pixels of another slice":
        pixels.write_bytes((tmp_path / "out" / "slices" / f"{number + 1:05d}.npz").read_bytes())
    else:
        path = pixels if "pixels" in damage else entry
        path.write_bytes(path.read_bytes()[:-20]) if "cut" in damage else path.unlink()
    composed = counted(monkeypatch)
    volume(tmp_path, *BOX, *QUICK)
    told = capsys.readouterr().err
    assert (f"{entry} is damaged and will be made again" in told) == (damage == "record cut"), told
    assert composed == [f"slice {number}"] and tree(tmp_path / "out") == before


@pytest.mark.parametrize("change", ["prompt", "settings", "method", "box", "background", "mask"])
def test_what_was_made_of_other_inputs_is_made_again(tmp_path, monkeypatch, change):
    write_pair(tmp_path)
    volume(tmp_path, *BOX, *QUICK)
    options = [*BOX, *QUICK]
    if change == "settings":
        options += ["--guidance-scale", "1"]
    elif change == "method":
        options += ["--method", "copy-paste"]
    elif change == "prompt":
        options += ["--prompt", "another lesion"]
    elif change == "box":
        options[1] = "11,12,6,20,20,14"
    else:
        import nibabel

        path = tmp_path / f"{'back' if change == 'background' else 'mask'}.nii.gz"
        image = nibabel.load(path)
        data = np.asarray(image.dataobj).copy()
        data[tuple(length // 2 for length in data.shape)] ^= 1
        nifti_file(path, data, image.affine)
    composed = counted(monkeypatch)
    record = volume(tmp_path, *options)
    assert len(composed) == len(record["slices"]) == 4
    volume(tmp_path, *options, out="anew")
    assert {name: one for name, one in tree(tmp_path / "out").items() if "slices" not in name} == {
        name: one for name, one in tree(tmp_path / "anew").items() if "slices" not in name
    }


def test_a_smaller_series_leaves_no_slice_of_a_larger_one(tmp_path):
    series_pair(tmp_path)
    options = ["--user-box", "8,10,2,20,20,8", *QUICK]
    volume(tmp_path, *options, suffix="")
    last = max((tmp_path / "back").iterdir(), key=position)
    last.unlink()
    volume(tmp_path, *options, suffix="")
    assert sorted(path.name for path in (tmp_path / "out" / "composite").iterdir()) == [
        f"{number:05d}.dcm" for number in range(11)
    ]


def position(path):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    return pydicom.dcmread(path).ImagePositionPatient[2]


def test_another_run_on_the_folder_is_refused(tmp_path, capsys):
    write_pair(tmp_path)
    with owned(tmp_path / "out"):
        before = tree(tmp_path / "out")
        assert cli.main(arguments(tmp_path, *BOX, *QUICK)) == 2
        assert tree(tmp_path / "out") == before and set(before) == {LOCK}
    assert "another run is at work on" in capsys.readouterr().err
    assert len(volume(tmp_path, *BOX, *QUICK)["slices"]) == 4


@pytest.mark.parametrize(
    "name", ["composite.nii.gz", "label.nii.gz", "figure.png", "record.json", "composite/00003.dcm"]
)
def test_files_that_no_run_has_made_stay(tmp_path, capsys, name):
    write_pair(tmp_path)
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = tree(tmp_path)
    assert cli.main(arguments(tmp_path, *BOX, *QUICK)) == 2
    error = capsys.readouterr().err
    assert "is there, and no run has made it; name another folder" in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_an_input_is_not_overwritten(tmp_path, capsys):
    """A run's result may be the background of the next, in another folder alone."""
    write_pair(tmp_path)
    volume(tmp_path, *BOX, *QUICK)
    before = tree(tmp_path)
    again = arguments(tmp_path, *BOX, *QUICK)
    again[again.index("--background") + 1] = str(tmp_path / "out" / "composite.nii.gz")
    assert cli.main(again) == 2
    assert "would take the place of the input" in capsys.readouterr().err and tree(tmp_path) == before
    series_pair(tmp_path)
    options = ["--user-box", "8,10,2,20,20,8", *QUICK]
    volume(tmp_path, *options, suffix="", out="series")
    again = arguments(tmp_path, *options, suffix="", out="series")
    again[again.index("--background") + 1] = str(tmp_path / "series" / "composite")
    assert cli.main(again) == 2 and "would take the place of the input" in capsys.readouterr().err


def test_an_error_leaves_no_folder(tmp_path, capsys):
    write_pair(tmp_path)
    assert cli.main(arguments(tmp_path, "--user-box", "10,12,6,20,20,99")) == 2
    assert "does not lie on the volume" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path):
    write_pair(tmp_path)
    model = ["--model", write_tiny_model(tmp_path / "model"), "--device", "cpu"]
    # torchrun gives each process one thread, and equal bytes are promised for equal numbers of threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "composition"]
    for start, out in ((["-m", "composition"], "one"), (torchrun, "two")):
        command = [sys.executable, *start, *arguments(tmp_path, *BOX, *FAST, *model, out=out)]
        done = subprocess.run([*map(str, command)], env=environment, text=True, capture_output=True, timeout=900)
        assert done.returncode == 0, done.stderr
    found = tree(tmp_path / "two")
    assert found == tree(tmp_path / "one") and len(found) == 4 + 2 * 4


MEASURE = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from fake_model import FakeModel
from composition import cli, commands
import nibabel, PIL.Image, composition.runs.volume, composition.metrics.label_truth
commands.model_loader = lambda options: lambda: FakeModel(64)
# The peak so far is of what was imported alone.
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = cli.main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_large_volume_takes_the_memory_of_a_few_slices(tmp_path, suffix):
    rng = np.random.default_rng(0)
    back = np.zeros((512, 512, 200), dtype=np.int16)
    back[120:280, 120:280] = rng.integers(0, 50, (160, 160, 1)) + np.arange(200)
    affine = spaced((0.5, 0.5, 1))
    back_file = nifti_file(tmp_path / f"back.{suffix}", back, affine)
    assert back.nbytes == 100 * 2**20
    inside = ellipsoid((90, 90, 16), affine, (12, 12, 3))
    values = np.where(inside, 90, 30 + np.arange(16)).astype(np.int16)
    nifti_file(tmp_path / "object.nii.gz", values, affine)
    nifti_file(tmp_path / "mask.nii.gz", inside.astype(np.uint8), affine)
    options = ["--user-box", "150,150,90,64,64,20", *QUICK]
    command = arguments(tmp_path, *options)
    command[command.index("--background") + 1] = str(back_file)
    run = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, env=environment, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    code, kilobytes = map(int, done.stdout.split())
    # A slice in float32 of three channels, as the network sees it, is 3 MB, and the steps hold a dozen of them. The
    # result is a file that is mapped to memory, and its 100 MB (and 50 MB of the label) count for the process as far
    # as the system keeps them. The whole volume in float64, as some readers have it, would be 400 MB by itself.
    assert code == 0 and kilobytes < 300 * 1024
    import nibabel

    after = nibabel.load(tmp_path / "out" / "composite.nii.gz")
    numbers = json.loads((tmp_path / "out" / "record.json").read_text())["slices"]
    assert [k for k in range(200) if not np.array_equal(after.dataobj[:, :, k], back[:, :, k])] == numbers
