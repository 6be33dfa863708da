"""PDUs of the upper layer (PS3.8 section 9.3), read whole, each within its limit and its time."""

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dicom_node.errors import PduError

HEADER: Final = struct.Struct(">BxL")  # PDU type, reserved, length: PS3.8 section 9.3.1
PDV_HEADER: Final = struct.Struct(">LBB")  # length, context ID, control header: PS3.8 E.2

# 128 contexts, each with all of the standard's transfer syntaxes, take a third of this.
LONGEST_REQUEST_BYTES: Final = 1 << 20
# A command set holds a dozen short elements (PS3.7 section 9.3).
LONGEST_COMMAND_BYTES: Final = 64 << 10
READ_AHEAD_BYTES: Final = 256 << 10
LINGER_S: Final = 1.0


class PduType(IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 0x01
    ASSOCIATE_AC = 0x02
    ASSOCIATE_RJ = 0x03
    DATA_TF = 0x04
    RELEASE_RQ = 0x05
    RELEASE_RP = 0x06
    ABORT = 0x07


class AbortReason(IntEnum):
    """Reason/Diagnostic of an A-ABORT by the service provider, PS3.8 section 9.3.8."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    INVALID_PARAMETER_VALUE = 6

    def pdu(self) -> bytes:
        """Return the A-ABORT PDU; source 2 is the service provider."""
        return bytes((PduType.ABORT, 0, 0, 0, 0, 4, 0, 0, 2, self))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one peer may ask of this node."""

    pdu_bytes: int
    """The longest P-DATA-TF, announced as Maximum Length Received (PS3.8 D.1)."""
    message_bytes: int
    """The longest data set of one DIMSE message."""
    pdu_timeout_s: float
    """From a PDU's first byte to its last, and from the connection to its A-ASSOCIATE-RQ."""
    associations: int
    connections_per_s: float
    """New connections of one address."""

    def recognise(self, number: int, length: int) -> PduType:
        """Return the type in a PDU's header; raises PduError if it is none or claims too much."""
        try:
            pdu_type = PduType(number)
        except ValueError:
            raise PduError(
                f"PDU type 0x{number:02X}", reason=AbortReason.UNRECOGNISED_PDU
            ) from None
        if length > self.longest(pdu_type):
            raise PduError(
                f"{pdu_type.name} of {length} bytes", reason=AbortReason.INVALID_PARAMETER_VALUE
            )
        return pdu_type

    def longest(self, pdu_type: PduType) -> int:
        """Return the longest length that a PDU header of this type may claim."""
        match pdu_type:
            case PduType.ASSOCIATE_RQ | PduType.ASSOCIATE_AC:
                return LONGEST_REQUEST_BYTES
            case PduType.DATA_TF:
                return self.pdu_bytes
            case _:
                return 4


class MessageMeter:
    """The size of the message under way, summed over its fragments (PS3.8 annex E)."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0

    def add(self, pdu: bytearray) -> None:
        """Count the fragments in a whole P-DATA-TF; raises PduError beyond the limit."""
        offset = HEADER.size
        while offset < len(pdu):
            if offset + PDV_HEADER.size > len(pdu):
                raise PduError("a PDV is cut off", reason=AbortReason.INVALID_PARAMETER_VALUE)
            length, _context_id, control = PDV_HEADER.unpack_from(pdu, offset)
            offset += 4 + length
            if length < 2 or offset > len(pdu):
                raise PduError("a PDV overruns", reason=AbortReason.INVALID_PARAMETER_VALUE)
            is_command, is_last = control & 1, control & 2
            self._bytes += length - 2
            if self._bytes > (LONGEST_COMMAND_BYTES if is_command else self._limit_bytes):
                raise PduError("a message is too long", reason=AbortReason.INVALID_PARAMETER_VALUE)
            if is_last:
                self._bytes = 0


class PduReader:
    """Reads whole PDUs from a connection, each within its limit and its time."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._meter = MessageMeter(limits.message_bytes)

    def read(self) -> bytearray:
        """Return the next PDU, empty when the peer has gone; raises PduError."""
        deadline = time.monotonic() + self._limits.pdu_timeout_s
        pdu = bytearray(HEADER.size)
        if not self._fill(pdu, 0, deadline=deadline):
            return bytearray()
        number, length = HEADER.unpack(pdu)
        pdu_type = self._limits.recognise(number, length)
        pdu.extend(bytes(length))
        if not self._fill(pdu, HEADER.size, deadline=deadline):
            return bytearray()
        # What is sent next has its own time.
        self._connection.settimeout(self._limits.pdu_timeout_s)
        if pdu_type is PduType.DATA_TF:
            self._meter.add(pdu)
        return pdu

    def _fill(self, pdu: bytearray, start: int, *, deadline: float) -> bool:
        """Read into `pdu` from `start` to its end; false when the peer goes away before."""
        with memoryview(pdu) as view:
            while start < len(view):
                remaining_s = deadline - time.monotonic()
                try:
                    if remaining_s <= 0:
                        raise TimeoutError  # noqa: TRY301 - as the socket's own
                    self._connection.settimeout(remaining_s)
                    count = self._connection.recv_into(view[start:])
                except TimeoutError:
                    raise PduError(
                        "a PDU was not finished in time", reason=AbortReason.NOT_SPECIFIED
                    ) from None
                except OSError:
                    count = 0  # a reset is one way to go away
                if not count:
                    return False
                start += count
        return True


class PduStream:
    """A connection's bytes, read ahead into one buffer; each PDU has its time, from its first byte.

    Used by one thread; `stop` alone may be called from another.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._buffer = bytearray(READ_AHEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0  # what is unread
        self._deadline: float | None = None  # of the PDU under way
        self._stopped = False

    def stop(self) -> None:
        """Let whoever reads, now or later, meet a PduError."""
        self._stopped = True
        with suppress(OSError):  # the peer has gone already
            # Not the method of ssl.SSLSocket, which would show the reader what is encrypted.
            socket.socket.shutdown(self._connection, socket.SHUT_RD)

    def header(self) -> tuple[int, int] | None:
        """Wait for the next PDU; returns its type and length, None when the peer has gone."""
        self._deadline = None
        number_and_length = self.unpack(HEADER)
        return None if number_and_length is None else (number_and_length[0], number_and_length[1])

    def unpack(self, layout: struct.Struct) -> tuple[int, ...] | None:
        """Return the next bytes, a few, as numbers; None when the peer goes away before."""
        if len(self._buffer) - self._begin < layout.size:
            unread = self._end - self._begin
            self._buffer[:unread] = self._buffer[self._begin : self._end]
            self._begin, self._end = 0, unread
        while self._end - self._begin < layout.size:
            if not self._more():
                return None
        if self._deadline is None:
            self._deadline = time.monotonic() + self._timeout_s
        self._begin += layout.size
        return layout.unpack_from(self._buffer, self._begin - layout.size)

    def some(self, most: int) -> memoryview:
        """Return from 1 to `most` of the next bytes, valid until the next call; none at the end."""
        if self._begin == self._end and not self._more():
            return self._view[:0]
        taken = self._view[self._begin : min(self._end, self._begin + most)]
        self._begin += len(taken)
        return taken

    def _more(self) -> bool:
        """Read ahead; false when the peer has gone."""
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._deadline is None:  # a PDU has begun
            self._deadline = time.monotonic() + self._timeout_s
        begun = self._deadline is not None
        remaining_s = self._deadline - time.monotonic() if self._deadline else self._timeout_s
        try:
            if remaining_s <= 0:
                raise TimeoutError  # noqa: TRY301 - as the socket's own
            self._connection.settimeout(remaining_s)
            count = self._connection.recv_into(self._view[self._end :])
        except TimeoutError:
            raise PduError(
                "a PDU was not finished in time" if begun else "nothing came for too long",
                reason=AbortReason.NOT_SPECIFIED,
            ) from None
        except OSError:
            count = 0  # a reset is one way to go away
        if self._stopped:
            raise PduError("we are stopping", reason=AbortReason.NOT_SPECIFIED)
        self._end += count
        return count > 0


def hang_up(connection: socket.socket, *, farewell: bytes) -> None:
    """Send a last PDU and close our side, giving the peer a moment to read it.

    Closing at once would let the kernel answer unread bytes with a reset, which throws the farewell
    away (PS3.8 section 9.2, Sta13, waits for the peer for the same reason).
    """
    deadline = time.monotonic() + LINGER_S
    with suppress(OSError):  # the peer has gone already, or does not go
        connection.settimeout(LINGER_S)
        connection.sendall(farewell)
        connection.shutdown(socket.SHUT_WR)
        while (remaining_s := deadline - time.monotonic()) > 0:
            connection.settimeout(remaining_s)
            if not connection.recv(LONGEST_COMMAND_BYTES):
                break
