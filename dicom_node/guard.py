"""What a connection must show before pynetdicom gets it, and how much it may send afterwards.

pynetdicom 3.0.4 reads whatever length a PDU claims, waits for ever for the rest of a half-sent one,
collects the fragments of a message without bound, and starts two threads for every connection. Here
each connection first shows a whole, bounded A-ASSOCIATE-RQ (PS3.8 section 9.3.2) and passes the
allow-list; then the same reader feeds pynetdicom whole PDUs that arrived in time. PS3.8 section
9.2 names the states, table 9-21 the rejections, section 9.3.8 the aborts.
"""

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from socketserver import BaseServer
from typing import Any, Final

import structlog
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_node.errors import PduError
from dicom_node.peers import AllowList, Rejection

log = structlog.get_logger()

HEADER: Final = struct.Struct(">BxL")  # PDU type, reserved, length: PS3.8 section 9.3.1
PDV_HEADER: Final = struct.Struct(">LBB")  # length, context ID, control header: PS3.8 E.2
CALLED_AE_TITLE: Final = slice(10, 26)  # PS3.8 table 9-11
CALLING_AE_TITLE: Final = slice(26, 42)

# 128 contexts, each with all of the standard's transfer syntaxes, take a third of this.
LONGEST_REQUEST_BYTES: Final = 1 << 20
# A command set holds a dozen short elements (PS3.7 section 9.3).
LONGEST_COMMAND_BYTES: Final = 64 << 10
# Connections beyond the associations allowed: enough to tell callers that the limit is reached.
SPARE_CONNECTIONS: Final = 64
LINGER_S: Final = 1.0


class PduType(IntEnum):
    """PS3.8 section 9.3.1."""

    ASSOCIATE_RQ = 0x01
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

    def longest(self, pdu_type: PduType) -> int:
        """Return the longest length that a PDU header of this type may claim."""
        match pdu_type:
            case PduType.ASSOCIATE_RQ:
                return LONGEST_REQUEST_BYTES
            case PduType.DATA_TF:
                return self.pdu_bytes
            case PduType.RELEASE_RQ | PduType.RELEASE_RP | PduType.ABORT:
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
        pdu_type = self._recognise(number, length)
        pdu.extend(bytes(length))
        if not self._fill(pdu, HEADER.size, deadline=deadline):
            return bytearray()
        # What is sent next has its own time.
        self._connection.settimeout(self._limits.pdu_timeout_s)
        if pdu_type is PduType.DATA_TF:
            self._meter.add(pdu)
        return pdu

    def _recognise(self, number: int, length: int) -> PduType:
        try:
            pdu_type = PduType(number)
        except ValueError:
            raise PduError(
                f"PDU type 0x{number:02X}", reason=AbortReason.UNRECOGNISED_PDU
            ) from None
        if length > self._limits.longest(pdu_type):
            raise PduError(
                f"{pdu_type.name} of {length} bytes", reason=AbortReason.INVALID_PARAMETER_VALUE
            )
        return pdu_type

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


class GuardedSocket(AssociationSocket):
    """pynetdicom's view of a connection, behind a `PduReader`."""

    def __init__(
        self,
        assoc: Association,
        connection: socket.socket,
        *,
        reader: PduReader,
        request: bytearray,
    ) -> None:
        super().__init__(assoc, client_socket=connection)
        self._reader = reader
        self._unread = request

    @property
    def ready(self) -> bool:
        return bool(self._unread) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Return the next bytes of the PDU under way; empty ends the association (PS3.8 Evt17)."""
        if not self._unread:
            try:
                self._unread = self._reader.read()
            except PduError as error:
                log.warning("association.aborted", reason=str(error))
                if self.socket is not None:
                    hang_up(self.socket, farewell=AbortReason(error.reason).pdu())
        taken = self._unread[:nr_bytes]
        del self._unread[:nr_bytes]
        return taken


def hang_up(connection: socket.socket, *, farewell: bytes) -> None:
    """Send a last PDU and close our side, giving the peer a moment to read it.

    Closing at once would let the kernel answer unread bytes with a reset, which throws the farewell
    away (PS3.8 section 9.2, Sta13, waits for the peer for the same reason).
    """
    with suppress(OSError):  # the peer has gone already
        connection.settimeout(LINGER_S)
        connection.sendall(farewell)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(LONGEST_COMMAND_BYTES)


class GuardedHandler(RequestHandler):
    """One connection, from its first byte until the association's threads have ended."""

    server: "GuardedServer"
    request: socket.socket

    def handle(self) -> None:
        """Take the connection through request, allow-list and limit to an association."""
        connection = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = PduReader(connection, self.server.limits)
        try:
            request = self._read_request(reader)
        except PduError as error:
            log.warning("connection.aborted", address=self.client_address[0], reason=str(error))
            hang_up(connection, farewell=AbortReason(error.reason).pdu())
            return
        if not request:
            return
        if (rejection := self._judge(request)) is not None:
            self._reject(rejection)
            return
        with self.server.admission() as admitted:
            if admitted:
                self._associate(reader, request)
        if not admitted:
            self._reject(Rejection.LOCAL_LIMIT_EXCEEDED)

    @staticmethod
    def _read_request(reader: PduReader) -> bytearray:
        """Return the A-ASSOCIATE-RQ, empty when the peer went away, or raise PduError."""
        pdu = reader.read()
        if not pdu:
            return pdu
        if pdu[0] != PduType.ASSOCIATE_RQ:
            raise PduError("no A-ASSOCIATE-RQ", reason=AbortReason.UNEXPECTED_PDU)
        _check_request(bytes(pdu))
        return pdu

    def _judge(self, request: bytearray) -> Rejection | None:
        return self.server.allow_list.judge(
            called=_ae_title(request[CALLED_AE_TITLE]),
            calling=_ae_title(request[CALLING_AE_TITLE]),
            address=self.client_address[0],
        )

    def _reject(self, rejection: Rejection) -> None:
        log.warning("association.rejected", address=self.client_address[0], reason=rejection.name)
        hang_up(self.request, farewell=rejection.pdu())

    def _associate(self, reader: PduReader, request: bytearray) -> None:
        """Hand the connection to pynetdicom and wait until it is done with it."""
        assoc = self._create_association()
        # The plain socket has announced itself (Evt5) and is replaced by ours, which does so again.
        assoc.dul.event_queue.get_nowait()
        assoc.dul.socket = GuardedSocket(assoc, self.request, reader=reader, request=request)
        try:
            assoc.start()
            assoc.join()
        finally:
            # An association thread that died of an exception leaves its DUL thread running.
            assoc.dul.kill_dul()

    def finish(self) -> None:
        self.server.shutdown_request(self.request)


class GuardedServer(ThreadedAssociationServer):
    """pynetdicom's server with the guard in front of every connection."""

    daemon_threads = True
    request_queue_size = 128  # scanners open their associations in bursts
    socket: socket.socket

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        *,
        allow_list: AllowList,
        limits: Limits,
        evt_handlers: list[Any],
    ) -> None:
        self.allow_list = allow_list
        self.limits = limits
        self._open: set[socket.socket] = set()
        self._associations = threading.BoundedSemaphore(limits.associations)
        super().__init__(
            ae,
            address,
            allow_list.ae_title,
            ae.supported_contexts,
            evt_handlers=evt_handlers,
            request_handler=GuardedHandler,
        )

    @contextmanager
    def admission(self) -> Iterator[bool]:
        """Hold one of the allowed associations; yields false when all are taken."""
        admitted = self._associations.acquire(blocking=False)
        try:
            yield admitted
        finally:
            if admitted:
                self._associations.release()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, unless there are too many of them."""
        if len(self._open) >= self.limits.associations + SPARE_CONNECTIONS:
            log.warning("connection.dropped", address=client_address[0], reason="too many")
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; every one of them ends here."""
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - theirs
        """Log what a connection's thread died of."""
        log.error("connection.failed", address=client_address[0], exc_info=sys.exc_info())

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket; associations go on."""
        # Not pynetdicom's own: it also looks for this server in its AE's list of started ones.
        BaseServer.shutdown(self)
        self.server_close()

    def abort_all(self, *, timeout_s: float) -> None:
        """Abort every association, after what is already to be sent, and wait for their threads."""
        associations = self.active_associations
        for assoc in associations:
            assoc.abort(block=False)
        deadline = time.monotonic() + timeout_s
        for assoc in associations:
            assoc.join(max(0.0, deadline - time.monotonic()))
        for connection in tuple(self._open):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)


def _check_request(pdu: bytes) -> None:
    """Raise PduError unless pynetdicom can decode and negotiate this A-ASSOCIATE-RQ.

    Its own threads would die of an exception in there and leave the connection open.
    """
    request = A_ASSOCIATE_RQ()
    try:
        request.decode(pdu)
        contexts = request.to_primitive().presentation_context_definition_list
    except Exception as error:
        raise PduError(
            f"undecodable A-ASSOCIATE-RQ ({type(error).__name__})",
            reason=AbortReason.INVALID_PARAMETER_VALUE,
        ) from error
    if not contexts or not all(context.transfer_syntax for context in contexts):
        raise PduError(
            "A-ASSOCIATE-RQ without contexts", reason=AbortReason.INVALID_PARAMETER_VALUE
        )


def _ae_title(field: bytearray) -> str:
    """Return an AE title; leading and trailing spaces are not significant (PS3.8 table 9-11)."""
    return bytes(field).decode("ascii", errors="replace").strip(" \0")
