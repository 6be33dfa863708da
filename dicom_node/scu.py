"""Sending instances to a peer: C-STORE as a service class user (PS3.4 annex B).

Each instance goes out in its own transfer syntax, with one presentation context for each pair of
SOP class and transfer syntax; nothing is transcoded.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

from pydicom.dataset import Dataset
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from appliance.collection import InstanceFile
from appliance.config import DicomSettings
from appliance.part10 import IMPLEMENTATION_CLASS_UID
from dicom_node.errors import AssociationError, DicomNodeError, SendError
from dicom_node.tls import CallContext, Trust

CONTEXTS_LIMIT: Final = 128  # presentation context IDs are the odd numbers to 255, PS3.8 9.3.2.2
MESSAGE_IDS: Final = 0xFFFF
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 120.0
REJECTED_TRANSIENT: Final = 0x02  # the A-ASSOCIATE-RJ's result, PS3.8 table 9-21
NO_ANSWER: Final = "no answer: the association was lost"
NOT_SENT: Final = "not sent: the association was lost"
LOST_AGAIN: Final = "the association was lost again and again: look at the peer's log"
LOSSES: Final = 3
"""Associations in a row that were lost before anything was taken: then it is not one object."""
NOT_ACCEPTED: Final = "the peer takes no such SOP class in this transfer syntax"
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122  # PS3.7 annex C


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The peer to send to, and the name we go by."""

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: Trust | None = None
    """What it must show over TLS; None to call it without."""

    @classmethod
    def configured(cls, dicom: DicomSettings, name: str) -> Self:
        """Return the node of this name in the settings; raises ConfigError if there is none."""
        node = dicom.destination(name)
        return cls(
            host=node.host,
            port=node.port,
            called_ae=node.ae_title,
            calling_ae=dicom.ae_title,
            tls=Trust.configured(dicom, node),
        )


@dataclass(frozen=True)
class Sent:
    """What became of one instance; `problem` is "" when the peer took it."""

    instance: InstanceFile
    problem: str


@dataclass(frozen=True)
class Answer:
    """What a peer said to one C-STORE.

    Attributes:
        status: as in PS3.4 table B.2-1, 0x0122 also where no context was accepted; None for no
            answer.
        problem: what it has against the instance, "" if it took it.
    """

    status: int | None
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
    for instance, answer in send_each(
        instances, destination, lambda assoc, one, number: store(assoc, one.path, number)
    ):
        yield Sent(instance, answer.problem)


class Sendable(Protocol):
    """What goes out by C-STORE."""

    @property
    def context(self) -> tuple[str, str]:
        """SOP class and transfer syntax."""


Item = TypeVar("Item", bound=Sendable)


def send_each(
    items: Sequence[Item],
    destination: Destination,
    send_one: Callable[[Association, Item, int], Answer],
    *,
    over: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Item, Answer], None, None]:
    """Yield each item with its answer; after a loss the next goes over a new association.

    What got no answer is not sent once more: it may be what the peer broke off for.

    Args:
        items: in the order in which they are to go out.
        destination: the peer.
        send_one: sends the item, the given number of its association from 0.
        over: asked before each item whether to end here.

    Raises:
        AssociationError: there is none, or nothing was taken over several in a row.
    """
    for batch in batches(items):
        left = list(batch)
        fruitless = 0
        while left and not over():
            taken = False
            with (
                _again(len(left) < len(batch)),
                associated(destination, contexts_of(batch)) as assoc,
            ):
                for number in range(len(left)):
                    if over():
                        return
                    answer = send_one(assoc, left[0], number)
                    if answer.problem == NOT_SENT:
                        break
                    item = left.pop(0)
                    yield item, answer
                    # pynetdicom may still take a dead association for a living one, and wait.
                    if answer.problem == NO_ANSWER:
                        break
                    taken = True
            fruitless = 0 if taken else fruitless + 1
            if left and fruitless == LOSSES:
                raise AssociationError(LOST_AGAIN, retriable=True)


@contextmanager
def _again(lost: bool) -> Iterator[None]:  # noqa: FBT001
    """Call no refusal final that follows a loss: the peer may be going down or coming up."""
    try:
        yield
    except AssociationError as error:
        error.retriable = error.retriable or lost
        raise


def batches(instances: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield runs of instances that need no more contexts than one association can have."""
    batch: list[Item] = []
    contexts: set[tuple[str, str]] = set()
    for instance in instances:
        if len(contexts | {instance.context}) > CONTEXTS_LIMIT:
            yield batch
            batch, contexts = [], set()
        batch.append(instance)
        contexts.add(instance.context)
    if batch:
        yield batch


def contexts_of(batch: Sequence[Sendable]) -> list[PresentationContext]:
    """Return one context for each pair of SOP class and transfer syntax."""
    return [
        build_context(abstract_syntax, transfer_syntax)
        for abstract_syntax, transfer_syntax in sorted({instance.context for instance in batch})
    ]


@contextmanager
def associated(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    *,
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Iterator[Association]:
    """Hold one association; released at the end of the block, aborted when that raises.

    Args:
        destination: the peer.
        contexts: the presentation contexts to propose.
        roles: role selections to propose (PS3.7 D.3.3.4).
        handlers: pynetdicom's event handlers.

    Raises:
        AssociationError: it did not come about.
    """
    ae = AE(destination.calling_ae)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = CONNECT_TIMEOUT_S
    ae.dimse_timeout = ANSWER_TIMEOUT_S
    secured = _secured(destination)
    assoc = ae.associate(
        destination.host,
        destination.port,
        list(contexts),
        ae_title=destination.called_ae,
        ext_neg=list(roles),
        evt_handlers=list(handlers),
        tls_args=None if secured is None else (secured, _name_of(destination)),
    )
    if not assoc.is_established:
        if secured is not None and (reason := secured.reason()):
            raise AssociationError(f"no TLS with {_peer(destination)}: {reason}", retriable=True)
        raise _why_not(assoc, destination)
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


def _secured(destination: Destination) -> CallContext | None:
    """Return what a connection is secured with, None where it is not; raises AssociationError."""
    if destination.tls is None:
        return None
    try:
        return destination.tls.context()
    except DicomNodeError as error:
        # The files may be in the middle of being renewed.
        raise AssociationError(str(error), retriable=True) from error


def _name_of(destination: Destination) -> str:
    named = destination.tls.name if destination.tls is not None else None
    return named or destination.host


def _peer(destination: Destination) -> str:
    return f"{destination.called_ae} at {destination.host}:{destination.port}"


def _why_not(assoc: Association, destination: Destination) -> AssociationError:
    """Return why there is no association, in words for the person who wants one."""
    peer = _peer(destination)
    answer = assoc.acceptor.primitive
    if assoc.is_rejected and answer is not None:
        return AssociationError(
            f"{peer} rejects us as {destination.calling_ae}: {answer.reason_str}",
            retriable=answer.result == REJECTED_TRANSIENT,
        )
    if assoc.is_aborted and answer is not None:
        return AssociationError(f"{peer} takes none of what was proposed to it", retriable=False)
    return AssociationError(
        f"no association with {peer}: nothing listens there, or it does not answer in DICOM",
        retriable=True,
    )


def store(assoc: Association, path: Path, number: int) -> Answer:
    """Send the file of one instance, the `number`th of this association from 0."""
    try:
        response = assoc.send_c_store(path, msg_id=number % MESSAGE_IDS + 1)
    except RuntimeError:  # the association ended between two instances
        return Answer(None, NOT_SENT)
    except ValueError:
        return Answer(SOP_CLASS_NOT_SUPPORTED, NOT_ACCEPTED)
    return Answer(response.get("Status"), _problem(response))


def _problem(response: Dataset) -> str:
    if "Status" not in response:
        return NO_ANSWER
    if code_to_category(response.Status) in {"Success", "Warning"}:
        return ""
    meaning = STORAGE_SERVICE_CLASS_STATUS.get(response.Status, ("", "Failure"))[1]
    comment = response.get("ErrorComment", "")
    return f"0x{response.Status:04X} {meaning}" + (f": {comment}" if comment else "")
