import hashlib
import warnings
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from appliance.deidentification import MAX_DEPTH, as_file, deidentify
from appliance.errors import DeidentificationError
from tests.support import ct_series, identified
from tests.support.instances import Names, ct_instance
from tests.support.instances import as_file as written

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SECRET = "QZSCHMIDTOVA"
CHARACTER_SETS = {
    "ISO_IR 100": ("latin-1", "Qüllerß^Zoë"),
    "ISO_IR 144": ("iso8859-5", "Люксембург"),
    "ISO_IR 192": ("utf-8", "山田^Ωμέγα"),
    "GB18030": ("gb18030", "王^小东"),
    "\\ISO 2022 IR 87": ("iso2022_jp", "山田^太郎"),
}


def read(content: bytes) -> Dataset:
    return pydicom.dcmread(BytesIO(content))


@pytest.fixture
def image(tmp_path: Path) -> Dataset:
    """A slice as it comes from a file."""
    return pydicom.dcmread(written(ct_instance(Names.fresh()), tmp_path / "slice.dcm"))


def everywhere(text: bytes, charset: str = "ISO_IR 100") -> Dataset:
    """A slice with the text in every attribute, and in each nested five deep."""
    (ds,) = ct_series.slices(1)
    ds.SpecificCharacterSet = charset.split("\\")
    ds = through_a_file(ds)
    identified.plant(ds, list(identified.PLACES), text)
    identified.plant_deep(ds, list(identified.PLACES), text)
    return ds


def through_a_file(ds: Dataset) -> Dataset:
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests mean to write nonsense
        ds.save_as(content, enforce_file_format=True)
    content.seek(0)
    return pydicom.dcmread(content)


def test_nothing_planted_in_any_attribute_is_left():
    ds = everywhere(SECRET.encode())
    identified.plant_privately(ds, SECRET)
    ds.PatientID = SECRET
    ds.file_meta.SourceApplicationEntityTitle = SECRET
    ds.file_meta.SendingApplicationEntityTitle = SECRET
    ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    ds.file_meta.PrivateInformation = SECRET.encode()
    ds.preamble = SECRET.encode().ljust(128, b"\0")
    planted = through_a_file(ds)
    assert len(identified.PLACES) > 2000

    content = as_file(deidentify(planted, KEY))

    assert SECRET.encode() not in content
    assert content[:128] == bytes(128)
    made = read(content)
    assert not [element for element in made if element.tag.is_private]
    assert {element.keyword for element in made.file_meta} == {
        "FileMetaInformationGroupLength",
        "FileMetaInformationVersion",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
        "TransferSyntaxUID",
        "ImplementationClassUID",
    }


@pytest.mark.parametrize("charset", CHARACTER_SETS)
def test_nothing_is_left_in_any_character_set(charset: str):
    encoding, text = CHARACTER_SETS[charset]
    planted = through_a_file(everywhere(text.encode(encoding), charset))

    content = as_file(deidentify(planted, KEY))

    for part in text.split("^"):
        assert part.encode(encoding) not in content
        assert part.encode() not in content
    assert "SpecificCharacterSet" not in read(content)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(
    places=st.lists(st.sampled_from(identified.PLACES), min_size=1, max_size=40, unique=True),
    text=st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ ^=-", min_size=9, max_size=40).filter(
        lambda text: len(text.replace(" ", "")) >= 9
    ),
    depth=st.integers(1, 5),
)
def test_whatever_is_planted_wherever_is_gone(places, text: str, depth: int):
    (ds,) = ct_series.slices(1)
    identified.plant(ds, places, text.encode())
    identified.plant_deep(ds, places, text.encode(), depth)
    before = through_a_file(ds)

    content = as_file(deidentify(before, KEY))

    assert text.strip().encode() not in content


def test_a_name_beside_maker_model_and_kernel_stays_behind(image: Dataset):
    image.Manufacturer = "SIEMENS QZSCHMIDTOVA^ANNA"
    image.ManufacturerModelName = "SOMATOM Definition AS+ 64 Qzschmidtova 471 0815 19550314"
    image.ConvolutionKernel = ["B70s", "QZSCHMIDTOVA"]
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI", "QZSCHMIDTOVA"]
    image.BodyPartExamined = "QZSCHMIDTOVA"

    made = deidentify(image, KEY)

    assert made.Manufacturer == "SIEMENS"
    assert made.ManufacturerModelName == "SOMATOM Definition AS+ 64"
    assert made.ConvolutionKernel == "B70s"
    assert made.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL", "CT SOM5 SPI", "OTHER"]
    assert "BodyPartExamined" not in made


def test_the_input_stays_as_it_was(image: Dataset):
    before = as_bytes(image)

    deidentify(image, KEY)

    assert as_bytes(image) == before


def as_bytes(ds: Dataset) -> bytes:
    content = BytesIO()
    ds.save_as(content)
    return content.getvalue()


def test_twice_is_the_same_and_another_key_is_not(image: Dataset):
    first, second, other = (as_file(deidentify(image, key)) for key in (KEY, KEY, OTHER_KEY))

    assert first == second
    ours, theirs = read(first), read(other)
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
        assert ours[keyword].value != theirs[keyword].value
        assert image[keyword].value not in (ours[keyword].value, theirs[keyword].value)


def test_uids_become_legal_ones_and_references_still_fit(image: Dataset):
    with pydicom.config.disable_value_validation():
        image.StudyInstanceUID = "69a4b0e6-no-legal-uid"  # as happens in de-identified data
    image.FrameOfReferenceUID = generate_uid()
    reference = Dataset()
    reference.ReferencedSOPClassUID = CTImageStorage
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    source = Dataset()
    source.ReferencedSOPClassUID = CTImageStorage
    source.ReferencedSOPInstanceUID = image.SOPInstanceUID
    source.ReferencedFrameOfReferenceUID = image.FrameOfReferenceUID
    reference.SourceImageSequence = [source]
    image.ReferencedImageSequence = [reference]

    made = deidentify(image, KEY)

    outer = made.ReferencedImageSequence[0]
    inner = outer.SourceImageSequence[0]
    assert outer.ReferencedSOPInstanceUID == inner.ReferencedSOPInstanceUID == made.SOPInstanceUID
    assert inner.ReferencedFrameOfReferenceUID == made.FrameOfReferenceUID
    assert outer.ReferencedSOPClassUID == made.SOPClassUID == CTImageStorage
    uids = (made.StudyInstanceUID, made.SOPInstanceUID, made.FrameOfReferenceUID)
    assert all(uid.is_valid and uid.startswith("2.25.") for uid in uids)


def test_dates_of_a_person_keep_their_distances_and_lose_their_times(image: Dataset):
    image.StudyDate, image.AcquisitionDateTime = "20200131", "20200303142233.5+0100"
    image.SeriesDate, image.PatientBirthDate = "20200201", "19700101"
    image.StudyTime = image.AcquisitionTime = "142233"

    made = deidentify(image, KEY)
    image.StudyDate = "20210131"
    later = deidentify(image, KEY)
    image.PatientID = "another"
    other = deidentify(image, KEY)

    def day(text: str) -> date:
        return date.fromisoformat(text)

    assert (day(made.SeriesDate) - day(made.StudyDate)).days == 1
    assert (day(made.AcquisitionDateTime) - day(made.StudyDate)).days == 32
    assert (day(later.StudyDate) - day(made.StudyDate)).days == 366
    assert 1 <= (date(2020, 1, 31) - day(made.StudyDate)).days <= 3650
    assert other.StudyDate != later.StudyDate
    assert not any((made.PatientBirthDate, made.StudyTime, made.AcquisitionTime))


@pytest.mark.parametrize(
    ("given_age", "born", "kept"),
    [
        ("045Y", "", "045Y"),
        ("093Y", "", "090Y"),
        ("018M", "", "001Y"),
        ("", "19700102", "055Y"),
        ("", "19000101", "090Y"),
        ("old", "", None),
    ],
)
def test_age_is_in_years_up_to_89(image: Dataset, given_age: str, born: str, kept: str | None):
    with pydicom.config.disable_value_validation():
        image.PatientAge, image.PatientBirthDate = given_age, born
    image.StudyDate = "20260101"

    assert deidentify(image, KEY).get("PatientAge") == kept


def test_one_person_has_one_pseudonym_and_two_have_two(image: Dataset):
    image.PatientID, image.PatientName = "4711", "One^Name"
    first = deidentify(image, KEY)
    image.PatientName, image.IssuerOfPatientID = "Other^Spelling", "Workstation"
    second = deidentify(image, KEY)
    image.PatientID = "4712"
    third = deidentify(image, KEY)

    assert first.PatientID == first.PatientName == second.PatientID
    assert third.PatientID != first.PatientID
    assert "4711" not in first.PatientID


def test_it_says_what_was_done(image: Dataset):
    made = deidentify(image, KEY)

    assert made.PatientIdentityRemoved == "YES"
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = [item.CodeValue for item in made.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113107", "113108"]


def test_overlays_go_with_what_they_hid_in_unused_bits(image: Dataset):
    values = (np.arange(64, dtype="<u2").reshape(8, 8) * 50) & 0x0FFF
    image.PixelRepresentation, image.BitsStored, image.HighBit = 0, 12, 11
    image.PixelData = (values | 0xA000).tobytes() + SECRET.encode()
    image.add_new(0x60000022, "LO", SECRET)
    image.add_new(0x60000102, "US", 12)
    image.add_new(0x60004000, "LT", SECRET)
    image.add_new(0x60023000, "OW", SECRET.encode())
    image.add_new(0x50000005, "US", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = deidentify(image, KEY)

    assert {element.tag.group for element in made} & {0x5000, 0x6000, 0x6002} == set()
    assert made.PixelData == values.tobytes()


def test_a_comment_in_the_compressed_stream_goes():
    (ds,) = ct_series.compressed(ct_series.slices(1), JPEGLosslessSV1)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    comment = b"\xff\xfe" + (len(SECRET) + 2).to_bytes(2, "big") + SECRET.encode()
    ds.PixelData = encapsulate([frame[:2] + comment + frame[2:]])
    pixels = ct_series.slices(1)[0].pixel_array

    made = deidentify(ds, KEY)

    assert SECRET.encode() not in as_file(made)
    assert made.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(made.pixel_array, pixels)


@pytest.mark.parametrize("sop_class_uid", [BasicTextSRStorage, EncapsulatedPDFStorage, "1.2.3.4"])
def test_what_is_no_image_does_not_leave(image: Dataset, sop_class_uid: str):
    image.SOPClassUID = sop_class_uid

    with pytest.raises(DeidentificationError, match="do not leave"):
        deidentify(image, KEY)


def test_an_image_said_to_show_text_does_not_leave(image: Dataset):
    image.BurnedInAnnotation = "YES"

    with pytest.raises(DeidentificationError, match="said to show text"):
        deidentify(image, KEY)


def test_a_capture_with_text_does_not_leave_and_one_without_does(image: Dataset, tmp_path: Path):
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.Rows = image.Columns = 256
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelRepresentation = 0
    shades = (np.add.outer(np.arange(256), np.arange(256)) // 4).astype(np.uint8)
    image.PixelData = shades.tobytes()
    clean = deidentify(image, KEY)
    picture = Image.fromarray(shades)
    ImageDraw.Draw(picture).text((40, 90), "Doe^John 1955", 255, ImageFont.load_default(16))
    image.PixelData = np.asarray(picture).tobytes()

    assert np.array_equal(clean.pixel_array, shades)
    with pytest.raises(DeidentificationError, match="seems to show text"):
        deidentify(image, KEY)


def test_digits_of_other_scripts_are_none(image: Dataset):
    digits = "\N{ARABIC-INDIC DIGIT FOUR}\N{ARABIC-INDIC DIGIT SEVEN}"
    image.SpecificCharacterSet = "ISO_IR 192"
    image.StackID = digits
    image.ConvolutionKernel = [f"B{digits}s", "\N{LATIN SMALL LETTER LONG S}OFT", "B70s"]

    made = read(as_file(deidentify(through_a_file(image), KEY)))

    assert "StackID" not in made
    assert made.ConvolutionKernel == "B70s"


def test_pointers_to_attributes_stay_where_the_standard_has_them(image: Dataset):
    dimension, private = Dataset(), Dataset()
    dimension.DimensionIndexPointer = Tag("ImagePositionPatient")
    dimension.FunctionalGroupPointer = Tag("PlanePositionSequence")
    private.DimensionIndexPointer = 0x47110815
    image.DimensionIndexSequence = [dimension, private]
    image.FrameIncrementPointer = [Tag("FrameTime"), Tag("SliceLocation")]

    made = read(as_file(deidentify(through_a_file(image), KEY)))

    first, second = made.DimensionIndexSequence
    assert first.DimensionIndexPointer == Tag("ImagePositionPatient")
    assert first.FunctionalGroupPointer == Tag("PlanePositionSequence")
    assert "DimensionIndexPointer" not in second
    assert made.FrameIncrementPointer == [Tag("FrameTime"), Tag("SliceLocation")]


def test_sequences_beyond_the_limit_are_refused(image: Dataset):
    inner = image
    for _ in range(MAX_DEPTH + 1):
        inner.ReferencedImageSequence = [Dataset()]
        inner = inner.ReferencedImageSequence[0]

    with pytest.raises(DeidentificationError, match="deep"):
        deidentify(image, KEY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"StudyInstanceUID": ""}, "StudyInstanceUID is missing"),
        ({"StudyInstanceUID": ["1.2.3", "1.2.4"]}, "StudyInstanceUID has several values"),
        ({"BurnedInAnnotation": ["NO", "YES"]}, "said to show text"),
        ({"Rows": 0}, "no pixels"),
        ({"Rows": 60000, "Columns": 60000}, "more than an image"),
        ({"HighBit": 3}, "laid out unusually"),
        ({"PixelData": b"\0" * 20}, "cannot be decoded"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "neither grey nor RGB"),
    ],
)
def test_what_cannot_be_cleaned_for_certain_is_refused(
    image: Dataset, change: dict[str, object], reason: str
):
    for keyword, value in change.items():
        setattr(image, keyword, value)

    with pytest.raises(DeidentificationError, match=reason):
        deidentify(image, KEY)


def test_a_segmentation_keeps_what_it_segments(image: Dataset):
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, SECRET
    segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "MANUAL", SECRET
    segment.SegmentedPropertyTypeCodeSequence = [code("39607008", SECRET)]
    segment.SegmentedPropertyCategoryCodeSequence = [code("99QZ", SECRET)]
    image.SOPClassUID, image.Modality = SegmentationStorage, "SEG"
    image.SegmentSequence = [segment]
    image.BitsAllocated = image.BitsStored = 1
    image.HighBit = image.PixelRepresentation = 0
    image.NumberOfFrames = 1
    image.PixelData = bytes(range(8))

    made = deidentify(image, KEY)

    kept = made.SegmentSequence[0]
    assert SECRET.encode() not in as_file(made)
    assert (kept.SegmentNumber, kept.SegmentLabel) == (1, "REMOVED")
    assert kept.SegmentedPropertyTypeCodeSequence[0].CodeMeaning.startswith("Lung")
    assert "SegmentedPropertyCategoryCodeSequence" not in kept
    assert made.PixelData == bytes(range(8))


def code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


def test_functional_groups_of_an_enhanced_image_stay(image: Dataset):
    position, frame, content = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [1, 2, 3.5]
    content.FrameComments, content.DimensionIndexValues = SECRET, [1, 4]
    content.FrameAcquisitionDateTime = "20260102030405"
    frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
    image.SOPClassUID = EnhancedCTImageStorage
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.NumberOfFrames = 1
    image.PerFrameFunctionalGroupsSequence = [frame]

    made = deidentify(image, KEY).PerFrameFunctionalGroupsSequence[0]

    assert made.PlanePositionSequence[0].ImagePositionPatient == [1, 2, 3.5]
    assert made.FrameContentSequence[0].DimensionIndexValues == [1, 4]
    assert made.FrameContentSequence[0].FrameAcquisitionDateTime != "20260102"
    assert len(made.FrameContentSequence[0].FrameAcquisitionDateTime) == 8
    assert "FrameComments" not in made.FrameContentSequence[0]


def test_pixels_are_the_same_in_every_transfer_syntax():
    digests = set()
    for syntax in (None, *ct_series.CODECS):
        made = ct_series.slices(1)
        (ds,) = made if syntax is None else ct_series.compressed(made, syntax)
        digests.add(hashlib.sha256(deidentify(ds, KEY).PixelData).hexdigest())

    assert len(digests) == 1
