"""These tests check that a mask which says where it lies has to lie where its scan does."""

import numpy as np
import pytest
from medical_files import dicom_file, nifti_file
from PIL import Image

from composition.runs.request import Request
from composition.scans.errors import ScanError
from composition.scans.places import check_same_place, place_of

AFFINE = np.array([[0, -0.7, 0.0, 30], [0.9, 0, 0, -20], [0, 0, 2.5, 7], [0, 0, 0, 1]])
VALUES = np.arange(12 * 10 * 6, dtype=np.int16).reshape(12, 10, 6)


def axial(tmp_path, name, z, **changes):
    about = {"ImagePositionPatient": [-5, -6, z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2, 3]}
    return dicom_file(tmp_path / name, VALUES[:, :, 0], **{**about, **changes})


def test_the_place_of_a_nifti_slice_is_that_of_its_voxels(tmp_path):
    path = nifti_file(tmp_path / "a.nii", VALUES, AFFINE)
    place = place_of(f"{path}#2")
    # Radiological: the first pixel is in front, on the patient's right. In DICOM's directions left and back count up.
    corners = [AFFINE @ (i, j, 2, 1) for i in (0, 11) for j in (0, 9)]
    first = max(corners, key=lambda at: (at[1], at[0]))[:3] * (-1, -1, 1)
    np.testing.assert_allclose(place[0], first, atol=1e-5)  # float32 in the header
    np.testing.assert_allclose(place[1] - place[0], (0.7, 0, 0), atol=1e-5)
    np.testing.assert_allclose(place[2] - place[0], (0, 0.9, 0), atol=1e-5)


def test_a_mask_of_another_slice_or_place_is_refused(tmp_path):
    path = nifti_file(tmp_path / "a.nii", VALUES, AFFINE)
    moved, mirrored = AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 0.4  # more than half of the smaller side of a pixel
    mirrored[0] *= -1
    check_same_place("the mask", f"{nifti_file(tmp_path / 'same.nii', VALUES, AFFINE)}#2", f"{path}#2")
    for other, number in (("same.nii", 3), ("moved.nii", 2), ("mirrored.nii", 2)):
        affine = {"same.nii": AFFINE, "moved.nii": moved, "mirrored.nii": mirrored}[other]
        nifti_file(tmp_path / other, VALUES, affine)
        with pytest.raises(ScanError, match=r"the mask .* lies .* mm off its scan .*, or is turned; expected"):
            check_same_place("the mask", f"{tmp_path / other}#{number}", f"{path}#2")
    scan, same = axial(tmp_path, "scan.dcm", 4), axial(tmp_path, "same.dcm", 4.0004)
    check_same_place("the mask", same, scan)
    with pytest.raises(ScanError, match="lies 3 mm off"):
        check_same_place("the mask", axial(tmp_path, "next.dcm", 7), scan)


def test_files_that_say_no_place_are_taken_at_their_word(tmp_path):
    Image.fromarray(np.uint8([[0, 1], [1, 0]])).save(tmp_path / "mask.png")
    scan = axial(tmp_path, "scan.dcm", 4)
    nowhere = dicom_file(tmp_path / "nowhere.dcm", VALUES[:, :, 0])
    for mask in (tmp_path / "mask.png", nowhere):
        assert place_of(mask) is None
        check_same_place("the mask", mask, scan)


def test_a_request_compares_both_masks(tmp_path):
    path = nifti_file(tmp_path / "scan.nii", VALUES, AFFINE)
    inside = np.zeros(VALUES.shape, np.uint8)
    inside[4:8, 3:7] = 1
    mask = nifti_file(tmp_path / "mask.nii", inside, AFFINE)
    files = {"background": f"{path}#1", "object": f"{path}#2", "object_mask": f"{mask}#2", "user_mask": f"{mask}#1"}
    files = {name: type(path)(file) for name, file in files.items()}
    assert Request(files, None, "a lesion").read().object_mask.sum() == 16
    for name in ("object_mask", "user_mask"):
        with pytest.raises(ScanError, match=f"{name} .* lies 2.5 mm off its scan"):
            Request({**files, name: type(path)(f"{mask}#{3 if name == 'object_mask' else 2}")}, None, "a lesion").read()
