"""Peers on the loopback: a PACS that takes what it is sent, and one that sends; DCMTK's tools."""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification
from pynetdicom.transport import ThreadedAssociationServer

HOST = "127.0.0.1"
# Below those that Linux takes for connections; each test process tries them in an order of its own.
PORTS = iter(random.Random(os.getpid()).sample(range(20_000, 32_000), 12_000))
SUCCESS = 0x0000

# Debian's DCMTK otherwise waits for a delayed acknowledgement with every instance.
DCMTK_ENVIRONMENT = {"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"}


def free_port() -> int:
    """A port that nobody listens on, and that the system gives to no connection meanwhile."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise AssertionError("all ports are in use")


def await_port(port: int, *, host: str = HOST, timeout_s: float = 30.0) -> None:
    """Return once somebody listens on the port."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.05)
        else:
            return


class Pacs:
    """A storage SCP that keeps encoded data sets by SOP Instance UID; `answer` may refuse some."""

    def __init__(self, answer: Callable[[str], int] = lambda _uid: SUCCESS) -> None:
        self.received: dict[str, bytes] = {}
        self.server: ThreadedAssociationServer | None = None
        self._answer = answer

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.server_address[1])

    def abort_all(self) -> None:
        """Abort every association, as a PACS that is switched off does."""
        assert self.server is not None
        for assoc in self.server.active_associations:
            assoc.abort(block=False)

    def store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        status = self._answer(uid)
        if status == SUCCESS:
            self.received[uid] = event.encoded_dataset(include_meta=False)
        return status


@contextmanager
def pacs(
    ae_title: str = "PACS", *, answer: Callable[[str], int] = lambda _uid: SUCCESS
) -> Iterator[Pacs]:
    """A PACS that listens for as long as the block runs."""
    ae = AE(ae_title)
    ae.require_called_aet = True
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax)
    ae.add_supported_context(Verification)
    running = Pacs(answer)
    handlers = [(evt.EVT_C_STORE, running.store)]
    running.server = ae.start_server((HOST, 0), block=False, evt_handlers=handlers)
    try:
        yield running
    finally:
        running.server.shutdown()


@contextmanager
def association(
    port: int,
    contexts: Sequence[tuple[str, str]] = ((Verification, "1.2.840.10008.1.2"),),
    *,
    called: str = "CHESTCT",
    calling: str = "SCANNER",
    **options: Any,
) -> Iterator[Association]:
    """An association, or the attempt at one, with (abstract, transfer syntax) pairs proposed."""
    ae = AE(calling)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 20
    proposed = [build_context(abstract, transfer) for abstract, transfer in contexts]
    assoc = ae.associate(HOST, port, proposed, ae_title=called, **options)
    connection = assoc.dul.socket.socket
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()
        if connection is not None:  # pynetdicom leaves it open if the peer went first
            connection.close()


def echo(port: int, *, called: str = "CHESTCT", calling: str = "SCANNER") -> bool:
    """Whether a C-ECHO is answered with Success."""
    with association(port, called=called, calling=calling) as assoc:
        return assoc.is_established and assoc.send_c_echo().get("Status") == SUCCESS


def store(port: int, *instances: Dataset, transfer_syntax_uid: str, **titles: str) -> list[int]:
    """The statuses with which instances are taken over one association; -1 for no answer."""
    contexts = sorted({(str(ds.SOPClassUID), transfer_syntax_uid) for ds in instances})
    statuses = []
    with association(port, contexts, **titles) as assoc:
        for ds in instances:
            ds.file_meta = Dataset()
            ds.file_meta.TransferSyntaxUID = transfer_syntax_uid
            statuses.append(assoc.send_c_store(ds).get("Status", -1))
    return statuses


def dcmtk(tool: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run one of DCMTK's tools to its end; skips the test where it is not installed."""
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"DCMTK's {tool} is not installed")
    return subprocess.run(
        [program, *map(str, arguments)],
        env=DCMTK_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
