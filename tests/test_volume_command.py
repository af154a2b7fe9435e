"""The command `volume` is tested here: what it writes for NIfTI and for DICOM, what it leaves as it was, the steps from
slice to slice, and what a killed run resumes from. Most tests compose with the model double."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from drawn_volumes import ellipsoid, points, spaced, texture, turned, write_pair
from fake_model import FakeModel
from medical_files import nifti_file
from PIL import Image
from volume_runs import BOX, QUICK, series_pair, upright, volume

from composition import commands


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """The command's model is the double, of which each composition takes a tenth of a second."""
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: FakeModel(64))


def unscaled(path):
    return np.asarray(nibabel.load(path).dataobj.get_unscaled())


@pytest.mark.parametrize("back_code", ["RAS", "LIP", "PSR"])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_a_nifti_keeps_all_but_the_tumours_slices(tmp_path, back_code, kind):
    lesion = write_pair(tmp_path, "PIR", (1, 1, 2), back_code=back_code)
    if kind == np.uint8:  # with a scale
        image = nibabel.load(tmp_path / "back.nii.gz")
        scaled = nibabel.Nifti1Image((np.asarray(image.dataobj) // 2).astype(kind), image.affine)
        scaled.header.set_slope_inter(0.25, -3)
        nibabel.save(scaled, tmp_path / "back.nii.gz")
    elif kind == np.float32:
        image = nibabel.load(tmp_path / "back.nii.gz")
        nifti_file(tmp_path / "back.nii.gz", np.asarray(image.dataobj).astype(kind) / 7, image.affine)
    record = volume(tmp_path, *BOX)
    source, result, label = (
        nibabel.load(tmp_path / name) for name in ("back.nii.gz", "out/composite.nii.gz", "out/label.nii.gz")
    )
    before, after = (upright(image, unscaled(image.get_filename())) for image in (source, result))
    mask = upright(label)
    assert after.dtype == before.dtype == kind and label.get_data_dtype() == np.uint8
    changed = (before != after).any(axis=(1, 2))
    inside = (mask > 0).any(axis=(1, 2))
    assert np.flatnonzero(inside).tolist() == record["slices"] and not changed[~inside].any()
    assert (before != after)[mask > 0].mean() > 0.9  # a dark tumour in brighter tissue
    for image in (result, label):
        assert np.array_equal(image.affine, source.affine) and image.shape == source.shape
        assert image.header.get_zooms() == source.header.get_zooms()
        for name in ("sform_code", "qform_code", "xyzt_units"):
            assert image.header[name] == source.header[name]
    assert (result.dataobj.slope, result.dataobj.inter) == (source.dataobj.slope, source.dataobj.inter)
    assert (label.dataobj.slope, label.dataobj.inter) == (1, 0) and set(np.unique(mask)) == {0, 1}
    # Some 110 voxels of 4.5 mm3, of which more than half lie at the edge, each to half of a voxel.
    assert record["millilitres"] == pytest.approx(lesion, rel=0.15)
    assert record["millilitres"] == pytest.approx(mask.sum() * 1.5 * 1.5 * 2 / 1000) and record["voxels"] == mask.sum()
    assert record["true_size"] and record["scale"] == 1 and record["clipped"] == 0
    assert record["steps"]["ratio"] <= 1.25
    places = np.argwhere(mask)
    np.testing.assert_allclose(
        places.mean(axis=0), [6 + 6.5, 12 + 9.5, 10 + 9.5], atol=0.6
    )  # half a voxel, and rounding
    assert Image.open(tmp_path / "out" / "figure.png").size == (992, 664)
    assert set(path.name for path in (tmp_path / "out").iterdir()) == {
        *("composite.nii.gz", "label.nii.gz", "figure.png", "record.json", "slices")
    }


def test_simpleitk_reads_the_result_as_the_background(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="it is the independent reader")
    write_pair(tmp_path, back_code="LIP")
    record = volume(tmp_path, *BOX, *QUICK)
    before, after, label = (
        sitk.ReadImage(tmp_path / name) for name in ("back.nii.gz", "out/composite.nii.gz", "out/label.nii.gz")
    )
    for image in (after, label):
        for told in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, told)() == getattr(before, told)()
    assert after.GetPixelID() == before.GetPixelID()
    changed = sitk.GetArrayFromImage(after) != sitk.GetArrayFromImage(before)
    inside = sitk.GetArrayFromImage(label) > 0
    # The file's second axis is the patient's from head to feet, and SimpleITK's array has its axes the other way round.
    assert np.flatnonzero(changed.any(axis=(0, 2))).size == np.flatnonzero(inside.any(axis=(0, 2))).size
    assert len(record["slices"]) == inside.any(axis=(0, 2)).sum() and inside.sum() == record["voxels"]


@pytest.mark.parametrize("kind", ["extension", "big-endian", "nifti-2", "no codes"])
def test_headers_of_other_kinds_are_kept(tmp_path, kind):
    write_pair(tmp_path)
    image = nibabel.load(tmp_path / "back.nii.gz")
    data, affine = np.asarray(image.dataobj), image.affine
    make = nibabel.Nifti2Image if kind == "nifti-2" else nibabel.Nifti1Image
    header = make.header_class(endianness=">") if kind == "big-endian" else None
    image = make(data.astype(">i2") if header else data, affine, header)
    if header:
        image.header.set_data_dtype(">i2")
    if kind == "extension":
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"kept by whoever reads this " * 5))
    if kind == "no codes":
        image.set_sform(affine, 0)
        image.set_qform(affine, 1)
    nibabel.save(image, tmp_path / "back.nii.gz")
    record = volume(tmp_path, *BOX, *QUICK)
    source, result, label = (
        nibabel.load(tmp_path / name) for name in ("back.nii.gz", "out/composite.nii.gz", "out/label.nii.gz")
    )
    assert type(result) is type(label) is type(source) and np.array_equal(result.affine, source.affine)
    before, after = (upright(one) for one in (source, result))
    others = [number for number in range(24) if number not in record["slices"]]
    assert np.array_equal(before[others], after[others]) and (before != after).any()
    assert upright(label).sum() == record["voxels"]
    assert not result.header.extensions  # one may name a patient
    for name in ("sform_code", "qform_code"):
        assert result.header[name] == source.header[name]


def ct_pair(folder: Path) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Write drawn computed tomography: air at -1000, fat and tissue, bone beyond the window. Returns the background as
    (column, row, slice)."""
    affine = spaced((1, 1, 2))
    body = ellipsoid((96, 96, 14), affine, (44, 40, 100))
    back = np.where(body, np.rint(40 + 60 * texture(points(body.shape, affine))), -1000).astype(np.int16)
    back[ellipsoid(back.shape, affine, (30, 6, 100))] += 900  # bone: outside the window
    nifti_file(folder / "back.nii.gz", back, affine)
    own = spaced((1, 1, 1))
    inside = ellipsoid((40, 40, 20), own, (7, 7, 5))
    case = np.rint(-60 + 40 * texture(points(inside.shape, own), 3)).astype(np.int16)
    case[inside] = 120
    nifti_file(folder / "object.nii.gz", *turned(case, own, "SAL"))
    nifti_file(folder / "mask.nii.gz", *turned(inside.astype(np.uint8), own, "SAL"))
    return back


def test_ct_values_outside_the_network_s_window_come_back_bit_for_bit(tmp_path):
    back = ct_pair(tmp_path)
    options = ["--match", "none", "--window", "40,400", "--focus", "window", "--user-box", "20,40,3,16,16,8"]
    record = volume(tmp_path, *options)
    after = np.asarray(nibabel.load(tmp_path / "out" / "composite.nii.gz").dataobj)
    mask = np.asarray(nibabel.load(tmp_path / "out" / "label.nii.gz").dataobj) > 0
    assert after.dtype == np.int16 and back.min() == -1000 and record["match"]["how"] == "none"
    entries = [json.loads(path.read_text()) for path in (tmp_path / "out" / "slices").glob("*.json")]
    (window,) = {(*entry["window"]["rows"], *entry["window"]["columns"]) for entry in entries}  # all slices have one
    rows, columns = slice(*window[:2]), slice(*window[2:])
    longer = max(np.flatnonzero(mask.any(axis=axes)).size for axes in ((0, 2), (1, 2)))
    assert rows.stop - rows.start == columns.stop - columns.start == 4 * longer  # --focus-context
    shown = after.transpose(2, 1, 0)[:, ::-1, ::-1].copy()
    held = back.transpose(2, 1, 0)[:, ::-1, ::-1].copy()
    outside = np.ones(shown.shape, dtype=bool)
    outside[record["slices"][0] : record["slices"][-1] + 1, rows, columns] = False
    assert np.array_equal(shown[outside], held[outside]) and not np.array_equal(shown, held)
    # Between -160 and 240 HU the tumour is 120 HU as it was; the network and the edge take a tenth of the window.
    assert np.median(after[mask]) == pytest.approx(120, abs=40)
    # What lies beyond the window far from the tumour is as it was there too: air, and bone.
    far = ~mask & ((back < -160) | (back > 240))
    assert (after == back)[far].mean() > 0.9


def test_with_preserved_pixels_nothing_changes_outside_the_region(tmp_path):
    back = ct_pair(tmp_path)
    volume(tmp_path, "--match", "none", "--window", "40,400", "--preserve", "pixels", "--user-box", "20,40,3,16,16,8")
    after = np.asarray(nibabel.load(tmp_path / "out" / "composite.nii.gz").dataobj)
    region = np.zeros((14, 96, 96), dtype=bool)
    region[3:11, 40:56, 20:36] = True
    region = region[:, ::-1, ::-1].transpose(2, 1, 0)
    assert np.array_equal(after[~region], back[~region]) and (after != back)[region].mean() > 0.3


WINDOW = {"WindowCenter": 40, "WindowWidth": 400}


def test_dicom_slices_become_dicom_slices(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="it is the independent reader")
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    back = series_pair(tmp_path, **WINDOW)
    record = volume(tmp_path, "--user-box", "8,10,2,20,20,8", suffix="")
    reader, images = sitk.ImageSeriesReader(), {}
    for name, folder in (("before", tmp_path / "back"), ("after", tmp_path / "out" / "composite")):
        (series,) = reader.GetGDCMSeriesIDs(str(folder))
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
        images[name] = reader.Execute()
    label = sitk.ReadImage(tmp_path / "out" / "label.nii.gz")
    for told in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        expected = getattr(images["before"], told)()
        assert getattr(images["after"], told)() == expected
        assert getattr(label, told)() == pytest.approx(expected, abs=1e-5)  # NIfTI holds float32
    assert images["after"].GetSpacing() == pytest.approx((1.5, 1.5, 2))
    after, mask = sitk.GetArrayFromImage(images["after"]), sitk.GetArrayFromImage(label) > 0
    met = mask.any(axis=(1, 2))
    assert np.flatnonzero(met).tolist() == record["slices"] and np.array_equal(after[~met], back[~met])
    # In Hounsfield units the tumour stays what it is: 120; the network and the edge take a tenth of the window.
    assert np.median(after[mask]) == pytest.approx(120, abs=40) and record["match"]["why"] == "the values are in HU"
    headers = [pydicom.dcmread(path) for path in sorted((tmp_path / "out" / "composite").iterdir())]
    sources = {str(one.ImagePositionPatient): one for one in map(pydicom.dcmread, (tmp_path / "back").iterdir())}
    assert len({one.SOPInstanceUID for one in headers}) == len(headers) == 12
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({one[name].value for one in headers}) == 1
    for one in headers:
        source = sources[str(one.ImagePositionPatient)]
        assert one.InstanceNumber == source.InstanceNumber and one.SliceThickness == source.SliceThickness
        assert one.SeriesInstanceUID != source.SeriesInstanceUID and one.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert (one.RescaleSlope, one.RescaleIntercept, one.WindowWidth) == (1, 0, 400)


def test_slices_with_scales_of_their_own_keep_their_files_values(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    back = series_pair(tmp_path, Modality="PT", RescaleSlope=tuple(1 + n / 8 for n in range(12)))
    record = volume(tmp_path, "--user-box", "8,10,2,20,20,8", *QUICK, suffix="")
    for number, path in enumerate(sorted((tmp_path / "out" / "composite").iterdir())):
        written = pydicom.dcmread(path)
        assert written.RescaleSlope == 1 + number / 8
        assert np.array_equal(written.pixel_array, back[number]) == (number not in record["slices"])
