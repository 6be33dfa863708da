"""Storage commitment as a service class provider, Push Model (PS3.4 annex J).

A peer asks by N-ACTION whether we hold and keep instances. The request is committed to the
database, then acknowledged. A second later, if the peer has kept the association open, the answer
goes back over it by N-EVENT-REPORT; else, or if it is not taken there, a worker calls the
destination in the settings that has the peer's AE title, again and again until it has it. A peer
that is no destination is answered on its own association or not at all.

We commit to what has its row committed and its bytes on disk, read for it, under the same SOP class
and in one version alone.
"""

import queue
import threading
import time
from datetime import timedelta
from io import BytesIO
from typing import Any, Final

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import Event
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from appliance import commitments
from appliance.commitments import Reference, Request
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.part10 import plain_uid
from appliance.store import Store
from dicom_node.dimse import PROCESSING_FAILURE, SUCCESS
from dicom_node.errors import AssociationError
from dicom_node.scu import ANSWER_TIMEOUT_S, MESSAGE_IDS, Destination, associated

log = structlog.get_logger()

REQUEST_STORAGE_COMMITMENT: Final = 1  # Action Type ID, PS3.4 table J.3-1
COMMITTED, SOME_FAILED = 1, 2  # Event Type ID, PS3.4 table J.3-2
# PS3.7 section 10.1.4.1.10 and annex C.
NO_SUCH_SOP_INSTANCE: Final = 0x0112
INVALID_ARGUMENT_VALUE: Final = 0x0115
NO_SUCH_ACTION: Final = 0x0123
RESOURCE_LIMITATION: Final = 0x0213

INSTANCES_LIMIT: Final = 100_000
UID_LIMIT: Final = 64
PATIENCE_S: Final = 1.0
"""How long a peer may take to end its association, if it wants the answer on another one. Scanners
wait on the association, archives release it, and a report in the middle of a release is lost."""
LEFT_TO_LISTENER_S: Final = 30.0
"""How long workers leave a request alone, in case that the listener has died meanwhile."""
LEASE_S: Final = 2 * ANSWER_TIMEOUT_S
LOOK_S: Final = 0.1
TURN_S: Final = 300.0


def handlers(database: Database, store: Store) -> list[tuple[Any, ...]]:
    """Return pynetdicom's event handlers by which an acceptor takes requests."""
    provider = Provider(database, store)
    return [(evt.EVT_N_ACTION, provider.act), (evt.EVT_ESTABLISHED, provider.attend)]


class Provider:
    """Takes the requests of every association, each in its own thread."""

    def __init__(self, database: Database, store: Store) -> None:
        self._database = database
        self._store = store

    def attend(self, event: Event) -> None:
        """Look after an association that may ask (pynetdicom's EVT_ESTABLISHED)."""
        assoc: Any = event.assoc
        if any(
            context.abstract_syntax == StorageCommitmentPushModel
            for context in assoc.accepted_contexts
        ):
            assoc.storage_commitment = Dialogue(assoc, self._database, self._store)

    def act(self, event: Event) -> tuple[int, None]:
        """Note one N-ACTION (pynetdicom's EVT_N_ACTION); returns its status, and no reply."""
        try:
            return self._noted(event), None
        except Exception:
            # The last resort of this process: the peer gets a status, whatever it was.
            log.exception("commitment.failed")
            return PROCESSING_FAILURE, None

    def _noted(self, event: Event) -> int:
        request: Any = event.request
        if request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
            return NO_SUCH_SOP_INSTANCE
        if event.action_type != REQUEST_STORAGE_COMMITMENT:
            return NO_SUCH_ACTION
        asked = event.action_information
        transaction_uid = _uid(asked, "TransactionUID")
        items = asked.get("ReferencedSOPSequence") or ()
        if len(items) > INSTANCES_LIMIT:
            return RESOURCE_LIMITATION
        instances = [
            Reference(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
            for item in items
        ]
        named = [uid for one in instances for uid in (one.sop_class_uid, one.sop_instance_uid)]
        if not instances or not all(0 < len(uid) <= UID_LIMIT for uid in (transaction_uid, *named)):
            return INVALID_ARGUMENT_VALUE
        with self._database.transaction() as db:
            number = commitments.note(
                db,
                peer=str(event.assoc.requestor.ae_title).strip(),
                transaction_uid=transaction_uid,
                instances=instances,
                not_before=utc_now() + timedelta(seconds=LEFT_TO_LISTENER_S),
            )
        log.info("commitment.asked", request_id=number, instances=len(instances))
        assoc: Any = event.assoc
        assoc.storage_commitment.answer_soon(number)
        return SUCCESS


class Dialogue:
    """The answers that go back over the association of the question.

    They are sent from a thread of their own, never in the middle of another message. What the peer
    says to them comes as every message does, for pynetdicom's own `send_n_event_report` would take
    the peer's next request for it.
    """

    def __init__(self, assoc: Any, database: Database, store: Store) -> None:
        self._assoc = assoc
        self._database = database
        self._store = store
        self._asked: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._thread: threading.Thread | None = None
        self._others = self._assoc._serve_request  # noqa: SLF001 - there is no other place for it
        self._assoc._serve_request = self._serve  # noqa: SLF001

    def answer_soon(self, number: int) -> None:
        """Answer a request that is noted, here if the peer waits for it."""
        self._asked.put((number, time.monotonic() + PATIENCE_S))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="commitments", daemon=True)
            self._thread.start()

    def _is_open(self) -> bool:
        # An abort is noted in `is_established` only once the association's thread looks.
        return bool(self._assoc.is_established) and not self._assoc.acse.is_aborted()

    def _serve(self, message: Any, context_id: int) -> None:
        """Take a message in the association's thread, in place of pynetdicom's."""
        if isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is not None:
            response: Any = message
            self._responses.put((response.MessageIDBeingRespondedTo, int(response.Status)))
            return
        with self._sending:
            self._others(message, context_id)

    def _run(self) -> None:
        while True:
            try:
                number, due = self._asked.get(timeout=LOOK_S)
            except queue.Empty:
                if not self._is_open():
                    return
                continue
            while self._is_open() and time.monotonic() < due:
                time.sleep(LOOK_S)
            try:
                if not (self._is_open() and self._answered(number)):
                    commitments.hand_over(self._database, number)
            except Exception:
                # The last resort of this thread: the request is in the database, for a worker.
                log.exception("commitment.unanswered", request_id=number)

    def _answered(self, number: int) -> bool:
        """Answer one request over the association; whether the peer took it."""
        request = commitments.claim(self._database, number, lease_s=LEASE_S)
        if request is None:
            return True  # answered by a worker
        answers = commitments.judged(self._database, self._store, request.instances)
        with self._sending:
            if not self._is_open():
                return False
            self._send(request, answers)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                responded_to, status = self._responses.get(timeout=LOOK_S)
            except queue.Empty:
                if not self._is_open():
                    return False
                continue
            if responded_to != _message_id(request):
                continue  # to an earlier report, which was given up
            if status != SUCCESS:
                return False
            commitments.finish(self._database, request)
            _tell(request, answers)
            return True
        return False

    def _send(self, request: Request, answers: list[Reference]) -> None:
        context = next(
            context
            for context in self._assoc.accepted_contexts
            if context.abstract_syntax == StorageCommitmentPushModel
        )
        syntax = context.transfer_syntax[0]
        message: Any = N_EVENT_REPORT()
        message.MessageID = _message_id(request)
        message.AffectedSOPClassUID = StorageCommitmentPushModel
        message.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
        message.EventTypeID = event_type(answers)
        information = event_information(request.transaction_uid, answers)
        encoded = encode(
            information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
        )
        message.EventInformation = BytesIO(encoded or b"")
        self._assoc.dimse.send_msg(message, context.context_id)


def _message_id(request: Request) -> int:
    return request.id % MESSAGE_IDS + 1


def answer_waiting(settings: Settings, database: Database) -> int:
    """Answer what is due, over associations of our own; returns how many were tried."""
    deadline = time.monotonic() + TURN_S
    store = Store(settings.store_dir)
    tried = 0
    while time.monotonic() < deadline:
        request = commitments.claim_next(database, lease_s=LEASE_S)
        if request is None:
            break
        tried += 1
        _call(settings, database, store, request)
    return tried


def _call(settings: Settings, database: Database, store: Store, request: Request) -> None:
    """Call the peer and report; what it does not take is put off."""
    nodes = (node for node in settings.dicom.destinations if node.ae_title == request.peer)
    node = next(nodes, None)
    if node is None:
        problem = "no destination has the AE title that asked"
        commitments.put_off(database, request, problem, retriable=False)
        log.warning("commitment.unanswerable", request_id=request.id)
        return
    answers = commitments.judged(database, store, request.instances)
    try:
        problem = _reported(Destination.configured(settings.dicom, node.name), request, answers)
    except AssociationError as error:
        problem = str(error)
    if not problem:
        commitments.finish(database, request)
        _tell(request, answers)
        return
    state = commitments.put_off(database, request, problem)
    log.warning("commitment.put_off", request_id=request.id, attempt=request.attempt, state=state)


def _reported(destination: Destination, request: Request, answers: list[Reference]) -> str:
    """Send the report over a new association (PS3.4 J.3.3); returns the problem, "" for none.

    Raises:
        AssociationError: it did not come about.
    """
    roles = [build_role(StorageCommitmentPushModel, scp_role=True)]
    contexts = [build_context(StorageCommitmentPushModel)]
    with associated(destination, contexts, roles=roles) as assoc:
        if not assoc.accepted_contexts:
            return "the peer takes no reports: it accepts no context of storage commitment"
        status, _ = assoc.send_n_event_report(
            event_information(request.transaction_uid, answers),
            event_type(answers),
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
    if "Status" not in status:
        return "no answer: the association was lost"
    return "" if status.Status == SUCCESS else f"the peer answers 0x{status.Status:04X}"


def event_type(answers: list[Reference]) -> int:
    """Return the Event Type ID: 1 if all are committed to, else 2 (PS3.4 table J.3-2)."""
    return SOME_FAILED if any(one.failure is not None for one in answers) else COMMITTED


def event_information(transaction_uid: str, answers: list[Reference]) -> Dataset:
    """Return the Event Information of a report (PS3.4 table J.3-2)."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    kept = [_item(one) for one in answers if one.failure is None]
    failed = [_item(one) for one in answers if one.failure is not None]
    if kept:
        information.ReferencedSOPSequence = kept
    if failed:
        information.FailedSOPSequence = failed
    return information


def _item(answer: Reference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = answer.sop_class_uid
    item.ReferencedSOPInstanceUID = answer.sop_instance_uid
    if answer.failure is not None:
        item.FailureReason = int(answer.failure)
    return item


def _tell(request: Request, answers: list[Reference]) -> None:
    kept = sum(one.failure is None for one in answers)
    log.info("commitment.answered", request_id=request.id, kept=kept, of=len(answers))


def _uid(asked: Dataset, keyword: str) -> str:
    return plain_uid(str(asked.get(keyword) or ""))
