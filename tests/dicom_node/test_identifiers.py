"""Identifiers as text: every character set both ways, and what peers should not send."""

import struct
from io import BytesIO
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import decode, encode

from appliance.part10 import leniently
from dicom_node.identifiers import identifier_of, texts

LITTLE_ENDIAN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)


def travelled(ds: Dataset, syntax: str) -> Dataset:
    is_implicit = syntax == ImplicitVRLittleEndian
    with leniently():
        encoded = encode(ds, is_implicit, True)  # noqa: FBT003 - pynetdicom's own
    assert encoded is not None
    return decode(BytesIO(encoded), is_implicit, True)  # noqa: FBT003


@pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
@pytest.mark.parametrize(
    ("terms", "name"),
    [
        ("ISO_IR 100", "Müller^Zoë"),
        ("ISO_IR 192", "Müller^Zoë=山田^太郎"),
        ("GB18030", "Zhang^San=张\u4e5f^三"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
    ],
)
def test_names_arrive_in_every_character_set(terms: Any, name: str, syntax: str):
    ds = Dataset()
    ds.SpecificCharacterSet = terms
    ds.PatientName = name

    assert texts(travelled(ds, syntax))["PatientName"] == name
    ours = travelled(identifier_of({"PatientName": name}, syntax), syntax)
    assert texts(ours) == {"SpecificCharacterSet": "ISO_IR 192", "PatientName": name}


def implicit(*elements: tuple[int, int, bytes]) -> Dataset:
    """A data set of elements as they travel in implicit VR little endian."""
    encoded = b"".join(
        struct.pack("<HHL", group, element, len(value)) + value
        for group, element, value in elements
    )
    with leniently():
        return decode(BytesIO(encoded), True, True)  # noqa: FBT003


def test_gb2312_arrives_without_its_escape_sequences():
    name = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"
    asked = implicit((0x0008, 0x0005, b"\\ISO 2022 IR 58"), (0x0010, 0x0010, name + b" "))

    assert texts(asked)["PatientName"] == "Zhang^XiaoDong=张^小东"


@pytest.mark.parametrize(
    "terms", [b"nonsense", b"\\", b"ISO_IR 192\\ISO 2022 IR 87 ", b"\x1b$\xff\xff", b""]
)
def test_no_character_set_is_too_strange(terms: bytes):
    asked = implicit((0x0008, 0x0005, terms), (0x0010, 0x0010, b"M\xc3\xbcller "))

    assert texts(asked)["PatientName"].startswith("M")


@pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
def test_sequences_private_keys_and_group_lengths_are_no_text(syntax: str):
    item = Dataset()
    item.PatientID = "inside"
    ds = Dataset()
    ds.PatientID = "P"
    ds.ReferencedStudySequence = Sequence([item])
    ds.private_block(0x0011, "MAKER", create=True).add_new(0x01, "LO", "private")

    assert texts(travelled(ds, syntax)) == {"PatientID": "P", "ReferencedStudySequence": ""}


@pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
def test_a_list_longer_than_64_kib_travels(syntax: str):
    uids = "\\".join(f"1.2.{number:060}" for number in range(1500))

    ours = travelled(identifier_of({"FailedSOPInstanceUIDList": uids}, syntax), syntax)

    assert texts(ours)["FailedSOPInstanceUIDList"] == uids
