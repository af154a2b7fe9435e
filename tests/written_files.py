"""This module writes DICOM files as scanners do, with a place in the patient and with what names him, and reads results
by readers that are not ours: pydicom with its strict settings, and SimpleITK. The tests of writing share it."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from composition_files import write_scans
from medical_files import DEEP, dicom_file, item, nifti_file

from composition.scans.images import read_scan
from composition.scans.writing import suffix_like, write_like

# Turned by 30 degrees around the patient's long axis; 0.5 and the root of 0.75 in the 16 characters that DICOM allows.
TURNED = [0.86602540378444, 0.5, 0, -0.5, 0.86602540378444, 0]
PLACE = {
    "ImagePositionPatient": [-81.25, 12.5, 40.75],
    "ImageOrientationPatient": TURNED,
    "PixelSpacing": [0.75, 0.5],
    "SliceThickness": 2.5,
    "SpacingBetweenSlices": 2.5,
}
CT = "1.2.840.10008.5.1.4.1.1.2"
SERIES = {"StudyInstanceUID": "1.2.3.40", "SeriesInstanceUID": "1.2.3.41", "FrameOfReferenceUID": "1.2.3.42"}
SOURCE = {"SOPClassUID": CT, "SOPInstanceUID": "1.2.3.43", "Modality": "CT", "InstanceNumber": 7, **SERIES, **PLACE}


def ct_file(path, pixels=DEEP, **changes):
    """A slice of computed tomography. A change to None leaves an attribute out."""
    attributes = {name: value for name, value in (SOURCE | changes).items() if value is not None}
    return dicom_file(path, pixels, **attributes)


def frames_file(path, frames, **changes):
    """An enhanced file of computed tomography, whose frames lie 3 mm apart, each with a window and a slope."""
    own = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-81.25, 12.5, 3.0 * number])],
            FrameVOILUTSequence=[item(WindowCenter=1000 + 100 * number, WindowWidth=2000)],
            PixelValueTransformationSequence=[
                item(RescaleSlope=number + 1, RescaleIntercept=-10 * number, RescaleType="HU")
            ],
        )
        for number in range(len(frames))
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5], SliceThickness=3)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=TURNED)],
    )
    groups = {"PerFrameFunctionalGroupsSequence": own, "SharedFunctionalGroupsSequence": [shared]}
    changes = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1", "NumberOfFrames": len(frames), **groups} | changes
    return ct_file(path, frames, **dict.fromkeys(PLACE), **changes)


HU = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU", "BitsStored": 12, "HighBit": 11}
SOFT = {"WindowCenter": 40, "WindowWidth": 400}


def waves(number: int) -> np.ndarray:
    """Hounsfield units of soft tissue (60, 80), whole numbers from -50 to 140."""
    y, x = np.mgrid[:60, :80]
    return np.rint(40 + 90 * np.sin(x / (7 + number)) * np.cos(y / (9 + number)) + (x + number * y) % 11).astype(int)


def stored(number: int) -> np.ndarray:
    """The same in 12 bits, with air on the left and metal and bone on the right, far outside the window."""
    values = waves(number)
    values[:, :6], values[:10, 70:], values[50:, 70:] = -1000, 2900, 700
    values[::7, 2] = -1024
    return (values + 1024).astype(np.uint16)


def write_medical_scans(folder):
    """The scans and the mask of `write_scans`, and beside them s0.dcm, s2.dcm and a volume of three slices."""
    write_scans(folder)
    for number in (0, 2):
        ct_file(folder / f"s{number}.dcm", stored(number), **HU, **SOFT, SOPInstanceUID=f"1.2.3.6{number}")
    volume = np.stack([stored(n)[::-1, ::-1].T.astype(np.int16) - 1024 for n in range(3)], axis=2)
    affine = np.diag([0.75, 0.75, 4, 1])
    affine[:3, 3] = -20, 30, 5
    nifti_file(folder / "volume.nii.gz", volume, affine)
    return folder


@contextmanager
def strict(what):
    """Within the block pydicom raises for whatever the standard does not allow, in "reading" or in "writing"."""
    config = pytest.importorskip("pydicom", reason="the extra `medical` is not installed").config
    name = f"{what}_validation_mode"
    before = getattr(config.settings, name)
    setattr(config.settings, name, config.RAISE)
    try:
        yield
    finally:
        setattr(config.settings, name, before)


def strictly_read(path):
    """A DICOM file of which every element was read strictly, and without a warning."""
    import pydicom

    with strict("reading"), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pydicom.dcmread(path)
        for element in found.iterall():
            assert element.value is not NotImplemented
        _ = [element.value for element in found.file_meta]
    return found


def rewritten(source, out, image=None, derivation="one", window=None):
    """Write a source's own pixels, or an image in their place, as a result; returns the scan and the file."""
    scan = read_scan(source, window)
    path = out / f"result{suffix_like(source)}"
    with strict("writing"):
        write_like(source, scan, scan.pixels if image is None else image, path, derivation)
    return scan, path


def by_simpleitk(path):
    """An image and its values, slice first. SimpleITK applies the scale of a file."""
    sitk = pytest.importorskip("SimpleITK", reason="the extra `test` is not installed")
    image = sitk.ReadImage(str(path))
    return image, sitk.GetArrayFromImage(image)


def check_place(image, position, orientation, spacing):
    """That SimpleITK's image lies where DICOM says. spacing: (down, across)."""
    across, down = np.array(orientation[:3], float), np.array(orientation[3:], float)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    # Cosines come in 16 characters, and SimpleITK makes them orthogonal in float64.
    np.testing.assert_allclose(directions, np.stack([across, down, np.cross(across, down)], axis=1), atol=1e-12)
    np.testing.assert_allclose(image.GetOrigin(), position, rtol=0, atol=1e-12)
    np.testing.assert_allclose(image.GetSpacing()[:2], spacing[::-1], rtol=1e-12)
