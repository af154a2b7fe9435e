"""This module writes DICOM and NIfTI files of a few pixels, as the tests of their reading need them, and says what such
a file's values are to the network."""

import numpy as np
import pytest

DEEP = (np.arange(12 * 20).reshape(12, 20) * 13 + 100).astype(np.uint16)  # 12-bit values in 16 bits
HALF = np.zeros((12, 20), dtype=bool)
HALF[:, :7] = True
COLOUR = np.stack([DEEP % 251, DEEP % 7 * 30, 255 - DEEP % 200], axis=2).astype(np.uint8)
HOUNSFIELD = DEEP * 2.0 - 1024  # DEEP under RESCALED
RESCALED = {"RescaleSlope": 2, "RescaleIntercept": -1024}
# Half a step of float32 near 1 is 6e-8, and float64 before it is exact beside that.
FLOAT32 = 1e-7


def dicom_file(path, pixels=DEEP, **attributes):
    """Write pixels (H, W), (frames, H, W) or, where the attributes say so, in colour, with these further attributes."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = attributes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    implicit, little = meta.TransferSyntaxUID.is_implicit_VR, meta.TransferSyntaxUID.is_little_endian
    data = pydicom.dataset.FileDataset(
        str(path), {}, bytes(128), meta, is_implicit_VR=implicit, is_little_endian=little
    )
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = pixels.itemsize * 8
    rows, columns = pixels.shape[:2] if attributes.get("SamplesPerPixel") == 3 else pixels.shape[-2:]
    image = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    image |= {"PixelRepresentation": int(pixels.dtype.kind == "i"), "Rows": rows, "Columns": columns}
    image |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    for keyword, value in (image | attributes).items():
        setattr(data, keyword, value)
    data.PixelData = (pixels if little else pixels.byteswap()).tobytes()
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def table(entries, first, bits):
    """An item of a sequence of lookup tables."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], np.asarray(entries, dtype="<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


def item(**attributes):
    """An item of a sequence, which holds these attributes."""
    pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    made = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def nifti_file(path, volume, affine=None):
    nibabel = pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return path


def with_bytes(path, position, new):
    content = path.read_bytes()
    path.write_bytes(content[:position] + new + content[position + len(new) :])
    return path


def shown(values, black, white):
    """What values are over a window, in [-1, 1]; black may be the greater."""
    return np.clip((np.asarray(values, dtype=float) - black) / (white - black), 0, 1) * 2 - 1


def check_values(scan, expected):
    """That a gray scan's values are (H, W) expected ones in all three channels, to float32."""
    values = scan.values()
    assert values.dtype == np.float32 and values.shape == (*expected.shape, 3)
    np.testing.assert_allclose(values, np.repeat(expected[..., None], 3, axis=2), rtol=0, atol=FLOAT32)
