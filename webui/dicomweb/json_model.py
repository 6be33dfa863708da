"""Data sets in the DICOM JSON Model (PS3.18 Annex F), and the few in the Native Model (PS3.19 A.1).

A value that is not what its VR promises, as a received date may be, is given as text.
"""

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final
from xml.etree import ElementTree as ET

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import PersonName

from webui.dicomweb.stored import (
    BINARY_VRS,
    FIRST_PIXEL_TAG,
    LARGEST_INLINE_BYTES,
    UNREADABLE,
    binary_vr,
)

Json = dict[str, Any]

INTEGERS: Final = frozenset({"IS", "SL", "SS", "SV", "UL", "US", "UV"})
DECIMALS: Final = frozenset({"DS", "FD", "FL"})
ONE_TEXT: Final = frozenset({"LT", "ST", "UR", "UT"})
UTF_8: Final = "ISO_IR 192"
CHARACTER_SET: Final = "00080005"
PERSON_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")


def attribute(keyword: str, value: str | float | Iterable[Any] | None) -> tuple[str, Json]:
    """Return the tag and the element of an attribute; a text is split at its backslashes."""
    vr = str(dictionary_VR(keyword))
    if isinstance(value, str):
        value = [value] if vr in ONE_TEXT else value.split("\\")
    elif isinstance(value, int | float):
        value = [value]
    return f"{Tag(keyword):08X}", element(vr, list(value or ()))


def sequence(keyword: str, items: list[Json]) -> tuple[str, Json]:
    """Return the tag and the element of a sequence with its items."""
    return f"{Tag(keyword):08X}", {"vr": "SQ", "Value": items}


def element(vr: str, values: list[Any]) -> Json:
    """Return an element with its values, without any if all of them are empty."""
    encoded = [_value(vr, value) for value in values]
    if all(value is None for value in encoded):
        return {"vr": vr}
    return {"vr": vr, "Value": encoded}


def dataset(source: Dataset, bulk_address: str) -> Json:
    """Return a data set that was read from a file; bulk values as addresses below the one given.

    Pixel data and long binary values are bulk (`stored.bulk_value` reads them).
    """
    found = {
        f"{tag:08X}": _element(source, tag, f"{bulk_address}/{tag:08X}")
        for tag in sorted(source.keys())
        if tag.element != 0  # group lengths are retired
    }
    if CHARACTER_SET in found:  # JSON is UTF-8, whatever the file or a part of it was
        found[CHARACTER_SET] = element("CS", [UTF_8])
    return found


def _element(source: Dataset, tag: Any, address: str) -> Json:
    raw: Any = source.get_item(tag, keep_deferred=True)
    if isinstance(raw, RawDataElement) and (raw.value is None or tag >= FIRST_PIXEL_TAG):
        vr = binary_vr(raw)
        if vr is not None and raw.length != 0:
            return {"vr": vr, "BulkDataURI": address}
    try:
        found = source[tag]
    except UNREADABLE:  # its bytes are no value of its VR
        return _binary("UN", raw.value, address)
    if found.VR == "SQ":
        items = [dataset(item, f"{address}/{n}") for n, item in enumerate(found.value)]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if isinstance(found.value, bytes):
        return _binary(str(found.VR).split(" or ")[-1], found.value, address)
    several = isinstance(found.value, MultiValue | list | tuple)
    values = list(found.value) if several else [found.value]
    return element(str(found.VR).partition(" ")[0], values)


def _binary(vr: str, value: bytes, address: str) -> Json:
    vr = vr if vr in BINARY_VRS else "UN"
    if not value:
        return {"vr": vr}
    if len(value) > LARGEST_INLINE_BYTES:
        return {"vr": vr, "BulkDataURI": address}
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}


def _value(vr: str, value: Any) -> Any:
    """One value as PS3.18 table F.2.3-1 wants it, null if it is empty."""
    if value is None or value == "":
        return None
    if vr == "PN":
        return _person_name(value)
    if vr == "AT":
        return f"{int(value):08X}"
    if vr in INTEGERS or vr in DECIMALS:
        return _number(vr, value)
    return str(value)


def _number(vr: str, value: Any) -> int | float | str | None:
    try:
        number = int(str(value)) if vr in INTEGERS else float(value)
    except ValueError:
        return str(value)
    return number if math.isfinite(number) else None


def _person_name(value: Any) -> Json | None:
    groups = str(PersonName(value) if isinstance(value, bytes) else value).split("=")
    written = zip(PERSON_NAME_GROUPS, groups, strict=False)
    return {name: group for name, group in written if group} or None


def native_xml(model: Mapping[str, Json]) -> bytes:
    """Return a data set of sequences, texts and numbers in the Native DICOM Model as XML."""
    root = ET.Element("NativeDicomModel")
    _fill(root, model)
    found: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return found


def _fill(parent: ET.Element, model: Mapping[str, Json]) -> None:
    for tag, content in model.items():
        attributes = {"tag": tag, "vr": content["vr"], "keyword": keyword_for_tag(int(tag, 16))}
        made = ET.SubElement(parent, "DicomAttribute", attributes)
        for number, value in enumerate(content.get("Value", ()), 1):
            if content["vr"] == "SQ":
                _fill(ET.SubElement(made, "Item", {"number": str(number)}), value)
            else:
                ET.SubElement(made, "Value", {"number": str(number)}).text = str(value)
