"""Associations of storage and verification alone, served on the connection's own thread.

What a sender writes goes from the socket into the file without an object for each PDU, a second
thread or a decoded data set; pynetdicom serves every other association. The acceptor's part of the
state machine (PS3.8 tables 9-6 to 9-10), once the request is read and the caller let in:

    state  event                                  action   next
    Sta3   the contexts are answered (Evt7)       AE-7     Sta6
    Sta6   P-DATA-TF (Evt10)                      DT-2     Sta6
    Sta6   a response is to be sent (Evt9)        DT-1     Sta6
    Sta6   A-RELEASE-RQ (Evt12)                   AR-2     Sta8
    Sta8   at once, nothing is pending (Evt14)    AR-4     Sta13
    Sta6   A-ABORT (Evt16)                        AA-3     Sta1
    Sta6   the connection is closed (Evt17)       AA-4     Sta1
    Sta6   any other PDU, or a broken one         AA-8     Sta13
           (Evt3, 4, 6, 13 and 19)
    Sta6   we stop, or the peer is too slow       AA-1     Sta13
           (Evt15)
    Sta13  the peer closes, or LINGER_S is over   AR-5,    Sta1
           (Evt17, Evt18)                         AA-2
"""

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
)
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from appliance.errors import StoreError
from appliance.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, plain_uid
from appliance.reception import Command, Reception, Taking
from dicom_node.acceptance import ACCEPTANCE, Acceptance, is_storage
from dicom_node.dimse import PROCESSING_FAILURE, SUCCESS, Operation, Request
from dicom_node.errors import PduError
from dicom_node.pdu import (
    HEADER,
    LONGEST_COMMAND_BYTES,
    PDV_HEADER,
    AbortReason,
    Limits,
    PduStream,
    PduType,
    hang_up,
)

log = structlog.get_logger()

CANNOT_UNDERSTAND: Final = 0xC000  # PS3.4 table B.2-1

COMMAND, LAST = 1, 2  # bits of a message control header, PS3.8 E.2
APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

# What may stand in the user information of an association that is served here. What is left
# unanswered of it leaves things as they are by default: one operation at a time, no extension, the
# caller as the SCU (PS3.7 D.3.3.3 to D.3.3.6).
PLAIN_ITEMS: Final = (
    MaximumLengthNotification,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
    SOPClassCommonExtendedNegotiation,
)


@dataclass(frozen=True)
class Proposal:
    """An A-ASSOCIATE-RQ that can be served here."""

    primitive: A_ASSOCIATE
    most_bytes: int
    """The longest P-DATA-TF that the peer takes; 0 for any (PS3.8 D.1)."""

    @property
    def fragment_bytes(self) -> int:
        """How much of a command fits into one of them, an even number."""
        fitting = (self.most_bytes or LONGEST_COMMAND_BYTES) - PDV_HEADER.size
        return max(2, fitting - fitting % 2)

    @property
    def calling_ae(self) -> str:
        """The AE title of the peer."""
        return str(self.primitive.calling_ae_title).strip()

    @classmethod
    def of(cls, request: A_ASSOCIATE_RQ) -> "Proposal | None":
        """Return the proposal, None if it asks for more than storage and verification."""
        primitive = request.to_primitive()
        if not all(isinstance(item, PLAIN_ITEMS) for item in primitive.user_information):
            return None
        proposed = [
            str(context.abstract_syntax)
            for context in primitive.presentation_context_definition_list
        ]
        if not all(uid == Verification or is_storage(uid) for uid in proposed):
            return None
        lengths = [
            item.maximum_length_received
            for item in primitive.user_information
            if isinstance(item, MaximumLengthNotification)
        ]
        return cls(primitive, lengths[0] if lengths else 0)


class DirectAssociation:
    """One association from its acceptance to its end."""

    def __init__(
        self,
        connection: socket.socket,
        proposal: Proposal,
        reception: Reception,
        limits: Limits,
        acceptance: Acceptance,
    ) -> None:
        self._connection = connection
        self._proposal = proposal
        self._reception = reception
        self._limits = limits
        self._acceptance = acceptance
        self._stream = PduStream(connection, limits.pdu_timeout_s)
        self._transfer_syntaxes: dict[int, str] = {}  # of each context that was accepted
        self._message: _Message | None = None

    def serve(self) -> str:
        """Take what the peer sends until it releases or aborts; returns how it ended.

        Raises:
            PduError: the peer broke PS3.8 or a limit, or `abort` was called; it was told so.
        """
        try:
            return self._receive() if self._accept() else "closed"
        except PduError as error:
            hang_up(self._connection, farewell=AbortReason(error.reason).pdu())  # AA-8, AA-1
            raise
        finally:
            self._drop_message()

    def abort(self) -> None:
        """Let the association end (AA-1), from another thread; the peer keeps the unanswered."""
        self._stream.stop()

    # --- Sta3: the contexts

    def _accept(self) -> bool:
        """Answer every context (AE-7); false when the peer has gone."""
        asked = self._proposal.primitive
        results = [
            self._acceptance.answer(context)
            for context in asked.presentation_context_definition_list
        ]
        self._transfer_syntaxes = {
            int(result.context_id or 0): str(result.transfer_syntax[0])
            for result in results
            if result.result == ACCEPTANCE
        }
        answer = A_ASSOCIATE()
        answer.application_context_name = APPLICATION_CONTEXT
        answer.calling_ae_title = asked.calling_ae_title
        answer.called_ae_title = asked.called_ae_title
        answer.result = ACCEPTANCE
        answer.result_source = 1
        answer.presentation_context_definition_results_list = results
        length = MaximumLengthNotification()
        length.maximum_length_received = self._limits.pdu_bytes
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer.user_information = [length, implementation, version]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        try:
            self._connection.sendall(pdu.encode())
        except OSError:
            return False
        return True

    # --- Sta6: data transfer

    def _receive(self) -> str:
        """Read PDUs as they come, until one of them ends the association."""
        while (header := self._stream.header()) is not None:
            pdu_type = self._limits.recognise(*header)
            if pdu_type is not PduType.DATA_TF:
                return self._end(pdu_type)
            if not self._take_pdu(header[1]):
                break
        return "closed"  # AA-4

    def _take_pdu(self, left: int) -> bool:
        """Take the fragments of a P-DATA-TF of `left` bytes; false when the association is over."""
        if not left:
            raise _violation("a P-DATA-TF without a fragment")
        while left:
            if left < PDV_HEADER.size:
                raise _violation("a fragment is cut off")
            if (pdv := self._stream.unpack(PDV_HEADER)) is None:
                return False
            length, context_id, control = pdv
            left -= 4 + length
            if length < 2 or left < 0:
                raise _violation("a fragment overruns its PDU")
            in_pdv = length - 2
            if not in_pdv:
                self._take(context_id, control, memoryview(b""))
            while in_pdv:
                if not (piece := self._stream.some(in_pdv)):
                    return False
                self._take(context_id, control, piece)
                in_pdv -= len(piece)
            if control & LAST and not self._finish(context_id, control):
                return False
        return True

    def _end(self, pdu_type: PduType) -> str:
        match pdu_type:
            case PduType.RELEASE_RQ:  # AR-2, AR-4
                hang_up(self._connection, farewell=RELEASE_RP)
                return "released"
            case PduType.ABORT:  # AA-3
                return "aborted"
            case _:
                raise PduError(f"unexpected {pdu_type.name}", reason=AbortReason.UNEXPECTED_PDU)

    # --- Messages (PS3.7, PS3.8 annex E)

    def _take(self, context_id: int, control: int, fragment: memoryview) -> None:
        """Add a fragment, or a part of one, to the message under way."""
        message = self._message
        if message is None:
            if not control & COMMAND or context_id not in self._transfer_syntaxes:
                raise _violation("a message that begins with no command, or on no context")
            message = self._message = _Message(context_id)
        if context_id != message.context_id or bool(control & COMMAND) != (message.request is None):
            raise _violation("fragments of two messages are mixed")
        if message.request is None:
            message.command += fragment
            if len(message.command) > LONGEST_COMMAND_BYTES:
                raise _violation("a command is too long")
            return
        message.size_bytes += len(fragment)
        if message.size_bytes > self._limits.message_bytes:
            raise _violation("a message is too long")
        message.write(fragment)

    def _finish(self, context_id: int, control: int) -> bool:
        """A command or a data set is whole; false when the answer could not be sent."""
        message = self._message
        if message is None:
            raise AssertionError("the end of a message that never began")
        if not control & COMMAND:
            return self._answer(message, message.outcome())
        message.request = Request.decode(message.command)
        match message.request.operation:
            case Operation.C_ECHO:
                return self._answer(message, (SUCCESS, ""))
            case Operation.C_CANCEL:  # there is nothing that could be cancelled
                self._drop_message()
            case Operation.C_STORE if message.request.has_data_set:
                message.begin(self._reception, self._command(message.request, context_id))
            case Operation.C_STORE:
                return self._answer(message, (CANNOT_UNDERSTAND, "a C-STORE without a data set"))
            case other:
                raise _violation(f"operation {other:#06x} on a context of storage")
        return True

    def _command(self, request: Request, context_id: int) -> Command:
        return Command(
            sop_class_uid=_text(request.sop_class_uid),
            sop_instance_uid=_text(request.sop_instance_uid),
            transfer_syntax_uid=self._transfer_syntaxes[context_id],
            source_ae=self._proposal.calling_ae,
        )

    def _answer(self, message: "_Message", outcome: tuple[int, str]) -> bool:
        """Send a response, in PDUs as long as the peer takes; false when it does not take it."""
        if message.request is None:
            raise AssertionError("there is nothing to answer")
        command = message.request.answer(*outcome)
        most = self._proposal.fragment_bytes
        pdus = bytearray()
        for begin in range(0, len(command), most):
            fragment = command[begin : begin + most]
            last = LAST if begin + most >= len(command) else 0
            pdus += HEADER.pack(PduType.DATA_TF, PDV_HEADER.size + len(fragment))
            pdus += PDV_HEADER.pack(len(fragment) + 2, message.context_id, COMMAND | last)
            pdus += fragment
        self._drop_message()
        try:
            self._connection.settimeout(self._limits.pdu_timeout_s)
            self._connection.sendall(pdus)
        except OSError:  # a part of it may have gone: nothing can follow
            log.info("answer.unsent")
            return False
        return True

    def _drop_message(self) -> None:
        if self._message is not None:
            self._message.close()
            self._message = None


class _Message:
    """A DIMSE message under way; of one that is refused the rest is read and thrown away."""

    def __init__(self, context_id: int) -> None:
        self.context_id = context_id
        self.command = bytearray()
        self.request: Request | None = None
        self.size_bytes = 0
        self._taking: Taking | None = None
        self._refusal: tuple[int, str] | None = None
        self._open = ExitStack()

    def begin(self, reception: Reception, command: Command) -> None:
        """Open a file for the data set that follows."""
        self._attempt(partial(self._open_file, reception, command))

    def write(self, fragment: memoryview) -> None:
        """Keep a piece of the data set."""
        if self._taking is not None:
            self._attempt(partial(self._taking.write, fragment))

    def outcome(self) -> tuple[int, str]:
        """Make the data set permanent; returns the status of PS3.4 table B.2-1 and a comment."""
        if self._taking is not None:
            self._attempt(self._taking.finish)
        return self._refusal or (SUCCESS, "")

    def close(self) -> None:
        """Forget the file, if it was not kept."""
        self._open.close()

    def _open_file(self, reception: Reception, command: Command) -> None:
        self._taking = self._open.enter_context(reception.taking(command))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except StoreError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else ""  # its text may quote
            log.warning(
                "instance.refused", status=f"{error.status:#06x}", reason=str(error), cause=cause
            )
            self._refuse(error.status, error.comment)
        except Exception:
            # The last resort of this process: whatever it was, the sender must keep the instance.
            log.exception("instance.failed")
            self._refuse(PROCESSING_FAILURE, "internal error, see the appliance's log")

    def _refuse(self, status: int, comment: str) -> None:
        self._refusal = (status, comment)
        self._taking = None
        self._open.close()


RELEASE_RP: Final = struct.pack(">BxLL", PduType.RELEASE_RP, 4, 0)


def _text(uid: bytes) -> str:
    return plain_uid(uid.decode("ascii", errors="replace"))


def _violation(message: str) -> PduError:
    return PduError(message, reason=AbortReason.INVALID_PARAMETER_VALUE)
