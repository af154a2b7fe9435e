"""These tests read compressed DICOM files: by the extra's decoder to the bit, and with one clear error where there is
none. GDCM compresses our own drawn pixels; pydicom's sample files are others' compressions."""

import numpy as np
import pytest
from medical_files import COLOUR, DEEP, dicom_file
from written_files import by_simpleitk, ct_file, rewritten, strictly_read

from composition.scans.errors import ScanError
from composition.scans.images import read_mask, read_scan

pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
gdcm = pytest.importorskip("gdcm", reason="python-gdcm of the extra `medical` is not installed")

LOSSLESS = ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
# To 64 x 48 pixels: smaller images than a block are no fair trial of a decoder.
LARGE = np.tile(DEEP, (4, 4))[:48, :64].copy()
SIGNED = (LARGE.astype(int) - 1500).astype(np.int16)


def compressed(source, syntax):
    """Compress a file in place."""
    reader, changer, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    changer.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    changer.SetInput(reader.GetImage())
    assert changer.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(changer.GetOutput())
    writer.SetFileName(str(source))
    assert writer.Write()
    assert pydicom.dcmread(source).file_meta.TransferSyntaxUID.is_compressed
    return source


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(
    ("stored", "bits", "kind"),
    [
        (LARGE, 12, "MONOCHROME2"),
        (LARGE * np.uint16(16), 16, "MONOCHROME1"),
        (SIGNED, 16, "MONOCHROME2"),
        ((LARGE % 251).astype(np.uint8), 8, "MONOCHROME1"),
    ],
    ids=["12", "16", "signed", "8"],
)
def test_what_is_compressed_without_loss_is_read_and_written_to_the_bit(tmp_path, stored, bits, kind, syntax):
    depth = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": kind}
    window = {"WindowCenter": float(stored[5, 5]), "WindowWidth": 200}
    source = compressed(ct_file(tmp_path / "scan.dcm", stored, **depth, **window), syntax)
    scan, path = rewritten(source, tmp_path)
    assert scan.pixels.dtype == stored.dtype and np.array_equal(scan.pixels, stored)
    found = strictly_read(path)
    assert found.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert np.array_equal(found.pixel_array, stored) and found.PhotometricInterpretation == kind
    assert "LossyImageCompression" not in found
    if kind == "MONOCHROME2":  # SimpleITK turns the other over
        assert np.array_equal(by_simpleitk(path)[1][0], stored)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_frames_and_colours_are_decoded(tmp_path, syntax):
    frames = np.stack([LARGE, LARGE[::-1], LARGE[:, ::-1]])
    source = compressed(dicom_file(tmp_path / "film.dcm", frames, NumberOfFrames=3), syntax)
    for number in range(3):
        assert np.array_equal(read_scan(f"{source}#{number}").pixels, frames[number])
    colour = np.tile(COLOUR, (4, 4, 1))
    attributes = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    source = compressed(dicom_file(tmp_path / "colour.dcm", colour, **attributes), syntax)
    scan, path = rewritten(source, tmp_path)
    assert np.array_equal(scan.pixels, colour) and np.array_equal(strictly_read(path).pixel_array, colour)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_compressed_mask_keeps_its_values(tmp_path, syntax):
    values = (LARGE % 4).astype(np.uint8)
    source = compressed(dicom_file(tmp_path / "mask.dcm", values), syntax)
    assert np.array_equal(read_mask(source), values > 0) and np.array_equal(read_mask(source, 2), values == 2)


def sample(name):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"this pydicom carries no {name}")
    return path


@pytest.mark.parametrize("name", ["jp2klossless", "jpeg_ls_lossless", "RLE", "implicit", "bigendian"])
def test_one_scan_in_every_compression_is_one_scan(tmp_path, name):
    plain, source = sample("MR_small.dcm"), sample(f"MR_small_{name}.dcm")
    scan, path = rewritten(source, tmp_path)
    expected = read_scan(plain)
    assert np.array_equal(scan.pixels, expected.pixels) and scan.window == expected.window
    assert np.array_equal(strictly_read(path).pixel_array, expected.pixels)


@pytest.mark.parametrize("name", ["JPEGLSNearLossless_16.dcm", "693_J2KI.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_loss_is_told_of_in_the_result(tmp_path, name):
    source = sample(name)
    scan, path = rewritten(source, tmp_path)
    found = strictly_read(path)
    assert found.LossyImageCompression == "01" and np.array_equal(found.pixel_array, scan.pixels)
    with pytest.raises(ScanError, match="is compressed with loss, so that nobody knows its labels"):
        read_mask(source, 1)


@pytest.mark.parametrize("syntax", LOSSLESS[:3])
def test_without_the_decoder_the_error_names_the_extra(tmp_path, monkeypatch, syntax):
    source = compressed(ct_file(tmp_path / "scan.dcm", LARGE), syntax)
    decoder = pydicom.pixels.get_decoder(pydicom.dcmread(source).file_meta.TransferSyntaxUID)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",), "pylibjpeg": ("pylibjpeg>=2.0",)})
    for read in (read_scan, read_mask):
        with pytest.raises(ImportError, match=r"scan\.dcm takes python-gdcm.*tumour-composition\[medical\]"):
            read(source)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        # High-Throughput JPEG 2000, a film, and a vendor's own.
        ("1.2.840.10008.1.2.4.201", "is compressed as High-Throughput .*, which nothing here decodes; save it without"),
        ("1.2.840.10008.1.2.4.100", "is compressed as MPEG2 .*, which nothing here decodes; save it without"),
        ("1.2.3.4.5", "cannot be read as DICOM"),
    ],
)
def test_a_compression_that_nobody_decodes_is_named(tmp_path, syntax, message):
    source = dicom_file(tmp_path / "scan.dcm", LARGE)
    data = pydicom.dcmread(source)
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.PixelData = pydicom.encaps.encapsulate([LARGE.tobytes()])
    data["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(source, data, implicit_vr=False, little_endian=True, enforce_file_format=False)
    with pytest.raises(ScanError, match=rf"scan\.dcm {message}"):
        read_scan(source)


def test_a_damaged_frame_is_named(tmp_path):
    source = compressed(ct_file(tmp_path / "scan.dcm", LARGE), "JPEGLSLossless")
    data = pydicom.dcmread(source)
    frame = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2]])
    data.save_as(source)
    with pytest.raises(ScanError, match=r"scan\.dcm cannot be read as DICOM"):
        read_scan(source)
