"""What one DICOM file says of its image, read without its pixels and without trust.

Files come from any scanner, any PACS and, on a bad day, from somebody who means harm. A malformed
file raises `UnreadableInputError`, whatever pydicom thinks of it; nothing here allocates more than
the file's own size, but for deflated data sets, which have a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipelines.decoding import MAX_FILE_BYTES, StoredPixels, data_set_start, inflate
from pipelines.errors import UnreadableInputError

_PIXEL_DATA: Final = 0x7FE00010
_TAGS: Final = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "Modality", "ImageType", "SeriesNumber", "SeriesDescription",
    "ProtocolName", "BodyPartExamined", "InstanceNumber", "AcquisitionNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
]  # fmt: skip
# Rescale types that are not HU (PS3.3 C.11.1.1.2). Any other text means HU: "HU", "US", nothing,
# "Houndsfield Unit".
_NOT_HU: Final = frozenset({"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"})


@dataclass(frozen=True)
class InstanceHeader:
    """One image; None where an attribute is absent or unreadable.

    Attributes:
        path: Its file.
        image_type: Values of Image Type (PS3.3 C.7.6.1.1.2), upper case.
        position: Centre of the first pixel, LPS mm (PS3.3 C.7.6.2.1.1).
        orientation: Direction cosines along a row, then down a column.
        pixel_spacing: mm between rows, then between columns.
        pixels: Where the values lie; None if the file does not hold one slice of HU.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    modality: str
    image_type: tuple[str, ...]
    series_number: int | None
    description: str
    protocol: str
    body_part: str
    instance_number: int | None
    acquisition_number: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    frame_of_reference_uid: str | None
    pixels: StoredPixels | None

    @property
    def is_localiser(self) -> bool:
        """Whether it is a survey radiograph (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.image_type


def read_header(path: Path) -> InstanceHeader | None:
    """Return one file's header, None if it is not DICOM (PS3.10 7.1).

    Raises:
        UnreadableInputError: It is DICOM, but malformed or too large.
    """
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if content[128:132] != b"DICM":
        return None
    if len(content) > MAX_FILE_BYTES:
        raise UnreadableInputError(f"{path.name} is larger than an image may be.")
    try:
        ds, transfer_syntax_uid, offset = _read_dataset(content)
        pixels = _stored_pixels(ds, path, transfer_syntax_uid, offset=offset)
        return _header(ds, path, pixels)
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises a dozen types, and RecursionError on deep nesting
        raise UnreadableInputError(f"{path.name} is malformed.") from error


def _read_dataset(content: bytes) -> tuple[Dataset, str, int]:
    """Return what comes before the pixel data, the transfer syntax, and where the pixels begin."""
    if DeflatedExplicitVRLittleEndian.encode() not in content[:1024]:
        file = BytesIO(content)
        image = dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        return image, str(image.file_meta.TransferSyntaxUID), file.tell()
    # pydicom would inflate without a bound.
    inflated = BytesIO(inflate(content[data_set_start(content) :]))
    ds = read_dataset(
        inflated,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag == _PIXEL_DATA,
        specific_tags=[Tag(keyword) for keyword in _TAGS],
    )
    return ds, str(DeflatedExplicitVRLittleEndian), inflated.tell()


def _header(ds: Dataset, path: Path, pixels: StoredPixels | None) -> InstanceHeader:
    return InstanceHeader(
        path=path,
        sop_class_uid=_text(ds, "SOPClassUID"),
        sop_instance_uid=_text(ds, "SOPInstanceUID"),
        study_uid=_text(ds, "StudyInstanceUID"),
        series_uid=_text(ds, "SeriesInstanceUID"),
        modality=_text(ds, "Modality").upper(),
        image_type=tuple(value.upper() for value in _texts(ds, "ImageType")),
        series_number=_integer(ds, "SeriesNumber"),
        description=_text(ds, "SeriesDescription"),
        protocol=_text(ds, "ProtocolName"),
        body_part=_text(ds, "BodyPartExamined").upper(),
        instance_number=_integer(ds, "InstanceNumber"),
        acquisition_number=_integer(ds, "AcquisitionNumber"),
        position=_numbers(ds, "ImagePositionPatient", 3),
        orientation=_numbers(ds, "ImageOrientationPatient", 6),
        pixel_spacing=_numbers(ds, "PixelSpacing", 2),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID") or None,
        pixels=pixels,
    )


def _stored_pixels(
    ds: Dataset, path: Path, transfer_syntax_uid: str, *, offset: int
) -> StoredPixels | None:
    """Return where one slice of HU lies, None if the file does not hold one."""
    rows, columns = _integer(ds, "Rows"), _integer(ds, "Columns")
    allocated, stored = _integer(ds, "BitsAllocated"), _integer(ds, "BitsStored")
    slope, intercept = _numbers(ds, "RescaleSlope", 1), _numbers(ds, "RescaleIntercept", 1)
    is_one_slice = (
        (_integer(ds, "NumberOfFrames") or 1) == 1
        and _integer(ds, "SamplesPerPixel") == 1
        and _text(ds, "PhotometricInterpretation") == "MONOCHROME2"
        and _integer(ds, "HighBit") == (stored or 0) - 1
    )
    if not is_one_slice or _text(ds, "RescaleType").upper() in _NOT_HU:
        return None
    if rows is None or columns is None or allocated is None or stored is None:
        return None
    if slope is None or intercept is None:
        return None
    is_signed = _integer(ds, "PixelRepresentation") == 1
    return StoredPixels(
        path=path,
        offset=offset,
        transfer_syntax_uid=transfer_syntax_uid,
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        is_signed=is_signed,
        slope=slope[0],
        intercept=intercept[0],
        padding=_padding(ds, bits=stored, is_signed=is_signed),
    )


def _padding(ds: Dataset, *, bits: int, is_signed: bool) -> tuple[int, int] | None:
    """Return the lowest and highest stored padding value (PS3.3 C.7.5.1.1.2)."""
    value = _integer(ds, "PixelPaddingValue")
    if value is None or not 1 < bits <= 16:
        return None
    limit = _integer(ds, "PixelPaddingRangeLimit")
    ends = [_wrapped(end, bits, is_signed=is_signed) for end in (value, limit) if end is not None]
    return min(ends), max(ends)


def _wrapped(value: int, bits: int, *, is_signed: bool) -> int:
    """Return a value as the pixels hold it: some scanners write 63536 and mean -2000."""
    value %= 1 << bits
    return value - (1 << bits) if is_signed and value >= 1 << (bits - 1) else value


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value: Any = ds.get(keyword)
    if value is None:
        return ()
    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return tuple(str(item).strip() for item in values)


def _text(ds: Dataset, keyword: str) -> str:
    values = _texts(ds, keyword)
    return values[0] if values else ""


def _numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(text) for text in _texts(ds, keyword))
    except ValueError:
        return None
    return numbers if len(numbers) == count else None


def _integer(ds: Dataset, keyword: str) -> int | None:
    numbers = _numbers(ds, keyword, 1)
    return int(numbers[0]) if numbers and numbers[0].is_integer() else None
