"""These tests check that a volume's values mean what they mean in a slice: inverted greys, windows, tables, units,
masks with loss, and labels that another program stored in another order."""

import json

import numpy as np
import pytest
from drawn_volumes import CT, ellipsoid, points, spaced, texture, write_pair, write_series
from fake_model import FakeModel
from medical_files import dicom_file
from volume_runs import BOX, QUICK, arguments, series_pair, volume

from composition import cli, commands
from composition.runs.placed_volume import VolumeRequest, place_volume
from composition.scans.images import read_scan
from composition.scans.volumes import open_volume
from composition.settings import Settings

SERIES_BOX = ["--user-box", "10,12,3,20,20,7"]


@pytest.fixture(autouse=True)
def double(monkeypatch):
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: FakeModel(64))


def placed(folder, window=None, box=(10, 12, 3, 20, 20, 7), suffix=""):
    files = (folder / f"{name}{suffix}" for name in ("back", "object", "mask"))
    return place_volume(VolumeRequest(*files, None, box, "a lesion", window=window), Settings())


@pytest.mark.parametrize("window", [None, (40, 400)])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"RescaleSlope": -2, "RescaleIntercept": 30},
        {"WindowCenter": 20, "WindowWidth": 90},
        {"WindowCenter": 20, "WindowWidth": 90, "PhotometricInterpretation": "MONOCHROME1"},
    ],
    ids=str,
)
def test_a_slice_of_a_volume_is_that_slice(tmp_path, attributes, window):
    series_pair(tmp_path, **attributes)
    found = placed(tmp_path, window)
    for number, path in enumerate(found.background.paths):
        scan, alone = found.scan(number), read_scan(path, window)
        if window is not None or "WindowCenter" in attributes:  # else the ends are those of the volume or of the slice
            assert scan.window == alone.window and np.array_equal(scan.values(), alone.values())
        rising = np.sign(scan.window[1] - scan.window[0])
        assert rising == np.sign(alone.window[1] - alone.window[0])


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR"])
def test_values_behind_a_sigmoid_or_a_threshold_stay_the_files_own(tmp_path, function):
    """A linear window of width 1 is a threshold."""
    width = 300 if function == "SIGMOID" else 1
    back = series_pair(tmp_path, WindowCenter=40, WindowWidth=width, VOILUTFunction=function)
    record = volume(tmp_path, *SERIES_BOX, *QUICK, suffix="")
    result = open_volume(tmp_path / "out" / "composite")
    for number in set(range(len(back))) - set(record["slices"]):
        assert np.array_equal(result.plane(number), back[number])
    found = placed(tmp_path, (40, 400))
    assert np.ptp(found.scan(5).values()) > 0.2  # 120 of 400 units and more


def test_an_object_in_hounsfield_units_is_never_matched_to_another_modality(tmp_path):
    series_pair(tmp_path)
    write_series(
        tmp_path / "mr", np.rint(300 + 90 * texture(points((40, 44, 12), spaced((1.5, 1.5, 2))))).T.astype("<i2")
    )
    files = (tmp_path / name for name in ("mr", "object", "mask"))
    found = place_volume(VolumeRequest(*files, None, (10, 12, 3, 20, 20, 7), "a lesion"), Settings())
    assert (found.match.how, found.match.gain) == (
        "none",
        1,
    ) and "one of the two scans has physical units" in found.match.why


def refused(folder, capsys, *options, **keywords) -> str:
    assert cli.main(arguments(folder, *options, **keywords)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("error: ") and not (folder / "out").exists()
    return told


def test_what_has_no_meaning_for_a_volume_is_refused(tmp_path, capsys):
    write_pair(tmp_path)
    assert "fit placed is for slices" in refused(tmp_path, capsys, *BOX, "--fit", "placed")
    assert "shows one grey in its window" in refused(tmp_path, capsys, *BOX, "--window", "90000,10")


def test_a_mask_series_with_loss_is_refused(tmp_path, capsys):
    series_pair(tmp_path)
    inside = ellipsoid((30, 30, 12), spaced((1, 1, 2)), (6, 6, 6)).T.astype(np.uint8)
    write_series(tmp_path / "mask", inside * 255, (1, 1, 2), LossyImageCompression="01")
    assert "is compressed with loss" in refused(tmp_path, capsys, *SERIES_BOX, suffix="")


def test_the_label_of_a_sagittal_series_goes_back_in(tmp_path):
    """Our own label of one run marks the tumour's place for the next."""
    sagittal = {"orientation": (0, 1, 0, 0, 0, -1)}
    affine = spaced((1.5, 1.5, 2))
    back = np.rint(40 + 60 * texture(points((40, 44, 12), affine))).astype(np.int16).T
    write_series(tmp_path / "back", back, **CT, **sagittal)
    inside = ellipsoid((30, 30, 12), spaced((1, 1, 2)), (6, 6, 6)).T
    case = np.where(inside, 120, -40).astype(np.int16) + np.arange(30, dtype=np.int16) % 7
    write_series(tmp_path / "object", case, (1, 1, 2), **CT, **sagittal)
    write_series(tmp_path / "mask", inside.astype(np.uint8), (1, 1, 2), **sagittal)
    first = volume(tmp_path, *SERIES_BOX, *QUICK, suffix="")
    label = tmp_path / "out" / "label.nii.gz"
    second = volume(tmp_path, "--user-mask", label, *QUICK, out="again", suffix="")
    assert second["slices"] == first["slices"] and second["clipped"] <= 0.01  # it was cut out of this very shape


@pytest.mark.parametrize(
    ("first", "second", "gone"), [("", ".nii.gz", "composite"), (".nii.gz", "", "composite.nii.gz")]
)
def test_results_of_another_kind_go(tmp_path, first, second, gone):
    series_pair(tmp_path)
    write_pair(tmp_path)
    for suffix in (first, second):
        volume(tmp_path, *(BOX if suffix else SERIES_BOX), *QUICK, suffix=suffix)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert gone not in names and {"composite", "composite.nii.gz"} & names
    assert json.loads((tmp_path / "out" / "record.json").read_text())["inputs"]["background"]["file"] == f"back{second}"


def test_millimetres_follow_the_unit_that_a_nifti_states(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([0.002, 0.003, 0.004, 1]))
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "metres.nii")
    found = open_volume(tmp_path / "metres.nii")
    np.testing.assert_allclose(found.meaning.spacing, (3, 2), rtol=1e-6)  # float32 in the header
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :3], axis=0), (2, 3, 4), rtol=1e-6)


def test_pixels_of_an_absurd_shape_are_refused(tmp_path):
    from composition import Sample
    from composition.placement import in_common_terms
    from composition.scans.errors import PlacementError

    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    scans = [
        read_scan(dicom_file(tmp_path / f"{n}.dcm", values, PixelSpacing=spacing))
        for n, spacing in enumerate(([1, 1], [500, 0.5]))
    ]
    inside = values > 200
    with pytest.raises(PlacementError, match="expected shapes that differ 20 times at most"):
        in_common_terms(Sample(*scans, inside, inside, None))
