"""These tests hold whom a DICOM result names: itself, by identifiers that follow from its inputs; nobody else, because
a synthetic tumour must not enter a patient's record."""

import numpy as np
import pytest
from medical_files import DEEP, dicom_file, item
from written_files import SERIES, SOURCE, ct_file, frames_file, rewritten, strictly_read

from composition.scans.writing import SYNTHETIC, write_dicom

pydicom = pytest.importorskip("pydicom", reason="the extra `medical` is not installed")

MARK = "ZQXJ"  # in every text of the source that names somebody or something; in no word that we write
DAY, TIME = "19031217", "103501"
PERSON, PLACE = f"{MARK}^PERSON", f"{MARK} PLACE"
NAMED = {
    **{"PatientName": PERSON, "PatientID": f"{MARK}-1", "PatientBirthDate": DAY, "PatientAddress": PLACE},
    **{"PatientTelephoneNumbers": f"{MARK}-2", "PatientMotherBirthName": PERSON, "OtherPatientIDs": [f"{MARK}-3"]},
    **{"PatientComments": PERSON, "ReferringPhysicianName": PERSON, "PerformingPhysicianName": PERSON},
    **{"OperatorsName": PERSON, "NameOfPhysiciansReadingStudy": PERSON, "RequestingPhysician": PERSON},
    **{"InstitutionName": PLACE, "InstitutionAddress": PLACE, "StationName": f"{MARK}-4"},
    **{"DeviceSerialNumber": f"{MARK}-5", "AccessionNumber": f"{MARK}-6", "StudyID": f"{MARK}-7"},
    **{"StudyDescription": f"{MARK} s", "SeriesDescription": f"{MARK} t", "ImageComments": f"{MARK} u"},
    **{"ProtocolName": f"{MARK} v", "RequestedProcedureDescription": f"{MARK} w", "EthnicGroup": f"{MARK} x"},
    **{"StudyDate": DAY, "SeriesDate": DAY, "AcquisitionDate": DAY, "ContentDate": DAY, "InstanceCreationDate": DAY},
    **{"StudyTime": TIME, "SeriesTime": TIME, "AcquisitionTime": TIME, "ContentTime": TIME},
    **{"AcquisitionDateTime": DAY + TIME, "PatientSex": "F", "PatientAge": "041Y"},
    **{"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "BodyPartExamined": "HEAD", "KVP": 120},
}


def named_file(path, **changes):
    """A slice whose every text names somebody: in the file, in a sequence, in private elements, and in overlays."""
    hidden = item(
        PatientName=PERSON,
        InstitutionName=PLACE,
        ReferencedSOPInstanceUID="1.2.3.99",
        ReferencedSOPClassUID=SOURCE["SOPClassUID"],
    )
    changes = {"RequestAttributesSequence": [hidden], "SourceImageSequence": [hidden]} | changes
    source = ct_file(path, **(NAMED | changes))
    data = pydicom.dcmread(source)
    block = data.private_block(0x0009, "A VENDOR", create=True)
    block.add_new(1, "LO", PERSON)
    block.add_new(2, "SQ", [hidden])
    block.add_new(3, "OB", PERSON.encode() + b" ")
    data.add_new(0x60000022, "LO", PERSON)
    data.file_meta.SourceApplicationEntityTitle = MARK
    data.save_as(source)
    return source


def test_nothing_of_a_result_names_anybody(tmp_path):
    source = named_file(tmp_path / f"{MARK}.dcm")
    assert source.read_bytes().count(MARK.encode()) > 30  # so that there is what could be found
    _, path = rewritten(source, tmp_path)
    content, found = path.read_bytes(), strictly_read(path)
    for text in (MARK, DAY, TIME, "1903", "1.2.3."):
        assert text.encode() not in content, text
    assert not [one for one in found.iterall() if one.tag.is_private or 0x6000 <= one.tag.group < 0x6100]
    assert not [one for one in found.iterall() if one.VR in ("DA", "DT", "TM") and one.value]
    persons = [str(element.value) for element in found.iterall() if element.VR == "PN" and element.value]
    assert persons == [f"{SYNTHETIC}^"] and found.PatientID == SYNTHETIC
    # What says how the scan was made, and of whom as far as it matters for the picture, is taken over.
    for name in ("PatientSex", "PatientAge", "BodyPartExamined", "KVP", "Modality", "InstanceNumber"):
        assert found[name].value == (NAMED | SOURCE)[name], name


def test_a_result_says_that_it_is_synthetic(tmp_path):
    _, path = rewritten(named_file(tmp_path / "scan.dcm"), tmp_path)
    found = strictly_read(path)
    assert list(found.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    for name in ("SeriesDescription", "DerivationDescription", "ImageComments", "PatientName"):
        assert SYNTHETIC in str(found[name].value), name
    assert found.SpecificCharacterSet == "ISO_IR 192" and found.SOPClassUID == SOURCE["SOPClassUID"]
    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        *((None, []), ("ORIGINAL", []), (["DERIVED", "PRIMARY"], [])),
        (["ORIGINAL", "PRIMARY", "", "HEAD"], ["", "HEAD"]),
        (["ORIGINAL", "PRIMARY", "axial", "Mr. Miller's"], []),  # which the standard does not allow
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_an_image_type_of_any_length_is_continued(tmp_path, kinds, expected):
    _, path = rewritten(ct_file(tmp_path / "scan.dcm", ImageType=kinds), tmp_path)
    assert list(strictly_read(path).ImageType) == ["DERIVED", "SECONDARY", *expected]


@pytest.mark.parametrize("burned", ["YES", "NO", None])
def test_whether_a_name_stands_in_the_pixels_is_not_made_up(tmp_path, burned):
    _, path = rewritten(ct_file(tmp_path / "scan.dcm", BurnedInAnnotation=burned), tmp_path)
    found = strictly_read(path)
    assert found.get("BurnedInAnnotation") == burned
    assert found.get("PatientIdentityRemoved") == {"YES": "NO", "NO": "YES", None: None}[burned]


def identifiers(path) -> dict:
    found = strictly_read(path)
    names = ("SOPInstanceUID", *SERIES)
    return {name: found[name].value for name in names if name in found}


def test_identifiers_follow_from_the_inputs(tmp_path):
    source = ct_file(tmp_path / "scan.dcm")
    _, path = rewritten(source, tmp_path)
    first, content = identifiers(path), path.read_bytes()
    assert len(set(first.values())) == 4 and all(one.is_valid for one in first.values())
    assert not set(first.values()) & {SOURCE[name] for name in first}
    _, path = rewritten(source, tmp_path)
    assert path.read_bytes() == content
    _, path = rewritten(source, tmp_path, derivation="another")
    other = identifiers(path)
    # Results of one patient's scans lie in one frame of reference still.
    assert {name for name in first if first[name] == other[name]} == {"FrameOfReferenceUID"}
    for name, value in {"SOPInstanceUID": "1.2.3.44", "StudyInstanceUID": "1.2.3.45"}.items():
        _, path = rewritten(ct_file(tmp_path / "scan.dcm", **{name: value}), tmp_path)
        assert {one for one in first if identifiers(path)[one] != first[one]} == {name}


def test_every_frame_of_a_file_has_identifiers_of_its_own(tmp_path):
    source, seen = frames_file(tmp_path / "enhanced.dcm", np.stack([DEEP] * 12)), set()
    for number in range(12):
        _, path = rewritten(f"{source}#{number}", tmp_path)
        seen.add(identifiers(path)["SOPInstanceUID"])
    assert len(seen) == 12


def test_a_file_without_identifiers_gets_some(tmp_path):
    source = dicom_file(tmp_path / "scan.dcm")
    data = pydicom.dcmread(source)
    del data.SOPInstanceUID, data.SOPClassUID
    data.save_as(source)
    _, path = rewritten(source, tmp_path)
    found = strictly_read(path)
    assert found.SOPInstanceUID.is_valid and "FrameOfReferenceUID" not in found
    assert found.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage


def test_the_slices_of_a_series_share_it(tmp_path):
    seen = []
    for number in range(3):
        source = ct_file(tmp_path / f"{number}.dcm", DEEP + number, SOPInstanceUID=f"1.2.3.{50 + number}")
        scan, _ = rewritten(source, tmp_path)
        path = tmp_path / f"out{number}.dcm"
        write_dicom(path, source, scan, scan.pixels, "the series")
        seen.append(identifiers(path))
    for name in SERIES:
        assert len({one[name] for one in seen}) == 1, name
    assert len({one["SOPInstanceUID"] for one in seen}) == 3


def test_texts_in_another_alphabet_are_kept_readable(tmp_path):
    changes = {"SpecificCharacterSet": "ISO_IR 100", "RescaleType": "Grau µ", "ContrastBolusAgent": "Jod µ"}
    _, path = rewritten(ct_file(tmp_path / "scan.dcm", **changes), tmp_path)
    found = strictly_read(path)
    assert found.RescaleType == changes["RescaleType"] and "ContrastBolusAgent" not in found  # people write names there


@pytest.mark.parametrize(("age", "kept"), [("089Y", True), ("095Y", False), ("011M", True)])
def test_an_age_that_tells_a_person_from_others_stays_behind(tmp_path, age, kept):
    _, path = rewritten(ct_file(tmp_path / "scan.dcm", PatientAge=age), tmp_path)
    assert (strictly_read(path).get("PatientAge") == age) == kept
