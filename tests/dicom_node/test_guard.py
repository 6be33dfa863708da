"""What a connection may send: limits, deadlines, and who is told what when they are passed."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from pynetdicom.sop_class import CTImageStorage, Verification
from structlog.testing import capture_logs

from appliance.config import PeerSettings
from appliance.store import Store
from dicom_node.errors import PduError
from dicom_node.pdu import (
    LONGEST_COMMAND_BYTES,
    LONGEST_REQUEST_BYTES,
    AbortReason,
    Limits,
    MessageMeter,
    PduReader,
    PduType,
)
from dicom_node.scp import Listener
from tests.support import upper_layer
from tests.support.instances import Names, ct_instance
from tests.support.pacs import HOST, association, echo, store
from tests.support.upper_layer import EXPLICIT

ABORT_HEAD = b"\x07\x00\x00\x00\x00\x04\x00\x00\x02"


def connect(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port), timeout=10)
    connection.settimeout(10)
    return connection


def request(application_context: str = "") -> bytes:
    """A true A-ASSOCIATE-RQ for CT storage."""
    pdu = upper_layer.request((CTImageStorage, EXPLICIT))
    if application_context:
        pdu.variable_items[0].application_context_name = application_context
    return pdu.encode()


def data_tf(payload: bytes, *, control: int = 0) -> bytes:
    pdv = struct.pack(">LBB", len(payload) + 2, 1, control) + payload
    return struct.pack(">BxL", PduType.DATA_TF, len(pdv)) + pdv


def last_words(connection: socket.socket) -> bytes:
    """Everything the listener still says before it hangs up."""
    said = b""
    try:
        while more := connection.recv(4096):
            said += more
    except ConnectionResetError:
        pass
    return said


def listener_threads() -> int:
    return sum(
        "AcceptorThread" in thread.name or "process_request_thread" in thread.name
        for thread in threading.enumerate()
    )


# The meter


def test_fragments_are_summed_until_the_last_one():
    meter = MessageMeter(100)

    for _message in range(3):
        meter.add(bytearray(data_tf(bytes(60))))
        meter.add(bytearray(data_tf(bytes(40), control=2)))
    meter.add(bytearray(data_tf(bytes(60))))

    with pytest.raises(PduError, match="too long"):
        meter.add(bytearray(data_tf(bytes(41), control=2)))


def test_a_command_set_has_a_limit_of_its_own():
    with pytest.raises(PduError, match="too long"):
        MessageMeter(1 << 30).add(bytearray(data_tf(bytes(LONGEST_COMMAND_BYTES + 1), control=1)))


@pytest.mark.parametrize("length", [0, 1, 7, 0xFFFFFFFF])
def test_a_fragment_that_overruns_its_pdu_is_refused(length: int):
    pdv = struct.pack(">LBB", length, 1, 0) + b"1234"
    pdu = struct.pack(">BxL", PduType.DATA_TF, len(pdv)) + pdv

    with pytest.raises(PduError):
        MessageMeter(100).add(bytearray(pdu))


# The reader


@pytest.mark.parametrize(
    ("pdu_type", "length"),
    [
        (PduType.ASSOCIATE_RQ, LONGEST_REQUEST_BYTES + 1),
        (PduType.DATA_TF, 4097),
        (PduType.DATA_TF, 0xFFFFFFFF),
        (PduType.RELEASE_RQ, 5),
        (PduType.ABORT, 0xFFFFFFFF),
    ],
)
def test_a_length_beyond_the_limit_is_refused_before_anything_is_read(
    pdu_type: PduType, length: int
):
    ours, theirs = socket.socketpair()
    limits = Limits(
        pdu_bytes=4096, message_bytes=1 << 20, pdu_timeout_s=5, associations=1, connections_per_s=1
    )
    with ours, theirs:
        theirs.sendall(struct.pack(">BxL", pdu_type, length) + b"follows")

        with pytest.raises(PduError, match=pdu_type.name):
            PduReader(ours, limits).read()

        assert ours.recv(100) == b"follows"


def test_a_pdu_that_trickles_is_dropped_when_its_time_is_up():
    ours, theirs = socket.socketpair()
    limits = Limits(
        pdu_bytes=4096,
        message_bytes=1 << 20,
        pdu_timeout_s=0.5,
        associations=1,
        connections_per_s=1,
    )

    def trickle() -> None:
        try:
            for byte in struct.pack(">BxL", PduType.DATA_TF, 4096) + bytes(4096):
                theirs.send(bytes((byte,)))
                time.sleep(0.05)
        except OSError:
            pass

    with ours, theirs:
        sender = threading.Thread(target=trickle)
        sender.start()
        began = time.monotonic()
        with pytest.raises(PduError, match="in time"):
            PduReader(ours, limits).read()
        took_s = time.monotonic() - began
        ours.close()
        sender.join()

    assert took_s == pytest.approx(0.5, abs=0.3)


# The listener


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: box\r\n\r\n", AbortReason.UNRECOGNISED_PDU),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", AbortReason.UNRECOGNISED_PDU),  # TLS
        (b"\x00" * 64, AbortReason.UNRECOGNISED_PDU),
        (b"\x01\x00\xff\xff\xff\xff", AbortReason.INVALID_PARAMETER_VALUE),
        (b"\x01\x00\x00\x00\x00\x04abcd", AbortReason.INVALID_PARAMETER_VALUE),
        (b"\x01\x00\x00\x00\x00\x44\x00\x01" + bytes(66), AbortReason.INVALID_PARAMETER_VALUE),
        (data_tf(b"no association yet"), AbortReason.UNEXPECTED_PDU),
        (b"\x05\x00\x00\x00\x00\x04\0\0\0\0", AbortReason.UNEXPECTED_PDU),
    ],
)
def test_what_is_no_association_request_is_aborted_at_once(
    listener: Listener, said: bytes, reason: AbortReason
):
    began = time.monotonic()
    with connect(listener.port) as connection:
        connection.sendall(said)
        answer = last_words(connection)

    assert answer in (ABORT_HEAD + bytes((reason,)), b"")  # a reset may overtake it
    assert time.monotonic() - began < 3
    assert echo(listener.port)


def test_two_contexts_of_one_id_are_aborted(listener: Listener):
    pdu = upper_layer.request((CTImageStorage, EXPLICIT), (CTImageStorage, "1.2.840.10008.1.2"))
    for context in pdu.presentation_context:
        context.presentation_context_id = 1
    with connect(listener.port) as connection:
        connection.sendall(pdu.encode())
        answer = last_words(connection)

    assert answer == ABORT_HEAD + bytes((AbortReason.INVALID_PARAMETER_VALUE,))


def test_another_version_or_application_is_told_so(listener: Listener):
    version = bytearray(request())
    version[6:8] = b"\x00\x02"
    application = request(application_context="1.2.840.10008.3.1.1.2")

    for asked, reason in ((bytes(version), b"\x01\x02\x02"), (application, b"\x01\x01\x02")):
        with connect(listener.port) as connection:
            connection.sendall(asked)
            assert last_words(connection) == b"\x03\x00\x00\x00\x00\x04\x00" + reason


def test_an_abort_before_the_request_is_not_answered(listener: Listener):
    with connect(listener.port) as connection:
        connection.sendall(AbortReason.NOT_SPECIFIED.pdu())
        assert last_words(connection) == b""


def test_a_peer_in_full_flow_reads_why_it_was_aborted(listener: Listener):
    with connect(listener.port) as connection:
        connection.sendall(request())
        assert connection.recv(4096)[0] == 0x02
        too_long = struct.pack(">BxL", PduType.DATA_TF, 0x7FFFFFFF)
        connection.sendall(too_long + bytes(3 << 20))

        assert last_words(connection) == ABORT_HEAD + bytes((AbortReason.INVALID_PARAMETER_VALUE,))


def test_a_half_sent_pdu_is_dropped_while_others_are_served(listen: Callable[..., Listener]):
    listener = listen(network_timeout_s=1.0)
    with connect(listener.port) as half:
        half.sendall(request()[:40])

        assert echo(listener.port)
        began = time.monotonic()
        answer = last_words(half)

    assert answer == ABORT_HEAD + bytes((AbortReason.NOT_SPECIFIED,))
    assert time.monotonic() - began < 2.5


def test_a_half_sent_data_pdu_is_dropped_while_others_are_served(listen: Callable[..., Listener]):
    listener = listen(network_timeout_s=1.0)
    with connect(listener.port) as half:
        half.sendall(request())
        assert half.recv(4096)[0] == 0x02  # A-ASSOCIATE-AC
        half.sendall(data_tf(bytes(1000))[:500])

        assert echo(listener.port)
        began = time.monotonic()
        last_words(half)

    assert time.monotonic() - began < 3
    assert echo(listener.port)


def test_a_silent_connection_is_closed(listen: Callable[..., Listener]):
    listener = listen(network_timeout_s=1.0)
    with connect(listener.port) as silent:
        began = time.monotonic()
        last_words(silent)

    assert time.monotonic() - began < 2.5


def test_an_announced_length_beyond_the_negotiated_one_ends_the_association(
    listen: Callable[..., Listener],
):
    listener = listen(max_pdu_bytes=4096)
    with connect(listener.port) as connection:
        connection.sendall(request())
        assert connection.recv(4096)[0] == 0x02
        connection.sendall(struct.pack(">BxL", PduType.DATA_TF, 0x7FFFFFFF) + bytes(1000))
        answer = last_words(connection)

    assert answer in (ABORT_HEAD + bytes((AbortReason.INVALID_PARAMETER_VALUE,)), b"")
    assert echo(listener.port)


def test_an_instance_beyond_the_limit_ends_the_association_and_no_other(
    listen: Callable[..., Listener], store_is_empty: Callable[[], bool]
):
    listener = listen(max_instance_bytes=1 << 20)
    names = Names.fresh()
    ds = ct_instance(names, PixelData=bytes(2 << 20), Rows=1024, Columns=1024)

    statuses = store(listener.port, ds, transfer_syntax_uid=EXPLICIT)

    assert statuses == [-1]
    assert store_is_empty()
    assert store(listener.port, ct_instance(names), transfer_syntax_uid=EXPLICIT) == [0]


def test_a_wrong_called_title_is_told_so(listener: Listener):
    with association(listener.port, called="OTHER") as assoc:
        assert assoc.is_rejected
        answer = assoc.acceptor.primitive

    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 7)


def test_a_caller_off_the_list_is_told_so(listen: Callable[..., Listener]):
    listener = listen(peers=(PeerSettings(ae_title="CT1", address="127.0.0.1"),))

    asked = bytearray(request())
    asked[26:42] = b"CT2".ljust(16)

    with capture_logs() as logs, connect(listener.port) as connection:
        connection.sendall(asked)
        assert last_words(connection) == bytes.fromhex("03000000000400010103")

    (told,) = [entry for entry in logs if entry["event"] == "association.rejected"]
    assert (told["calling_ae"], told["called_ae"]) == ("CT2", "CHESTCT")
    assert told["reason"] == "CALLING_AE_TITLE_NOT_RECOGNISED"
    assert echo(listener.port, calling="CT1")


def test_a_title_with_control_characters_reaches_no_log(listener: Listener):
    asked = bytearray(request())
    asked[26:42] = b"CT2\x1b[1m".ljust(16)

    with capture_logs() as logs, connect(listener.port) as connection:
        connection.sendall(asked)
        answer = last_words(connection)

    assert answer == ABORT_HEAD + bytes((AbortReason.INVALID_PARAMETER_VALUE,))
    assert "\x1b" not in "".join(str(value) for entry in logs for value in entry.values())


def test_one_association_too_many_may_come_again_later(listen: Callable[..., Listener]):
    # On a busy machine seconds pass in here: none of the two may be ended for its silence.
    listener = listen(max_associations=2, network_timeout_s=60)
    with ExitStack() as open_ones:
        for _ in range(2):
            assoc = open_ones.enter_context(association(listener.port))
            assert assoc.is_established
        # Not pynetdicom's requestor: it takes a rejection and the end right behind it for an abort.
        with connect(listener.port) as third:
            third.sendall(request())
            assert last_words(third) == bytes.fromhex("03000000000400020302")

    assert eventually(lambda: echo(listener.port))


def test_a_stranger_is_dropped_before_anything_is_read(listen: Callable[..., Listener]):
    listener = listen(peers=(PeerSettings(address="192.0.2.0/24"),))

    with connect(listener.port) as connection:
        assert connection.recv(1) == b""


def test_a_flood_from_one_address_is_dropped_and_passes(listen: Callable[..., Listener]):
    listener = listen(max_connections_per_s=2.0)

    with ExitStack() as flood:
        connections = [flood.enter_context(connect(listener.port)) for _ in range(25)]
        dropped = [connection.recv(1) == b"" for connection in connections[-3:]]

    assert all(dropped)
    assert eventually(lambda: echo(listener.port))


def test_every_context_of_a_large_request_is_answered(listener: Listener):
    contexts = [(f"1.2.826.0.1.{number}", EXPLICIT) for number in range(127)]
    with association(listener.port, [(Verification, EXPLICIT), *contexts]) as assoc:
        assert len(assoc.accepted_contexts) == 128


def test_a_hundred_rude_connections_leave_no_thread_behind(listener: Listener):
    for _ in range(50):
        with connect(listener.port) as connection:
            connection.sendall(b"rude")
        with connect(listener.port) as connection:
            connection.sendall(request())
            connection.recv(4096)

    assert eventually(lambda: listener_threads() == 0)
    assert echo(listener.port)


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def store_is_empty(store: Store):
    return lambda: not any(path.is_file() for path in store.root.rglob("*"))
