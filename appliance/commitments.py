"""What peers want to know that we keep, and how far the answer is (PS3.4 annex J).

    WAITING ──claim──► RUNNING ──► DONE      the peer took the answer
       ▲                 │  └────► FAILED    nowhere to send it, or every try used up
       └── try later ────┘

A request is committed before it is acknowledged; a claim is a lease, as in `retrievals`. What we
hold is looked up when the answer is given, anew at each try.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Final

from sqlalchemy import and_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from appliance.database import Database, utc_now
from appliance.store import Store
from appliance.tables import CommitmentRequest, Instance, InstanceConflict

MAX_ATTEMPTS: Final = 24
RETRY_S: Final = 60.0
LONGEST_DELAY_S: Final = 3600.0
UIDS_AT_ONCE: Final = 500


class RequestState(StrEnum):
    """Where a request stands."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


class Failure(IntEnum):
    """Failure Reason (0008,1197) of an instance that is not committed to (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    """It is here, but not as it came, or in two versions: whoever asks had better keep it."""
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


@dataclass(frozen=True)
class Reference:
    """An instance as a peer names it, and why we do not commit to it: None if we do."""

    sop_class_uid: str
    sop_instance_uid: str
    failure: Failure | None = None


@dataclass(frozen=True)
class Request:
    """The right to answer one request, until its lease ends."""

    id: int
    peer: str
    transaction_uid: str
    instances: tuple[Reference, ...]
    attempt: int


def note(
    db: Session,
    *,
    peer: str,
    transaction_uid: str,
    instances: Sequence[Reference],
    not_before: datetime,
) -> int:
    """Note what a peer asks; returns the row's id.

    The same transaction asked for again, as after a lost acknowledgement, is answered again.

    Args:
        db: the caller's transaction.
        peer: the AE title that asks.
        transaction_uid: its name for the request.
        instances: what it asks about.
        not_before: when `claim_next` may take it.
    """
    again = {
        "instances": [[one.sop_class_uid, one.sop_instance_uid] for one in instances],
        "state": RequestState.WAITING,
        "attempts": 0,
        "next_try_at": not_before,
        "lease_until": None,
        "last_problem": None,
    }
    key = {"peer": peer, "transaction_uid": transaction_uid}
    dialect = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
    inserted = dialect.insert(CommitmentRequest).values(**key, **again, created_at=utc_now())
    noted = inserted.on_conflict_do_update(index_elements=list(key), set_=again)
    return int(db.execute(noted.returning(CommitmentRequest.id)).scalar_one())


def claim_next(
    database: Database, *, lease_s: float, now: datetime | None = None
) -> Request | None:
    """The request whose turn it is, or nothing."""
    moment = now or utc_now()
    due = or_(
        and_(
            CommitmentRequest.state == RequestState.WAITING,
            CommitmentRequest.next_try_at <= moment,
        ),
        and_(
            CommitmentRequest.state == RequestState.RUNNING,
            CommitmentRequest.lease_until < moment,
        ),
    )
    with database.snapshot() as db:
        oldest = select(CommitmentRequest.id).where(due).order_by(CommitmentRequest.next_try_at)
        found = db.scalars(oldest.limit(1)).first()
    return None if found is None else claim(database, found, lease_s=lease_s, now=moment)


def claim(
    database: Database, number: int, *, lease_s: float, now: datetime | None = None
) -> Request | None:
    """The request of this row id, unless it is answered or somebody else is at it."""
    moment = now or utc_now()
    free = or_(
        CommitmentRequest.state == RequestState.WAITING,
        and_(
            CommitmentRequest.state == RequestState.RUNNING,
            CommitmentRequest.lease_until < moment,
        ),
    )
    taken = (
        update(CommitmentRequest)
        .where(CommitmentRequest.id == number, free)
        .values(
            state=RequestState.RUNNING,
            attempts=CommitmentRequest.attempts + 1,
            lease_until=moment + timedelta(seconds=lease_s),
        )
        .returning(
            CommitmentRequest.id,
            CommitmentRequest.peer,
            CommitmentRequest.transaction_uid,
            CommitmentRequest.instances,
            CommitmentRequest.attempts,
        )
    )
    with database.transaction() as db:
        row = db.execute(taken, execution_options={"synchronize_session": False}).one_or_none()
    if row is None:
        return None
    asked = tuple(Reference(*pair) for pair in row.instances)
    return Request(row.id, row.peer, row.transaction_uid, asked, row.attempts)


def finish(database: Database, request: Request) -> bool:
    """End a request as answered; whether the right to it still held."""
    # The UIDs of a whole study are not kept for ever: asked again, they come again.
    done = RequestState.DONE
    return _change(database, request, state=done, instances=[], lease_until=None, last_problem=None)


def put_off(
    database: Database, request: Request, problem: str, *, retriable: bool = True
) -> RequestState | None:
    """Try again later, ever later, or give it up; the state it is in now, none if it was lost."""
    state = RequestState.WAITING
    if not retriable or request.attempt >= MAX_ATTEMPTS:
        state = RequestState.FAILED
    delay_s = min(LONGEST_DELAY_S, RETRY_S * 2.0 ** (request.attempt - 1))
    changed = _change(
        database,
        request,
        state=state,
        lease_until=None,
        next_try_at=utc_now() + timedelta(seconds=delay_s),
        last_problem=problem,
    )
    return state if changed else None


def hand_over(database: Database, number: int) -> None:
    """Let the next `claim_next` take a request at once, whoever has it now."""
    with database.transaction() as db:
        db.execute(
            update(CommitmentRequest)
            .where(
                CommitmentRequest.id == number,
                CommitmentRequest.state.in_((RequestState.WAITING, RequestState.RUNNING)),
            )
            .values(state=RequestState.WAITING, lease_until=None, next_try_at=utc_now())
        )


def judged(database: Database, store: Store, asked: Sequence[Reference]) -> list[Reference]:
    """What is asked about, each with why we do not commit to it: rows committed, bytes read.

    Raises OSError if the store cannot be read.
    """
    answers: list[Reference] = []
    for some in _portions(asked):
        uids = {one.sop_instance_uid for one in some}
        held: defaultdict[str, dict[str, str]] = defaultdict(dict)
        with database.snapshot() as db:
            rows = select(Instance.sop_instance_uid, Instance.digest, Instance.sop_class_uid)
            for uid, digest, sop_class_uid in db.execute(
                rows.where(Instance.sop_instance_uid.in_(uids))
            ):
                held[uid][digest] = sop_class_uid
            aside = select(InstanceConflict.sop_instance_uid)
            doubtful = set(db.scalars(aside.where(InstanceConflict.sop_instance_uid.in_(uids))))
        for one in some:
            failure = _failure(one, held[one.sop_instance_uid], store)
            if failure is None and one.sop_instance_uid in doubtful:
                failure = Failure.PROCESSING_FAILURE
            answers.append(Reference(one.sop_class_uid, one.sop_instance_uid, failure))
    return answers


def _portions(asked: Sequence[Reference]) -> Iterator[Sequence[Reference]]:
    for first in range(0, len(asked), UIDS_AT_ONCE):
        yield asked[first : first + UIDS_AT_ONCE]


def _failure(asked: Reference, held: dict[str, str], store: Store) -> Failure | None:
    if not held:
        return Failure.NO_SUCH_OBJECT_INSTANCE
    if set(held.values()) != {asked.sop_class_uid}:
        return Failure.CLASS_INSTANCE_CONFLICT
    if not all(store.holds(digest) for digest in held):
        return Failure.PROCESSING_FAILURE
    return None


def _change(database: Database, request: Request, **values: object) -> bool:
    statement = (
        update(CommitmentRequest)
        .where(
            CommitmentRequest.id == request.id,
            CommitmentRequest.state == RequestState.RUNNING,
            CommitmentRequest.attempts == request.attempt,
        )
        .values(**values)
        .returning(CommitmentRequest.id)
    )
    with database.transaction() as db:
        return db.scalar(statement) is not None
