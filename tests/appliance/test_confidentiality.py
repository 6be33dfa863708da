import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import keyword_for_tag
from pydicom.tag import Tag

from appliance import confidentiality

# Attributes that the table would have gone or empty, and that an option of the profile lets stay.
BY_OPTION = {
    "PatientAge": "Retain Patient Characteristics",
    "PatientSex": "Retain Patient Characteristics",
}
# The table lets these stay where the references in them are replaced (X/Z/U*).
BY_REPLACEMENT = {"ReferencedImageSequence", "SourceImageSequence"}


def listed() -> set[str]:
    return {keyword_for_tag(Tag(pair)) for pair in table.ALL_TAGS if len(pair) == 2}


def keywords(tags) -> set[str]:
    return {keyword_for_tag(tag) for tag in tags}


def test_nothing_is_kept_as_it_is_that_table_e_1_1_removes():
    kept = keywords({*confidentiality.KEPT, *confidentiality.CODES, *confidentiality.SEQUENCES})

    assert kept & listed() == {*BY_OPTION, *BY_REPLACEMENT}


def test_the_table_lists_every_date_that_is_shifted():
    assert keywords(confidentiality.SHIFTED) <= listed()


def test_every_attribute_has_one_rule():
    rules = (
        set(confidentiality.KEPT),
        set(confidentiality.SEQUENCES),
        set(confidentiality.CODES),
        set(confidentiality.SHIFTED),
        set(confidentiality.DUMMIES),
    )

    assert sum(map(len, rules)) == len(set.union(*rules))


# From the head, the middle and the tail of table E.1-1 of PS3.15, and what editions added.
SAMPLES = """
    AccessionNumber AcquisitionComments AcquisitionContextSequence AdmittingDiagnosesDescription
    BranchOfService CameraOwnerName ConcatenationUID CurrentPatientLocation
    DataSetTrailingPadding DeviceSerialNumber EthnicGroup FrameComments ImageComments
    InstitutionName IssuerOfPatientID MedicalRecordLocator OperatorsName OtherPatientIDs
    PatientBirthName PatientTelephoneNumbers PhysiciansOfRecord ProtocolName
    RequestAttributesSequence SeriesDescription StationName StudyDescription TextComments
    TimezoneOffsetFromUTC UniqueDeviceIdentifier VisitComments GPSLatitude PatientSexNeutered
    """


@pytest.mark.parametrize("keyword", SAMPLES.split())
def test_the_table_at_hand_lists(keyword: str):
    assert keyword in listed()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("SIEMENS", "SIEMENS"),
        ("Siemens Healthineers", "Siemens Healthineers"),
        ("GE MEDICAL SYSTEMS", "GE MEDICAL SYSTEMS"),
        ("SIEMENS 19550314", "SIEMENS"),
        ("Doe", ""),
    ],
)
def test_a_maker_is_known_by_name(given: str, kept: str):
    assert list(confidentiality.maker([given])) == ([kept] if kept else [])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("SOMATOM Scope", "SOMATOM Scope"),
        ("Discovery CT750 HD", "Discovery CT750 HD"),
        ("Aquilion ONE", "Aquilion ONE"),
        ("Brilliance 64", "Brilliance 64"),
        ("Brilliance 64 815 190", "Brilliance 64"),
        ("John Doe 64", ""),
        ("64", ""),
    ],
)
def test_a_model_is_known_by_name(given: str, kept: str):
    assert list(confidentiality.model([given])) == ([kept] if kept else [])


@pytest.mark.parametrize("kernel", ["B70s", "Br40d", "FC51", "LUNG", "BONEPLUS", "B", "I31f", "YA"])
def test_kernels_of_all_makers_stay(kernel: str):
    assert list(confidentiality.kernel([kernel, "3"])) == [kernel, "3"]


@pytest.mark.parametrize("value", ["DOE", "1e999", "nan", "0x1F", "1 2", "", "12a", "1" * 40])
def test_what_is_no_number_goes(value: str):
    assert not confidentiality.numbers([1, value])


def test_a_long_number_is_somebodys():
    assert list(confidentiality.ordinals(["12", 99999])) == ["12", 99999]
    assert not confidentiality.ordinals(["47110815"])
    assert not confidentiality.ordinals(["-1"])
