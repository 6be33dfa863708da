"""The upper layer (PS3.8) as a peer sends it, byte by byte, so that tests can send it wrong."""

import socket
import struct
from collections.abc import Sequence
from typing import Final

from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, MaximumLengthNotification
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import CTImageStorage

from dicom_node.dimse import Field
from dicom_node.pdu import HEADER, PDV_HEADER, PduType

EXPLICIT: Final = "1.2.840.10008.1.2.1"
RELEASE: Final = struct.pack(">BxLL", PduType.RELEASE_RQ, 4, 0)


def request(
    *contexts: tuple[str, str],
    called: str = "CHESTCT",
    most_bytes: int = 16382,
    user: Sequence[object] = (),
) -> A_ASSOCIATE_RQ:
    """A request for these abstract and transfer syntaxes, their context IDs 1, 3, 5 and so on."""
    proposed = [build_context(abstract, [transfer]) for abstract, transfer in contexts]
    for number, context in enumerate(proposed):
        context.context_id = 2 * number + 1
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", called
    primitive.presentation_context_definition_list = proposed
    longest = MaximumLengthNotification()
    longest.maximum_length_received = most_bytes
    primitive.user_information = [longest, *user]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu


def command(
    operation: int,
    uid: bytes = b"1.2.3\0",
    *,
    data_set: bool = True,
    sop_class: str = CTImageStorage,
) -> bytes:
    """A command set without its group length, which nobody needs."""

    def element(field: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, field, len(value)) + value

    return b"".join(
        (
            element(
                Field.AFFECTED_SOP_CLASS_UID, sop_class.encode() + b"\0" * (len(sop_class) % 2)
            ),
            element(Field.COMMAND_FIELD, struct.pack("<H", operation)),
            element(Field.MESSAGE_ID, struct.pack("<H", 7)),
            element(Field.COMMAND_DATA_SET_TYPE, struct.pack("<H", 0 if data_set else 0x0101)),
            element(Field.AFFECTED_SOP_INSTANCE_UID, uid),
        )
    )


def fragments(payload: bytes, *, is_command: bool, size: int, context: int = 1) -> list[bytes]:
    """The PDVs of a command set or data set, in pieces of `size`."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    return [
        PDV_HEADER.pack(len(part) + 2, context, is_command | 2 * (number == len(parts) - 1)) + part
        for number, part in enumerate(parts)
    ]


def pdus(pdvs: Sequence[bytes], together: int = 1) -> bytes:
    """P-DATA-TF PDUs with so many PDVs each."""
    groups = [b"".join(pdvs[at : at + together]) for at in range(0, len(pdvs), together)]
    return b"".join(HEADER.pack(PduType.DATA_TF, len(group)) + group for group in groups)


def store(
    data: bytes,
    *,
    size: int = 4096,
    together: int = 1,
    uid: bytes = b"1.2.3\0",
    context: int = 1,
) -> bytes:
    """A whole C-STORE-RQ."""
    return pdus(
        fragments(command(1, uid), is_command=True, size=size, context=context)
        + fragments(data, is_command=False, size=size, context=context),
        together,
    )


def echo(context: int) -> bytes:
    """A C-ECHO-RQ."""
    asked = command(0x30, data_set=False, sop_class="1.2.840.10008.1.1")
    return pdus(fragments(asked, is_command=True, size=500, context=context))


def read_pdu(connection: socket.socket) -> bytes:
    """The next PDU, or what came of it before the peer went; empty if nothing."""
    head = _exactly(connection, HEADER.size)
    return head + _exactly(connection, HEADER.unpack(head)[1]) if len(head) == HEADER.size else head


def status_in(pdu: bytes) -> int:
    """The status that a response holds."""
    at = pdu.index(struct.pack("<HHL", 0, Field.STATUS, 2))
    return int(struct.unpack_from("<H", pdu, at + 8)[0])


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := connection.recv(count - len(found))):
        found += more
    return found
