"""These tests write results as NIfTI, and hold by nibabel and SimpleITK that values, scale, data type and the place in
the patient are those of the slice that the result came from."""

import gzip
from itertools import permutations, product

import numpy as np
import pytest
from written_files import by_simpleitk, rewritten

from composition.scans.images import read_mask, read_scan
from composition.scans.writing import SYNTHETIC, write_label_like, write_like

nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")

SHAPE, SPACING = (9, 7, 5), (0.75, 1.25, 3.5)
VOLUME = (np.arange(np.prod(SHAPE)).reshape(SHAPE) * 37 % 4001 - 1024).astype(np.int16)
# A header holds an affine matrix in float32, whose 24 bits leave 1e-5 of a hundred millimetres. A quaternion of it,
# whose first part is the root of a difference of squares, has half of the digits where it is nearly 0.
FLOAT32, QUATERNION = 1e-5, 5e-3
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.96, -0.28], [0, 0.28, 0.96]])
ORIENTATIONS = [
    "".join(pair[way] for pair, way in zip(order, ways, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for ways in product((0, 1), repeat=3)
]


def affine_of(codes, turn=None):
    """The affine matrix of a volume in this orientation, with SPACING along its own axes and an odd origin."""
    affine = np.eye(4)
    ends = nibabel.orientations.axcodes2ornt(tuple(codes))
    for axis, (to, way) in enumerate(ends):
        affine[:3, axis] = 0
        affine[int(to), axis] = way * SPACING[axis]
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = -31.5, 12.25, 7.75
    return affine


def volume_file(path, data=VOLUME, affine=None, kind=None, codes=(1, 1), **header):
    image = (kind or nibabel.Nifti1Image)(data, affine_of("LPS") if affine is None else affine)
    image.set_sform(image.affine, codes[0])
    image.set_qform(image.affine, codes[1])
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def places_of(image):
    """The value at every place, in thousandths of a millimetre, which float32 holds."""
    stored = np.asarray(image.dataobj)
    voxels = np.stack(np.meshgrid(*map(np.arange, stored.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = nibabel.affines.apply_affine(image.affine, voxels).round(3) + 0.0
    return dict(zip(map(tuple, points.tolist()), stored.reshape(-1).tolist(), strict=True))


@pytest.mark.parametrize("turn", [None, TURN], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_slice_lies_where_it_did(tmp_path, codes, turn):
    source = volume_file(tmp_path / "volume.nii", affine=affine_of(codes, turn))
    whole = nibabel.load(source)
    axial = [nibabel.aff2axcodes(affine_of(codes))[axis] in "IS" for axis in range(3)].index(True)
    depth = SHAPE[axial]
    for number in (1, depth - 1):
        scan, path = rewritten(f"{source}#{number}", tmp_path)
        found = nibabel.load(path)
        assert found.shape[axial] == 1 and found.get_data_dtype() == np.int16
        assert found.header.get_zooms() == whole.header.get_zooms()
        np.testing.assert_allclose(found.affine[:3, :3], whole.affine[:3, :3], rtol=0, atol=FLOAT32)
        index = number if nibabel.aff2axcodes(affine_of(codes))[axial] == "S" else depth - 1 - number
        taken = whole.slicer[tuple(slice(index, index + 1) if axis == axial else slice(None) for axis in range(3))]
        assert places_of(found) == places_of(taken)
        # It reads back as the same picture, and the label lies on the same voxels.
        assert np.array_equal(read_scan(path).pixels, scan.pixels)
        level = np.median(scan.pixels)
        mask = scan.pixels > level
        label = tmp_path / "label.nii.gz"
        write_label_like(f"{source}#{number}", scan, mask, label)
        assert np.array_equal(read_mask(label), mask)
        seen = nibabel.load(label)
        assert seen.get_data_dtype() == np.uint8 and np.array_equal(seen.affine, found.affine)
        assert np.array_equal(np.asarray(seen.dataobj), np.asarray(found.dataobj) > level)


@pytest.mark.parametrize("codes", ["LPS", "RAI", "SPL", "ASR"])
@pytest.mark.parametrize("turn", [None, TURN], ids=["straight", "oblique"])
def test_another_reader_finds_the_same_values_in_the_same_place(tmp_path, codes, turn):
    source = volume_file(tmp_path / "volume.nii.gz", affine=affine_of(codes, turn))
    whole, values = by_simpleitk(source)
    _, path = rewritten(f"{source}#2", tmp_path)
    image, found = by_simpleitk(path)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)  # float32
    np.testing.assert_allclose(image.GetDirection(), whole.GetDirection(), rtol=0, atol=QUATERNION)
    first = whole.TransformPhysicalPointToIndex(image.GetOrigin())
    np.testing.assert_allclose(whole.TransformIndexToPhysicalPoint(first), image.GetOrigin(), atol=QUATERNION)
    i, j, k = first
    width, height, depth = image.GetSize()
    assert np.array_equal(found, values[k : k + depth, j : j + height, i : i + width])


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_is_kept_and_so_is_the_scale(tmp_path, dtype, order):
    data = (VOLUME % 200 - (100 if np.dtype(dtype).kind == "i" else 0)).astype(dtype)
    if data.dtype.kind == "f":
        data[0, 0, :] = np.nan
        data[1, 0, :] = np.inf
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(data, affine_of("RAS"), header)
    image.header.set_slope_inter(0.5, -12)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_min"], image.header["cal_max"] = -60, 20
    nibabel.save(image, tmp_path / "volume.nii")
    assert nibabel.load(tmp_path / "volume.nii").header.endianness == order
    scan, path = rewritten(f"{tmp_path / 'volume.nii'}#3", tmp_path)
    found = nibabel.load(path)
    assert found.get_data_dtype() == np.dtype(dtype)
    stored = found.dataobj.get_unscaled()
    assert stored.astype(stored.dtype.newbyteorder("=")).tobytes() == data[:, :, 3:4].tobytes()
    assert (found.dataobj.slope, found.dataobj.inter) == (0.5, -12)
    assert found.header.get_xyzt_units() == ("mm", "sec")
    assert (found.header["cal_min"], found.header["cal_max"]) == (-60, 20) and scan.window == (-96, 64)
    expected = data[:, :, 3:4].T * 0.5 - 12
    finite = np.isfinite(expected)  # SimpleITK takes what is none for 0
    assert np.array_equal(by_simpleitk(path)[1][finite], expected[finite])
    write_label_like(f"{tmp_path / 'volume.nii'}#3", scan, scan.pixels > 5, tmp_path / "label.nii.gz")
    label = nibabel.load(tmp_path / "label.nii.gz")  # it has no scale, and no window
    assert (label.dataobj.slope, label.dataobj.inter, float(label.header["cal_max"])) == (1, 0, 0)
    assert sorted(np.unique(np.asarray(label.dataobj))) == [0, 1]


def test_what_changed_is_written_and_no_more(tmp_path):
    source = volume_file(tmp_path / "volume.nii.gz")
    scan = read_scan(f"{source}#1")
    image = scan.pixels.copy()
    image[2:4, 3:6] = [[-5, 7, 9], [1, -2, 3]]
    _, path = rewritten(f"{source}#1", tmp_path, image)
    found = read_scan(path)
    assert np.array_equal(found.pixels, image) and not np.array_equal(found.pixels, scan.pixels)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (4, 1), (2, 3)])
def test_both_codes_of_the_place_are_kept(tmp_path, codes):
    source = volume_file(tmp_path / "volume.nii", codes=codes)
    _, path = rewritten(f"{source}#3", tmp_path)
    found = nibabel.load(path)
    kept = int(found.header["sform_code"]), int(found.header["qform_code"])
    # Where neither counts, the place would follow from the size, which is another one now; so it is written.
    assert kept == ((2, 0) if codes == (0, 0) else codes)
    assert places_of(found) == places_of(nibabel.load(source).slicer[:, :, 3:4])


def test_two_places_in_one_header_are_moved_each_in_its_own_way(tmp_path):
    """Programs that register a scan to an atlas leave the scanner's place beside the atlas's."""
    image = nibabel.Nifti1Image(VOLUME, affine_of("RAS"))
    scanner = affine_of("RAS", TURN)
    scanner[:3, 3] = 5, -6, 7
    image.set_sform(affine_of("RAS"), 4)
    image.set_qform(scanner, 1)
    nibabel.save(image, tmp_path / "volume.nii")
    _, path = rewritten(f"{tmp_path / 'volume.nii'}#2", tmp_path)
    found = nibabel.load(path)
    for transform, source, tolerance in (
        (found.get_sform(), affine_of("RAS"), FLOAT32),
        (found.get_qform(), scanner, QUATERNION),
    ):
        expected = source.copy()
        expected[:3, 3] += 2 * source[:3, 2]
        np.testing.assert_allclose(transform, expected, rtol=0, atol=tolerance)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (4, 1)


def test_a_sheared_place_is_kept(tmp_path):
    affine = affine_of("RAS")
    affine[0, 2] = 0.9  # as a tilted gantry leaves it; no quaternion can say it
    source = volume_file(tmp_path / "volume.nii", affine=affine, codes=(1, 0))
    _, path = rewritten(f"{source}#4", tmp_path)
    np.testing.assert_allclose(nibabel.load(path).affine[:3, 3], affine[:3, 3] + 4 * affine[:3, 2], atol=FLOAT32)
    np.testing.assert_allclose(nibabel.load(path).affine[:3, :3], affine[:3, :3], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 5, 1), (9, 7, 5, 1, 1)])
def test_other_numbers_of_axes(tmp_path, shape):
    data = VOLUME.reshape(-1)[: np.prod(shape)].reshape(shape)
    source = volume_file(tmp_path / "volume.nii", data)
    depth = (*shape, 1)[2]
    name = f"{source}#{depth - 1}" if depth > 1 else source
    scan, path = rewritten(name, tmp_path)
    found = nibabel.load(path)
    last = data.reshape(9, 7, -1)[..., -1]
    assert found.shape == (9, 7, 1) and np.array_equal(np.asarray(found.dataobj)[..., 0], last)
    expected = affine_of("LPS")
    expected[:3, 3] += (depth - 1) * expected[:3, 2]
    np.testing.assert_allclose(found.affine, expected, rtol=0, atol=FLOAT32)
    assert np.array_equal(read_scan(path).pixels, scan.pixels)


def test_the_second_version_of_the_format_stays_one(tmp_path):
    for order in "<>":
        image = nibabel.Nifti2Image(VOLUME, affine_of("RAS"), nibabel.Nifti2Header(endianness=order))
        image.header.set_data_dtype(np.int16)
        nibabel.save(image, tmp_path / "volume.nii")
        _, path = rewritten(f"{tmp_path / 'volume.nii'}#4", tmp_path)
        found = nibabel.load(path)
        assert isinstance(found, nibabel.Nifti2Image)
        assert places_of(found) == places_of(image.slicer[:, :, 4:5])


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_colour_is_written_in_colour_and_in_its_place(tmp_path, channels):
    kind = np.dtype([(name, "u1") for name in channels])
    data = np.zeros(SHAPE, kind)
    for number, name in enumerate(channels):
        data[name] = (VOLUME + 1024) // (number + 1) % 256
    if "A" in channels:
        data["A"] = 255
    source = volume_file(tmp_path / "volume.nii", data, affine_of("RAS"))
    scan, path = rewritten(f"{source}#3", tmp_path)
    assert scan.meaning.slice == 3 and scan.meaning.spacing == (1.25, 0.75)
    found = nibabel.load(path)
    stored = np.asarray(found.dataobj)
    assert found.get_data_dtype().names == ("R", "G", "B")
    for name in "RGB":
        assert np.array_equal(stored[name], data[name][:, :, 3:4]), name
    np.testing.assert_allclose(found.affine[:, 3], affine_of("RAS") @ [0, 0, 3, 1], rtol=0, atol=FLOAT32)
    assert np.array_equal(by_simpleitk(path)[1][0], np.stack([data[name][:, :, 3].T for name in "RGB"], axis=-1))


def test_no_text_of_the_source_is_taken_over(tmp_path):
    image = nibabel.Nifti1Image(VOLUME, affine_of("RAS"))
    image.header["descrip"], image.header["aux_file"], image.header["db_name"] = b"ZQXJ 1", b"ZQXJ 2", b"ZQXJ 3"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"ZQXJ^PERSON"))  # a comment
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(4, b"<ZQXJ^PERSON/>"))  # a program's history
    nibabel.save(image, tmp_path / "volume.nii")
    assert (tmp_path / "volume.nii").read_bytes().count(b"ZQXJ") >= 5
    scan, path = rewritten(f"{tmp_path / 'volume.nii'}#1", tmp_path)
    write_label_like(f"{tmp_path / 'volume.nii'}#1", scan, scan.pixels > 0, tmp_path / "label.nii.gz")
    for one, text in ((path, SYNTHETIC), (tmp_path / "label.nii.gz", f"{SYNTHETIC} label")):
        assert b"ZQXJ" not in gzip.decompress(one.read_bytes())
        assert nibabel.load(one).header["descrip"].item().decode() == text
    assert len(nibabel.load(tmp_path / "volume.nii").header.extensions) == 2  # the source is as it was


def test_equal_results_are_equal_files(tmp_path):
    source = volume_file(tmp_path / "volume.nii")
    contents = set()
    for name in ("a.nii.gz", "b.nii.gz"):
        scan = read_scan(f"{source}#1")
        write_like(f"{source}#1", scan, scan.pixels, tmp_path / name, name)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_a_label_may_fill_its_slice(tmp_path):
    source = volume_file(tmp_path / "volume.nii")
    scan = read_scan(f"{source}#1")
    write_label_like(f"{source}#1", scan, np.ones(scan.size, bool), tmp_path / "label.nii.gz")
    assert (np.asarray(nibabel.load(tmp_path / "label.nii.gz").dataobj) == 1).all()
