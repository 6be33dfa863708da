"""Command sets of C-STORE and C-ECHO (PS3.7 sections 9.3.1 and 9.3.5), as bytes.

A command set is in implicit VR little endian, whatever the context's transfer syntax (6.3.1).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from dicom_node.errors import PduError
from dicom_node.pdu import AbortReason

ELEMENT: Final = struct.Struct("<HHL")
US: Final = struct.Struct("<H")
NO_DATA_SET: Final = 0x0101

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110  # PS3.7 C.5.5


class Field(IntEnum):
    """Elements of group 0000 (PS3.7 E.1)."""

    GROUP_LENGTH = 0x0000
    AFFECTED_SOP_CLASS_UID = 0x0002
    COMMAND_FIELD = 0x0100
    MESSAGE_ID = 0x0110
    MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
    COMMAND_DATA_SET_TYPE = 0x0800
    STATUS = 0x0900
    ERROR_COMMENT = 0x0902
    AFFECTED_SOP_INSTANCE_UID = 0x1000


class Operation(IntEnum):
    """Values of Command Field that are served here; an answer's has the highest bit set."""

    C_STORE = 0x0001
    C_ECHO = 0x0030
    C_CANCEL = 0x0FFF


@dataclass(frozen=True)
class Request:
    """A command set as it came; UIDs are padded, and need not be legal."""

    operation: int
    message_id: int
    sop_class_uid: bytes
    sop_instance_uid: bytes
    has_data_set: bool

    @classmethod
    def decode(cls, encoded: bytes | bytearray) -> Self:
        """Return the request in a whole command set.

        Raises:
            PduError: it is none.
        """
        elements = _elements(encoded)
        return cls(
            operation=_number(elements, Field.COMMAND_FIELD),
            message_id=_number(elements, Field.MESSAGE_ID, default=0),
            sop_class_uid=elements.get(Field.AFFECTED_SOP_CLASS_UID, b""),
            sop_instance_uid=elements.get(Field.AFFECTED_SOP_INSTANCE_UID, b""),
            has_data_set=_number(elements, Field.COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
        )

    def answer(self, status: int, comment: str = "") -> bytes:
        """Return the command set of the response (PS3.7 tables 9.3-2 and 9.3-13)."""
        elements = {
            Field.AFFECTED_SOP_CLASS_UID: self.sop_class_uid,
            Field.COMMAND_FIELD: US.pack(self.operation | 0x8000),
            Field.MESSAGE_ID_BEING_RESPONDED_TO: US.pack(self.message_id),
            Field.COMMAND_DATA_SET_TYPE: US.pack(NO_DATA_SET),
            Field.STATUS: US.pack(status),
            Field.ERROR_COMMENT: comment.encode("ascii", errors="replace"),
            Field.AFFECTED_SOP_INSTANCE_UID: self.sop_instance_uid,
        }
        optional = (Field.ERROR_COMMENT, Field.AFFECTED_SOP_INSTANCE_UID)
        body = b"".join(
            _element(field, value)
            for field, value in elements.items()
            if value or field not in optional
        )
        return _element(Field.GROUP_LENGTH, struct.pack("<L", len(body))) + body


def _elements(encoded: bytes | bytearray) -> Mapping[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(encoded):
        if offset + ELEMENT.size > len(encoded):
            raise _broken("a command set is cut off")
        group, element, length = ELEMENT.unpack_from(encoded, offset)
        offset += ELEMENT.size
        if group != 0 or offset + length > len(encoded):
            raise _broken("a command set cannot be read")
        found[element] = bytes(encoded[offset : offset + length])
        offset += length
    return found


def _number(elements: Mapping[int, bytes], field: Field, *, default: int | None = None) -> int:
    value = elements.get(field)
    if value is None and default is not None:
        return default
    if value is None or len(value) != US.size:
        raise _broken(f"a command set without {field.name}")
    return int(US.unpack(value)[0])


def _element(field: Field, value: bytes) -> bytes:
    padded = value + (b" " if field is Field.ERROR_COMMENT else b"\0") * (len(value) % 2)
    return ELEMENT.pack(0, field, len(padded)) + padded


def _broken(message: str) -> PduError:
    return PduError(message, reason=AbortReason.INVALID_PARAMETER_VALUE)
