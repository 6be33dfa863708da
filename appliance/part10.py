"""A received data set as a file (PS3.10 section 7.1), and what of its header the database keeps.

The file is a function of the data set, its UIDs and its transfer syntax alone: the same instance
sent again, by whomever, is the same bytes, hence the same name in the content store. For that the
preamble is zero (which also disarms polyglot files, CVE-2019-11687) and the meta information names
neither the sender nor our version. The same instance in another transfer syntax is other bytes.
"""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO, Final, cast

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.config import disable_value_validation
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.filereader import data_element_generator
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from appliance.errors import DatasetMismatchError, UnreadableDatasetError
from appliance.studies import UID_LIMIT, PatientAttributes, SeriesAttributes, StudyAttributes

IMPLEMENTATION_CLASS_UID: Final = "2.25.187230427716743564036048548176326372447"
"""Ours (PS3.7 D.3.3.2). Part of every stored file: it never changes, whatever the release."""

IMPLEMENTATION_VERSION_NAME: Final = "CHESTCT"
"""Ours (PS3.7 D.3.3.2.3), told to peers and in the objects we make; no stored file has it."""

PREAMBLE: Final = bytes(128) + b"DICM"
UNDEFINED_LENGTH: Final = 0xFFFFFFFF
FIRST_PIXEL_DATA_TAG: Final = 0x7FE00008  # Float Pixel Data; the bulk of an instance starts here
PIXEL_DATA: Final = frozenset({FIRST_PIXEL_DATA_TAG, 0x7FE00009, 0x7FE00010})
SPECIFIC_CHARACTER_SET: Final = 0x00080005

# A header beyond this is no header; it bounds what a deflated data set may unpack to.
INFLATED_HEADER_BYTES: Final = 16 << 20
INFLATED_AT_ONCE_BYTES: Final = 64 << 10  # packed
# The longest of the attributes kept, a PN of three groups, has 194 characters (PS3.5 section 6.2).
TEXT_LIMIT: Final = 1024

DEFLATED: Final = frozenset(
    {
        DeflatedExplicitVRLittleEndian,
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)
IMPLICIT: Final = frozenset(
    {
        ImplicitVRLittleEndian,
        "1.2.840.113619.5.2",  # GE private: pixel data big endian, the rest as implicit VR
    }
)

UNUSUAL: Final = DEFLATED | {ExplicitVRBigEndian}
ITEM_GROUP: Final = 0xFFFE
ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
EXPLICIT_HEAD: Final = struct.Struct("<HH2sH")  # PS3.5 section 7.1.2
LONG_LENGTH: Final = struct.Struct("<L")
FRAGMENTS_LIMIT: Final = 4_000_000  # the largest whole slides have some hundred thousand
FRAGMENT_HEAD: Final = struct.Struct("<HHL")  # PS3.5 section A.4
LONG_VRS: Final = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
SHORT_VRS: Final = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)

REQUIRED: Final[Mapping[str, str]] = {
    "study_uid": "StudyInstanceUID",
    "series_uid": "SeriesInstanceUID",
}
IDENTITY: Final[Mapping[str, str]] = {
    "sop_instance_uid": "SOPInstanceUID",
    "sop_class_uid": "SOPClassUID",
}
PATIENT: Final[Mapping[str, str]] = {
    "patient_id": "PatientID",
    "issuer": "IssuerOfPatientID",
    "name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
}
STUDY: Final[Mapping[str, str]] = {
    "accession_number": "AccessionNumber",
    "description": "StudyDescription",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "referring_physician": "ReferringPhysicianName",
}
SERIES: Final[Mapping[str, str]] = {
    "modality": "Modality",
    "description": "SeriesDescription",
    "series_number": "SeriesNumber",
    "body_part": "BodyPartExamined",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "station_name": "StationName",
    "protocol_name": "ProtocolName",
    "requested_priority": "RequestedProcedurePriority",
}
META_GROUP: Final = 0x0002
META: Final[Mapping[int, str]] = {
    0x00020002: "sop_class_uid",
    0x00020003: "sop_instance_uid",
    0x00020010: "transfer_syntax_uid",
}
TAGS: Final[Mapping[str, int]] = {
    keyword: Tag(keyword)
    for names in (REQUIRED, IDENTITY, PATIENT, STUDY, SERIES)
    for keyword in names.values()
}
FRAMES: Final = Tag("NumberOfFrames")
SAMPLES: Final = Tag("SamplesPerPixel")
ROWS: Final = Tag("Rows")
ROWS_COLUMNS_BITS: Final = (ROWS, Tag("Columns"), Tag("BitsAllocated"))
WANTED: Final = frozenset(
    {SPECIFIC_CHARACTER_SET, *TAGS.values(), FRAMES, SAMPLES, *ROWS_COLUMNS_BITS}
)
IS_CHARACTERS: Final = 12  # PS3.5 section 6.2
SUBSAMPLED: Final = 3  # YBR_FULL_422 says three samples and has two (PS3.5 section 8.2)


@dataclass(frozen=True, kw_only=True)
class PixelData:
    """Where a data set's pixel data lie, as its header says.

    Attributes:
        position: of their first byte in the data set.
        length: UNDEFINED_LENGTH where they are fragments (PS3.5 section A.4).
        least_bytes: what as many rows and columns take uncompressed, 0 where that is not said.
    """

    position: int
    length: int
    least_bytes: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a data set says about itself; its SOP UIDs may be "", as the command has them too.

    `is_image` is also what has rows, and lost its pixel data on the way.
    """

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    patient: PatientAttributes
    study: StudyAttributes
    series: SeriesAttributes
    pixels: PixelData | None
    is_image: bool


def file_head(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return preamble and File Meta Information (PS3.10 table 7.1-1), ready for the data set."""
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", _ascii(sop_class_uid)),
            _element(0x0003, b"UI", _ascii(sop_instance_uid)),
            _element(0x0010, b"UI", _ascii(transfer_syntax_uid)),
            _element(0x0012, b"UI", _ascii(IMPLEMENTATION_CLASS_UID)),
        )
    )
    return PREAMBLE + _element(0x0000, b"UL", struct.pack("<L", len(elements))) + elements


@dataclass(frozen=True, kw_only=True)
class ReceivedFile:
    """A Part 10 file taken apart; what its meta information does not name is ""."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes


def read_file(content: bytes) -> ReceivedFile:
    """Return a Part 10 file's data set, and what its meta information says about it.

    Of a file's beginning that has all of the meta information, the data set is as far as it goes.
    Raises UnreadableDatasetError if it is none, or does not name its transfer syntax.
    """
    if content[128:132] != PREAMBLE[128:]:
        raise UnreadableDatasetError("no DICOM file")
    stream = BytesIO(content)
    stream.seek(len(PREAMBLE))
    values: dict[str, str] = {}
    try:
        for element in data_element_generator(
            stream,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, _vr, _length: tag >> 16 != META_GROUP,
        ):
            if isinstance(element.value, bytes) and element.tag in META:
                values[META[element.tag]] = plain_uid(element.value.decode("ascii", "replace"))
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise UnreadableDatasetError(
            f"meta information cannot be parsed ({type(error).__name__})"
        ) from error
    found = {name: values.get(name, "") for name in META.values()}
    if not found["transfer_syntax_uid"]:
        raise UnreadableDatasetError("the file does not name its transfer syntax")
    return ReceivedFile(**found, dataset=content[stream.tell() :])


class _Lenience:
    """pydicom's settings and the filter of warnings are the process's: counted, not nested.

    Each thread by itself would save what another has set, and restore it for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._changed = ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._changed.enter_context(disable_value_validation())
                self._changed.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._changed.close()


_lenience: Final = _Lenience()


def first_uids(beginning: bytes, transfer_syntax_uid: str) -> tuple[str, str]:
    """Return the SOP Class and the SOP Instance UID of a data set by its first bytes, "" if absent.

    Raises UnreadableDatasetError if it does not parse that far.
    """
    sop_class_uid, sop_instance_uid = TAGS["SOPClassUID"], TAGS["SOPInstanceUID"]
    try:
        stream = BytesIO(beginning)
        if transfer_syntax_uid in DEFLATED:
            stream, _ = _inflated(stream)
        elements = data_element_generator(
            stream,
            transfer_syntax_uid in IMPLICIT,
            transfer_syntax_uid != ExplicitVRBigEndian,
            stop_when=lambda tag, _vr, _length: tag > sop_instance_uid,
            specific_tags=[sop_class_uid, sop_instance_uid],
        )
        values = {int(e.tag): e.value for e in elements if isinstance(e.value, bytes)}
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise UnreadableDatasetError(
            f"data set cannot be parsed ({type(error).__name__})"
        ) from error
    first, second = (values.get(tag, b"") for tag in (sop_class_uid, sop_instance_uid))
    return plain_uid(first.decode("ascii", "replace")), plain_uid(second.decode("ascii", "replace"))


@contextmanager
def leniently() -> Iterator[None]:
    """For the block, pydicom meets malformed values without warnings, which would quote them.

    Any number of threads may be inside; the process is as it was when the last has left.
    """
    _lenience.enter()
    try:
        yield
    finally:
        _lenience.leave()


def plain_uid(text: str) -> str:
    """Return an identifier without its padding; databases hold no NUL, so none stays within."""
    return text.replace("\0", "").strip()


def read_header(dataset: bytes, transfer_syntax_uid: str) -> Header:
    """Return what an encoded data set says about itself, without touching its pixel data.

    Raises:
        UnreadableDatasetError: it does not parse, or ends within an element.
        DatasetMismatchError: it names no study or no series, or a UID is too long to be one.
    """
    return header_at_a_glance(dataset, len(dataset), transfer_syntax_uid) or read_header_from(
        BytesIO(dataset), transfer_syntax_uid
    )


def header_at_a_glance(
    beginning: bytes, size_bytes: int, transfer_syntax_uid: str
) -> Header | None:
    """Return what `read_header` does, from the first bytes of a data set of `size_bytes`.

    None where they do not reach its pixel data, and where it is not plain to see.

    Raises:
        DatasetMismatchError: as `read_header`.
    """
    if transfer_syntax_uid in UNUSUAL:
        return None
    found = _plain_elements(beginning, size_bytes, implicit=transfer_syntax_uid in IMPLICIT)
    return None if found is None else _header(found, transfer_syntax_uid)


def read_header_from(stream: BinaryIO, transfer_syntax_uid: str) -> Header:
    """Return what `read_header` does, of the data set from a stream's position to its end.

    Raises:
        UnreadableDatasetError, DatasetMismatchError: as `read_header`.
    """
    return _header(_any_elements(stream, transfer_syntax_uid), transfer_syntax_uid)


def require_whole(
    pixels: PixelData, transfer_syntax_uid: str, read_at: Callable[[int, int], bytes]
) -> None:
    """Raise UnreadableDatasetError if the pixel data are less than the data set says.

    Args:
        pixels: as the header says.
        transfer_syntax_uid: of the data set.
        read_at: returns some bytes of the data set from a position on, fewer at its end.
    """
    if pixels.length != UNDEFINED_LENGTH:
        if pixels.length < pixels.least_bytes:
            raise UnreadableDatasetError("the pixel data are too short: send the original again")
        return
    if transfer_syntax_uid in DEFLATED:  # positions are those of what is packed in it
        return
    position = pixels.position
    for _ in range(FRAGMENTS_LIMIT):
        head = read_at(position, FRAGMENT_HEAD.size)
        if len(head) < FRAGMENT_HEAD.size:
            raise UnreadableDatasetError("the pixel data are cut short: send the original again")
        group, element, length = FRAGMENT_HEAD.unpack(head)
        tag = group << 16 | element
        if tag == SEQUENCE_DELIMITER:
            return
        if tag != ITEM:
            raise UnreadableDatasetError("the compressed pixel data are no sequence of fragments")
        position += FRAGMENT_HEAD.size + length
    raise UnreadableDatasetError(f"the pixel data have more than {FRAGMENTS_LIMIT} fragments")


def _header(found: "_Found", transfer_syntax_uid: str) -> Header:
    values = _Values(found.elements)
    return Header(
        **{name: values.required_uid(keyword) for name, keyword in REQUIRED.items()},
        **{name: values.uid(keyword) for name, keyword in IDENTITY.items()},
        patient=PatientAttributes(**values.texts(PATIENT)),
        study=StudyAttributes(**values.texts(STUDY)),
        series=SeriesAttributes(**values.texts(SERIES)),
        pixels=_pixels(found, ">H" if transfer_syntax_uid == ExplicitVRBigEndian else "<H"),
        is_image=found.pixels is not None or any(found.elements.get(ROWS, b"")),
    )


def _pixels(found: "_Found", us: str) -> PixelData | None:
    """Return where the pixel data lie; `us` is how an unsigned short is packed."""
    if found.pixels is None:
        return None

    def number(tag: int) -> int:
        raw = found.elements.get(tag, b"")
        return int(struct.unpack(us, raw)[0]) if len(raw) == struct.calcsize(us) else 0

    rows, columns, bits = map(number, ROWS_COLUMNS_BITS)
    samples = number(SAMPLES) or 1
    frames = found.elements.get(FRAMES, b"").strip(b" \0")
    return PixelData(
        position=found.pixels[0],
        length=found.pixels[1],
        least_bytes=rows
        * columns
        * bits
        * (samples - 1 if samples == SUBSAMPLED else samples)
        * (int(frames) if frames.isdigit() and len(frames) <= IS_CHARACTERS else 1)
        // 8,
    )


def with_instance_uid(dataset: bytes, transfer_syntax_uid: str, uid: str) -> bytes:
    """Return an encoded data set whose missing or empty SOP Instance UID is filled in.

    Raises UnreadableDatasetError if it is deflated, or does not parse that far.
    """
    if transfer_syntax_uid in DEFLATED:
        raise UnreadableDatasetError("a deflated data set cannot be completed")
    tag = Tag("SOPInstanceUID")
    implicit, big_endian = (
        transfer_syntax_uid in IMPLICIT,
        transfer_syntax_uid == ExplicitVRBigEndian,
    )
    stream = BytesIO(dataset)
    empty = False

    def reached(found: int, _vr: str | None, length: int) -> bool:
        nonlocal empty
        empty = found == tag and length == 0
        return found >= int(tag)

    for _element_before in data_element_generator(
        stream, implicit, not big_endian, stop_when=reached, specific_tags=[tag]
    ):
        pass
    value = _ascii(uid) + b"\0" * (len(uid) % 2)
    order = ">" if big_endian else "<"
    head = struct.pack(f"{order}HH", tag.group, tag.element)
    head += struct.pack(f"{order}L", len(value)) if implicit else b"UI"
    head += b"" if implicit else struct.pack(f"{order}H", len(value))
    before = stream.tell()
    after = before + (8 if empty else 0)
    return dataset[:before] + head + value + dataset[after:]


class _Values:
    """The attributes that the database keeps, as raw bytes and their character set."""

    def __init__(self, raw: Mapping[int, bytes]) -> None:
        self._raw = raw
        charset = raw.get(SPECIFIC_CHARACTER_SET, b"").decode("ascii", errors="replace")
        self._encodings = convert_encodings([plain_uid(term) for term in charset.split("\\")])

    def uid(self, keyword: str) -> str:
        """Return an identifier as it came, legal or not: it is only ever data."""
        uid = plain_uid(self._raw.get(TAGS[keyword], b"").decode("ascii", errors="replace"))
        if len(uid) > UID_LIMIT:
            raise DatasetMismatchError(f"{keyword} is longer than {UID_LIMIT} characters")
        return uid

    def required_uid(self, keyword: str) -> str:
        """Return an identifier that must be there."""
        if uid := self.uid(keyword):
            return uid
        raise DatasetMismatchError(f"{keyword} is missing")

    def texts(self, keywords: Mapping[str, str]) -> dict[str, str]:
        """Return attributes by our names for them, each "" when absent."""
        return {name: self._text(keyword) for name, keyword in keywords.items()}

    def _text(self, keyword: str) -> str:
        raw = self._raw.get(TAGS[keyword], b"")[:TEXT_LIMIT]
        # The delimiters end what an escape sequence switched to (PS3.5 section 6.1.2.5.3).
        return decode_bytes(raw, self._encodings, set(b"^=\\")).strip(" \0")


@dataclass(frozen=True)
class _Found:
    """The wanted elements before the bulk of an instance; of its pixel data position and length."""

    elements: dict[int, bytes]
    pixels: tuple[int, int] | None = None


def _plain_elements(beginning: bytes, size_bytes: int, *, implicit: bool) -> _Found | None:
    """Return the wanted elements before the pixel data, None where it is not plain to see.

    A fraction of the time of `_any_elements`, which has the last word on anything unusual: value
    representations that are none, undefined lengths of what is no sequence, items that do not end
    where they say, a data set that ends too early.
    """
    end = len(beginning)
    found: dict[int, bytes] = {}
    # Where each open sequence and item ends, in turn; a sequence in here has no length.
    ends: list[int] = []
    offset = 0
    while offset + 12 <= end:
        group, element, vr, length = EXPLICIT_HEAD.unpack_from(beginning, offset)
        tag = group << 16 | element
        value = offset + 8
        if implicit or group == ITEM_GROUP:
            (length,) = LONG_LENGTH.unpack_from(beginning, offset + 4)
        elif vr in LONG_VRS:
            (length,) = LONG_LENGTH.unpack_from(beginning, value)
            value += 4
        elif vr not in SHORT_VRS:
            return None
        offset = value
        if len(ends) % 2:  # in a sequence
            if tag == SEQUENCE_DELIMITER:
                ends.pop()
            elif tag == ITEM:
                ends.append(UNDEFINED_LENGTH if length == UNDEFINED_LENGTH else value + length)
            else:
                return None
        elif tag == ITEM_DELIMITER and ends and ends[-1] == UNDEFINED_LENGTH:
            ends.pop()
        elif group == ITEM_GROUP:
            return None
        elif not ends and tag >= FIRST_PIXEL_DATA_TAG:
            whole = length == UNDEFINED_LENGTH or value + length <= size_bytes
            pixels = (value, length) if tag in PIXEL_DATA else None
            return _Found(found, pixels) if whole else None
        elif length == UNDEFINED_LENGTH:
            if not (_is_sequence(tag) if implicit else vr == b"SQ"):
                return None
            ends.append(UNDEFINED_LENGTH)
        else:
            offset += length
            if not ends and tag in WANTED:
                found[tag] = beginning[value:offset]
        while ends and not len(ends) % 2 and offset >= ends[-1]:  # an item of defined length
            if offset > ends.pop():
                return None
    return _Found(found) if offset == size_bytes == end and not ends else None


def _is_sequence(tag: int) -> bool:
    """Whether an element of undefined length is one: all are, but for what is known to be none."""
    try:
        return dictionary_VR(tag) == "SQ"
    except KeyError:
        return True


def _any_elements(stream: BinaryIO, transfer_syntax_uid: str) -> _Found:
    """Return the wanted elements before the pixel data, or raise UnreadableDatasetError."""
    pixels: list[tuple[int, int]] = []
    try:
        elements = {
            int(element.tag): element.value or b""
            for element in _elements(stream, transfer_syntax_uid, pixels)
            if isinstance(element.value, bytes)
        }
        return _Found(elements, pixels[0] if pixels else None)
    except UnreadableDatasetError:
        raise
    except Exception as error:  # pydicom raises a dozen kinds on malformed bytes
        raise UnreadableDatasetError(
            f"data set cannot be parsed ({type(error).__name__})"
        ) from error


def _elements(
    stream: BinaryIO, transfer_syntax_uid: str, pixels: list[tuple[int, int]]
) -> Iterable[RawDataElement]:
    """Yield the wanted elements, then note position and length of the `pixels`."""
    whole = True
    if transfer_syntax_uid in DEFLATED:
        stream, whole = _inflated(stream)
        if not whole and stream.getbuffer().nbytes < INFLATED_HEADER_BYTES:
            raise UnreadableDatasetError("the deflated data set is cut short")
    start = stream.tell()
    if whole:
        stream = cast("BinaryIO", _WithWholeHeads(stream))
    bulk: list[tuple[int, int, int]] = []

    def reached_bulk(tag: int, vr: str | None, length: int) -> bool:
        if tag < FIRST_PIXEL_DATA_TAG:
            return False
        head_bytes = 12 if vr in EXPLICIT_VR_LENGTH_32 else 8
        bulk.append((tag, head_bytes, length))
        return True

    for element in data_element_generator(
        stream,
        transfer_syntax_uid in IMPLICIT,
        transfer_syntax_uid != ExplicitVRBigEndian,
        stop_when=reached_bulk,
        specific_tags=[*WANTED],
    ):
        if isinstance(element, RawDataElement):
            if element.length != len(element.value or b""):
                raise UnreadableDatasetError(f"data set ends within element {element.tag}")
            yield element
    end = stream.tell()
    for tag, head_bytes, length in bulk:
        if tag in PIXEL_DATA:
            pixels.append((end + head_bytes - start, length))
        end += 0 if length == UNDEFINED_LENGTH else head_bytes + length
    size = stream.seek(0, SEEK_END)
    if whole and end > size:
        raise UnreadableDatasetError("data set ends within an element")
    if whole and not bulk and end < size:
        raise UnreadableDatasetError("data set goes on after its last element")


class _WithWholeHeads:
    """A stream that ends within no element's head, which pydicom would take for the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if 0 < len(data) < size == EXPLICIT_HEAD.size:
            raise UnreadableDatasetError("data set ends within the head of an element")
        return data


def _inflated(stream: BinaryIO) -> tuple[BytesIO, bool]:
    """Unpack as much as a header may be; returns it, and whether that is all."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = BytesIO()
    room = INFLATED_HEADER_BYTES
    while room and not inflater.eof and (packed := stream.read(INFLATED_AT_ONCE_BYTES)):
        while packed and room:
            room -= plain.write(inflater.decompress(packed, room))
            packed = inflater.unconsumed_tail
    plain.seek(0)
    return plain, inflater.eof


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    """Return one element of group 0002 in explicit VR little endian (PS3.5 section 7.1.2)."""
    padded = value + b"\0" * (len(value) % 2)
    length = struct.pack("<xxL" if vr == b"OB" else "<H", len(padded))
    return struct.pack("<HH", 0x0002, number) + vr + length + padded


def _ascii(uid: str) -> bytes:
    return uid.encode("ascii", errors="replace")
