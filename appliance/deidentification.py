"""Data sets rid of their patient (PS3.15 annex E, edition 2026c).

The Basic Application Level Confidentiality Profile with two of its options, as training needs:

- Retain Longitudinal Temporal Information with Modified Dates: all dates of a person move by one
  secret number of days; times of day, by which an examination could be looked up, go.
- Retain Patient Characteristics, of which sex and age alone, in years and up to 89.

Maker and model of the scanner stay as far as they are known by name, which the profile leaves free.
`confidentiality` says what else stays. Pixels leave as pixels alone: decoded and written anew in
explicit VR little endian, so that nothing rides along in a compressed stream, in unused bits or
behind the last pixel. What has no pixels (reports, documents, presentation states) does not leave,
nor does an image that shows text.

Pseudonyms, UIDs and days come from a secret key (HMAC-SHA256): the same in every export of one
appliance, others elsewhere. Faces are not made unrecognisable: heads are not for export.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.sequence import Sequence as SequenceOfItems
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pydicom.valuerep import format_number_as_ds

from appliance import confidentiality
from appliance.burned_in_text import has_text
from appliance.errors import DeidentificationError
from appliance.part10 import file_head, leniently, plain_uid

CT_IMAGES: Final = frozenset(
    {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
)
IMAGES: Final = CT_IMAGES | {
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SegmentationStorage,
}
METHOD: Final = "PS3.15 2026c Basic Application Level Confidentiality Profile"
OPTIONS: Final = (  # CID 7050
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
IDENTIFIERS: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PHOTOMETRIC: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB"})
PIXELS_LIMIT_BYTES: Final = 4 << 30
MAX_DEPTH: Final = 8  # of nested sequences; functional groups need four
FURTHEST_DAYS: Final = 3650
PSEUDONYM_CHARACTERS: Final = 20
# ACR-NEMA wrote dates with dots (PS3.5 6.2, DA).
DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
INTEGERS: Final = {
    "US": (0, 2**16 - 1),
    "SS": (-(2**15), 2**15 - 1),
    "UL": (0, 2**32 - 1),
    "SL": (-(2**31), 2**31 - 1),
    "IS": (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True)
class Pixels:
    """An image's stored values: ([frames,] rows, columns[, samples]), and how to show them."""

    values: NDArray[Any]
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    is_signed: bool


def person_of(ds: Dataset) -> str:
    """Return by what a data set tells its patient from others, "" if by nothing.

    The number, else name and birth date. The number's issuer does not count: workstations drop it.
    """
    with leniently():
        number = _text(ds, "PatientID").upper()
        name = _text(ds, "PatientName").upper()
        born = _text(ds, "PatientBirthDate")
    if number:
        return f"number {number}"
    return f"name {name} {born}" if name else ""


def deidentify(ds: Dataset, key: bytes, *, person: str = "") -> Dataset:
    """Return a new data set without its patient; `ds` stays as it is.

    Args:
        ds: a data set with its file meta information, of which the transfer syntax counts.
        key: this appliance's secret, `config.deidentification_key`.
        person: whose it is, as `person_of` names people, where `ds` does not say; by default its
            study's own.

    Raises:
        DeidentificationError: it must not leave; the text says why, without quoting from it.
    """
    with leniently():
        _check_may_leave(ds)
        pixels = _pixels(ds)
        if _usually_shows_text(ds) and any(map(has_text, _frames(pixels))):
            raise DeidentificationError("the image seems to show text")
        whose = person_of(ds) or person or f"study {plain_uid(_text(ds, 'StudyInstanceUID'))}"
        cleaning = _Cleaning(key, whose, is_signed=pixels.is_signed)
        made = cleaning.cleaned(ds)
        _describe_patient(made, ds, pseudonym=cleaning.pseudonym)
        _declare(made)
        _put_pixels(made, pixels, frames="NumberOfFrames" in ds)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def as_file(ds: Dataset) -> bytes:
    """Return what `deidentify` made as a Part 10 file, whose meta information names nobody."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = False, True
    write_dataset(stream, ds)
    head = file_head(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    return head + stream.getvalue()


class _Cleaning:
    """Applies the rules to one data set and what is nested in it, under one key, for one person."""

    def __init__(self, key: bytes, person: str, *, is_signed: bool) -> None:
        self._key = key
        self._is_signed = is_signed
        self.pseudonym = self._keyed("patient", person).hex()[:PSEUDONYM_CHARACTERS].upper()
        drawn = int.from_bytes(self._keyed("days", person)[:8], "big")
        self._shift = timedelta(days=1 + drawn % FURTHEST_DAYS)

    def cleaned(self, ds: Dataset, depth: int = 0) -> Dataset:
        """Return a data set of what may leave."""
        if depth > MAX_DEPTH:
            raise DeidentificationError(f"its sequences are nested more than {MAX_DEPTH} deep")
        made = Dataset()
        for tag in list(ds.keys()):
            if tag.group >= 0x0008 and not tag.is_private and dictionary_has_tag(tag):
                element = self._element(ds, tag, depth)
                if element is not None:
                    made.add(element)
        return made

    def _element(self, ds: Dataset, tag: BaseTag, depth: int) -> DataElement | None:
        values: Sequence[Any] = ()
        vr = self._vr(tag)
        if tag in confidentiality.SEQUENCES:
            values = [self.cleaned(item, depth + 1) for item in _items(ds, tag)]
        elif tag in confidentiality.CODES:
            values = [code for item in _items(ds, tag) if (code := _standard_code(item))]
        elif tag in confidentiality.KEPT:
            values = _encodable(confidentiality.KEPT[tag](_values(ds, tag)), vr)
        elif tag in confidentiality.SHIFTED:
            values = [day for value in _values(ds, tag) if (day := self._shifted(str(value)))]
        elif tag in confidentiality.DUMMIES:
            values = [confidentiality.DUMMIES[tag]]
        elif vr == "UI":
            values = [self._uid(plain_uid(str(value))) for value in _values(ds, tag)]
        if vr == "SQ":
            return DataElement(tag, vr, SequenceOfItems(values)) if values else None
        if values:
            return DataElement(tag, vr, values[0] if len(values) == 1 else list(values))
        return DataElement(tag, vr, None) if tag in confidentiality.EMPTIED else None

    def _vr(self, tag: BaseTag) -> str:
        known = str(dictionary_VR(tag))
        if " or " not in known:
            return known
        return "SS" if self._is_signed else "US"

    def _uid(self, uid: str) -> str:
        """Return a UID in the manner of PS3.5 B.2; the standard's own names stay."""
        if not uid or confidentiality.is_registered(uid):
            return uid
        return f"2.25.{UUID(bytes=self._keyed('uid', uid)[:16], version=4).int}"

    def _shifted(self, text: str) -> str:
        """Return the day of a date or a date and time some days earlier; "" if it is none."""
        day = _day(text)
        try:
            return "" if day is None else (day - self._shift).strftime("%Y%m%d").zfill(8)
        except OverflowError:
            return ""

    def _keyed(self, purpose: str, text: str) -> bytes:
        message = f"{purpose}\0{text}".encode(errors="surrogatepass")
        return hmac.digest(self._key, message, hashlib.sha256)


def _check_may_leave(ds: Dataset) -> None:
    for keyword in IDENTIFIERS:
        if not plain_uid(_text(ds, keyword)):
            raise DeidentificationError(f"{keyword} is missing")
        if len(_values(ds, keyword)) > 1:
            raise DeidentificationError(f"{keyword} has several values")
    sop_class_uid = UID(_text(ds, "SOPClassUID"))
    if sop_class_uid not in IMAGES:
        kind = sop_class_uid.name if confidentiality.is_registered(sop_class_uid) else "private"
        raise DeidentificationError(f"objects of this kind do not leave: {kind}")
    if "YES" in (str(value).strip().upper() for value in _values(ds, "BurnedInAnnotation")):
        raise DeidentificationError("the image is said to show text (Burned In Annotation)")


def _usually_shows_text(ds: Dataset) -> bool:
    """Return whether images of this kind are drawn on: all but scans and segmentations."""
    sop_class_uid = _text(ds, "SOPClassUID")
    kinds = [str(value).strip().upper() for value in _values(ds, "ImageType")]
    is_scan = sop_class_uid in CT_IMAGES and kinds[:1] == ["ORIGINAL"] and "LOCALIZER" not in kinds
    return not is_scan and sop_class_uid != SegmentationStorage


def _values(ds: Dataset, tag: BaseTag | str) -> Sequence[Any]:
    """Return an element's values, none if it is absent, empty or cannot be read."""
    try:
        value = ds[tag].value if tag in ds else None
    except Exception:  # noqa: BLE001  pydicom raises a dozen kinds; what is unreadable stays here
        return ()
    if value is None or value == "":
        return ()
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def _text(ds: Dataset, keyword: str) -> str:
    """Return the first value of an element as text, "" without one."""
    values = _values(ds, keyword)
    return str(values[0]).strip(" \0") if values else ""


def _items(ds: Dataset, tag: BaseTag) -> Iterable[Dataset]:
    try:
        value = ds[tag].value
    except RecursionError as error:
        raise DeidentificationError("its sequences are nested too deep") from error
    except Exception:  # noqa: BLE001  as in _values
        return ()
    return value if isinstance(value, SequenceOfItems) else ()


def _encodable(values: Sequence[Any], vr: str) -> Sequence[Any]:
    """Return values as the VR holds them, none if one does not fit (PS3.5 table 6.2-1)."""
    if vr == "DS":
        texts = [str(value).strip(" \0") for value in values]
        return [t if len(t) <= 16 else format_number_as_ds(float(t)) for t in texts]
    if vr in {"FD", "FL"}:
        return [float(value) for value in values]
    if vr == "AT":
        return [int(value) for value in values]
    if vr in INTEGERS:
        low, high = INTEGERS[vr]
        exact = [float(str(value).strip(" \0")) for value in values]
        fit = all(number.is_integer() and low <= number <= high for number in exact)
        return [int(number) for number in exact] if fit else ()
    return [str(value) for value in values]


def _standard_code(item: Dataset) -> Dataset | None:
    """Return a code with its meaning in the standard, None if the standard does not know it."""
    value, scheme = _text(item, "CodeValue"), _text(item, "CodingSchemeDesignator")
    meaning = confidentiality.standard_meaning(scheme, value)
    return _code(value, scheme, meaning) if meaning else None


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return an item of a code sequence (PS3.3 8.8)."""
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def _describe_patient(made: Dataset, ds: Dataset, *, pseudonym: str) -> None:
    made.PatientName = made.PatientID = pseudonym
    made.setdefault("PatientSex", "")
    made.setdefault("PatientBirthDate", "")
    born, examined = (_day(_text(ds, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    if "PatientAge" not in made and born and examined and born <= examined:
        birthday_to_come = (examined.month, examined.day) < (born.month, born.day)
        years = examined.year - born.year - birthday_to_come
        made.PatientAge = confidentiality.age_in_years(years)


def _declare(made: Dataset) -> None:
    """Say that and how the patient was removed (PS3.15 E.1.1, step 6)."""
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = METHOD
    made.DeidentificationMethodCodeSequence = [_code(value, "DCM", name) for value, name in OPTIONS]
    made.LongitudinalTemporalInformationModified = "MODIFIED"


def _day(text: str) -> date | None:
    found = DATE.match(text.strip(" \0"))
    try:
        return date(*map(int, found.groups())) if found else None
    except ValueError:
        return None


def _pixels(ds: Dataset) -> Pixels:
    """Return an image's stored values; raises DeidentificationError if they cannot be had."""
    transfer_syntax_uid = UID(_text(getattr(ds, "file_meta", Dataset()), "TransferSyntaxUID"))
    if not transfer_syntax_uid:
        raise DeidentificationError("the file does not name its transfer syntax")
    shape = [_count(ds, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel")]
    shape.append(_count(ds, "NumberOfFrames") if _text(ds, "NumberOfFrames") else 1)
    allocated, stored = _count(ds, "BitsAllocated"), _count(ds, "BitsStored")
    is_whole = stored == allocated or (allocated in {8, 16} and 0 < stored < allocated)
    if allocated not in {1, 8, 16} or not is_whole or _text(ds, "HighBit") != str(stored - 1):
        raise DeidentificationError("its pixels are laid out unusually: bits allocated or stored")
    if not 0 < math.prod(shape) * allocated // 8 <= PIXELS_LIMIT_BYTES:
        raise DeidentificationError("it has no pixels, or more than an image has")
    try:
        decoder = get_decoder(transfer_syntax_uid)
        values, description = decoder.as_array(ds)
    except Exception as error:  # pydicom and its plug-ins raise a dozen kinds
        raise DeidentificationError(
            f"its pixels cannot be decoded ({transfer_syntax_uid.name})"
            if confidentiality.is_registered(transfer_syntax_uid)
            else "its pixels cannot be decoded (private transfer syntax)"
        ) from error
    shown_as = str(description["photometric_interpretation"])
    if shown_as not in PHOTOMETRIC:
        raise DeidentificationError("its colours are neither grey nor RGB")
    is_signed = _text(ds, "PixelRepresentation") == "1"
    return Pixels(
        _without_unused_bits(values, stored, is_signed=is_signed),
        photometric_interpretation=shown_as,
        bits_allocated=allocated,
        bits_stored=stored,
        is_signed=is_signed,
    )


def _count(ds: Dataset, keyword: str) -> int:
    values = _encodable(confidentiality.numbers(_values(ds, keyword)), "IS")
    if len(values) != 1 or values[0] < 0:
        raise DeidentificationError(f"{keyword} is missing or no number")
    return int(values[0])


def _without_unused_bits(values: NDArray[Any], stored: int, *, is_signed: bool) -> NDArray[Any]:
    """Return values with the sign, or nothing, where old scanners kept overlays (PS3.5 8.1.1)."""
    size = values.dtype.itemsize
    own = values.astype(f"<{'i' if is_signed else 'u'}{size}")
    unused = 8 * size - stored
    without: NDArray[Any] = (own << unused) >> unused
    return without


def _frames(pixels: Pixels) -> Iterator[NDArray[Any]]:
    """Yield each frame: (rows, columns) or (rows, columns, 3)."""
    dimensions = 3 if pixels.photometric_interpretation == "RGB" else 2
    yield from pixels.values.reshape(-1, *pixels.values.shape[-dimensions:])


def _put_pixels(made: Dataset, pixels: Pixels, *, frames: bool) -> None:
    """Write the Image Pixel module (PS3.3 C.7.6.3) anew, uncompressed."""
    is_colour = pixels.photometric_interpretation == "RGB"
    shape = pixels.values.shape[: -1 if is_colour else None]
    made.SamplesPerPixel = 3 if is_colour else 1
    made.PhotometricInterpretation = pixels.photometric_interpretation
    made.Rows, made.Columns = shape[-2:]
    if frames:
        made.NumberOfFrames = math.prod(shape[:-2])
    made.BitsAllocated, made.BitsStored = pixels.bits_allocated, pixels.bits_stored
    made.HighBit = pixels.bits_stored - 1
    made.PixelRepresentation = int(pixels.is_signed)
    if is_colour:
        made.PlanarConfiguration = 0
    bits = pixels.bits_allocated
    content = (
        np.packbits(pixels.values.ravel() & 1, bitorder="little").tobytes()
        if bits == 1
        else pixels.values.tobytes()
    )
    content += b"\0" * (len(content) % 2)
    made.add_new("PixelData", "OW" if bits == 16 else "OB", content)
