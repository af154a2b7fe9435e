"""These tests hold how far apart a scan's pixels lie, as its file says it: down and across, in millimetres or as a
ratio alone."""

import numpy as np
import pytest
from medical_files import DEEP, dicom_file, item, nifti_file
from PIL import Image

from composition.scans.images import Scan, read_scan

PATIENT, DETECTOR, FILM = {"PixelSpacing": [0.5, 2]}, {"ImagerPixelSpacing": [0.25, 0.75]}, [0.125, 0.25]


# All numbers are sums of halves, so that they are exact in decimals and in floats.
@pytest.mark.parametrize(
    ("attributes", "spacing", "measured"),
    [
        ({}, None, False),
        (PATIENT, (0.5, 2), True),
        (DETECTOR, (0.25, 0.75), True),
        ({"NominalScannedPixelSpacing": FILM}, (0.125, 0.25), True),
        ({**DETECTOR, **PATIENT}, (0.5, 2), True),  # in the patient, not on the detector
        ({"PixelAspectRatio": [3, 2]}, (3, 2), False),
        ({**PATIENT, "PixelAspectRatio": [3, 2]}, (0.5, 2), True),
        ({"PixelSpacing": None, "PixelAspectRatio": [3, 2]}, (3, 2), False),
        ({"PixelSpacing": [0, 1], **DETECTOR}, (0.25, 0.75), True),
        ({"PixelSpacing": [-1, 1]}, None, False),
        ({"PixelSpacing": 0.5}, None, False),
        ({"PixelSpacing": [1, 2, 3]}, None, False),
    ],
)
def test_a_dicom_says_its_spacing(tmp_path, attributes, spacing, measured):
    scan = read_scan(dicom_file(tmp_path / "scan.dcm", **attributes))
    assert (scan.meaning.spacing, scan.meaning.measured) == (spacing, measured)


@pytest.mark.parametrize("where", ["shared", "own"])
def test_an_enhanced_dicom_says_it_in_its_functional_groups(tmp_path, where):
    groups = [item(PixelMeasuresSequence=[item(PixelSpacing=[0.5 + number, 2])]) for number in range(2)]
    sequences = {"own": {"PerFrameFunctionalGroupsSequence": groups}}
    sequences["shared"] = {"SharedFunctionalGroupsSequence": groups[:1]}
    frames = np.stack([DEEP, DEEP])
    path = dicom_file(tmp_path / "scan.dcm", frames, NumberOfFrames=2, **sequences[where], PixelSpacing=[7, 7])
    expected = [(0.5, 2), (1.5 if where == "own" else 0.5, 2)]
    for number in range(2):
        meaning = read_scan(f"{path}#{number}").meaning
        assert (meaning.spacing, meaning.measured, meaning.slice) == (expected[number], True, number)


@pytest.mark.parametrize("code", ["RAS", "LPI", "ASR", "SLA", "PIR", "IRP", "LSA"])
def test_the_spacing_of_a_nifti_follows_the_displayed_rows_and_columns(tmp_path, code):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    volume = np.arange(5 * 7 * 3, dtype=np.int16).reshape(5, 7, 3)
    canonical = nibabel.Nifti1Image(volume, np.diag([2, 0.5, 4, 1]))  # 2 mm from right to left, 0.5 from front to back
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(canonical.affine), nibabel.orientations.axcodes2ornt(code)
    )
    nibabel.save(canonical.as_reoriented(turn), tmp_path / "turned.nii.gz")
    scan = read_scan(f"{tmp_path}/turned.nii.gz#1")
    assert scan.size == (7, 5)
    assert (scan.meaning.spacing, scan.meaning.measured, scan.meaning.slice) == ((0.5, 2), True, 1)


def test_an_oblique_nifti_has_the_length_of_its_steps(tmp_path):
    turn = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([2, 0.5])
    scan = read_scan(nifti_file(tmp_path / "oblique.nii", DEEP[..., None].astype(np.int16), affine))
    # The file holds its matrix in float32, of 24 bits.
    assert scan.meaning.spacing == pytest.approx((0.5, 2), rel=2**-22)


def test_images_and_arrays_say_no_spacing(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "scan.tif", dpi=(72, 36))  # of the printed page, not of the patient
    for scan in (read_scan(tmp_path / "scan.tif"), Scan(DEEP)):
        assert scan.meaning.spacing is None and not scan.meaning.measured


def test_a_part_keeps_its_meaning(tmp_path):
    scan = read_scan(dicom_file(tmp_path / "scan.dcm", **PATIENT, Modality="MR"))
    part = scan.part(slice(2, 9), slice(1, 5))
    assert part.meaning == scan.meaning and part.meaning.modality == "MR" and part.unit is None
