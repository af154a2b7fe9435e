"""These tests compose DICOM, NIfTI and images through the command line, and hold that results come out in the
background's own kind: `run` here, `batch` in test_stored_batch."""

import errno
import json
import sys

import numpy as np
import pytest
from composition_files import FAST, tree
from fake_model import FakeModel
from medical_files import dicom_file, nifti_file
from PIL import Image
from written_files import HU, PLACE, SOFT, by_simpleitk, ct_file, stored, strictly_read, write_medical_scans

import sd21
from composition import cli
from composition.runs import single
from composition.scans.images import read_mask, read_scan

pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Scans of computed tomography, as DICOM, NIfTI and PNG, and a mask for all."""
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    return write_medical_scans(tmp_path / "files")


def run(folder, out, background, obj=None, **changes) -> dict:
    """Run a composition; returns its record."""
    options = {
        "background": folder / background,
        "object": folder / (obj or "s2.dcm"),
        "object-mask": folder / "m.png",
        "user-box": "24,20,22,18",
        "focus": "window",
        "prompt": "a tumour",
        "out": out,
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    given = [f"--{name}={value}" for name, value in options.items()]
    assert cli.main(["run", "-q", *FAST, *given]) == 0
    return json.loads((out / "record.json").read_text())


def names(out) -> set[str]:
    return set(tree(out))


PICTURES = {"composite.png", "mask.png", "figure.png", "record.json"}


def check_rest(found, source, record):
    """That pixels outside what the network saw are the source's to the bit, and that some inside are not."""
    (top, bottom), (left, right) = record["window"]["rows"], record["window"]["columns"]
    seen = np.zeros(source.shape[:2], bool)
    seen[top:bottom, left:right] = True
    assert not seen.all()
    assert np.array_equal(found[~seen], source[~seen]) and not np.array_equal(found, source)


def test_dicom_in_and_dicom_out(files, tmp_path):
    record = run(files, tmp_path / "out", "s0.dcm")
    assert names(tmp_path / "out") == {*PICTURES, "composite.dcm"}
    found = strictly_read(tmp_path / "out" / "composite.dcm")
    check_rest(found.pixel_array, stored(0), record)
    mask = read_mask(tmp_path / "out" / "mask.png")
    changed = found.pixel_array != stored(0)
    assert changed[mask].mean() > 0.9  # a pixel may have by chance the value that it had
    for name, value in (HU | SOFT | PLACE).items():
        assert found[name].value == value, name
    image, values = by_simpleitk(tmp_path / "out" / "composite.dcm")
    assert np.array_equal(values[0], found.pixel_array.astype(int) - 1024)
    assert image.GetSpacing()[:2] == (0.5, 0.75)
    # What is new lies within the window, -160 to 239 by the standard's formula.
    assert -160 <= values[0][changed].min() and values[0][changed].max() <= 239
    preview = np.asarray(Image.open(tmp_path / "out" / "composite.png"))
    expected = np.rint(np.clip((values[0] + 160) * (255 / 399), 0, 255))
    assert preview.dtype == np.uint8 and np.array_equal(preview, expected)


def test_a_record_says_what_stored_values_mean(files, tmp_path):
    record = run(files, tmp_path / "dicom", "s0.dcm")
    assert record["scan"] == {
        **{"slope": 1, "intercept": -1024, "unit": "HU", "modality": "CT", "spacing": [0.75, 0.5], "measured": True},
        **{"slice": None, "levels": [864, 1263], "dtype": "uint16"},
    }
    assert record["stored"] == ["composite.dcm"] and (record["grey_window"], record["label_value"]) == (None, None)
    record = run(files, tmp_path / "nifti", "volume.nii.gz#1", window="40,80")
    assert record["scan"] == {
        **{"slope": 1, "intercept": 0, "unit": None, "modality": None, "spacing": [0.75, 0.75], "measured": True},
        **{"slice": 1, "levels": [0, 80], "dtype": "int16"},
    }
    assert record["grey_window"] == [40, 80] and record["inputs"]["background"]["file"] == "volume.nii.gz#1"
    assert record["stored"] == ["composite.nii.gz", "label.nii.gz"]
    record = run(files, tmp_path / "png", "s0.png", "s2.png")
    assert record["scan"]["levels"] == [0, 255] and record["scan"]["dtype"] == "uint8" and record["stored"] == []


def test_nifti_in_and_nifti_out(files, tmp_path):
    record = run(files, tmp_path / "out", "volume.nii.gz#1", "volume.nii.gz#2", window="40,400")
    assert names(tmp_path / "out") == {*PICTURES, "composite.nii.gz", "label.nii.gz"}
    source, found, label = (
        nibabel.load(path)
        for path in (files / "volume.nii.gz", *(tmp_path / "out" / f"{n}.nii.gz" for n in ("composite", "label")))
    )
    assert found.shape == label.shape == (80, 60, 1) and found.get_data_dtype() == np.int16
    assert np.array_equal(found.affine[:3, 3], source.affine[:3, 3] + source.affine[:3, 2])
    assert np.array_equal(label.affine, found.affine) and label.get_data_dtype() == np.uint8
    upright = read_scan(tmp_path / "out" / "composite.nii.gz").pixels
    check_rest(upright, stored(1).astype(int) - 1024, record)
    mask = read_mask(tmp_path / "out" / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "out" / "label.nii.gz"), mask)
    image, values = by_simpleitk(tmp_path / "out" / "composite.nii.gz")
    assert np.array_equal(values[0], np.asarray(found.dataobj)[..., 0].T) and image.GetSpacing() == (0.75, 0.75, 4)
    whole, before = by_simpleitk(files / "volume.nii.gz")
    assert whole.TransformPhysicalPointToIndex(image.GetOrigin()) == (0, 0, 1)
    changed = values[0] != before[1]
    inside = by_simpleitk(tmp_path / "out" / "label.nii.gz")[1][0] > 0
    assert changed[inside].mean() > 0.9


@pytest.mark.parametrize("depth", [8, 16])
def test_png_in_and_png_out(files, tmp_path, depth):
    if depth == 16:
        for n in (0, 2):
            Image.fromarray(stored(n) * np.uint16(15)).save(files / f"s{n}.png")
    record = run(files, tmp_path / "out", "s0.png", "s2.png")
    assert names(tmp_path / "out") == PICTURES
    found = np.asarray(Image.open(tmp_path / "out" / "composite.png"))
    source = np.asarray(Image.open(files / "s0.png"))
    assert found.dtype == source.dtype == (np.uint8 if depth == 8 else np.uint16)
    check_rest(found, source, record)


@pytest.mark.parametrize("window", ["40,400", "40,20"])
def test_a_narrow_window_costs_no_levels_and_keeps_what_lies_outside(files, tmp_path, window):
    centre, width = map(int, window.split(","))
    box = np.zeros((60, 80), np.uint8)
    box[21:39, 28:50] = 255  # as large as the target, so that its pixels are moved as they are
    Image.fromarray(box).save(files / "box.png")
    run(files, tmp_path / "out", "s0.dcm", window=window, method="copy-paste", object_mask=files / "box.png")
    found = strictly_read(tmp_path / "out" / "composite.dcm").pixel_array.astype(int) - 1024
    expected = stored(0).astype(int) - 1024  # with its air, bone and metal
    own, new = (
        np.clip(values, centre - width // 2, centre + width // 2)
        for values in (expected[20:38, 24:46], stored(2)[21:39, 28:50].astype(int) - 1024)
    )
    # Every Hounsfield unit is there, and what is as bright as it was, beyond the window, is what it was.
    expected[20:38, 24:46] = np.where(own == new, expected[20:38, 24:46], new)
    assert np.array_equal(found, expected) and len(np.unique(new)) > min(width, 100) / 2


def test_equal_runs_give_equal_files_and_other_settings_other_identifiers(files, tmp_path):
    for background in ("s0.dcm", "volume.nii.gz#1"):
        trees = []
        for name in ("one", "two"):
            run(files, tmp_path / name, background)
            trees.append({file: digest for file, digest in tree(tmp_path / name).items() if file != "record.json"})
        assert trees[0] == trees[1]
    run(files, tmp_path / "dicom", "s0.dcm")
    run(files, tmp_path / "other", "s0.dcm", guidance_scale=3)
    one, other = (strictly_read(tmp_path / name / "composite.dcm") for name in ("dicom", "other"))
    assert one.SOPInstanceUID != other.SOPInstanceUID and one.SeriesInstanceUID != other.SeriesInstanceUID


def test_a_run_in_the_same_folder_leaves_nothing_of_an_earlier_kind(files, tmp_path):
    out = tmp_path / "out"
    run(files, out, "volume.nii.gz#1")
    run(files, out, "s0.dcm")
    assert names(out) == {*PICTURES, "composite.dcm"}
    (out / "label.nii.gz").write_text("the user's")
    run(files, out, "s0.png", "s2.png")
    assert names(out) == {*PICTURES, "label.nii.gz"} and (out / "label.nii.gz").read_text() == "the user's"


@pytest.mark.parametrize("name", ["composite.dcm", "composite.nii.gz", "label.nii.gz"])
def test_a_users_file_is_not_written_over(files, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("the user's")
    background = "s0.dcm" if name.endswith("dcm") else "volume.nii.gz#1"
    with pytest.raises(AssertionError):
        run(files, tmp_path / "out", background)
    assert f"{name} is there, and no run has made it" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == "the user's" and names(tmp_path / "out") == {name}


@pytest.mark.parametrize("part", ["write_like", "write_label_like", "write_json"])
def test_a_full_disk_leaves_no_part_of_a_result(files, tmp_path, monkeypatch, capsys, part):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    run(files, tmp_path / "out", "volume.nii.gz#1")
    monkeypatch.setattr(single, part, full)
    with pytest.raises(AssertionError, match="assert 1 == 0"):  # the disk's fault, and not the request's
        run(files, tmp_path / "out", "volume.nii.gz#1")
    assert "No space left" in capsys.readouterr().err and names(tmp_path / "out") == set()


def test_equal_hounsfield_units_are_equal_greys_whatever_the_windows_say(files, tmp_path):
    """The object's file has another scale and another window; what is pasted keeps its Hounsfield units."""
    doubled = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 500, "WindowWidth": 3000}
    even = stored(2) // 2 * 2
    ct_file(files / "even.dcm", even, **HU, **SOFT)
    ct_file(files / "halved.dcm", even // 2, **doubled)
    results = []
    for obj in ("even.dcm", "halved.dcm"):
        run(files, tmp_path / obj, "s0.dcm", obj, method="copy-paste", focus="scan", match="contrast")
        results.append(strictly_read(tmp_path / obj / "composite.dcm").pixel_array)
        record = json.loads((tmp_path / obj / "record.json").read_text())
        assert record["match"]["how"] == "none" and record["match"]["why"] == "the values are in HU"
    # Both are one picture over the background's window; float32 rounds it, by less than half a unit.
    assert np.array_equal(*results)


@pytest.mark.parametrize("window", ["1,2,3", "a,b", "40", ""])
def test_a_window_that_is_no_two_numbers_is_told(files, tmp_path, capsys, window):
    with pytest.raises(SystemExit) as stop:
        run(files, tmp_path / "out", "s0.dcm", window=window)
    assert stop.value.code == 2 and "expected two numbers C,W" in capsys.readouterr().err


@pytest.mark.parametrize("window", ["40,0", "40,-3", "nan,4", "40,inf", "9000,10"])
def test_a_window_that_shows_nothing_is_told(files, tmp_path, capsys, window):
    with pytest.raises(AssertionError):
        run(files, tmp_path / "out", "s0.dcm", window=window)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "s0.dcm" in told
    assert ("is blank in its window" if window == "9000,10" else "a window is a centre and a width above 0") in told
    assert not (tmp_path / "out").exists()


def labels(folder, kind):
    """A mask of two labels: 2 where m.png is, and 1 around it."""
    inside = read_mask(folder / "m.png")
    values = inside.astype(np.uint8) + 1
    values[:5] = 0
    path = folder / f"labels.{kind}"
    if kind == "png":
        Image.fromarray(values).save(path)
    elif kind == "dcm":
        dicom_file(path, values)
    else:
        nifti_file(path, values[::-1, ::-1].T[..., None].astype(np.float32))
    return path


@pytest.mark.parametrize("kind", ["png", "dcm"])
def test_a_label_picks_the_tumour(files, tmp_path, kind):
    record = run(files, tmp_path / "label", "s0.dcm", object_mask=labels(files, kind), label=2)
    assert record["label_value"] == 2
    run(files, tmp_path / "plain", "s0.dcm")
    for name in ("mask.png", "composite.png"):
        assert tree(tmp_path / "label")[name] == tree(tmp_path / "plain")[name]
    run(files, tmp_path / "other", "s0.dcm", object_mask=labels(files, kind), label=1)
    assert tree(tmp_path / "other")["mask.png"] != tree(tmp_path / "plain")["mask.png"]


def test_a_label_that_is_not_there_is_told(files, tmp_path, capsys):
    path = labels(files, "png")
    Image.open(path).convert("RGB").save(files / "colour.png")
    Image.open(path).convert("L").point(lambda value: value * 100).save(files / "lossy.jpg")
    for mask, label, message in [
        (path, 3, "labels.png holds no label 3; its values are 0, 1, 2"),
        (path, 10**30, "holds no label 10"),
        (path, -1, "holds no label -1"),
        (files / "colour.png", 2, "colour.png is in colour, and label 2 is a value of gray"),
        (files / "lossy.jpg", 200, "lossy.jpg is compressed with loss"),
        (labels(files, "nii.gz"), 10**400, "holds no label 10"),
    ]:
        with pytest.raises(AssertionError):
            run(files, tmp_path / "out", "s0.dcm", object_mask=mask, label=label)
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "background"), [("pydicom", "s0.dcm"), ("nibabel", "volume.nii.gz#1")])
def test_without_the_extra_the_error_names_it(files, tmp_path, monkeypatch, capsys, package, background):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AssertionError):
        run(files, tmp_path / "out", background, "s2.png")
    told = capsys.readouterr().err
    assert f"takes {package}" in told and "tumour-composition[medical]" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
    run(files, tmp_path / "png", "s0.png", "s2.png")  # for images nobody needs it
