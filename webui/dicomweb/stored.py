"""A stored file read for DICOMweb: header, frames and bulk values, one at a time.

Frames are given as pydicom's decoders give them: bits that do not count are cleared, the sign is
extended, YBR becomes RGB, colours lie pixel by pixel. The size that a compressed frame claims is
compared with the header before a decoder sees it.
"""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames, get_frame
from pydicom.errors import BytesLengthException
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options, pack_bits
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from appliance.part10 import file_head
from appliance.studies import StoredInstance
from pipelines.decoding import coded_size, data_set_start, inflate

LARGEST_INLINE_BYTES: Final = 1024
"""A longer binary value is bulk data: it has an address of its own, and is read when asked for."""

CHUNK_BYTES: Final = 256 * 1024
LARGEST_FRAME_BYTES: Final = 256 * 2**20
PIXEL_DATA: Final = Tag("PixelData")
FIRST_PIXEL_TAG: Final = Tag(0x7FE00001)
NATIVE: Final = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    }
)
BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
UNREADABLE: Final = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    BytesLengthException,
    struct.error,
)
"""What pydicom and its plug-ins raise on damaged or contradictory values."""

AS_STORED: Final = "Ask for the instance as it is stored, with transfer-syntax=*."

Frame = npt.NDArray[Any]


class PixelError(Exception):
    """Frames that cannot be given; the text says why, and names no person."""


class HeaderError(PixelError):
    """A header that cannot be parsed, or not be written anew."""


class NoSuchFrameError(PixelError):
    """A frame beyond those that the instance has."""


@dataclass(frozen=True)
class Opened:
    """An open file.

    Attributes:
        dataset: Its data set, whose long values are not read yet.
        file: A file as PS3.10 describes, inflated if it was stored deflated.
        transfer_syntax: Of the stored file.
    """

    dataset: Dataset
    file: BinaryIO
    transfer_syntax: str

    @property
    def number_of_frames(self) -> int:
        """How many frames the pixel data have; 1 where the header does not say, 0 without any.

        Raises:
            PixelError: the header says something that is no number.
        """
        if PIXEL_DATA not in self.dataset:
            return 0
        try:
            return max(1, int(self.dataset.get("NumberOfFrames") or 1))
        except UNREADABLE as error:
            raise PixelError("The header does not say how many frames there are.") from error


@contextmanager
def opened(
    instance: StoredInstance, path: Path, *, only: Sequence[str] | None = None
) -> Iterator[Opened]:
    """Open a stored file; only some elements of the header, if their keywords are given.

    Raises:
        DecodeError: it is deflated, and damaged or too large.
        HeaderError: it cannot be parsed; what was received may be damaged or hostile.
    """
    syntax = instance.transfer_syntax_uid
    with path.open("rb") as stored:
        file: BinaryIO = stored
        if syntax == DeflatedExplicitVRLittleEndian:
            content = stored.read()
            file = BytesIO(
                file_head(
                    sop_class_uid=instance.sop_class_uid,
                    sop_instance_uid=instance.sop_instance_uid,
                    transfer_syntax_uid=ExplicitVRLittleEndian,
                )
                + inflate(content[data_set_start(content) :])
            )
        try:
            dataset = dcmread(
                file,
                defer_size=LARGEST_INLINE_BYTES,
                stop_before_pixels=only is not None,
                specific_tags=None if only is None else list(only),
            )
        except UNREADABLE as error:
            raise HeaderError(f"The header cannot be parsed. {AS_STORED}") from error
        yield Opened(dataset, file, syntax)


def is_decodable(transfer_syntax_uid: str) -> bool:
    """Whether frames of this transfer syntax can be given uncompressed."""
    if transfer_syntax_uid in NATIVE:
        return True
    try:
        return bool(get_decoder(UID(transfer_syntax_uid)).is_available)
    except NotImplementedError:
        return False


def frame(source: Opened, index: int) -> Frame:
    """Return a frame, from 0, as an array (rows, columns) or (rows, columns, samples).

    Raises:
        PixelError: there is none, or it cannot be decoded.
    """
    if not 0 <= index < source.number_of_frames:
        raise NoSuchFrameError(f"The instance has {source.number_of_frames} frames.")
    if source.transfer_syntax in NATIVE:
        return _native_frame(source, index)
    return _decoded(source, stored_frame(source, index))


def frames(source: Opened) -> Iterator[Frame]:
    """Yield all frames in turn; raises as `frame` does."""
    if source.transfer_syntax in NATIVE:
        for index in range(source.number_of_frames):
            yield _native_frame(source, index)
        return
    left = source.number_of_frames
    for coded in _stored_frames(source):
        yield _decoded(source, coded)
        left -= 1
    if left:
        raise PixelError("The pixel data have another number of frames than the header says.")


def stored_frame(source: Opened, index: int) -> bytes:
    """Return a compressed frame, from 0, its fragments joined (PS3.5 A.4); raises PixelError."""
    if not 0 <= index < source.number_of_frames:
        raise NoSuchFrameError(f"The instance has {source.number_of_frames} frames.")
    source.file.seek(_pixel_element(source).value_tell)
    try:
        coded: bytes = get_frame(
            source.file, index, number_of_frames=source.number_of_frames, **_offsets(source)
        )
    except UNREADABLE as error:
        raise PixelError("The compressed pixel data are damaged or cut short.") from error
    return coded


def little_endian(pixels: Frame, bits_allocated: int) -> bytes:
    """Return a frame as octets (PS3.18 8.7.3.3.1): little endian, single bits packed."""
    if bits_allocated == 1:
        packed: bytes = pack_bits(pixels, pad=False)
        return packed
    return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()


def bulk_value(source: Opened, path: str) -> bytes:
    """Return the value that `json_model` gave an address to, in little endian.

    Raises:
        KeyError: there is no such value.
    """
    *above, last = path.split("/")
    dataset = source.dataset
    for tag, item in zip(above[::2], above[1::2], strict=True):
        dataset = dataset[_tag(tag)].value[int(item)]
    element = dataset[_tag(last)]
    if not isinstance(element.value, bytes):
        raise KeyError(path)
    return _swapped(element.value, element.VR, source.transfer_syntax)


def binary_vr(raw: RawDataElement) -> str | None:
    """Return a raw element's VR if it is a binary one, else None."""
    vr = str(raw.VR or "")
    if not vr:  # implicit VR
        vr = dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else "UN"
    vr = vr.removeprefix("OB or ")
    return vr if vr in BINARY_VRS else None


def explicit_little_endian(source: Opened, instance: StoredInstance) -> Iterator[bytes]:
    """Yield the instance as a file in Explicit VR Little Endian, its pixel data uncompressed.

    What follows the pixel data, padding and signatures over other bytes, is left out.

    Raises:
        PixelError: its pixel data cannot be decoded, or its header holds what is no value.
    """
    pixels: Iterator[bytes] = iter(())
    encoded = DicomBytesIO()
    encoded.is_implicit_VR, encoded.is_little_endian = False, True
    try:
        dataset = _header(source)
        if PIXEL_DATA in source.dataset:
            pixels = _pixel_data(source, dataset)
        first = next(pixels, b"")  # a frame that cannot be decoded fails before anything is sent
        write_dataset(encoded, dataset)
    except UNREADABLE as error:
        raise HeaderError(f"The header cannot be written anew. {AS_STORED}") from error
    yield file_head(
        sop_class_uid=instance.sop_class_uid,
        sop_instance_uid=instance.sop_instance_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    yield encoded.getvalue()
    yield first
    yield from pixels


def _header(source: Opened) -> Dataset:
    """The data set before its pixel data, all of it read, in little endian."""
    header = Dataset()
    for tag in sorted(source.dataset.keys()):
        if tag < FIRST_PIXEL_TAG:
            header.add(source.dataset[tag])
    if source.transfer_syntax == ExplicitVRBigEndian:
        for element in header.iterall():
            if isinstance(element.value, bytes):
                element.value = _swapped(element.value, element.VR, source.transfer_syntax)
    return header


def _pixel_data(source: Opened, header: Dataset) -> Iterator[bytes]:
    """Yield the Pixel Data element; decoding may change the header, before the first chunk."""
    bits = int(_options(source)["bits_allocated"])
    if source.transfer_syntax in NATIVE:
        element = _pixel_element(source)
        yield _pixel_head(element.length, bits)
        yield from _native_value(source, element)
        return
    if bits == 1:
        raise PixelError("Compressed single-bit frames cannot be decoded here.")
    length = 0
    for number, pixels in enumerate(frames(source)):
        octets = little_endian(pixels, bits)
        if number == 0:
            length = len(octets) * source.number_of_frames
            if pixels.ndim == 3:
                header.PlanarConfiguration = 0
                header.PhotometricInterpretation = "RGB"
            yield _pixel_head(length + length % 2, bits)
        yield octets
    yield b"\0" * (length % 2)


def _pixel_head(length: int, bits_allocated: int) -> bytes:
    if length >= 0xFFFFFFFF:
        raise PixelError("Uncompressed, the pixel data are longer than an element can be.")
    vr = b"OW" if bits_allocated > 8 else b"OB"
    return struct.pack("<HH2sxxL", PIXEL_DATA.group, PIXEL_DATA.element, vr, length)


def _native_value(source: Opened, element: RawDataElement) -> Iterator[bytes]:
    source.file.seek(element.value_tell)
    left = element.length
    while left > 0:
        chunk = source.file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise PixelError("The pixel data are cut short.")
        left -= len(chunk)
        yield _swapped(chunk, element.VR, source.transfer_syntax)


def _swapped(value: bytes, vr: str | None, transfer_syntax: str) -> bytes:
    """A binary value in little endian; 8-bit samples in OW, too, are words (PS3.5 8.1.1)."""
    size = WORD_BYTES.get(vr or "", 1)
    if transfer_syntax != ExplicitVRBigEndian or size == 1:
        return value
    return np.frombuffer(value, f">u{size}").astype(f"<u{size}").tobytes()


def _pixel_element(source: Opened) -> RawDataElement:
    """The Pixel Data element as it stands in the file, its value read or not."""
    element: Any = source.dataset.get_item(PIXEL_DATA, keep_deferred=True)
    if not isinstance(element, RawDataElement):
        raise PixelError("The instance has no pixel data that can be read.")
    return element


def _options(source: Opened) -> dict[str, Any]:
    try:
        options = as_pixel_options(source.dataset, pixel_keyword="PixelData")
        samples = options["rows"] * options["columns"] * options["samples_per_pixel"]
        size = samples * max(1, options["bits_allocated"] // 8)
    except UNREADABLE as error:
        raise PixelError("The header does not describe the pixel data.") from error
    if not 0 < size <= LARGEST_FRAME_BYTES:
        raise PixelError("The frames are larger than this service decodes.")
    return options


def _native_frame(source: Opened, index: int) -> Frame:
    element, options = _pixel_element(source), _options(source)
    options["pixel_vr"] = "OB" if element.VR == "OB" else "OW"
    syntax = source.transfer_syntax
    if syntax == DeflatedExplicitVRLittleEndian:
        syntax = ExplicitVRLittleEndian
    source.file.seek(element.value_tell)
    try:
        array, _ = get_decoder(UID(syntax)).as_array(source.file, index=index, **options)
    except UNREADABLE as error:
        raise PixelError("The pixel data are cut short, or not as the header says.") from error
    return np.asarray(array)


def _decoded(source: Opened, coded: bytes) -> Frame:
    options = _options(source)
    options["number_of_frames"] = 1
    options.pop("extended_offsets", None)
    claimed = coded_size(coded) if source.transfer_syntax != RLELossless else None
    if claimed not in (None, (options["rows"], options["columns"])):
        raise PixelError("A compressed frame has another size than its header.")
    # A panic of the compiled RLE decoder would end the thread.
    plugin = "pydicom" if source.transfer_syntax == RLELossless else ""
    try:
        decoder = get_decoder(UID(source.transfer_syntax))
        array, _ = decoder.as_array(
            encapsulate([coded]), index=0, decoding_plugin=plugin, **options
        )
    except UNREADABLE as error:
        raise PixelError("A compressed frame is damaged, or of a kind without decoder.") from error
    return np.asarray(array)


def _stored_frames(source: Opened) -> Iterator[bytes]:
    source.file.seek(_pixel_element(source).value_tell)
    try:
        yield from generate_frames(
            source.file, number_of_frames=source.number_of_frames, **_offsets(source)
        )
    except UNREADABLE as error:
        raise PixelError("The compressed pixel data are damaged or cut short.") from error


def _offsets(source: Opened) -> dict[str, Any]:
    dataset = source.dataset
    if "ExtendedOffsetTable" not in dataset or "ExtendedOffsetTableLengths" not in dataset:
        return {}
    return {"extended_offsets": (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)}


def _tag(text: str) -> int:
    if len(text) != 8:
        raise KeyError(text)
    try:
        return int(text, 16)
    except ValueError as error:
        raise KeyError(text) from error
