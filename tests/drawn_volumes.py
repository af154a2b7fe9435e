"""This module draws volumes with a tumour by arithmetic, in any orientation, and writes them as NIfTI files and as
folders of DICOM slices. The tests of volumes share it."""

import numpy as np
import pytest
from medical_files import dicom_file, nifti_file

CT = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0}


def points(shape, affine):
    """The millimetres (..., 3) of all voxels of a volume of this shape."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def middle(shape, affine):
    """The millimetres of a volume's middle."""
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def ellipsoid(shape, affine, axes):
    """bool of this shape: an ellipsoid of these half axes in millimetres, along the patient's, in the middle."""
    return (((points(shape, affine) - middle(shape, affine)) / axes) ** 2).sum(axis=-1) < 1


def spaced(zooms, turn=0.0, tilt=0.0):
    """An affine matrix, columns, rows and slices to millimetres, turned by angles in degrees about two axes."""
    a, b = np.deg2rad(turn), np.deg2rad(tilt)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(zooms)
    affine[:3, 3] = -7, 11, 23
    return affine


def texture(where, seed=0):
    """Long waves, between -1 and 1, at places (..., 3) in millimetres."""
    x, y, z = np.moveaxis(where, -1, 0)
    return (np.sin(x / 5 + seed) + np.cos(y / 6 + 2 * seed) + np.sin(z / 7 + 3 * seed)) / 3


def turned(volume, affine, code):
    """A volume whose axes run right, anterior, superior, as near as they can, with its axes in another order, and its
    affine matrix."""
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    canonical = nibabel.Nifti1Image(volume, affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(code))
    image = canonical.as_reoriented(turn)
    return np.asarray(image.dataobj), image.affine


def write_pair(folder, code="RAS", zooms=(1, 1, 1), shape=(40, 44, 24), back_code="RAS", kind=np.int16):
    """Write a background, back.nii.gz, and an object with its mask, object.nii.gz and mask.nii.gz, of an ellipsoid of
    6 x 5 x 4 mm. Returns how many millilitres of mask there are."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = spaced((1.5, 1.5, 2))
    back = 300 + 150 * texture(points(shape, affine), 1)
    nifti_file(folder / "back.nii.gz", *turned(back.astype(kind), affine, back_code))
    affine = spaced(zooms)
    size = tuple(int(30 / zoom) for zoom in zooms)
    inside = ellipsoid(size, affine, (6, 5, 4))
    values = 300 + 40 * texture(points(size, affine), 5)
    values[inside] = 150 + 60 * texture(points(size, affine), 7)[inside]
    nifti_file(folder / "object.nii.gz", *turned(values.astype(np.int16), affine, code))
    nifti_file(folder / "mask.nii.gz", *turned(inside.astype(np.uint8), affine, code))
    return inside.sum() * np.prod(zooms) / 1000


def write_series(folder, volume, spacing=(1.5, 1.5, 2.0), names=None, orientation=(1, 0, 0, 0, 1, 0), **attributes):
    """Write a volume (slice, row, column) as DICOM slices whose names are in another order than their positions.

    spacing: between rows, columns and slices. Returns the paths, from the first slice to the last.
    """
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    series = {"SeriesInstanceUID": pydicom.uid.generate_uid(), "StudyInstanceUID": pydicom.uid.generate_uid()}
    series |= {"FrameOfReferenceUID": pydicom.uid.generate_uid(), "ImageOrientationPatient": list(orientation)}
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.random.default_rng(0).permutation(len(volume)) if names is None else names
    paths = []
    for number, plane in enumerate(volume):
        position = np.array([-20.0, -30.0, 50.0]) + normal * spacing[2] * number
        own = {name: value[number] if isinstance(value, tuple) else value for name, value in attributes.items()}
        about = {"ImagePositionPatient": [round(float(at), 6) for at in position], "PixelSpacing": list(spacing[:2])}
        about |= {"InstanceNumber": number + 1, "SliceThickness": spacing[2], "Modality": "MR"}
        paths.append(dicom_file(folder / f"IM{order[number]:04d}", plane, **{**series, **about, **own}))
    return paths
