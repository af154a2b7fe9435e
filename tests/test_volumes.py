"""Volumes are opened here: folders of DICOM slices by their positions, and what cannot be a volume; then masks of
volumes as classes, regions, and what a placed volume says of itself."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_volumes import CT, spaced, turned, write_pair, write_series
from medical_files import dicom_file, nifti_file, table

from composition import PlacementError, Settings
from composition.runs.placed_volume import VolumeRequest, place_volume
from composition.scans.errors import ScanError
from composition.scans.volumes import on_grid_of, open_volume

# Each voxel has a value of its own.
VOLUME = np.random.default_rng(1).permutation(7 * 6 * 5).reshape(7, 6, 5).astype(np.int16)
SAGITTAL = (0, 1, 0, 0, 0, -1)
OBLIQUE = (np.cos(0.3), np.sin(0.3), 0, 0, 0, -1)


def test_slices_are_sorted_by_position_and_not_by_name(tmp_path):
    paths = write_series(tmp_path / "series", VOLUME)
    assert [path.name for path in paths] != sorted(path.name for path in paths)
    (tmp_path / "series" / "notes.txt").write_text("no slice")
    (tmp_path / "series" / ".hidden.dcm").write_text("no slice")
    volume = open_volume(tmp_path / "series")
    assert volume.paths == tuple(paths) and (len(volume), volume.size) == (7, (6, 5))
    assert all(np.array_equal(volume.plane(number), VOLUME[number]) for number in range(7))
    assert volume.meaning.spacing == (1.5, 1.5) and volume.meaning.measured


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL, OBLIQUE, (-1, 0, 0, 0, 1, 0)])
def test_a_series_lies_where_simpleitk_has_it(tmp_path, orientation):
    sitk = pytest.importorskip("SimpleITK", reason="it is the independent reader")
    write_series(tmp_path / "series", VOLUME, (1.25, 0.75, 3.0), orientation=orientation)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    image, volume = reader.Execute(), open_volume(tmp_path / "series")
    assert np.array_equal(sitk.GetArrayFromImage(image), np.stack([volume.plane(k) for k in range(7)]))
    for index in ((0, 0, 0), (4, 0, 0), (0, 5, 0), (0, 0, 6), (3, 4, 5)):
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        # The files hold decimals of six digits, of at most 60 mm.
        np.testing.assert_allclose(volume.affine[:3] @ [*index, 1], [-left, -back, up], atol=1e-4)


def broken(folder, what):
    """A folder that is no volume, in this way."""
    one = {"mixed series": {"SeriesInstanceUID": tuple(f"1.2.{n % 2}" for n in range(7))}}
    one["another orientation"] = {
        "ImageOrientationPatient": tuple([1, 0, 0, 0, 1, 0][:: -1 if n == 3 else 1] for n in range(7))
    }
    one["another spacing"] = {"PixelSpacing": tuple([1.5, 1.5 + (n == 3)] for n in range(7))}
    one["aside"] = {"ImagePositionPatient": tuple([0, float(n == 3), 2.0 * n] for n in range(7))}
    one["uneven"] = {"ImagePositionPatient": tuple([0, 0, 2.0 * n + (n == 3)] for n in range(7))}
    one["twice"] = {"ImagePositionPatient": tuple([0, 0, 2.0 * (n // 2)] for n in range(7))}
    one["one place"] = {"ImagePositionPatient": [0, 0, 0]}
    one["no position"] = {"ImagePositionPatient": tuple(None if n == 3 else [0, 0, 2.0 * n] for n in range(7))}
    paths = write_series(folder, VOLUME, **one.get(what, {}))
    if what == "a gap":
        paths[3].unlink()
    if what == "one slice":
        [path.unlink() for path in paths[1:]]
    if what == "no slice":
        [path.unlink() for path in paths]
    if what == "damaged":
        paths[3].write_bytes(paths[3].read_bytes()[:200])
    if what == "another size":
        dicom_file(paths[3], VOLUME[3][:, :4], ImagePositionPatient=[-20, -30, 56], **AXIAL)
    return folder


AXIAL = {"PixelSpacing": [1.5, 1.5], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("mixed series", r"holds 2 series \(3 files as IM0000, 4 files as IM0001\); expected the slices of one"),
        ("another orientation", "has another orientation, spacing or size than IM"),
        ("another spacing", "has another orientation, spacing or size than IM"),
        ("another size", "IM0003 has another orientation, spacing or size than|holds 2 series"),
        ("aside", r"do not lie at equal distances on one line \(one is off by 1\.00 mm\): IM000. and IM000. are"),
        ("uneven", r"do not lie at equal distances on one line \(one is off by 1\.00 mm\): IM000. and IM000. are"),
        (
            "a gap",
            r"do not lie .*: IM0003 and IM0005 are 4\.00 mm apart, most others 2\.00; is a slice missing",
        ),
        ("twice", "do not lie at equal distances"),
        ("one place", "do not lie at equal distances"),
        ("no position", "lacks ImagePositionPatient, so nobody knows where it lies"),
        ("damaged", "cannot be read as DICOM|lacks|is a slice missing"),
        ("one slice", "holds 1 DICOM slices; expected two or more"),
        ("no slice", "holds 0 DICOM slices; expected two or more"),
    ],
)
def test_a_folder_that_is_no_volume_is_told(tmp_path, what, told):
    with pytest.raises(ScanError, match=told) as error:
        open_volume(broken(tmp_path / "series", what))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_files_that_are_no_volume_are_told(tmp_path):
    single = dicom_file(tmp_path / "one.dcm", VOLUME[0])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    colour = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for path, told in [
        (single, "is no volume; expected a NIfTI file"),
        (tmp_path / "picture.png", "is no volume; expected a NIfTI file"),
        (tmp_path / "none", "is no volume; expected a NIfTI file"),
        (tmp_path / "none.nii.gz", "there is no such file"),
        (nifti_file(tmp_path / "colour.nii.gz", colour), "is in colour; expected a volume of gray"),
        (nifti_file(tmp_path / "four.nii", np.zeros((4, 4, 4, 2))), "has 4 dimensions"),
    ]:
        with pytest.raises(ScanError, match=told):
            open_volume(path)


def test_slices_with_scales_of_their_own_are_read_by_them_and_go_back(tmp_path):
    """So does positron emission store its slices. The first slice's scale would not hold the others' values."""
    slopes = tuple(0.5 + n for n in range(7))
    volume = (VOLUME + 100).astype(np.uint16) * 200
    write_series(tmp_path / "series", volume, RescaleSlope=slopes, RescaleIntercept=0, Modality="PT")
    opened = open_volume(tmp_path / "series")
    assert (opened.meaning.slope, opened.meaning.intercept) == (1, 0)
    for number, slope in enumerate(slopes):
        plane = opened.plane(number)
        assert np.array_equal(plane, volume[number] * slope)
        assert np.array_equal(opened.stored(number), volume[number])
        changed = plane.copy()
        changed[2, 3] += slope * 5.25
        expected = volume[number].copy()
        expected[2, 3] += 5
        assert np.array_equal(opened.stored(number, changed), expected) and opened.stored(number, changed).dtype == "u2"
    assert opened.levels() == (opened.plane(0).min(), max(opened.plane(k).max() for k in range(7)))


def test_classes_of_dicom_slices_are_as_stored(tmp_path):
    """Neither a scale nor a window is meant for them."""
    mask = (VOLUME % 3).astype(np.uint16)
    write_series(tmp_path / "mask", mask, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=1.5, WindowWidth=1)
    volume = open_volume(tmp_path / "mask")
    assert all(np.array_equal(volume.labels(number), mask[number]) for number in range(7))
    lookup = {"ModalityLUTSequence": [table([5, 6, 7], 0, 8)]}
    write_series(tmp_path / "table", mask, **lookup)
    assert np.array_equal(open_volume(tmp_path / "table").labels(3), mask[3])


def asked(folder, box=(10, 12, 6, 20, 20, 14), **changes):
    names = {"background": "back", "object": "object", "object_mask": "mask"}
    files = {name: folder / f"{file}.nii.gz" for name, file in names.items()}
    return replace(VolumeRequest(**files, user_mask=None, user_box=box, prompt="a lesion"), **changes)


def box_mask(placed):
    """The label of all slices, bool (slice, row, column)."""
    return np.stack([placed.mask(number) for number in range(len(placed.background))])


def test_a_region_by_box_and_by_mask_are_one(tmp_path):
    write_pair(tmp_path, back_code="LIP")
    back = open_volume(tmp_path / "back.nii.gz")
    by_box = place_volume(asked(tmp_path), Settings())
    region = np.zeros((len(back), *back.size), dtype=np.uint8)
    region[6:20, 12:32, 10:30] = 3
    file = np.zeros(back.data.shape, dtype=np.uint8)
    axis, backwards = back.axes[2]
    for number in range(len(back)):
        place = [slice(None)] * 3
        place[axis] = [len(back) - 1 - number if backwards else number]
        file[tuple(place)] = back.stored(region[number])
    nifti_file(tmp_path / "region.nii.gz", file, back.image.affine)
    by_mask = place_volume(asked(tmp_path, box=None, user_mask=tmp_path / "region.nii.gz"), Settings())
    assert np.array_equal(box_mask(by_box), box_mask(by_mask)) and box_mask(by_box).any()
    assert not (box_mask(by_box) & (region == 0)).any()
    assert by_box.match == by_mask.match and by_box.match.why is None
    middle = np.argwhere(box_mask(by_box)).mean(axis=0)
    # The region's middle, to half a voxel; a box of whole voxels is as symmetric as its voxels allow.
    np.testing.assert_allclose(middle, [12.5, 21.5, 19.5], atol=0.5)


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32", "scaled"])
def test_a_mask_is_what_is_not_zero_in_any_type(tmp_path, kind):
    write_pair(tmp_path)
    expected = box_mask(place_volume(asked(tmp_path), Settings()))
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(tmp_path / "mask.nii.gz")
    inside = np.asarray(image.dataobj) > 0
    if kind == "scaled":  # stored zeros are 1 by the scale, and the other way round
        turned_about = nibabel.Nifti1Image((~inside).astype(np.uint8), image.affine)
        turned_about.header.set_slope_inter(-1, 1)
        nibabel.save(turned_about, tmp_path / "mask.nii.gz")
    else:
        values = inside.astype(kind) * np.array({"int8": -128}.get(kind, 1), dtype=kind)
        if kind == "float32":  # what resampling leaves is not inside, and what is no number neither
            values = values + np.float32(1e-15)
            values[0, 0, 0] = np.nan
        nifti_file(tmp_path / "mask.nii.gz", values, image.affine)
    assert np.array_equal(box_mask(place_volume(asked(tmp_path), Settings())), expected)


def test_a_label_is_one_value_of_several(tmp_path):
    write_pair(tmp_path)
    expected = box_mask(place_volume(asked(tmp_path), Settings()))
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(tmp_path / "mask.nii.gz")
    values = np.asarray(image.dataobj) * np.uint8(4)
    values[:3, :3, :3] = 2
    nifti_file(tmp_path / "mask.nii.gz", values, image.affine)
    assert np.array_equal(box_mask(place_volume(asked(tmp_path, label=4), Settings())), expected)
    with pytest.raises(PlacementError, match="holds no voxel of 3; its values are 0, 2, 4"):
        place_volume(asked(tmp_path, label=3), Settings())


def test_what_does_not_fit_is_told_in_a_line(tmp_path):
    write_pair(tmp_path)
    nibabel = pytest.importorskip("nibabel")
    mask, back = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in ("mask", "back"))
    inside = np.asarray(mask.dataobj)
    moved = mask.affine.copy()
    moved[0, 3] += 5
    files = {
        "fewer": (inside[:-1], mask.affine),
        "moved": (inside, moved),
        "empty": (inside * 0, mask.affine),
        "blank": (np.full(back.shape, 7, dtype=np.int16), back.affine),
        "nowhere": (np.zeros(back.shape, dtype=np.uint8), back.affine),
    }
    files = {name: nifti_file(tmp_path / f"{name}.nii.gz", *content) for name, content in files.items()}
    for changes, told in [
        (
            {"object_mask": files["fewer"]},
            "the object mask has .*; expected a mask on the voxels of its scan: resample",
        ),
        (
            {"object_mask": files["moved"]},
            "the object mask (has|lies elsewhere).*; expected a mask on the voxels",
        ),
        ({"object_mask": files["empty"]}, "the object mask holds nothing but 0"),
        ({"background": files["blank"]}, r"blank.nii.gz is blank, or shows one grey"),
        ({"user_box": None, "user_mask": files["fewer"]}, "the target region has .*; expected a mask on the voxels"),
        ({"user_box": None, "user_mask": files["nowhere"]}, "the target region holds nothing but 0"),
        ({"user_box": (0, 0, 0, 41, 5, 5)}, r"box x,y,z,w,h,d = .* does not lie on the volume of 40x44 pixels and 24"),
        ({"user_box": (0, 0, 20, 5, 5, 5)}, "does not lie on the volume"),
        ({"user_box": (-1, 0, 0, 5, 5, 5)}, "does not lie on the volume"),
        ({"user_box": (0, 0, 0, 5, 5, 0)}, "does not lie on the volume"),
    ]:
        with pytest.raises((ScanError, PlacementError), match=told) as error:
            place_volume(asked(tmp_path, **changes), Settings())
        assert "\n" not in str(error.value)


def test_two_volumes_in_one_unit_share_a_window_and_are_never_matched(tmp_path):
    """Equal values are equal greys, though the two files store them by other scales."""
    rng = np.random.default_rng(0)
    back = (40 + 20 * rng.random((12, 40, 40))).astype(np.int16)
    case = (40 + 20 * rng.random((9, 30, 30))).astype(np.int16)
    case[3:6, 12:18, 12:18] = 90
    window = {"WindowCenter": 50, "WindowWidth": 401}
    write_series(tmp_path / "back", back, **CT, **window)
    write_series(tmp_path / "case", (case + 1000) * 2, **{**CT, "RescaleSlope": 0.5, "RescaleIntercept": -1000})
    write_series(tmp_path / "mask", (case == 90).astype(np.uint8))
    request = VolumeRequest(*(tmp_path / name for name in ("back", "case", "mask")), None, (10, 10, 2, 20, 20, 8), "x")
    placed = place_volume(request, Settings())
    assert placed.match.how == "none" and placed.match.why == "the values are in HU"
    number = (placed.move.slices[0] + placed.move.slices[1]) // 2
    values = placed.object_values(number)[placed.mask(number)]
    # 90 HU over the window from -150.5 to 249.5; float32. The edge is interpolated down to half way to the tissue.
    expected = (90 + 150.5) / 200 - 1
    assert values.max() == pytest.approx(expected, abs=1e-5) and values.min() > expected - 0.5 * 50 / 200 - 1e-5
    sample = placed.sample(number, "x")
    assert sample.obj.unit is None and np.array_equal(sample.background.pixels, back[number])


def test_a_tilted_gantry_is_followed(tmp_path):
    """The slices are not moved along their normal: each lies a little lower than the one before."""
    places = tuple([0, 0.7 * n, 2.0 * n] for n in range(7))
    write_series(tmp_path / "series", VOLUME, ImagePositionPatient=places)
    affine = open_volume(tmp_path / "series").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -0.7, 2.0], atol=1e-12)  # decimals in float64
    assert np.allclose(affine[:3, :2], [[-1.5, 0], [0, -1.5], [0, 0]])


def test_a_turned_nifti_says_the_same_of_itself(tmp_path):
    volume = VOLUME.T.copy()
    told = []
    for code in ("RAS", "LIP", "SPR"):
        opened = open_volume(nifti_file(tmp_path / f"{code}.nii.gz", *turned(volume, spaced((1, 2, 3)), code)))
        told.append([opened.affine, *(opened.plane(number) for number in range(7)), opened.levels()])
    for one in told[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(one, told[0], strict=True))


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SLA", "ASR", "IRP"])
def test_labels_of_the_same_voxels_in_another_order_are_turned(tmp_path, code):
    """As the NIfTI label of a sagittal DICOM series is, which is read in axial slices."""
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (7, 8, 9)).astype(np.int16)
    affine = np.diag([2.0, 0.5, 3.0, 1.0])
    affine[:3, 3] = 4, -7, 11
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(code))
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "plain.nii")
    nibabel.save(nibabel.Nifti1Image(values, affine).as_reoriented(turn), tmp_path / "turned.nii")
    plain, turned = (open_volume(tmp_path / name) for name in ("plain.nii", "turned.nii"))

    class Stored:
        """The turned file as a stack along its own last axis, as a DICOM series is one."""

        def __init__(self):
            image = nibabel.load(tmp_path / "turned.nii")
            self.data, self.affine = np.asarray(image.dataobj), image.affine[:, [0, 1, 2, 3]]
            self.size = self.data.shape[1], self.data.shape[0]

        def __len__(self):
            return self.data.shape[2]

        def labels(self, number):
            return self.data[:, :, number].T

    own = Stored()
    found = on_grid_of(own, plain)
    assert all(np.array_equal(found.labels(k), plain.labels(k)) for k in range(len(plain)))
    back = on_grid_of(plain, own)
    assert all(np.array_equal(back.labels(k), own.labels(k)) for k in range(len(own)))
    assert on_grid_of(turned, plain) is turned  # both are read in axial slices
    shifted = Stored()
    shifted.affine = own.affine + np.array([[0, 0, 0, 0.3], *[[0] * 4] * 3])
    assert on_grid_of(shifted, plain) is None
