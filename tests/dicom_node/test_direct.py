"""The state machine of storage and verification, fed byte by byte."""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    Verification,
)
from structlog.testing import capture_logs

from appliance.errors import OutOfResourcesError
from appliance.reception import Command
from dicom_node.acceptance import Acceptance
from dicom_node.dimse import Field, Request
from dicom_node.direct import DirectAssociation, Proposal
from dicom_node.errors import PduError
from dicom_node.pdu import HEADER, PDV_HEADER, AbortReason, Limits, PduType
from tests.support.upper_layer import (
    EXPLICIT,
    RELEASE,
    command,
    echo,
    fragments,
    pdus,
    read_pdu,
    request,
    status_in,
    store,
)

LIMITS: Final = Limits(
    pdu_bytes=16_384,
    message_bytes=1 << 20,
    pdu_timeout_s=5.0,
    associations=1,
    connections_per_s=1.0,
)
CT, ECHO = 1, 3  # context IDs


class Memory:
    """A reception that keeps what it takes in memory, or refuses it."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.kept: list[tuple[Command, bytes]] = []
        self.unfinished = 0
        self.refusal = refusal

    @contextmanager
    def taking(self, command: Command) -> Iterator["Memory.Taking"]:
        taking = Memory.Taking(self, command)
        try:
            yield taking
        finally:
            self.unfinished += not taking.finished

    class Taking:
        def __init__(self, memory: "Memory", command: Command) -> None:
            self.memory, self.command = memory, command
            self.data = bytearray()
            self.finished = False

        def write(self, data: memoryview) -> None:
            self.data += data
            if self.memory.refusal:
                raise self.memory.refusal

        def finish(self) -> None:
            self.finished = True
            self.memory.kept.append((self.command, bytes(self.data)))


def proposal(*abstract: str, user: Sequence[object] = ()) -> Proposal | None:
    classes = abstract or (CTImageStorage, Verification)
    return Proposal.of(request(*((uid, EXPLICIT) for uid in classes), user=user))


class Session:
    """A peer and the association that serves it, on two ends of a pair of sockets."""

    def __init__(self, reception: Memory, limits: Limits, most_bytes: int) -> None:
        self.peer, served = socket.socketpair()
        self.peer.settimeout(10)
        asked = proposal()
        assert asked is not None
        asked = replace(asked, most_bytes=most_bytes)
        self.association = DirectAssociation(served, asked, reception, limits, Acceptance())
        self._served = served
        self.ended: object = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        answer = A_ASSOCIATE_AC()
        answer.decode(self.pdu())
        self.accepted = [context.result for context in answer.presentation_context]

    def _serve(self) -> None:
        try:
            self.ended = self.association.serve()
        except PduError as error:
            self.ended = error
        self._served.close()

    def pdu(self) -> bytes:
        return read_pdu(self.peer)

    def status(self) -> int:
        """The status of the next answer."""
        pdu = self.pdu()
        assert pdu[0] == PduType.DATA_TF
        return status_in(pdu)

    def ends(self, timeout_s: float = 10.0) -> bool:
        """Whether it ends by itself, with the peer still there."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> object:
        self.peer.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.ended


@contextmanager
def session(
    reception: Memory, limits: Limits = LIMITS, *, most_bytes: int = 0
) -> Iterator[Session]:
    opened = Session(reception, limits, most_bytes)
    try:
        yield opened
    finally:
        opened.close()


@settings(deadline=None, max_examples=60)
@given(
    data=st.binary(max_size=3000),
    size=st.integers(1, 700),
    together=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 900), max_size=40),
)
def test_a_data_set_is_taken_however_it_is_cut(
    data: bytes, size: int, together: int, cuts: list[int]
):
    memory = Memory()
    stream = store(data, size=size, together=together) * 2 + RELEASE
    with session(memory) as peer:
        for cut in cuts:
            peer.peer.sendall(stream[:cut])
            stream = stream[cut:]
        peer.peer.sendall(stream)

        assert [peer.status(), peer.status()] == [0, 0]
        assert peer.pdu()[0] == PduType.RELEASE_RP
        assert peer.close() == "released"

    assert [kept for _, kept in memory.kept] == [data, data]
    assert memory.kept[0][0] == Command(
        sop_class_uid=CTImageStorage,
        sop_instance_uid="1.2.3",
        transfer_syntax_uid=EXPLICIT,
        source_ae="SCANNER",
    )


def test_an_echo_between_two_stores_is_answered():
    memory = Memory()
    with session(memory) as peer:
        peer.peer.sendall(store(b"one") + echo(ECHO) + store(b"two"))
        assert [peer.status() for _ in range(3)] == [0, 0, 0]

    assert [kept for _, kept in memory.kept] == [b"one", b"two"]


def test_a_refused_data_set_is_read_to_its_end_and_the_next_one_taken():
    memory = Memory(OutOfResourcesError("the disk is full"))

    with session(memory) as peer:
        peer.peer.sendall(store(b"x" * 9000, size=500))
        assert peer.status() == 0xA700
        memory.refusal = None
        peer.peer.sendall(store(b"fits"))
        assert peer.status() == 0

    assert [kept for _, kept in memory.kept] == [b"fits"]
    assert memory.unfinished == 1


def test_a_fault_of_ours_is_a_failure_that_the_sender_is_told():
    with capture_logs() as logs, session(Memory(ZeroDivisionError())) as peer:
        peer.peer.sendall(store(b"data"))
        assert peer.status() == 0x0110

    assert [entry["event"] for entry in logs] == ["instance.failed"]


def test_a_store_without_a_data_set_is_not_understood():
    with session(Memory()) as peer:
        lone = fragments(command(1, data_set=False), is_command=True, size=500)
        peer.peer.sendall(pdus(lone))
        assert peer.status() == 0xC000


DATA = fragments(b"data", is_command=False, size=4096)
VIOLATIONS: Final = {
    "data without a command": pdus(DATA),
    "an unknown context": pdus(fragments(command(1), is_command=True, size=500, context=9)),
    "a change of context": pdus(
        fragments(command(1), is_command=True, size=500)
        + fragments(b"data", is_command=False, size=9, context=ECHO)
    ),
    "a command within a data set": pdus(
        fragments(command(1), is_command=True, size=500) * 2,
    ),
    "an empty P-DATA-TF": HEADER.pack(PduType.DATA_TF, 0),
    "a fragment that overruns": HEADER.pack(PduType.DATA_TF, 8)
    + PDV_HEADER.pack(90, CT, 1)
    + b"xx",
    "a fragment of no length": HEADER.pack(PduType.DATA_TF, 6) + PDV_HEADER.pack(1, CT, 1),
    "a cut-off second fragment": HEADER.pack(PduType.DATA_TF, 9)
    + PDV_HEADER.pack(3, CT, 1)
    + b"xyz",
    "a PDU longer than announced": HEADER.pack(PduType.DATA_TF, LIMITS.pdu_bytes + 1),
    "an endless command": pdus(
        [PDV_HEADER.pack(8002, CT, 1) + bytes(8000)] * 10,
    ),
    "a command set of another group": pdus(
        [PDV_HEADER.pack(10, CT, 3) + struct.pack("<HHL", 8, 0, 0)]
    ),
    "a cut-off command set": pdus([PDV_HEADER.pack(5, CT, 3) + b"abc"]),
    "a query on a context of storage": pdus(
        fragments(command(0x20), is_command=True, size=500) + DATA
    ),
    "an endless data set": store(bytes(LIMITS.message_bytes + 1), size=16_000),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_aborts_and_leaves_nothing(violation: str):
    memory = Memory()

    with session(memory) as peer:
        sending = threading.Thread(target=peer.peer.sendall, args=(VIOLATIONS[violation],))
        sending.start()
        pdu = peer.pdu()
        assert pdu == AbortReason.INVALID_PARAMETER_VALUE.pdu()
        assert isinstance(peer.close(), PduError)
        sending.join(10)

    assert memory.kept == []


@pytest.mark.parametrize("number", [0x01, 0x02, 0x03, 0x06])
def test_a_pdu_that_does_not_belong_here_aborts(number: int):
    with session(Memory()) as peer:
        peer.peer.sendall(HEADER.pack(number, 4) + bytes(4))
        assert peer.pdu() == AbortReason.UNEXPECTED_PDU.pdu()


@pytest.mark.parametrize("number", [0x00, 0x08, 0xFF])
def test_a_pdu_that_nobody_knows_aborts(number: int):
    with session(Memory()) as peer:
        peer.peer.sendall(HEADER.pack(number, 4) + bytes(4))
        assert peer.pdu() == AbortReason.UNRECOGNISED_PDU.pdu()


def test_a_peer_that_goes_away_leaves_nothing_unfinished():
    memory = Memory()

    with session(memory) as peer:
        peer.peer.sendall(store(b"x" * 9000)[:5000])
        assert peer.close() == "closed"

    assert memory.kept == []
    assert memory.unfinished == 1


def test_an_abort_of_the_peer_ends_it():
    with session(Memory()) as peer:
        peer.peer.sendall(AbortReason.NOT_SPECIFIED.pdu())
        assert peer.close() == "aborted"


@pytest.mark.parametrize("sent", [b"", HEADER.pack(PduType.DATA_TF, 900)[:3], store(b"abc")[:-2]])
def test_a_pdu_that_is_not_finished_in_time_aborts(sent: bytes):
    with session(Memory(), replace(LIMITS, pdu_timeout_s=0.3)) as peer:
        peer.peer.sendall(sent)
        assert peer.pdu() == AbortReason.NOT_SPECIFIED.pdu()


def test_a_header_that_trickles_has_the_time_of_one_pdu():
    with session(Memory(), replace(LIMITS, pdu_timeout_s=1.0)) as peer:
        began = time.monotonic()
        for byte in HEADER.pack(PduType.DATA_TF, 900)[:5]:
            with suppress(OSError):  # it has hung up
                peer.peer.sendall(bytes((byte,)))
            time.sleep(0.7)
        assert peer.pdu() == AbortReason.NOT_SPECIFIED.pdu()
        assert peer.ends()
        assert time.monotonic() - began < 4.2  # 3.5 to send; each byte's own second made it 4.5


@pytest.mark.parametrize("most_bytes", [1, 14, 61, 150])
def test_an_answer_is_cut_as_short_as_the_peer_wants_it(most_bytes: int):
    with session(Memory(), most_bytes=most_bytes) as peer:
        peer.peer.sendall(echo(ECHO) + RELEASE)
        whole, last = b"", False
        while not last:
            pdu = peer.pdu()
            assert len(pdu) - HEADER.size <= max(most_bytes, PDV_HEADER.size + 2)
            length, context, control = PDV_HEADER.unpack_from(pdu, HEADER.size)
            assert (length % 2, context, control & 1) == (0, ECHO, 1)
            last = bool(control & 2)
            whole += pdu[HEADER.size + PDV_HEADER.size :]
        assert status_in(whole) == 0
        assert peer.pdu()[0] == PduType.RELEASE_RP


def test_a_peer_that_takes_no_answer_loses_the_association():
    with session(Memory(), replace(LIMITS, pdu_timeout_s=0.5)) as peer:
        flood = threading.Thread(target=_send_all, args=(peer.peer, echo(ECHO) * 20_000))
        flood.start()
        assert peer.ends()
        assert peer.ended == "closed"
        flood.join(10)


def _send_all(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)


def test_what_comes_after_an_abort_of_ours_is_not_kept():
    memory = Memory()
    sent = store(b"x" * 9000, size=500)

    with session(memory) as peer:
        peer.peer.sendall(sent[:5000])
        peer.association.abort()
        _send_all(peer.peer, sent[5000:])
        assert peer.pdu() == AbortReason.NOT_SPECIFIED.pdu()
        assert peer.ends()
        assert isinstance(peer.ended, PduError)

    assert memory.kept == []


def test_what_needs_no_answer_does_not_cost_the_fast_way():
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 8
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid = CTImageStorage
    extended.service_class_application_information = b"\x02\x00\x03\x00\x01\x00"

    assert proposal(CTImageStorage, user=[window, extended]) is not None


def test_what_asks_for_more_is_left_to_pynetdicom():
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"

    assert proposal(CTImageStorage, "1.2.3.4.5") is not None
    assert proposal(CTImageStorage, PatientRootQueryRetrieveInformationModelFind) is None
    assert proposal(CTImageStorage, user=[identity]) is None


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_a_command_set_of_any_bytes_is_read_or_refused(encoded: bytes):
    try:
        Request.decode(encoded)
    except PduError:
        return


def test_an_answer_is_in_ascending_order_and_even():
    asked = Request.decode(command(1))

    answer = asked.answer(0xA700, "too full to breathe")

    found, at = [], 0
    while at < len(answer):
        group, element, length = struct.unpack_from("<HHL", answer, at)
        assert (group, length % 2) == (0, 0)
        found.append(element)
        at += 8 + length
    assert found == sorted(found)
    assert found[0] == Field.GROUP_LENGTH
    assert struct.unpack_from("<L", answer, 8)[0] == len(answer) - 12
