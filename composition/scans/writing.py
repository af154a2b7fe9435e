"""This module writes a result in the kind of file that its background came from, with the values, the spacing and the
place in the patient that the background has.

It stands beside the readers, which say what a file's values mean, because whoever changes one has to look at the other.
PNG is for images; DICOM and NIfTI need the extra `medical`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sd21.files import atomic

from .dicom import attributes_of, is_dicom, is_lossy, read_header
from .images import Scan, values_of
from .nifti import NiftiVolume, is_nifti, open_nifti
from .slices import split_slice

if TYPE_CHECKING:
    from nibabel import Nifti1Image
    from pydicom import Dataset

SYNTHETIC = "SYNTHETIC"
DS = 16  # characters of a decimal string (PS3.5, 6.2)
ABOUT = "SYNTHETIC: a tumour was composed into this image; not for diagnosis"
# What tells of the stored values. It goes where colours are written, or values that went through a table.
SCALE = (
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
)
# What a derived DICOM image takes over. Everything else, all that names a patient, a person, a place or a date, stays
# behind, so that a synthetic tumour never enters anybody's record.
# Free texts are not among them: people write names into the fields of devices, too.
KEPT = (
    *("Modality", "BodyPartExamined", "Laterality", "ImageLaterality", "ViewPosition", "PatientPosition"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("ScanningSequence", "SequenceVariant", "MRAcquisitionType", "RepetitionTime"),
    *("EchoTime", "InversionTime", "FlipAngle", "MagneticFieldStrength", "EchoTrainLength", "KVP", "ExposureTime"),
    *("XRayTubeCurrent", "GantryDetectorTilt"),
    *("PositionReferenceIndicator", "SliceThickness", "SpacingBetweenSlices", "SliceLocation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "PixelSpacingCalibrationType", "PixelAspectRatio", "InstanceNumber"),
    *SCALE,
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
OLDEST = "089Y"  # greater ages tell a person from others


def suffix_like(source: str | Path) -> str:
    """The suffix of the file that a result takes beside its preview: ".dcm", ".nii.gz", or "" for an image."""
    path, _ = split_slice(source)
    return ".nii.gz" if is_nifti(path) else ".dcm" if is_dicom(path) else ""


def write_like(source: str | Path, background: Scan, image: np.ndarray, path: Path, derivation: str) -> None:
    """Write a result as DICOM or NIfTI, like the file that its background came from.

    source: that file, with its "#slice". image: stored values (H, W), or (H, W, 3) uint8. path: with `suffix_like`.
    derivation: a text that tells this result from all others, of which its identifiers are made; equal texts give equal
    bytes. Raises what reading the source raises, and OSError.
    """
    file, _ = split_slice(source)
    if is_nifti(file):
        volume = open_nifti(file, str(source))
        write_nifti(path, volume, _nifti_values(image), background.meaning.slice or 0)
    else:
        write_dicom(path, file, background, image, derivation)


def write_label_like(source: str | Path, background: Scan, mask: np.ndarray, path: Path) -> None:
    """Write a bool mask (H, W) as a NIfTI label of 0 and 1, in the place of a NIfTI background's slice."""
    file, _ = split_slice(source)
    volume = open_nifti(file, str(source))
    write_nifti(path, volume, mask.astype(np.uint8), background.meaning.slice or 0, label=True)


def write_nifti(path: Path, volume: NiftiVolume, plane: np.ndarray, number: int, *, label: bool = False) -> None:
    """Write one slice (H, W) of a volume as a volume of one slice, which lies where the slice does in the patient."""
    data = volume.stored(plane)
    first = np.zeros(4)
    first[volume.axes[2][0]], first[3] = volume.index_of(number), 1
    affine = volume.image.affine.copy()
    affine[:, 3] = volume.image.affine @ first
    save_nifti(path, volume, data, affine, label=label)


def save_nifti(path: Path, volume: NiftiVolume, data: np.ndarray, affine: np.ndarray, *, label: bool = False) -> None:
    """Write stored values, three axes in the file's order, with the volume's header and scale; a label has none."""
    import nibabel

    image = _image_like(volume, data, affine, label)
    with atomic(path) as temporary:
        nibabel.save(image, temporary)


def save_header(
    path: Path,
    volume: NiftiVolume | None,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    affine: np.ndarray,
    *,
    label: bool = False,
) -> int:
    """Write an uncompressed file of zeros with a volume's header and scale, whose values are to be written into it;
    returns where they begin. volume: None for the plainest header."""
    image = _image_like(volume, np.broadcast_to(np.zeros((), dtype), shape), affine, label)
    header, offset = image.header, image.header.single_vox_offset
    header["vox_offset"] = offset
    size = offset + int(np.prod(shape)) * dtype.itemsize
    with path.open("wb") as file:
        header.write_to(file)
        file.flush()
        if hasattr(os, "posix_fallocate"):  # else a full disk would kill whoever writes into the mapped file
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
    return offset


def _image_like(volume: NiftiVolume | None, data: np.ndarray, affine: np.ndarray, label: bool) -> Nifti1Image:
    import nibabel

    kind = nibabel.Nifti1Image if volume is None else volume.image.__class__
    header = kind.header_class() if volume is None else volume.image.header.copy()
    if volume is not None and header.endianness != nibabel.volumeutils.native_code:
        header = header.as_byteswapped(nibabel.volumeutils.native_code)
    header.set_data_dtype(data.dtype)
    header.extensions.clear()  # they tell of the source as it was, and may hold all that its DICOM files said
    for text in {"aux_file", "db_name", "data_type", "intent_name"}.intersection(header.keys()):
        header[text] = b""  # the name of a file, of an entry in somebody's data base, or of a person
    codes = int(header["sform_code"]), int(header["qform_code"])
    image, turned = kind(data, affine, header), affine
    if codes[0] and codes[1]:  # a file may say two places, the scanner's and an atlas's; each moves by as many voxels
        turned = volume.image.get_qform() @ np.linalg.inv(volume.image.affine) @ affine
    image.set_sform(affine, codes[0] or (0 if codes[1] else 2))
    image.set_qform(turned, codes[1])
    plain = label or volume is None or data.dtype.names
    image.header.set_slope_inter(*((1.0, 0.0) if plain else (volume.slope, volume.intercept)))
    image.header["descrip"] = SYNTHETIC.encode() + b" label" * label
    if label:
        image.header["cal_min"] = image.header["cal_max"] = 0
        image.header.set_intent("none")
    return image


def write_dicom(path: Path, source: Path, background: Scan, image: np.ndarray, derivation: str) -> None:
    """Write a derived, secondary image with identifiers of its own.

    image: stored values (H, W), or (H, W, 3) uint8. derivation: a text of which the identifiers of the series are made;
    that of the image is made of its values too. Raises what reading the source raises, and OSError.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header, _ = read_header(source, str(source))
    out = _strict(attributes_of(header, background.meaning.slice or 0, KEPT))
    one = str(header.get("SOPInstanceUID", source.name)) + str(background.meaning.slice)

    def uid(*texts: str) -> str:
        return generate_uid(entropy_srcs=[SYNTHETIC, *texts])

    out.SpecificCharacterSet = "ISO_IR 192"
    out.SOPClassUID = _storage(header)
    values = hashlib.sha256(f"{image.dtype} {image.shape}".encode() + np.ascontiguousarray(image).tobytes())
    out.SOPInstanceUID = uid(one, derivation, values.hexdigest())
    out.StudyInstanceUID = uid(str(header.get("StudyInstanceUID", "")), "study", derivation)
    out.SeriesInstanceUID = uid(str(header.get("SeriesInstanceUID", "")), "series", derivation)
    if header.get("FrameOfReferenceUID"):  # results of one patient's scans lie in one frame still, and not in his
        out.FrameOfReferenceUID = uid(str(header.FrameOfReferenceUID), "frame of reference")
    out.ImageType = ["DERIVED", "SECONDARY", *_kinds(header)]
    out.SeriesDescription, out.DerivationDescription, out.ImageComments = f"{SYNTHETIC} tumour", ABOUT, ABOUT
    if (age := str(out.get("PatientAge", ""))).endswith("Y") and age > OLDEST:
        del out.PatientAge
    out.PatientName, out.PatientID = f"{SYNTHETIC}^", SYNTHETIC
    out.DeidentificationMethod = "no name of a person, place or date is taken over"  # of 64 characters at most
    for empty in ("PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
        setattr(out, empty, "")
    for empty in ("Manufacturer", "PositionReferenceIndicator"):
        if empty not in out:
            setattr(out, empty, "")
    out.SeriesNumber = 1
    if header.get("BurnedInAnnotation") in ("YES", "NO"):
        out.BurnedInAnnotation = header.BurnedInAnnotation
        # Pixels may hold a name too. Where the source does not say whether they do, nobody knows.
        out.PatientIdentityRemoved = "YES" if out.BurnedInAnnotation == "NO" else "NO"
    if is_lossy(header):
        out.LossyImageCompression = "01"  # once, and for ever
    if out.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage:
        out.ConversionType = "WSD"
    _set_pixels(out, header, background, image)
    out.file_meta = pydicom.dataset.FileMetaDataset()
    out.file_meta.MediaStorageSOPClassUID = out.SOPClassUID
    out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.file_meta.ImplementationClassUID = pydicom.uid.PYDICOM_IMPLEMENTATION_UID
    with atomic(path) as temporary:
        out.save_as(temporary, enforce_file_format=True)


def _strict(found: Dataset) -> Dataset:
    """These attributes as the standard has them. Many files hold numbers of too many digits, which are rounded; what is
    wrong in another way is left out."""
    from pydicom import DataElement, Dataset
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import DSfloat

    kept = Dataset()
    for element in found:
        kind = element.VR if element.VR in ("US", "SS") else dictionary_VR(element.tag)
        values = list(element.value) if element.VM > 1 else [element.value]
        try:
            if kind == "DS":
                values = [one if len(str(one)) <= DS else DSfloat(float(one), auto_format=True) for one in values]
            kept.add(DataElement(element.tag, kind, values, validation_mode=RAISE))
        except (TypeError, ValueError, OverflowError):
            continue
    return kept


def _kinds(header: Dataset) -> list[str]:
    """What an image type says after its first two values, which are ours, as AXIAL."""
    kinds = header.get("ImageType") or []
    kinds = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
    return kinds[2:] if all(re.fullmatch(r"[A-Z0-9_ ]{0,16}", kind) for kind in kinds) else []


def _storage(header: Dataset) -> str:
    """The storage class: the source's where it is one of single images; an enhanced one's plain kind, or else secondary
    capture."""
    from pydicom import uid

    own = uid.UID(str(header.get("SOPClassUID") or ""))
    plain = {
        uid.EnhancedCTImageStorage: uid.CTImageStorage,
        uid.EnhancedMRImageStorage: uid.MRImageStorage,
        uid.UltrasoundMultiFrameImageStorage: uid.UltrasoundImageStorage,
    }
    if own in plain:
        return plain[own]
    several = header.get("NumberOfFrames") and int(header.NumberOfFrames) > 1
    if not own.is_valid or several or "SharedFunctionalGroupsSequence" in header:
        return uid.SecondaryCaptureImageStorage
    return own


def _set_pixels(out: Dataset, header: Dataset, background: Scan, image: np.ndarray) -> None:
    out.Rows, out.Columns = image.shape[:2]
    if image.ndim == 3:
        out.SamplesPerPixel, out.PhotometricInterpretation, out.PlanarConfiguration = 3, "RGB", 0
        stored, bits, signed = image.astype(np.uint8), 8, 0
    else:
        out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
        if image.dtype.kind == "f":  # they went through a table: what is shown is written, in 16 bits
            shown = values_of(image, background.window).mean(axis=2, dtype=np.float64)
            stored, bits, signed = np.rint((shown + 1) * (65535 / 2)).astype(np.uint16), 16, 0
        else:
            out.PhotometricInterpretation = header.PhotometricInterpretation
            stored, bits, signed = image, int(header.BitsStored), int(header.PixelRepresentation)
    if image.ndim == 3 or image.dtype.kind == "f":
        for name in SCALE:
            if name in out:
                delattr(out, name)
    low = -(2 ** (bits - 1)) if signed else 0
    stored = np.clip(stored, low, low + 2**bits - 1)
    width = 8 if bits <= 8 else 16 if bits <= 16 else 32
    stored = stored.astype(f"<{'i' if signed else 'u'}{width // 8}")
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = width, bits, bits - 1, signed
    content = stored.tobytes()
    out.PixelData = content + b"\0" * (len(content) % 2)
    out["PixelData"].VR = "OB" if width == 8 else "OW"


def _nifti_values(image: np.ndarray) -> np.ndarray:
    """Colour (H, W, 3) as NIfTI's RGB24 (H, W); gray as it is."""
    if image.ndim == 2:
        return image
    return np.ascontiguousarray(image).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
