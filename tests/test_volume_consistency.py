"""A composed tumour is one body: its greys step from slice to slice as those of the object do. It is measured here with
the model double and with the small checkpoint, and on a brain volume that a package ships."""

import json

import nibabel
import numpy as np
import pytest
from drawn_volumes import ellipsoid, points, spaced, texture, turned, write_pair
from fake_model import FakeModel
from medical_files import nifti_file
from volume_runs import BOX, upright, volume

import sd21
from composition import commands
from composition.figures import TUMOUR_COLOUR
from composition.runs import placed_volume, volume_files
from composition.runs import volume as runs

WORST = 1.25  # times the object's own steps


@pytest.fixture(autouse=True)
def double(monkeypatch):
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: FakeModel(64))


def taken(monkeypatch):
    """What a run hands over to be measured: the placed volume and the composed slices."""
    found, measure = [], runs.consistency

    def kept(placed, pixels):
        found[:] = placed, pixels
        return measure(placed, pixels)

    monkeypatch.setattr(runs, "consistency", kept)
    return found


def test_the_steps_are_what_they_are_called(tmp_path, monkeypatch):
    """They are measured anew, voxel by voxel, from the files."""
    write_pair(tmp_path)
    found = taken(monkeypatch)
    record = volume(tmp_path, *BOX)
    placed, pixels = found
    files = [nibabel.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("composite", "label")]
    after, mask = (upright(image).astype(float) for image in files)
    low, high = placed.levels
    after = np.clip((after - low) / (high - low), 0, 1) * 255
    objects = {number: (placed.object_values(number) + 1) * 127.5 for number in pixels}
    both = [np.argwhere(mask[n] * mask[n + 1]) for n in record["slices"][:-1]]
    steps = {"composite": [], "object": []}
    for number, where in zip(record["slices"][:-1], both, strict=True):
        for row, column in where:
            steps["composite"].append(after[number + 1, row, column] - after[number, row, column])
            steps["object"].append(objects[number + 1][row, column] - objects[number][row, column])
    for name, values in steps.items():
        assert record["steps"][name] == pytest.approx(np.abs(values).mean(), rel=1e-4)  # float32
    assert record["steps"]["ratio"] == pytest.approx(record["steps"]["composite"] / record["steps"]["object"])
    # A step of its own for every slice is told: 30 grey levels to and fro.
    shaken = {n: (image + (n % 2) * 0.12 * (high - low), inside) for n, (image, inside) in pixels.items()}
    assert runs.consistency(placed, shaken)["ratio"] > record["steps"]["ratio"] + 1
    # So is a tumour that is the same in every slice.
    still = {n: (next(iter(pixels.values()))[0], inside) for n, (_, inside) in pixels.items()}
    assert runs.consistency(placed, still)["ratio"] == 0


def test_a_tumour_of_one_slice_has_no_steps(tmp_path):
    write_pair(tmp_path, zooms=(1, 1, 2))
    image = nibabel.load(tmp_path / "mask.nii.gz")
    flat = np.asarray(image.dataobj).copy()
    flat[:, :, :7] = flat[:, :, 8:] = 0
    nifti_file(tmp_path / "mask.nii.gz", flat, image.affine)
    record = volume(tmp_path, "--user-box", "10,12,6,20,20,9")  # whose middle is a slice
    assert record["slices"] == [10]
    assert record["steps"] == {"composite": None, "object": None, "ratio": None}


@pytest.mark.parametrize("options", [[], ["--focus", "window"], ["--match", "none"], ["--fit", "box"]])
def test_the_double_keeps_the_objects_steps(tmp_path, options):
    write_pair(tmp_path, "SAL", (1, 1, 1.5))
    record = volume(tmp_path, *BOX, *options)
    assert len(record["slices"]) >= 4 and 0.5 < record["steps"]["ratio"] <= WORST


def test_all_slices_share_one_match_and_one_window(tmp_path):
    write_pair(tmp_path)
    record = volume(tmp_path, *BOX)
    entries = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "slices").glob("*.json"))]
    assert record["match"]["how"] == "contrast" and record["match"]["background_ring"] is not None
    assert all(entry["match"]["how"] == "none" and entry["window"] == entries[0]["window"] for entry in entries)
    assert [entry["slice"] for entry in entries] == record["slices"]


def test_the_figure_shows_three_planes_through_the_tumour_in_their_shape(tmp_path, monkeypatch):
    """Voxels of 1.5 x 1.5 x 2 mm: 40 x 44 of them across, and 24 deep."""
    write_pair(tmp_path)
    panels, draw = [], volume_files._panel
    monkeypatch.setattr(volume_files, "_panel", lambda *given: panels.append((given, draw(*given))) or panels[-1][1])
    record = volume(tmp_path, "--user-box", "10,12,2,20,20,14")  # nearer to the feet
    shapes = [(44 * 1.5, 40 * 1.5), (24 * 2, 40 * 1.5), (24 * 2, 44 * 1.5)]
    assert len(panels) == 6
    for (_, panel), (height, width) in zip(panels, shapes * 2, strict=True):
        longer = max(height, width) / 320
        assert panel.size == (round(width / longer), round(height / longer))
    for (_, mask, _, _), panel in panels[3:]:
        rows, scale = np.flatnonzero(mask.any(axis=1)), panel.height / mask.shape[0]
        outlined = np.argwhere((np.asarray(panel) == TUMOUR_COLOUR).all(axis=2))
        # The outline lies on the mask's own outermost pixels, which are drawn some seven times as large.
        assert outlined.min(axis=0)[0] == pytest.approx(rows.min() * scale, abs=1)
        assert outlined.max(axis=0)[0] == pytest.approx((rows.max() + 1) * scale - 1, abs=1)
    # Upright: slices count from the feet, and the figure's first line is at the head.
    for (plane, mask, _, _), _ in panels[4:]:
        assert np.flatnonzero(mask.any(axis=1)).tolist() == [23 - number for number in record["slices"][::-1]]
        assert plane.shape == mask.shape


@pytest.fixture
def brain(tmp_path):
    """Write MNI's template of a brain in 2 mm, and a drawn tumour of another orientation and spacing. Returns its
    millilitres."""
    datasets = pytest.importorskip("nilearn.datasets", reason="nilearn, which ships the template, is not installed")
    nibabel.save(datasets.load_mni152_template(resolution=2), tmp_path / "back.nii.gz")
    affine, shape = spaced((1, 1, 3)), (80, 80, 20)
    inside = ellipsoid(shape, affine, (14, 10, 9))
    where = points(shape, affine)
    values = np.where(inside, 300 + 100 * texture(where, 2), 500 + 40 * texture(where, 4)).astype(np.int16)
    nifti_file(tmp_path / "object.nii.gz", *turned(values, affine, "PIR"))
    nifti_file(tmp_path / "mask.nii.gz", *turned(inside.astype(np.uint8), affine, "PIR"))
    return inside.sum() * 3 / 1000


BRAIN = ["--user-box", "50,40,40,25,25,25"]


def check_brain(folder, record, millilitres):
    before, after, label = (
        nibabel.load(folder / name) for name in ("back.nii.gz", "out/composite.nii.gz", "out/label.nii.gz")
    )
    assert record["size"] == [95, 117, 99] and len(record["slices"]) >= 6 and record["true_size"]
    # Slices of 3 mm into slices of 2 mm: the first and the last, which are the smallest, are in or out.
    assert record["millilitres"] == pytest.approx(millilitres, rel=0.1)
    mask = np.asarray(label.dataobj) > 0
    stored = [np.asarray(image.dataobj.get_unscaled()) for image in (before, after)]
    others = ~mask.any(axis=(0, 1))
    assert np.array_equal(stored[0][..., others], stored[1][..., others]) and stored[1].dtype == stored[0].dtype
    assert np.array_equal(after.affine, before.affine) and after.dataobj.slope == before.dataobj.slope
    # The box's middle, by the template's own matrix: columns run to the left and rows to the back, 2 mm each.
    high = before.affine[:3] @ [98, 116, 0, 1]
    middle = before.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + before.affine[:3, 3]
    expected = high + 2 * np.array([-62, -52, 52])
    np.testing.assert_allclose(middle, expected, atol=1)  # half a voxel
    tissue = np.median(stored[0][mask])
    assert np.median(stored[1][mask]) < 0.6 * tissue  # dark, as in its own scan
    assert record["steps"]["ratio"] <= WORST


@pytest.mark.slow
def test_a_tumour_goes_into_a_real_brain(tmp_path, brain):
    check_brain(tmp_path, volume(tmp_path, *BRAIN), brain)


@pytest.mark.slow
def test_the_small_checkpoint_keeps_the_objects_steps(tmp_path, brain, monkeypatch):
    monkeypatch.setattr(commands, "model_loader", lambda options: lambda: sd21.load("mini", device="cpu"))
    check_brain(tmp_path, volume(tmp_path, *BRAIN), brain)


def test_the_object_is_read_where_it_is_needed(tmp_path, monkeypatch):
    """A slice of the background is read as often as it is used, and the object's volume once: it is cut out."""
    write_pair(tmp_path)
    seen, opened = [], placed_volume.open_volume
    monkeypatch.setattr(placed_volume, "open_volume", lambda path: seen.append(path.name) or opened(path))
    volume(tmp_path, *BOX)
    assert sorted(seen) == ["back.nii.gz", "mask.nii.gz", "object.nii.gz"]
