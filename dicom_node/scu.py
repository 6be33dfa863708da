"""Sending instances to a peer: C-STORE as a service class user (PS3.4 annex B).

Each instance goes out in its own transfer syntax, with one presentation context for each pair of
SOP class and transfer syntax; nothing is transcoded.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from appliance.collection import InstanceFile
from appliance.part10 import IMPLEMENTATION_CLASS_UID
from dicom_node.errors import SendError

CONTEXTS_LIMIT: Final = 128  # presentation context IDs are the odd numbers to 255, PS3.8 9.3.2.2
MESSAGE_IDS: Final = 0xFFFF
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 120.0
NO_ANSWER: Final = "no answer: the association was lost"
NOT_SENT: Final = "not sent: the association was lost"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The peer to send to, and the name we go by."""

    host: str
    port: int
    called_ae: str
    calling_ae: str


@dataclass(frozen=True)
class Sent:
    """What became of one instance; `problem` is "" when the peer took it."""

    instance: InstanceFile
    problem: str


def send(
    instances: Sequence[InstanceFile],
    destination: Destination,
    *,
    associations: int = 1,
    report: Callable[[Sent], None] = lambda _sent: None,
) -> list[Sent]:
    """Send instances over some parallel associations; returns what became of each.

    Args:
        instances: in the order in which they are to go out.
        destination: the peer.
        associations: how many are open at once; the instances are dealt out in turn.
        report: called after each instance, from one thread at a time.

    Raises:
        SendError: no association came about, so that the peer took none of the instances.
    """
    # Process-wide switch of pynetdicom: files are sent as they are, without decoding.
    _config.STORE_SEND_CHUNKED_DATASET = True
    reporting = threading.Lock()
    refused: list[SendError] = []

    def send_share(share: Sequence[InstanceFile]) -> list[Sent]:
        sent: list[Sent] = []
        try:
            for result in _send_in_turn(share, destination):
                sent.append(result)
                with reporting:
                    report(result)
        except SendError as error:
            refused.append(error)
            sent += [Sent(instance, str(error)) for instance in share[len(sent) :]]
        return sent

    shares = [share for i in range(associations) if (share := instances[i::associations])]
    with ThreadPoolExecutor(max_workers=len(shares) or 1) as pool:
        results = list(pool.map(send_share, shares))
    if len(refused) == len(shares) and refused and not any(_taken(share) for share in results):
        raise refused[0]
    return [sent for share in results for sent in share]


def _taken(share: Sequence[Sent]) -> bool:
    return any(not sent.problem for sent in share)


def _send_in_turn(instances: Sequence[InstanceFile], destination: Destination) -> Iterator[Sent]:
    for batch in _batches(instances):
        with _association(destination, batch) as assoc:
            lost = False
            for number, instance in enumerate(batch):
                problem = NOT_SENT if lost else _store(assoc, instance, number % MESSAGE_IDS + 1)
                yield Sent(instance, problem)
                # pynetdicom may still take a dead association for a living one, and wait for it.
                lost = lost or problem == NO_ANSWER


def _batches(instances: Sequence[InstanceFile]) -> Iterator[list[InstanceFile]]:
    """Yield runs of instances that need no more contexts than one association can have."""
    batch: list[InstanceFile] = []
    contexts: set[tuple[str, str]] = set()
    for instance in instances:
        if len(contexts | {instance.context}) > CONTEXTS_LIMIT:
            yield batch
            batch, contexts = [], set()
        batch.append(instance)
        contexts.add(instance.context)
    if batch:
        yield batch


@contextmanager
def _association(destination: Destination, batch: Sequence[InstanceFile]) -> Iterator[Association]:
    ae = AE(destination.calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = CONNECT_TIMEOUT_S
    ae.dimse_timeout = ANSWER_TIMEOUT_S
    contexts = [
        build_context(abstract_syntax, transfer_syntax)
        for abstract_syntax, transfer_syntax in sorted({instance.context for instance in batch})
    ]
    assoc = ae.associate(
        destination.host, destination.port, contexts, ae_title=destination.called_ae
    )
    if not assoc.is_established:
        raise SendError(_why_not(assoc, destination))
    with _closing(assoc):
        yield assoc
        assoc.release()


@contextmanager
def _closing(assoc: Association) -> Iterator[None]:
    """Close the connection in the end: pynetdicom 3.0.4 leaves it open if the peer went first."""
    transport = assoc.dul.socket
    connection = transport.socket if transport is not None else None
    try:
        yield
    finally:
        if assoc.is_established:
            assoc.abort()
        if connection is not None:
            connection.close()


def _why_not(assoc: Association, destination: Destination) -> str:
    """Return why there is no association, in words for the person who wants to send."""
    peer = f"{destination.called_ae} at {destination.host}:{destination.port}"
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        return f"{peer} rejects us as {destination.calling_ae}: {answer.reason_str}"
    return f"no association with {peer}: nothing listens there, or it does not answer in DICOM"


def _store(assoc: Association, instance: InstanceFile, message_id: int) -> str:
    """Send one instance; returns what the peer has against it, "" if it took it."""
    try:
        response = assoc.send_c_store(instance.path, msg_id=message_id)
    except RuntimeError:  # the association ended between two instances
        return NO_ANSWER
    except ValueError:
        return "the peer takes no such SOP class in this transfer syntax"
    return _problem(response)


def _problem(response: Dataset) -> str:
    if "Status" not in response:
        return NO_ANSWER
    if code_to_category(response.Status) in {"Success", "Warning"}:
        return ""
    meaning = STORAGE_SERVICE_CLASS_STATUS.get(response.Status, ("", "Failure"))[1]
    comment = response.get("ErrorComment", "")
    return f"0x{response.Status:04X} {meaning}" + (f": {comment}" if comment else "")
