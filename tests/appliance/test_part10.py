"""The header of real and hostile data sets."""

import hashlib
import random
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from appliance.errors import DatasetMismatchError, UnreadableDatasetError
from appliance.part10 import (
    IMPLICIT,
    INFLATED_HEADER_BYTES,
    UNUSUAL,
    _any_elements,
    _plain_elements,
    file_head,
    first_uids,
    header_at_a_glance,
    leniently,
    read_file,
    read_header,
    with_instance_uid,
)
from appliance.reception import BEGINNING_BYTES
from tests.support.damage import mutated
from tests.support.instances import (
    REAL_DICOM,
    SIXTEEN_SYNTAXES,
    Names,
    as_file,
    ct_instance,
    dataset_bytes,
    encoded,
    needs_real_data,
)

UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


def slice_bytes(transfer_syntax_uid: str = ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    return encoded(ct_instance(Names("1.2.3", "1.2.3.4"), **attributes), transfer_syntax_uid)


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_a_header_is_read_as_it_was_written(transfer_syntax_uid: str):
    header = read_header(
        slice_bytes(transfer_syntax_uid, SOPInstanceUID="1.2.9"), transfer_syntax_uid
    )

    assert (header.study_uid, header.series_uid) == ("1.2.3", "1.2.3.4")
    assert (header.sop_class_uid, header.sop_instance_uid) == (CTImageStorage, "1.2.9")
    assert vars(header.patient) == {
        "patient_id": "P-1",
        "issuer": "",
        "name": "Test^Zoë",
        "birth_date": "19700101",
        "sex": "O",
    }
    assert header.study.description == "Thorax nativ für Prüfung"
    assert (header.series.modality, header.series.series_number) == ("CT", "3")


def test_a_deflated_header_is_read():
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(slice_bytes()) + deflater.flush()

    assert read_header(deflated, DeflatedExplicitVRLittleEndian).study_uid == "1.2.3"


@st.composite
def nested(draw: st.DrawFn) -> tuple[bytes, str]:
    """An encoded data set with sequences in sequences, of defined and undefined lengths."""

    def dataset(depth: int) -> Dataset:
        ds = Dataset()
        ds.StudyDescription = draw(st.text("abc ", max_size=9))
        ds.PatientID = draw(st.text("123", max_size=5))
        ds.add_new(0x00091001, draw(st.sampled_from(["UN", "OB", "LO"])), b"A1")
        for keyword in ("ReferencedStudySequence", "ProcedureCodeSequence"):
            if depth and draw(st.booleans()):
                items = [dataset(depth - 1) for _ in range(draw(st.integers(0, 2)))]
                for item in items:
                    item.is_undefined_length_sequence_item = draw(st.booleans())
                ds[keyword] = pydicom.DataElement(Tag(keyword), "SQ", Sequence(items))
                ds[keyword].is_undefined_length = draw(st.booleans())
        return ds

    syntax = draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    ds = ct_instance(Names("1.2.3", "1.2.3.4"))
    ds.update(dataset(3))
    whole = encoded(ds, syntax)
    return whole[: draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) - 3]))], syntax


@settings(deadline=None)
@given(nested())
def test_a_header_read_at_a_glance_is_what_pydicom_reads(given_set: tuple[bytes, str]):
    dataset, syntax = given_set

    compare(dataset, syntax)


@settings(max_examples=300, deadline=None)
@given(nested(), st.randoms(use_true_random=False))
def test_a_damaged_header_is_read_as_pydicom_does_or_left_to_it(
    given_set: tuple[bytes, str], chance: random.Random
):
    dataset, syntax = given_set

    compare(mutated(dataset, chance), syntax)


@needs_real_data
@pytest.mark.parametrize("path", sorted(REAL_DICOM.glob("*/*"))[::9], ids=lambda path: path.name)
def test_a_real_header_is_read_as_pydicom_does_damaged_or_not(path: Path):
    file = read_file(path.read_bytes())
    beginning = file.dataset[:BEGINNING_BYTES]
    chance = random.Random(path.name)

    compare(file.dataset, file.transfer_syntax_uid)
    for _ in range(20):
        compare(mutated(beginning, chance), file.transfer_syntax_uid)


def compare(dataset: bytes, syntax: str) -> None:
    """Hold what is seen at a glance, if anything, against what pydicom reads."""
    if syntax in UNUSUAL:
        return
    glance = _plain_elements(dataset, len(dataset), implicit=syntax in IMPLICIT)
    # pydicom refuses a character set with a NUL in it; at a glance it is read without.
    with suppress(UnreadableDatasetError):
        pydicoms = _any_elements(BytesIO(dataset), syntax)
        assert glance is None or (valued(glance.elements), glance.pixels) == (
            valued(pydicoms.elements),
            pydicoms.pixels,
        )


def valued(elements: dict[int, bytes]) -> dict[int, bytes]:
    return {tag: value for tag, value in elements.items() if value}


def test_a_character_set_with_a_nul_in_it_is_read_without():
    whole = slice_bytes().replace(b"ISO_IR 100", b"ISO_\0\0IR 6")

    assert read_header(whole, ExplicitVRLittleEndian).study_uid == "1.2.3"


@pytest.mark.parametrize("known", [40, 200, 1000])
def test_the_first_bytes_are_enough_where_they_reach_the_pixels(known: int):
    whole = slice_bytes(PixelData=bytes(9000))

    header = header_at_a_glance(whole[:known], len(whole), ExplicitVRLittleEndian)

    assert header in (None, read_header(whole, ExplicitVRLittleEndian))
    assert (header is not None) == (known == 1000)
    assert header_at_a_glance(whole[:1000], len(whole) - 1, ExplicitVRLittleEndian) is None


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_an_ordinary_header_is_read_at_a_glance(syntax: str, undefined: bool):  # noqa: FBT001
    inner = Dataset()
    inner.StudyDescription = "not this one"
    ds = ct_instance(Names("1.2.3", "1.2.3.4"), ReferencedStudySequence=Sequence([inner]))
    ds["ReferencedStudySequence"].is_undefined_length = undefined

    whole = encoded(ds, syntax)
    found = _plain_elements(whole, len(whole), implicit=syntax == ImplicitVRLittleEndian)

    assert found is not None
    assert found.elements[0x0020000D] == b"1.2.3\0"
    assert b"Thorax" in found.elements[0x00081030]


@needs_real_data
def test_the_sixteen_transfer_syntaxes_of_one_real_slice_are_read_as_pydicom_does():
    paths = sorted(SIXTEEN_SYNTAXES.iterdir())
    assert len(paths) == 16

    for path in paths:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        header = read_header(dataset_bytes(path), ds.file_meta.TransferSyntaxUID)
        assert header.sop_instance_uid == ds.SOPInstanceUID
        assert header.study_uid == ds.StudyInstanceUID
        assert header.series.description == ds.SeriesDescription
        assert header.patient.patient_id == ds.PatientID


def test_a_name_in_several_character_sets_is_decoded():
    ds = ct_instance(Names.fresh(), SpecificCharacterSet=["", "ISO 2022 IR 87"])
    ds.PatientName = "Yamada^Tarou=山田^太郎"  # PS3.5 annex H.3

    header = read_header(encoded(ds), ExplicitVRLittleEndian)

    assert header.patient.name == "Yamada^Tarou=山田^太郎"


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_instance_without_study_or_series_is_no_instance(keyword: str):
    for absent in (slice_bytes(**{keyword: ""}), slice_bytes(**{keyword: "9" * 1000})):
        with pytest.raises(DatasetMismatchError, match=keyword):
            read_header(absent, ExplicitVRLittleEndian)


def test_an_absent_instance_uid_is_left_to_the_command():
    assert (
        read_header(slice_bytes(SOPInstanceUID=""), ExplicitVRLittleEndian).sop_instance_uid == ""
    )


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_a_data_set_cut_anywhere_within_an_element_is_refused(transfer_syntax_uid: str):
    whole = slice_bytes(transfer_syntax_uid)

    for end in (len(whole) - 1, len(whole) - 127, len(whole) // 2, 300):
        with pytest.raises((UnreadableDatasetError, DatasetMismatchError)):
            read_header(whole[:end], transfer_syntax_uid)


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
@pytest.mark.parametrize("undefined", [True, False])
def test_a_data_set_cut_within_the_head_of_its_pixels_is_refused(
    transfer_syntax_uid: str, *, undefined: bool
):
    ds = ct_instance(Names.fresh(), RequestAttributesSequence=[Dataset()])
    ds["RequestAttributesSequence"].is_undefined_length = undefined
    whole = encoded(ds, transfer_syntax_uid)
    head = len(whole) - 128 - (8 if transfer_syntax_uid in IMPLICIT else 12)

    for end in range(head + 1, len(whole) - 128):
        with pytest.raises(UnreadableDatasetError):
            read_header(whole[:end], transfer_syntax_uid)
    assert read_header(whole[:head], transfer_syntax_uid).is_image


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_bytes_after_a_delimiter_that_delimits_nothing_are_refused(transfer_syntax_uid: str):
    order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
    ds = ct_instance(Names.fresh())
    del ds.PixelData
    delimiter = struct.pack(f"{order}HHL", 0xFFFE, 0xE00D, 0)

    with pytest.raises(UnreadableDatasetError):
        read_header(encoded(ds, transfer_syntax_uid) + delimiter + bytes(20), transfer_syntax_uid)


@pytest.mark.parametrize(
    ("attributes", "is_image"),
    [({}, True), ({"Rows": None}, False), ({"Rows": 0}, False), ({"Rows": 256}, True)],
)
@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
def test_what_has_rows_is_an_image_that_lost_its_pixels(
    transfer_syntax_uid: str, attributes: dict[str, Any], *, is_image: bool
):
    ds = ct_instance(Names.fresh(), **attributes)
    del ds.PixelData

    header = read_header(encoded(ds, transfer_syntax_uid), transfer_syntax_uid)

    assert header.pixels is None
    assert header.is_image is is_image


@pytest.mark.parametrize("lost", [2, 100])
def test_a_deflated_data_set_that_is_cut_short_is_refused(lost: int):
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(slice_bytes()) + deflater.flush()

    with pytest.raises(UnreadableDatasetError):
        read_header(deflated[:-lost], DeflatedExplicitVRLittleEndian)


def test_an_element_that_claims_four_gigabytes_is_refused():
    liar = struct.pack("<HH2sHL", 0x0009, 0x0010, b"UN", 0, 0xFFFFFFF0) + b"x"

    with pytest.raises(UnreadableDatasetError):
        read_header(liar, ExplicitVRLittleEndian)


def test_a_thousandfold_nested_sequence_is_refused():
    ds = ct_instance(Names.fresh())
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    sequence = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    bomb = (sequence + item) * 5000

    with pytest.raises(UnreadableDatasetError):
        read_header(bomb + encoded(ds), ExplicitVRLittleEndian)


def test_a_decompression_bomb_unpacks_to_no_more_than_a_header():
    deflater = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
    private = struct.pack("<HH2sHL", 0x0009, 0x0010, b"OB", 0, INFLATED_HEADER_BYTES * 2)
    bomb = deflater.compress(private + bytes(INFLATED_HEADER_BYTES * 2)) + deflater.flush()

    with pytest.raises((UnreadableDatasetError, DatasetMismatchError)):
        read_header(bomb, DeflatedExplicitVRLittleEndian)


def test_an_attribute_is_cut_to_what_a_database_should_hold():
    header = read_header(slice_bytes(PatientID="P" * 60_000), ExplicitVRLittleEndian)

    assert len(header.patient.patient_id) == 1024


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from([*UNCOMPRESSED, DeflatedExplicitVRLittleEndian]))
def test_any_bytes_are_read_or_refused(dataset: bytes, transfer_syntax_uid: str):
    with suppress(UnreadableDatasetError, DatasetMismatchError):
        read_header(dataset, transfer_syntax_uid)


def test_the_file_is_a_function_of_the_instance_alone():
    head = file_head(
        sop_class_uid=CTImageStorage,
        sop_instance_uid="1.2.3",
        transfer_syntax_uid="1.2.840.10008.1.2",
    )

    assert head[:132] == bytes(128) + b"DICM"
    # Another head is another name in the store: what was received before counts as other bytes.
    assert (
        hashlib.sha256(head).hexdigest()
        == "87bf987692113af74057d227b2fb3546f75065c71a1717056b4701da33971bc4"
    )


def test_the_file_head_is_what_pydicom_expects(tmp_path: Path):
    path = tmp_path / "a.dcm"
    head = file_head(
        sop_class_uid=CTImageStorage, sop_instance_uid="1.2.9", transfer_syntax_uid=JPEG2000Lossless
    )
    path.write_bytes(head + slice_bytes(SOPInstanceUID="1.2.9"))

    meta = pydicom.dcmread(path, stop_before_pixels=True).file_meta

    assert meta.MediaStorageSOPClassUID == CTImageStorage
    assert meta.MediaStorageSOPInstanceUID == "1.2.9"
    assert meta.TransferSyntaxUID == JPEG2000Lossless
    assert meta.FileMetaInformationGroupLength == len(head) - 144
    assert meta.ImplementationClassUID.is_valid


@pytest.mark.parametrize("transfer_syntax_uid", UNCOMPRESSED)
@pytest.mark.parametrize("present", [True, False])
def test_a_missing_instance_uid_is_filled_in_and_nothing_else_changes(
    transfer_syntax_uid: str, *, present: bool
):
    ds = ct_instance(Names.fresh(), SOPInstanceUID="")
    if not present:
        del ds.SOPInstanceUID

    completed = with_instance_uid(encoded(ds, transfer_syntax_uid), transfer_syntax_uid, "1.2.34")

    ds.SOPInstanceUID = "1.2.34"
    assert completed == encoded(ds, transfer_syntax_uid)


def test_a_sequence_before_the_pixels_is_passed_over():
    ds = ct_instance(Names.fresh())
    item = Dataset()
    item.ReferencedSOPInstanceUID = "1.2.3"
    ds.ReferencedImageSequence = Sequence([item])
    ds["ReferencedImageSequence"].is_undefined_length = True

    assert read_header(encoded(ds), ExplicitVRLittleEndian).series.modality == "CT"


def test_a_file_is_taken_apart_again(tmp_path: Path):
    ds = ct_instance(Names.fresh())
    for syntax in UNCOMPRESSED:
        path = as_file(ds, tmp_path / "made.dcm", syntax)

        found = read_file(path.read_bytes())

        assert found.dataset == dataset_bytes(path)
        assert found.transfer_syntax_uid == syntax
        assert found.sop_instance_uid == ds.SOPInstanceUID


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, DeflatedExplicitVRLittleEndian])
def test_the_first_uids_are_read_from_a_beginning(syntax: str):
    item = Dataset()
    item.SOPInstanceUID = "9.9.9"
    deflated = syntax == DeflatedExplicitVRLittleEndian
    whole = slice_bytes(
        ExplicitVRLittleEndian if deflated else syntax,
        SOPInstanceUID="1.2.9",
        LanguageCodeSequence=[item],
        StudyDescription="x" * 5000,
    )
    if deflated:
        packer = zlib.compressobj(level=0, wbits=-zlib.MAX_WBITS)
        whole = packer.compress(whole) + packer.flush()

    assert first_uids(whole[:1000], syntax) == (CTImageStorage, "1.2.9")
    assert first_uids(whole[-1000:-990], ImplicitVRLittleEndian) == ("", "")


def test_a_beginning_that_is_none_is_refused():
    with pytest.raises(UnreadableDatasetError):
        first_uids(slice_bytes(), DeflatedExplicitVRLittleEndian)


def test_a_deflated_file_is_taken_apart():
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = packer.compress(slice_bytes()) + packer.flush()
    head = file_head(
        sop_class_uid="1.2",
        sop_instance_uid="3.4",
        transfer_syntax_uid=DeflatedExplicitVRLittleEndian,
    )

    assert read_file(head + deflated).dataset == deflated


@pytest.mark.parametrize("content", [b"", b"DICM", bytes(132), bytes(128) + b"DICM"])
def test_what_is_no_file_is_refused(content: bytes):
    with pytest.raises(UnreadableDatasetError):
        read_file(content)


def test_lenience_ends_with_the_last_thread_that_wants_it():
    before = pydicom.config.settings.reading_validation_mode, list(warnings.filters)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with leniently():
            first_is_in.set()
            second_is_in.wait(10)
        first_is_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_is_in.wait(10)
    with leniently():
        second_is_in.set()
        first_is_out.wait(10)
        # The first has left, and took nothing from the second.
        assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE
    thread.join()

    assert (pydicom.config.settings.reading_validation_mode, list(warnings.filters)) == before


def test_what_rules_of_priority_look_at_is_read():
    series = read_header(
        slice_bytes(StationName="ER1", ProtocolName="Trauma", RequestedProcedurePriority="STAT"),
        ExplicitVRLittleEndian,
    ).series

    told = (series.station_name, series.protocol_name, series.requested_priority)
    assert told == ("ER1", "Trauma", "STAT")
