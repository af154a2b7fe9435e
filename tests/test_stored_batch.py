"""These tests make data sets of DICOM and NIfTI by `batch`, and hold that every row has its result in the background's
own kind, that a further run mends what is damaged, and that no row touches another's files, or the user's."""

import json

import numpy as np
import pytest
from composition_files import FAST, row, tree, write_manifest
from fake_model import FakeModel
from medical_files import dicom_file
from PIL import Image
from written_files import by_simpleitk, stored, strictly_read, write_medical_scans

import sd21
from composition import cli
from composition.scans.images import read_mask, read_scan

pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")

DICOM = {"background": "s0.dcm", "object": "s2.dcm"}
NIFTI = {"background": "volume.nii.gz#1", "object": "volume.nii.gz#2"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    return write_medical_scans(tmp_path / "files")


def batch(folder, rows, *options, code=0, out=None) -> list[dict]:
    """Run a batch; returns its records."""
    manifest, out = write_manifest(folder / "manifest.jsonl", rows), out or folder.parent / "out"
    given = ["--max-clipped=none", "--min-contrast=none", "--min-cells=0"]
    assert cli.main(["batch", "-q", str(manifest), f"--out={out}", *FAST, *given, *options]) == code
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def errors(folder) -> list[str]:
    lines = (folder.parent / "out" / "errors.jsonl").read_text().splitlines()
    return [json.loads(line)["error"] for line in lines]


def pictures(*numbers: int) -> set[str]:
    kinds = ("images", "png"), ("masks", "png"), ("records", "json")
    return {"metadata.jsonl", *(f"{kind}/case{n}.{suffix}" for kind, suffix in kinds for n in numbers)}


def test_every_row_comes_out_in_its_own_kind(folder):
    records = batch(folder, [row(0, **DICOM), row(1, **NIFTI), row(2)])
    out = folder.parent / "out"
    results = {"stored/case0.dcm", "stored/case1.nii.gz", "labels/case1.nii.gz"}
    assert set(tree(out)) == pictures(0, 1, 2) | results
    expected = ["stored/case0.dcm"], ["stored/case1.nii.gz", "labels/case1.nii.gz"], []
    assert tuple(record["stored"] for record in records) == expected
    for record in records:
        names = [record["file_name"], record["mask_file_name"], *record["stored"]]
        digests = dict(zip(("image", "mask", "stored", "label"), names, strict=False))
        assert record["sha256"] == {name: tree(out)[path] for name, path in digests.items()}
    masks = [read_mask(out / "masks" / f"case{n}.png") for n in range(3)]
    assert np.array_equal(read_mask(out / "labels" / "case1.nii.gz"), masks[1])
    dicom = strictly_read(out / "stored" / "case0.dcm")
    assert np.array_equal(by_simpleitk(out / "stored" / "case0.dcm")[1][0], dicom.pixel_array.astype(int) - 1024)
    assert (dicom.pixel_array[masks[0]] != stored(0)[masks[0]]).mean() > 0.9  # one may have the value that it had
    found = nibabel.load(out / "stored" / "case1.nii.gz")
    assert found.affine[:3, 3].tolist() == [-20, 30, 9] and found.get_data_dtype() == np.int16
    preview = np.asarray(Image.open(out / "images" / "case0.png"))
    assert np.array_equal(preview, np.rint(np.clip((dicom.pixel_array - 864.0) * 255 / 399, 0, 255)))


def test_identifiers_tell_rows_apart_and_runs_alike(folder):
    rows = [row(n, **DICOM, user_box=[20, 12, 40, 32]) for n in (0, 1)]
    batch(folder, rows)
    batch(folder, rows, out=folder.parent / "again")
    first, second = (strictly_read(folder.parent / "out" / "stored" / f"case{n}.dcm") for n in (0, 1))
    assert np.array_equal(first.pixel_array, second.pixel_array)
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert first[name].value != second[name].value, name
    assert tree(folder.parent / "out") == tree(folder.parent / "again")


NAMES = ["stored/case0.dcm", "stored/case1.nii.gz", "labels/case1.nii.gz"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "cut", "another"])
def test_a_further_run_mends_a_file(folder, capsys, name, damage):
    rows = [row(0, **DICOM), row(1, **NIFTI)]
    batch(folder, rows)
    out, before = folder.parent / "out", tree(folder.parent / "out")
    path, content = out / name, (out / name).read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    other = out / "records" / ("case0.json" if "case1" in name else "case1.json")
    written = other.stat().st_mtime_ns
    capsys.readouterr()
    batch(folder, rows)
    told = capsys.readouterr().err
    assert ("lacks one of its files" if damage == "missing" else "are not those that it wrote") in told
    assert tree(out) == before and other.stat().st_mtime_ns == written  # the other row was left alone


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_the_place_of_a_file_costs_its_row(folder, name):
    rows = [row(0, **DICOM), row(1, **NIFTI)]
    batch(folder, rows)
    path = folder.parent / "out" / name
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("the user's")
    (record,) = batch(folder, rows, code=1)
    assert record["id"] == ("case0" if "case1" in name else "case1")
    assert name in errors(folder)[0] and (path / "notes").read_text() == "the user's"


def test_a_row_that_is_refused_or_bad_leaves_no_file(folder):
    rows = [row(0, **DICOM), row(1, **NIFTI)]
    batch(folder, rows)
    assert batch(folder, rows, "--min-cells=1000", code=1) == []
    assert set(tree(folder.parent / "out")) == {"metadata.jsonl", "errors.jsonl"}
    batch(folder, rows)
    bad = [row(0, **DICOM, window=[40, 0]), row(1, **NIFTI, label=9), row(2)]
    batch(folder, bad, code=1)
    assert set(tree(folder.parent / "out")) == pictures(2) | {"errors.jsonl"}


def test_a_row_that_changes_its_kind_leaves_nothing_of_the_earlier_one(folder):
    for kind in (NIFTI, DICOM, {}, NIFTI):
        batch(folder, [row(0, **kind)])
        extra = {DICOM["background"]: {"stored/case0.dcm"}, None: set()}.get(
            kind.get("background"), {"stored/case0.nii.gz", "labels/case0.nii.gz"}
        )
        assert set(tree(folder.parent / "out")) == pictures(0) | extra


def test_ids_that_look_like_labels_do_not_meet(folder):
    rows = [row(0, **NIFTI, id=one) for one in ("a", "a_label", "a.nii.gz", "a.label")]
    records = batch(folder, rows)
    assert len(records) == 4 and batch(folder, rows) == records
    names = [name for record in records for name in record["stored"]]
    assert len(set(names)) == 8 and set(names) <= set(tree(folder.parent / "out"))
    batch(folder, rows[:1])  # the others are no rows any more, and stay
    assert set(names) <= set(tree(folder.parent / "out"))


@pytest.mark.parametrize("name", ["stored/case0.dcm", "stored/case0.nii.gz", "labels/case0.nii.gz"])
def test_a_users_file_is_not_taken_for_a_result(folder, capsys, name):
    path = folder.parent / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("the user's")
    for kind in (DICOM, {}):
        manifest = write_manifest(folder / "manifest.jsonl", [row(0, **kind)])
        assert cli.main(["batch", "-q", str(manifest), f"--out={folder.parent / 'out'}", *FAST]) == 2
        assert f"{name} is there, and no batch has made it" in capsys.readouterr().err
    assert path.read_text() == "the user's"


def test_an_input_in_the_folder_of_the_results_is_not_removed(folder, capsys):
    (folder / "stored").mkdir()
    (folder / "s0.dcm").rename(folder / "stored" / "case0.dcm")
    before = tree(folder)
    manifest = write_manifest(folder / "manifest.jsonl", [row(0, **DICOM | {"background": "stored/case0.dcm"})])
    assert cli.main(["batch", "-q", str(manifest), f"--out={folder}", *FAST]) == 2
    assert "would take the place of the input" in capsys.readouterr().err
    manifest.unlink()
    assert tree(folder) == before


def test_window_and_label_of_a_row(folder):
    values = read_mask(folder / "m.png").astype(np.uint8) * 2
    values[:5] = 1
    Image.fromarray(values).save(folder / "labels.png")
    dicom_file(folder / "labels.dcm", values)
    rows = [
        row(0, **DICOM, window=[40, 80.5], label=2, object_mask="labels.png"),
        row(1, **DICOM, window=None, label=None, user_box=[10, 12, 40, 32]),
        row(2, **NIFTI, window=[40, 80.5], label=2, object_mask="labels.dcm"),
    ]
    first, second, third = batch(folder, rows)
    assert first["grey_window"] == third["grey_window"] == [40, 80.5] and second["grey_window"] is None
    assert first["label_value"] == third["label_value"] == 2 and second["label_value"] is None
    assert first["scan"]["levels"] == [1024 - 0.25, 1024 + 80.25] and third["scan"]["levels"] == [-0.25, 80.25]
    digests = tree(folder.parent / "out")
    assert digests["masks/case0.png"] == digests["masks/case1.png"]
    assert read_scan(folder.parent / "out" / "stored" / "case0.dcm").window == (864, 1263)  # the file's own
    rows[0] = row(0, **DICOM, window=[50, 80.5], label=2, object_mask="labels.png")
    assert batch(folder, rows)[1:] == [second, third]
    assert tree(folder.parent / "out")["records/case0.json"] != digests["records/case0.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": [1]}, "window is two finite numbers, centre and width, got [1]"),
        ({"window": [1, "2"]}, "window is two finite numbers"),
        ({"window": [True, 2]}, "window is two finite numbers"),
        ({"window": [1, float("inf")]}, "window is two finite numbers"),
        ({"window": [float("nan"), 1]}, "window is two finite numbers"),
        ({"window": [10**400, 1]}, "window is two finite numbers"),
        ({"window": {"centre": 40}}, "window is two finite numbers"),
        ({"window": [40, 0]}, "a window is a centre and a width above 0, got 40,0"),
        ({"window": [9000, 1]}, "is blank in its window"),
        ({"label": 1.5}, "label is a whole number, got 1.5"),
        ({"label": "2"}, 'label is a whole number, got "2"'),
        ({"label": True}, "label is a whole number"),
        ({"label": 3}, "m.png holds no label 3; its values are 0, 255"),
        ({"label": 255, "object_mask": "colour.png"}, "colour.png is in colour, and label 255 is a value of gray"),
    ],
)
def test_a_window_or_a_label_that_is_none_costs_its_row(folder, changes, message):
    Image.open(folder / "m.png").convert("RGB").save(folder / "colour.png")
    records = batch(folder, [row(0, **DICOM | changes), row(2)], code=1)
    assert [record["id"] for record in records] == ["case2"]
    (told,) = errors(folder)
    assert message in told.replace("'", '"'), told
