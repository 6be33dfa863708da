"""The identifiers of C-FIND, C-MOVE and C-GET (PS3.4 section C.2.2) as plain text.

What a peer sends is data: it is read without pydicom's conversions, which raise on illegal values,
and nothing of it is ever a path, SQL or a log line.
"""

from collections.abc import Mapping
from typing import Final

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

from appliance.part10 import leniently

CHARACTER_SET: Final = "ISO_IR 192"
"""UTF-8, in which every identifier of ours is written."""

TEXT_LIMIT: Final = 1 << 16
ESCAPE: Final = b"\x1b"
DESIGNATES_GB2312: Final = "\x1b$)A"
"""Of ISO 2022 IR 58; pydicom 3.0 obeys it and leaves it in the text."""
# A list of 64-character UIDs is the longest value that means anything.
LIST_LIMIT: Final = 1 << 20

# Attributes of the query itself, which nothing is matched with (PS3.4 section C.4.1.1.3).
CONTROL: Final = frozenset(
    {"QueryRetrieveLevel", "SpecificCharacterSet", "TimezoneOffsetFromUTC", "QueryRetrieveView"}
)


def texts(identifier: Dataset) -> dict[str, str]:
    """Return every attribute of the dictionary by keyword, decoded, as one text each.

    Several values are joined by a backslash, as they travel. Sequences are "", private attributes
    and group lengths are left out.
    """
    found = {}
    with leniently():  # pydicom warns of character sets that are none, and quotes them
        encodings = _encodings(identifier)
        for tag in identifier.keys():  # noqa: SIM118 - iterating the data set itself converts
            keyword = keyword_for_tag(tag)
            if keyword and tag.element != 0:
                found[keyword] = _text(identifier, tag, encodings)
    return found


def identifier_of(
    values: Mapping[str, str], transfer_syntax: UID = ImplicitVRLittleEndian
) -> Dataset:
    """Return an identifier in UTF-8, ready to be encoded in a transfer syntax.

    Values are written as they are, legal or not: a sender's date need not be a date. Sequences and
    binary numbers are empty.
    """
    identifier = Dataset()
    identifier.SpecificCharacterSet = CHARACTER_SET
    for keyword, value in values.items():
        tag = Tag(keyword)
        vr = dictionary_VR(tag)
        if vr == "SQ":
            setattr(identifier, keyword, [])
            continue
        raw = b"" if vr in BINARY else value.encode("utf-8")
        padded = raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)
        identifier[tag] = RawDataElement(
            tag,
            vr,
            len(padded),
            padded,
            0,
            is_implicit_VR=transfer_syntax.is_implicit_VR,
            is_little_endian=transfer_syntax.is_little_endian,
        )
    # What is in that encoding already is written without being converted.
    identifier.set_original_encoding(
        transfer_syntax.is_implicit_VR,
        transfer_syntax.is_little_endian,
        convert_encodings(CHARACTER_SET),
    )
    return identifier


BINARY: Final = frozenset(
    {"AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "US", "UV"}
)


def _encodings(identifier: Dataset) -> list[str]:
    terms = "ISO_IR 6"
    if "SpecificCharacterSet" in identifier:
        terms = _text(identifier, Tag("SpecificCharacterSet"), ["ascii"])
    return list(convert_encodings([term.strip() for term in terms.split("\\")]))


def _text(identifier: Dataset, tag: BaseTag, encodings: list[str]) -> str:
    if dictionary_VR(tag) == "SQ":
        return ""
    element = identifier.get_item(tag)
    value = element.value
    if isinstance(value, bytes):
        limit = LIST_LIMIT if dictionary_VR(tag) == "UI" else TEXT_LIMIT
        if len(encodings) == 1:
            value = value.replace(ESCAPE, b"")  # it means nothing without code extensions
        # The delimiters end what an escape sequence switched to (PS3.5 section 6.1.2.5.3).
        value = decode_bytes(value[:limit], encodings, set(b"^=\\")).replace(DESIGNATES_GB2312, "")
    elif value is None or element.VR == "SQ":  # an explicit VR need not be the dictionary's
        return ""
    elif isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return str(value).replace("\0", "").strip()
