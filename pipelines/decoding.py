"""Pixel data to Hounsfield units, one slice at a time, fast and suspicious.

Which decoder takes which transfer syntax (PS3.5 Annex A, PS3.6 Annex A):

======================================  ========================================================
native little and big endian, deflated  read in place; inflation stops at a bound
JPEG lossless 57, 70; baseline 50, 51   imagecodecs (libjpeg-turbo 3), else GDCM
JPEG-LS 80, 81                          imagecodecs (CharLS), else pyjpegls
JPEG 2000 90, 91                        imagecodecs (OpenJPEG), else pylibjpeg
RLE                                     imagecodecs (PackBits); pylibjpeg panics on damaged files
HTJ2K 201 to 203                        pylibjpeg
12-bit JPEG 51, progressive 53, 55      refused: only one decoder here takes them, so nothing
                                        would tell if its values were wrong
======================================  ========================================================

imagecodecs releases the interpreter lock, so slices decode in threads, each straight into its place
in the volume. The size that a compressed image claims is compared with its header before a decoder
sees it: another size is refused, not allocated.

HU are stored values times Rescale Slope plus Rescale Intercept (PS3.3 C.11.1.1.2), rounded to
int16. Padding (PS3.3 C.7.5.1.1.2) becomes -1024, the value of air outside the scan.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom import config
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pipelines.errors import DecodeError

Codec = Callable[..., npt.NDArray[np.integer]]
StoredArray = npt.NDArray[np.integer]

MAX_FILE_BYTES: Final = 256 * 2**20  # a 1024 x 1024 slice of 16 bits has 2 MiB
MAX_INFLATED_BYTES: Final = 64 * 2**20
MAX_SIDE: Final = 4096  # pixels; scanners reconstruct at most 2048
PADDING_HU: Final = -1024

_NATIVE: Final = frozenset(
    {
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    }
)
_IMAGECODECS: Final[dict[str, Codec]] = {
    JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
    JPEGExtended12Bit: imagecodecs.jpeg8_decode,  # of 8 bits: see `undecodable_reason`
    JPEGLossless: imagecodecs.jpeg8_decode,
    JPEGLosslessSV1: imagecodecs.jpeg8_decode,
    JPEGLSLossless: imagecodecs.jpegls_decode,
    JPEGLSNearLossless: imagecodecs.jpegls_decode,
    JPEG2000Lossless: imagecodecs.jpeg2k_decode,
    JPEG2000: imagecodecs.jpeg2k_decode,
}
_OTHERS: Final = frozenset({RLELossless, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K})
_LOSSY: Final = frozenset(
    {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K}
)

_PIXEL_DATA: Final = (0x7FE0, 0x0010)
_ITEM: Final = (0xFFFE, 0xE000)
_SEQUENCE_DELIMITER: Final = (0xFFFE, 0xE0DD)
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
_JPEG2000_START: Final = b"\xff\x4f\xff\x51"
_START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # 0xF7: JPEG-LS
_END_OF_IMAGE: Final = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000


@dataclass(frozen=True)
class StoredPixels:
    """Where one slice's pixel data lies and what its numbers mean (PS3.3 C.7.6.3, C.8.2.1).

    Attributes:
        path: The DICOM file.
        offset: Byte offset of the Pixel Data element in the file, for the deflated transfer syntax
            in the inflated data set.
        transfer_syntax_uid: How it is encoded.
        rows: Pixels down.
        columns: Pixels across.
        bits_allocated: 8 or 16.
        bits_stored: The low bits that count.
        is_signed: Two's complement.
        slope: HU for each stored unit.
        intercept: HU at stored 0.
        padding: Lowest and highest stored value that mean "not scanned", None where not declared.
    """

    path: Path
    offset: int
    transfer_syntax_uid: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None


def uid_name(uid: str) -> str:
    """Return a UID's name in PS3.6 Annex A, or the UID if it has none; it may be any text."""
    return UID(uid[:64], validation_mode=config.IGNORE).name


def undecodable_reason(pixels: StoredPixels) -> str | None:
    """Return why a slice cannot become HU here, as a clause; None if it can."""
    syntax = pixels.transfer_syntax_uid
    name = uid_name(syntax)
    if syntax not in _NATIVE | _IMAGECODECS.keys() | _OTHERS:
        return f"its transfer syntax, {name}, has no confirmed decoder"
    if syntax == JPEGExtended12Bit and pixels.bits_stored > 8:
        return (
            f"its transfer syntax, {name} with {pixels.bits_stored} bits, has no confirmed decoder"
        )
    if pixels.bits_allocated not in {8, 16} or not 1 < pixels.bits_stored <= pixels.bits_allocated:
        return f"it stores {pixels.bits_stored} of {pixels.bits_allocated} bits"
    if not 1 <= min(pixels.rows, pixels.columns) <= max(pixels.rows, pixels.columns) <= MAX_SIDE:
        return f"it has {pixels.columns} x {pixels.rows} pixels"
    if pixels.slope == 0 or not math.isfinite(pixels.slope) or not math.isfinite(pixels.intercept):
        return f"its rescale slope is {pixels.slope} and its intercept {pixels.intercept}"
    return None


def is_lossy(transfer_syntax_uid: str) -> bool:
    """Return whether this transfer syntax may have changed the values that were scanned."""
    return transfer_syntax_uid in _LOSSY


def decode_hounsfield(pixels: StoredPixels, out: npt.NDArray[np.int16]) -> None:
    """Write the HU of one slice into `out`, contiguous int16 (rows, columns).

    Raises:
        DecodeError: The pixel data are cut short, damaged, of another size or not decodable.
    """
    if reason := undecodable_reason(pixels):
        raise DecodeError(f"The image cannot be decoded: {reason}.")
    value = _pixel_data(pixels)
    if pixels.transfer_syntax_uid in _NATIVE:
        stored = _native(value, pixels)
    elif pixels.transfer_syntax_uid == RLELossless:
        stored = _run_length(_frame(value), pixels)
    else:
        stored = _compressed(value, pixels, out)
    _to_hounsfield(_extend(stored, pixels), pixels, out)


def inflate(deflated: bytes) -> bytes:
    """Return a deflated data set (PS3.5 A.5) inflated, up to a bound.

    Raises:
        DecodeError: It is damaged, or would grow beyond `MAX_INFLATED_BYTES`.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(deflated, MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise DecodeError(f"The deflated data set is damaged: {error}.") from error
    if stream.unconsumed_tail:
        raise DecodeError(f"The deflated data set is larger than {MAX_INFLATED_BYTES >> 20} MiB.")
    return data


def data_set_start(file: bytes) -> int:
    """Return where the data set begins behind the file meta information (PS3.10 7.1).

    Raises:
        DecodeError: The group length that says so is missing.
    """
    group, element, vr, length, value = struct.unpack_from("<HH2sHI", file.ljust(144), 132)
    if (group, element, vr, length) != (0x0002, 0x0000, b"UL", 4):
        raise DecodeError("The file meta information has no group length.")
    return int(144 + value)


def _pixel_data(pixels: StoredPixels) -> memoryview:
    """Return the value of the Pixel Data element, items and all if it is encapsulated."""
    syntax = pixels.transfer_syntax_uid
    with pixels.path.open("rb") as file:
        if syntax == DeflatedExplicitVRLittleEndian:
            whole = file.read(MAX_FILE_BYTES)
            content = inflate(whole[data_set_start(whole) :])[pixels.offset :]
        else:
            file.seek(pixels.offset)
            content = file.read(MAX_FILE_BYTES)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    try:
        tag = struct.unpack_from(order + "HH", content)
        start = 8 if syntax == ImplicitVRLittleEndian else 12
        (length,) = struct.unpack_from(order + "I", content, start - 4)
    except struct.error as error:
        raise DecodeError("The file ends before its pixel data.") from error
    if tag != _PIXEL_DATA:
        raise DecodeError("The file has no pixel data.")
    value = memoryview(content)[start:]
    if length == _UNDEFINED_LENGTH:
        return value
    if length > len(value):
        raise DecodeError(f"The pixel data end after {len(value)} of {length} bytes.")
    return value[:length]


def _native(value: memoryview, pixels: StoredPixels) -> StoredArray:
    kind = ("i" if pixels.is_signed else "u") + str(pixels.bits_allocated // 8)
    order = ">" if pixels.transfer_syntax_uid == ExplicitVRBigEndian else "<"
    count = pixels.rows * pixels.columns
    expected = count * pixels.bits_allocated // 8
    if len(value) < expected:
        raise DecodeError(f"The pixel data have {len(value)} bytes instead of {expected}.")
    array: StoredArray = np.frombuffer(value, order + kind, count)
    return array.reshape(pixels.rows, pixels.columns)


def _compressed(value: memoryview, pixels: StoredPixels, out: npt.NDArray[np.int16]) -> StoredArray:
    """Decode by imagecodecs, straight into `out` if samples have 16 bits, else by a plug-in."""
    frame = _frame(value)
    if not frame.rstrip(b"\0").endswith(_END_OF_IMAGE):
        # libjpeg would paint what is missing grey and say nothing.
        raise DecodeError("The compressed image is cut short.")
    if coded_size(frame) != (pixels.rows, pixels.columns):
        raise DecodeError("The compressed image has another size than its header.")
    codec = _IMAGECODECS.get(pixels.transfer_syntax_uid)
    if codec is None:
        return _by_plugin(value, pixels)
    if pixels.bits_allocated == 8:
        target: StoredArray = np.empty(out.shape, np.uint8)
    elif codec is imagecodecs.jpeg2k_decode and pixels.is_signed:
        target = out
    else:
        target = out.view(np.uint16)
    try:
        return codec(frame, out=target)
    except (RuntimeError, ValueError, TypeError):  # imagecodecs' own errors are RuntimeErrors
        return _by_plugin(value, pixels)


def _by_plugin(value: memoryview, pixels: StoredPixels) -> StoredArray:
    """Decode by the plug-ins of pydicom, which hold the interpreter lock."""
    decoder = get_decoder(UID(pixels.transfer_syntax_uid))
    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": int(pixels.is_signed),
        "pixel_keyword": "PixelData",
    }
    try:
        array, _ = decoder.as_array(bytes(value), index=0, raw=True, **options)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise DecodeError(f"The compressed image is damaged: {error}") from error
    if array.shape != (pixels.rows, pixels.columns):
        raise DecodeError("The compressed image has another size than its header.")
    return np.asarray(array)


def _run_length(frame: bytes, pixels: StoredPixels) -> StoredArray:
    """Decode RLE (PS3.5 Annex G): a PackBits segment for each byte of a sample, high byte first."""
    count = pixels.rows * pixels.columns
    size = pixels.bits_allocated // 8
    try:
        segments, *offsets = struct.unpack_from("<16I", frame)
    except struct.error as error:
        raise DecodeError("The compressed image is cut short.") from error
    ends = [*offsets[1:size], len(frame)]
    planes = np.empty((count, size), np.uint8)
    for n in range(size):
        try:
            plane = imagecodecs.packbits_decode(frame[offsets[n] : ends[n]], out=count)
        except (RuntimeError, ValueError) as error:
            raise DecodeError(f"The compressed image is damaged: {error}") from error
        if segments != size or len(plane) != count:
            raise DecodeError("The compressed image has another size than its header.")
        planes[:, n] = np.frombuffer(plane, np.uint8)
    array: StoredArray = planes.view(f">u{size}").reshape(pixels.rows, pixels.columns)
    return array


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return the (rows, columns) a JPEG, JPEG-LS or JPEG 2000 code stream claims, None if none."""
    if frame.startswith(_JPEG2000_START):
        if len(frame) < 24:
            return None
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)  # ISO/IEC 15444-1 A.5.1
        return bottom - top, right - left
    position = 2
    while position + 9 <= len(frame):
        prefix, marker, length = struct.unpack_from(">BBH", frame, position)
        if prefix != 0xFF:
            return None
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", frame, position + 5)
            return rows, columns
        position += 1 if marker == 0xFF else 2 + length
    return None


def _frame(value: memoryview) -> bytes:
    """Return the one frame of encapsulated pixel data (PS3.5 A.4), its fragments joined.

    Raises:
        DecodeError: An item is malformed or ends beyond the file.
    """
    fragments: list[memoryview] = []
    position = 0
    while True:
        try:
            group, element, length = struct.unpack_from("<HHI", value, position)
        except struct.error as error:
            raise DecodeError("The compressed image is cut short.") from error
        position += 8
        if (group, element) == _SEQUENCE_DELIMITER:
            return b"".join(fragments[1:])  # the first item is the offset table
        if (group, element) != _ITEM or length > len(value) - position:
            raise DecodeError("The compressed image is damaged or cut short.")
        fragments.append(value[position : position + length])
        position += length


def _extend(stored: StoredArray, pixels: StoredPixels) -> StoredArray:
    """Return stored values with only the bits that count, the sign extended."""
    unused = stored.dtype.itemsize * 8 - pixels.bits_stored
    bits = stored.dtype.newbyteorder("=").str[2:]
    own_kind = stored.astype("=" + ("i" if pixels.is_signed else "u") + bits, copy=False)
    if unused == 0:
        return own_kind
    # Old scanners keep overlays in the high bits: shift them out, and the sign in.
    extended: StoredArray = (own_kind << unused) >> unused
    return extended


def _to_hounsfield(stored: StoredArray, pixels: StoredPixels, out: npt.NDArray[np.int16]) -> None:
    padded = None
    if pixels.padding is not None:
        low, high = pixels.padding
        padded = (stored >= low) & (stored <= high)
    if pixels.slope == 1 and pixels.intercept.is_integer():
        hu = stored.astype(np.int32) + int(pixels.intercept)
    else:
        hu = np.rint(stored * pixels.slope + pixels.intercept)
    limits = np.iinfo(np.int16)
    np.clip(hu, limits.min, limits.max, out=out, casting="unsafe")
    if padded is not None:
        out[padded] = PADDING_HU
