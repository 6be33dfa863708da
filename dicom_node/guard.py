"""What a connection must show before pynetdicom gets it, and how much it may send afterwards.

pynetdicom 3.0.4 reads whatever length a PDU claims, waits for ever for the rest of a half-sent one,
collects the fragments of a message without bound, and starts two threads for every connection. Here
each connection first shows a whole, bounded A-ASSOCIATE-RQ (PS3.8 section 9.3.2) and passes the
allow-list; then the same reader feeds pynetdicom whole PDUs that arrived in time. PS3.8 section
9.2 names the states, table 9-21 the rejections, section 9.3.8 the aborts.
"""

import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseServer
from typing import Any, Final

import structlog
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from appliance.part10 import plain_uid
from appliance.reception import Reception
from dicom_node.acceptance import Acceptance
from dicom_node.direct import APPLICATION_CONTEXT, DirectAssociation, Proposal
from dicom_node.errors import PduError
from dicom_node.pdu import AbortReason, Limits, PduReader, PduType, hang_up
from dicom_node.peers import AllowList, Arrivals, Rejection
from dicom_node.tls import ServerContext

log = structlog.get_logger()

PROTOCOL_VERSION: Final = 1  # the one bit that is tested, PS3.8 table 9-11
CALLED_AE_TITLE: Final = slice(10, 26)  # PS3.8 table 9-11
CALLING_AE_TITLE: Final = slice(26, 42)
# Connections beyond the associations allowed: enough to tell callers that the limit is reached.
SPARE_CONNECTIONS: Final = 64


Connection = socket.socket


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
        # What TLS has decrypted already, the system no longer shows.
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        return bool(self._unread or pending) or super().ready

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


class GuardedHandler(RequestHandler):
    """One connection, from its first byte until the association's threads have ended."""

    server: "GuardedServer"
    request: socket.socket

    def handle(self) -> None:
        """Take the connection through request, allow-list and limit to an association."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._secure():
            return
        connection = self.request
        reader = PduReader(connection, self.server.limits)
        try:
            encoded = self._read_request(reader)
            request = _decoded(bytes(encoded)) if encoded else None
        except PduError as error:
            log.warning("connection.aborted", address=self.client_address[0], reason=str(error))
            hang_up(connection, farewell=AbortReason(error.reason).pdu())
            return
        if request is None:
            return
        if (rejection := self._judge(encoded, request)) is not None:
            self._reject(rejection, encoded)
            return
        with self.server.admission() as admitted:
            if admitted and (proposal := Proposal.of(request)) is not None:
                self._serve(proposal)
            elif admitted:
                self._associate(reader, encoded)
        if not admitted:
            self._reject(Rejection.LOCAL_LIMIT_EXCEEDED, encoded)

    def _secure(self) -> bool:
        """Shake hands where TLS is wanted; false when that fails."""
        if self.server.tls is None:
            return True
        plain = self.request
        plain.settimeout(self.server.limits.pdu_timeout_s)
        if (context := self.server.tls.current()) is None:  # `ServerContext` has said why
            return False
        try:
            self.request = context.wrap_socket(plain, server_side=True)
        except OSError as error:  # ssl.SSLError and a peer that went away are among them
            reason = getattr(error, "reason", None) or type(error).__name__
            log.warning("connection.insecure", address=self.client_address[0], reason=reason)
            return False
        self.server.replace(plain, self.request)
        return True

    @staticmethod
    def _read_request(reader: PduReader) -> bytearray:
        """Return the A-ASSOCIATE-RQ, empty when the peer went away, or raise PduError."""
        pdu = reader.read()
        if not pdu or pdu[0] == PduType.ABORT:  # AA-2: nothing is answered
            return bytearray()
        if pdu[0] != PduType.ASSOCIATE_RQ:
            raise PduError("no A-ASSOCIATE-RQ", reason=AbortReason.UNEXPECTED_PDU)
        return pdu

    def _judge(self, encoded: bytearray, request: A_ASSOCIATE_RQ) -> Rejection | None:
        if not request.protocol_version & PROTOCOL_VERSION:
            return Rejection.PROTOCOL_VERSION_NOT_SUPPORTED
        if plain_uid(str(request.application_context_name)) != APPLICATION_CONTEXT:
            return Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED
        return self.server.allow_list.judge(
            called=_ae_title(encoded[CALLED_AE_TITLE]),
            calling=_ae_title(encoded[CALLING_AE_TITLE]),
            address=self.client_address[0],
        )

    def _reject(self, rejection: Rejection, encoded: bytearray) -> None:
        # Titles with control characters do not get here: `_decoded` takes none.
        log.warning(
            "association.rejected",
            address=self.client_address[0],
            calling_ae=_ae_title(encoded[CALLING_AE_TITLE]),
            called_ae=_ae_title(encoded[CALLED_AE_TITLE]),
            reason=rejection.name,
        )
        hang_up(self.request, farewell=rejection.pdu())

    def _serve(self, proposal: Proposal) -> None:
        """Serve storage and verification here, on the connection's own thread."""
        peer = {"address": self.client_address[0], "calling_ae": proposal.calling_ae}
        log.info("association.accepted", **peer)
        association = DirectAssociation(
            self.request,
            proposal,
            self.server.reception,
            self.server.limits,
            self.server.acceptance,
        )
        with self.server.under_way(association):
            try:
                ended = association.serve()
            except PduError as error:
                log.warning("association.aborted", reason=str(error))
                ended = "aborted"
        name = "association.released" if ended == "released" else "association.ended_by_abort"
        log.info(name, **peer)

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
        reception: Reception,
        acceptance: Acceptance,
        tls: ServerContext | None = None,
        evt_handlers: list[Any],
    ) -> None:
        self.allow_list = allow_list
        self.limits = limits
        self.reception = reception
        self.acceptance = acceptance
        self.tls = tls
        self._arrivals = Arrivals(limits.connections_per_s)
        self._direct: set[DirectAssociation] = set()
        self._direct_ended = threading.Condition()
        self._open: set[socket.socket] = set()
        self._associations = threading.BoundedSemaphore(limits.associations)
        super().__init__(
            ae,
            address,
            allow_list.ae_title,
            ae.supported_contexts,
            evt_handlers=[(evt.EVT_REQUESTED, acceptance.govern), *evt_handlers],
            request_handler=GuardedHandler,
        )

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    @contextmanager
    def admission(self) -> Iterator[bool]:
        """Hold one of the allowed associations; yields false when all are taken."""
        admitted = self._associations.acquire(blocking=False)
        try:
            yield admitted
        finally:
            if admitted:
                self._associations.release()

    @contextmanager
    def under_way(self, association: DirectAssociation) -> Iterator[None]:
        """Know an association for as long as it is served, so that it can be aborted."""
        with self._direct_ended:
            self._direct.add(association)
        try:
            yield
        finally:
            with self._direct_ended:
                self._direct.discard(association)
                self._direct_ended.notify_all()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread, unless the caller is nobody's or there are too many."""
        address = client_address[0]
        reason = ""
        if not self.allow_list.knows(address):
            reason = "not in the allow-list"
        elif not self._arrivals.admit(address):
            reason = "too many a second"
        elif len(self._open) >= self.limits.associations + SPARE_CONNECTIONS:
            reason = "too many"
        if reason:
            log.warning("connection.dropped", address=address, reason=reason)
            self.shutdown_request(request)
            return
        self._open.add(request)
        super().process_request(request, client_address)

    def replace(self, plain: Connection, secured: Connection) -> None:
        """Know a connection by the socket that it has now."""
        self._open.discard(plain)
        self._open.add(secured)

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
        deadline = time.monotonic() + timeout_s
        associations = self.active_associations
        for assoc in associations:
            assoc.abort(block=False)
        with self._direct_ended:
            for direct in self._direct:
                direct.abort()
            self._direct_ended.wait_for(lambda: not self._direct, timeout=timeout_s)
        for assoc in associations:
            assoc.join(max(0.0, deadline - time.monotonic()))
        for connection in tuple(self._open):
            with suppress(OSError):  # closed meanwhile
                # Not the method of ssl.SSLSocket, which would show its reader what is encrypted.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _decoded(pdu: bytes) -> A_ASSOCIATE_RQ:
    """Return a request that can be negotiated, or raise PduError.

    pynetdicom's own threads would die of an exception in there and leave the connection open.
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
    if len({context.context_id for context in contexts}) < len(contexts):
        raise PduError(
            "A-ASSOCIATE-RQ with two contexts of one ID",
            reason=AbortReason.INVALID_PARAMETER_VALUE,
        )
    return request


def _ae_title(field: bytearray) -> str:
    """Return an AE title; leading and trailing spaces are not significant (PS3.8 table 9-11)."""
    return bytes(field).decode("ascii", errors="replace").strip(" \0")
