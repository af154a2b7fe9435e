"""These tests hold a NIfTI volume as a stack of upright axial slices: which plane of the file a slice is, how it goes
back, where it lies in the patient, and that no more than planes are held in memory."""

import itertools
import tracemalloc

import numpy as np
import pytest
from medical_files import nifti_file

from composition.scans import slices
from composition.scans.errors import ScanError
from composition.scans.nifti import open_nifti

# Each voxel has a value of its own.
VOLUME = np.random.default_rng(0).permutation(5 * 7 * 3).reshape(5, 7, 3).astype(np.int16)
CODES = [
    "".join(axis[way] for axis, way in zip(axes, ways, strict=True))
    for axes in itertools.permutations(["LR", "PA", "IS"])
    for ways in itertools.product([0, 1], repeat=3)
]


def turned(folder, code, suffix="nii", affine=None):
    """The file of VOLUME, which is right, anterior, superior, with its axes in another order; and nibabel's image."""
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    canonical = nibabel.Nifti1Image(VOLUME, np.diag([1, 2, 3, 1]) if affine is None else affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(canonical.affine), nibabel.orientations.axcodes2ornt(code)
    )
    image = canonical.as_reoriented(turn)
    nibabel.save(image, folder / f"{code}.{suffix}")
    return folder / f"{code}.{suffix}", image


@pytest.mark.parametrize("code", CODES)
def test_slices_are_upright_and_go_back_in_every_orientation(tmp_path, code):
    path, image = turned(tmp_path, code)
    volume = open_nifti(path, "volume")
    assert (len(volume), volume.size) == (3, (7, 5))
    file = np.asarray(image.dataobj)
    axis, backwards = volume.axes[2]
    for number in range(3):
        plane = volume.plane(number)
        # From the feet up; the right is on the left, the front is up.
        assert plane.dtype == np.int16 and np.array_equal(plane, VOLUME[::-1, ::-1, number].T)
        place = 2 - number if backwards else number
        assert np.array_equal(volume.stored(plane), file.take([place], axis))
    assert volume.meaning.spacing == (2, 1)


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("seed", range(12))
def test_the_affine_of_slices_leads_where_the_files_own_does(tmp_path, seed):
    """A voxel is known by its value; nibabel says where the file has it."""
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = rng.normal(size=(3, 4)) * 10  # oblique and sheared
    nibabel.save(nibabel.Nifti1Image(VOLUME, affine), tmp_path / "oblique.nii.gz")
    own = nibabel.load(tmp_path / "oblique.nii.gz").affine
    volume = open_nifti(tmp_path / "oblique.nii.gz", "volume")
    height, width = volume.size
    assert len(volume) * height * width == VOLUME.size
    seen = 0
    for number in range(len(volume)):
        plane = volume.plane(number)
        for row, column in np.ndindex(height, width):
            (index,) = np.argwhere(plane[row, column] == VOLUME)
            # Both are a few sums of float64, whose steps are 1e-16 of at most 1000 mm.
            np.testing.assert_allclose(volume.affine @ [column, row, number, 1], own @ [*index, 1], rtol=0, atol=1e-10)
            seen += 1
    assert seen == VOLUME.size
    # Columns go to the left, rows to the back and slices up, as far as they can.
    assert nibabel.aff2axcodes(volume.affine) == ("L", "P", "S")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("code", ["RAS", "SRA", "LIP"])
def test_slices_may_be_read_in_any_order_and_again(tmp_path, code, suffix):
    path, _ = turned(tmp_path, code, suffix)
    volume = open_nifti(path, "volume")
    for number in (2, 0, 1, 2, 0):
        assert np.array_equal(volume.plane(number), VOLUME[::-1, ::-1, number].T)


def test_the_scale_of_a_volume_is_its_meaning(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    image = nibabel.Nifti1Image(VOLUME, np.eye(4))
    image.header.set_slope_inter(0.25, -5)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    volume = open_nifti(tmp_path / "scaled.nii.gz", "volume")
    assert (volume.meaning.slope, volume.meaning.intercept) == (0.25, -5)
    plane = volume.plane(1)
    assert np.array_equal(plane, VOLUME[::-1, ::-1, 1].T) and np.array_equal(volume.labels(1), plane * 0.25 - 5)
    assert volume.levels() == (0, 104)
    plain = open_nifti(nifti_file(tmp_path / "plain.nii", VOLUME), "volume")
    assert plain.labels(1).dtype.kind in "ui"  # whole numbers stay whole


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_more_than_planes_are_held(tmp_path, monkeypatch, axis, suffix):
    shape = [192, 192, 192]
    shape[axis] = 64  # slices of 192 x 192 in 16 bits: 72 KiB each, and the volume 4.5 MiB
    affine = np.zeros((4, 4))
    affine[[0, 1, 2, 3], [*(other for other in range(3) if other != axis), axis, 3]] = 1
    data = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    path = nifti_file(tmp_path / f"volume.{suffix}", data, affine)
    monkeypatch.setattr(slices, "SAMPLED", 20_000)
    tracemalloc.start()
    try:
        volume = open_nifti(path, "volume")
        planes = [volume.plane(number).sum() for number in (0, 40, 63)]
        levels = volume.levels()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert planes == [data.take(number, axis).sum() for number in (0, 40, 63)] and levels == (0, 98)
    # A plane, its turned copy, and one of the file's; and the 1 MiB blocks in which the checksum of a gzip is read,
    # one that is unpacked and what it is made of.
    assert peak < 8 * 192 * 192 * 2 + 3 * 2**20 < data.nbytes


def test_a_volume_of_one_value_or_of_none_has_no_levels(tmp_path):
    for number, volume in enumerate([VOLUME * 0 + 3, np.full(VOLUME.shape, np.nan)]):
        assert open_nifti(nifti_file(tmp_path / f"{number}.nii", volume), "volume").levels() is None


def test_a_volume_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ScanError, match="none: there is no such file"):
        open_nifti(tmp_path / "none.nii", "none")
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(ScanError, match="text cannot be read as NIfTI"):
        open_nifti(tmp_path / "text.nii", "text")
