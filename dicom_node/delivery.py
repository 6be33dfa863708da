"""Sending what is queued, to every destination at its own pace.

One thread for each destination that has something due, so that a peer that is slow, away or out of
space holds up nothing but its own deliveries. What each object came to is in the database before
the next one goes out: after a kill at any point the same objects are sent, in the same bytes.
"""

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from pynetdicom import _config

from appliance import commitment_transactions, deliveries
from appliance.config import Settings
from appliance.database import Database
from appliance.deliveries import DeliveryState, Kind, ObjectState, Order
from appliance.errors import ApplianceError, ConfigError
from appliance.tables import DeliveredObject
from dicom_node import commitment_scu
from dicom_node.commitment_scu import Reports
from dicom_node.errors import AssociationError, MessageError, ObjectError, QueryError
from dicom_node.messages import notify
from dicom_node.messages.result import read_result
from dicom_node.prepared import prepare, remove_unneeded
from dicom_node.scu import (
    ANSWER_TIMEOUT_S,
    NO_ANSWER,
    Answer,
    Destination,
    send_each,
    store,
)
from pipelines.errors import PipelineError

log = structlog.get_logger()

# A peer that is silent for longer is given up, so a lease renewed at each answer outlives it.
LEASE_S: Final = ANSWER_TIMEOUT_S + 60.0
# After that a destination's thread ends between two objects, and the next turn goes on.
TURN_S: Final = 300.0
LOOK_EVERY_S: Final = 1.0
DUPLICATE_INSTANCE: Final = 0x0111  # PS3.7 annex C: taken, and its answer was lost
DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class Outgoing:
    """One object on its way."""

    object_id: int
    path: Path
    context: tuple[str, str]


@dataclass(frozen=True)
class Work:
    """What it takes to carry out orders until a moment of the monotonic clock."""

    settings: Settings
    database: Database
    until: float

    @property
    def over(self) -> bool:
        """Whether the turn is over."""
        return time.monotonic() >= self.until


class OrderLostError(Exception):
    """Another worker has the delivery, or a person dropped it: nothing more is to be done."""


def deliver_waiting(settings: Settings, database: Database) -> int:
    """Carry out what is due, every destination in a thread of its own; returns how many orders.

    Does nothing while another process of this appliance does it. If none does, whoever still has a
    lease was killed: its destination would have to wait for minutes.
    """
    with _alone(settings.run_dir / "delivering") as alone:
        if not alone:
            return 0
        deliveries.end_leases(database)
        carried_out = _take_turns(settings, database)
        remove_unneeded(settings, database)
    return carried_out


def serve(work: Work, destination: str) -> int:
    """Carry out what is due for one destination, in turn; returns how many orders."""
    carried_out = 0
    while not work.over:
        order = deliveries.claim_next(work.database, destination, lease_s=LEASE_S)
        if order is None:
            break
        carry_out(work, order)
        carried_out += 1
    return carried_out


def carry_out(work: Work, order: Order) -> None:
    """Do what is next for one delivery, and leave it in the state that it came to."""
    try:
        state = _attempt(work, order)
    except OrderLostError:
        log.warning("delivery.overtaken", delivery_id=order.id)
        return
    except (AssociationError, MessageError, QueryError) as error:
        state = _put_off(work, order, str(error), retriable=error.retriable)
    except (ConfigError, ObjectError, PipelineError) as error:
        state = _put_off(work, order, str(error), retriable=False)
    except ApplianceError as error:
        state = _put_off(work, order, str(error), retriable=True)
    except Exception as error:
        # The last resort of a thread: whatever it was, the others go on, and this is tried again.
        log.exception("delivery.broke", delivery_id=order.id)
        told = error.strerror if isinstance(error, OSError) else None  # a full disk, mostly
        problem = f"{told or type(error).__name__}: see the worker's log"
        state = _put_off(work, order, problem, retriable=True)
    log.info("delivery.moved", delivery_id=order.id, attempt=order.attempt, state=state)


def _attempt(work: Work, order: Order) -> DeliveryState | None:
    if order.state is DeliveryState.SENT:
        return _ask_for_commitment(work, order)
    with work.database.snapshot() as db:
        current = deliveries.is_current(db, order.subject)
    if not current:
        deliveries.supersede(work.database, order)
        return DeliveryState.DROPPED
    return SENDERS[order.kind](work, order)


def _send_by_dicom(work: Work, order: Order) -> DeliveryState | None:
    """Send what is left of a delivery by C-STORE."""
    node = work.settings.dicom.destination(order.destination)
    waiting = _outgoing(work, order)
    came_to = _send_all(work, order, waiting)
    # A turn that came to nothing is a failure, and not gone on with at once.
    if len(came_to) < len(waiting) and set(came_to) != {ObjectState.WAITING}:
        return DeliveryState.WAITING if deliveries.give_back(work.database, order) else None
    with work.database.snapshot() as db:
        objects = deliveries.objects_of(db, order.id)
    refused = [each for each in objects if each.state == ObjectState.REFUSED]
    left = [each for each in objects if each.state == ObjectState.WAITING]
    if left or refused:
        return _put_off(work, order, _summary(objects, left or refused), retriable=bool(left))
    held = deliveries.sent(work.database, order, commitment=node.commitment and bool(objects))
    return DeliveryState.SENT if held else None


def _tell(work: Work, order: Order) -> DeliveryState | None:
    """Tell another system the result as it is now; sent again, it is known by its identifier."""
    system = work.settings.messages.destination(order.destination)
    result = read_result(work.database, work.settings, order.subject.study_id)
    notify.send(system, notify.build(result, system))
    held = deliveries.sent(work.database, order, commitment=False)
    return DeliveryState.SENT if held else None


SENDERS: Final[Mapping[Kind, Callable[[Work, Order], DeliveryState | None]]] = {
    Kind.DICOM: _send_by_dicom,
    Kind.MESSAGE: _tell,
}
"""How a delivery goes to each kind of destination; each leaves it in the state that it came to."""


def _outgoing(work: Work, order: Order) -> list[Outgoing]:
    """Return the objects that are left, which are prepared and noted at the first try.

    What got no answer before comes last: the association may be lost for it again.
    """
    with work.database.snapshot() as db:
        objects = deliveries.objects_of(db, order.id)
    if not objects:
        prepared = prepare(work.settings, work.database, order)
        if not deliveries.note_objects(work.database, order, prepared):
            raise OrderLostError
        with work.database.snapshot() as db:
            objects = deliveries.objects_of(db, order.id)
    return [
        Outgoing(
            each.id,
            work.settings.data_dir / each.file,
            (each.sop_class_uid, each.transfer_syntax_uid),
        )
        for each in sorted(objects, key=lambda each: each.problem == NO_ANSWER)
        if each.state == ObjectState.WAITING
    ]


def _send_all(work: Work, order: Order, waiting: Sequence[Outgoing]) -> list[ObjectState]:
    """Send objects and note each answer; returns what they came to, until the turn was over.

    Raises:
        AssociationError: there is no association, or it was lost again and again.
        OrderLostError: the order does not hold any more.
    """
    # Process-wide switch of pynetdicom: files are sent as they are, without decoding.
    _config.STORE_SEND_CHUNKED_DATASET = True
    destination = Destination.configured(work.settings.dicom, order.destination)
    sending = send_each(
        waiting,
        destination,
        lambda assoc, each, number: store(assoc, each.path, number),
        over=lambda: work.over,
    )
    with closing(sending):
        return [_note(work, order, each, answer) for each, answer in sending]


def _note(work: Work, order: Order, each: Outgoing, answer: Answer) -> ObjectState:
    state = judge(answer)
    held = deliveries.note_answer(
        work.database,
        order,
        each.object_id,
        state,
        problem=answer.problem or None,
        answered=answer.status is not None,
        lease_s=LEASE_S,
    )
    if not held:
        raise OrderLostError
    return state


def judge(answer: Answer) -> ObjectState:
    """Return what an answer to C-STORE makes of the object: taken, to try again, or refused.

    PS3.4 table B.2-1: 0xA9xx and 0xCxxx are about the object and stay so, as does 0x0122; a lack of
    resources (0xA7xx) and whatever else has no meaning there may pass.
    """
    if not answer.problem or answer.status == DUPLICATE_INSTANCE:
        return ObjectState.SENT
    status = answer.status or 0
    if (
        status >> 8 == 0xA9
        or status >> 12 == 0xC
        or status == commitment_scu.SOP_CLASS_NOT_SUPPORTED
    ):
        return ObjectState.REFUSED
    return ObjectState.WAITING


def _ask_for_commitment(work: Work, order: Order) -> DeliveryState | None:
    """Ask for the commitment to what was sent, and leave the delivery to the report."""
    chosen = work.settings.delivery
    with work.database.snapshot() as db:
        references = [
            (each.sop_class_uid, each.sop_instance_uid)
            for each in deliveries.objects_of(db, order.id)
            if each.state == ObjectState.SENT
        ]
    if not references:  # a report on an earlier request was faster than the last object's answer
        return DeliveryState.COMMITTED if deliveries.committed(work.database, order) else None
    asked = commitment_transactions.asked(work.database, order)
    if asked >= chosen.commitment_asks:
        return deliveries.fail(
            work.database, order, f"sent, but not committed: asked {asked} times, no full report"
        )
    commitment_scu.ask(
        Destination.configured(work.settings.dicom, order.destination),
        partial(commitment_transactions.begin, work.database, order),
        references,
        reported=Reports(work.database).take,
    )
    commitment_transactions.await_report(work.database, order, wait_s=chosen.commitment_wait_s)
    return DeliveryState.SENT


def _put_off(work: Work, order: Order, problem: str, *, retriable: bool) -> DeliveryState | None:
    if not retriable:
        return deliveries.fail(work.database, order, problem)
    chosen = work.settings.delivery
    return deliveries.put_off(
        work.database,
        order,
        problem,
        retry_s=chosen.retry_s,
        max_age_s=chosen.max_age_days * DAY_S,
    )


def _summary(objects: Sequence[DeliveredObject], bad: Sequence[DeliveredObject]) -> str:
    reasons = "; ".join(sorted({each.problem for each in bad if each.problem}))
    return f"{len(bad)} of {len(objects)} objects not taken: {reasons}"


def _take_turns(settings: Settings, database: Database) -> int:
    """Serve every destination that has something due, until none has or the task is old."""
    closing = time.monotonic() + settings.lifecycle.task_time_limit_s / 2
    running: dict[str, Future[int]] = {}
    carried_out = 0
    places = len(settings.dicom.destinations) + len(settings.messages.destinations) or 1
    with ThreadPoolExecutor(max_workers=places, thread_name_prefix="delivery") as pool:
        while True:
            for name in [name for name, future in running.items() if future.done()]:
                carried_out += running.pop(name).result()
            if time.monotonic() < closing:
                for name in deliveries.due_destinations(database):
                    if name not in running:
                        work = Work(settings, database, time.monotonic() + TURN_S)
                        running[name] = pool.submit(serve, work, name)
            if not running:
                return carried_out
            wait(running.values(), timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock of the kernel's, which ends with the process; yields whether it was free."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
