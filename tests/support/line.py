"""A line to a peer that notes each C-STORE, and refuses some or is cut as the peer might do."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum

from dicom_node.dimse import Operation, Request
from dicom_node.pdu import HEADER, PDV_HEADER, PduType
from tests.support.pacs import HOST
from tests.support.upper_layer import fragments, pdus, read_pdu


class Cut(Enum):
    """When the connection ends."""

    BEFORE_THE_REQUEST = 1
    BEFORE_THE_ANSWER = 2


Verdict = int | Cut | None
"""The status with which the line itself answers, the peer never hears of it; None to pass on."""
Judge = Callable[[str, str], Verdict]
"""What becomes of a C-STORE, by its SOP class and instance UID."""


@contextmanager
def line(port: int, *, to: int, judge: Judge) -> Iterator[list[str]]:
    """Listen on `port` and pass on to the peer at `to`; yields the SOP Instance UIDs that came."""
    came: list[str] = []

    def pass_requests(
        client: socket.socket, peer: socket.socket, silenced: threading.Event
    ) -> None:
        verdict: Verdict = None
        while pdu := read_pdu(client):
            if pdu[0] == PduType.DATA_TF and control(pdu) & 1:
                asked = Request.decode(pdu[HEADER.size + PDV_HEADER.size :])
                uid = asked.sop_instance_uid.rstrip(b"\0").decode()
                if asked.operation == Operation.C_STORE:
                    came.append(uid)
                    verdict = judge(asked.sop_class_uid.rstrip(b"\0").decode(), uid)
            if verdict is Cut.BEFORE_THE_REQUEST:
                return
            if verdict is Cut.BEFORE_THE_ANSWER:
                silenced.set()
            if not isinstance(verdict, int):
                peer.sendall(pdu)
            elif control(pdu) == 2:  # the last of the data set
                answer = fragments(
                    asked.answer(verdict),
                    is_command=True,
                    size=16_000,
                    context=pdu[HEADER.size + 4],
                )
                client.sendall(pdus(answer))
                verdict = None

    def pass_answers(client: socket.socket, peer: socket.socket, silenced: threading.Event) -> None:
        while pdu := read_pdu(peer):
            if silenced.is_set():
                return
            client.sendall(pdu)

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            silenced = threading.Event()
            with socket.create_connection((HOST, to)) as peer:
                ends = (self.request, peer)

                def run(direction: Callable[..., None]) -> None:
                    with suppress(OSError):  # the other direction was cut
                        direction(*ends, silenced)
                    for end in ends:
                        with suppress(OSError):
                            end.shutdown(socket.SHUT_RDWR)

                back = threading.Thread(target=run, args=(pass_answers,))
                back.start()
                run(pass_requests)
                back.join()

    with socketserver.ThreadingTCPServer((HOST, port), Line) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield came
        finally:
            server.shutdown()
            serving.join()


def control(pdu: bytes) -> int:
    """The control header of the first fragment: 1 for a command, 2 for the last (PS3.8 E.2)."""
    return pdu[HEADER.size + PDV_HEADER.size - 1]
