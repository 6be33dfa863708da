"""The life of a study: a table of states, moved only by compare-and-set, each move an event row.

    RECEIVING ──quiet──► QUEUED ──claim──► ANALYSING ──► READY
        ▲                  ▲                  │  ├─────► REJECTED   not a chest CT we support
        │                  └── lease expired ─┤  └─────► FAILED     every try used up
        └── a late instance, from every state─┘

The database is the truth and a message only a doorbell: a task claims a study first, whichever's
turn it is (`priority`), and returns if none is to be had, so that a message lost costs time and a
message delivered twice costs nothing.
A claim is a lease that its worker renews; when it expires, `sweep` takes the study back.
This is the only module that writes `Study.state`.
"""

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import uuid4

import structlog
from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from appliance import audit
from appliance.config import PROCESS_VARIABLE
from appliance.database import Database, utc_now
from appliance.errors import InvalidMoveError, LostRaceError
from appliance.tables import Analysis, Occasion, StepResult, Study, StudyEvent

log = structlog.get_logger()

DEFAULT_MAX_ATTEMPTS: Final = 3  # F4: a study that kills its worker is set aside after three tries


class State(StrEnum):
    """Where a study stands."""

    RECEIVING = "RECEIVING"
    QUEUED = "QUEUED"
    ANALYSING = "ANALYSING"
    READY = "READY"
    REJECTED = "REJECTED"
    FAILED = "FAILED"


NEXT: Final[Mapping[State, frozenset[State]]] = MappingProxyType(
    {
        State.RECEIVING: frozenset({State.QUEUED}),
        State.QUEUED: frozenset({State.ANALYSING, State.RECEIVING}),
        State.ANALYSING: frozenset(
            {State.READY, State.REJECTED, State.FAILED, State.QUEUED, State.RECEIVING}
        ),
        State.READY: frozenset({State.RECEIVING}),
        State.REJECTED: frozenset({State.RECEIVING, State.QUEUED}),
        State.FAILED: frozenset({State.RECEIVING, State.QUEUED}),
    }
)
"""Which moves there are."""

ON_ENTER: Final[Mapping[State, str]] = MappingProxyType({State.QUEUED: "pipelines.analyse_study"})
"""The task that is rung when a study enters a state."""

LATE_INSTANCE: Final = "late instance"
LEASE_EXPIRED: Final = "the worker stopped answering"
BY_HAND: Final = "sent again by hand"


class Doorbell(Protocol):
    """What can tell a worker that a study waits; `queue.Queue` in every process but a test."""

    def send(self, name: str, study_id: int) -> bool:
        """Whether the broker took the message; the sweep rings again when it did not."""


@dataclass(frozen=True)
class Claim:
    """The right to analyse a study at one revision, as long as the lease is renewed."""

    study_id: int
    revision: int
    attempt: int
    owner: str


@dataclass(frozen=True, kw_only=True)
class FinishedAnalysis:
    """What an analysis leaves in the database; its files are already durable in `folder`."""

    folder: str
    probability: float | None
    positive: bool | None
    lesion_count: int
    lesion_volume_ml: float
    models: list[Any] = field(default_factory=list)
    timings: Mapping[str, Any] = field(default_factory=dict)
    lung_hu: float | None = None


def begin(db: Session, values: Mapping[str, Any]) -> int:
    """The id of a new study with these columns, in its first state."""
    now = utc_now()
    study = Study(**values, state=State.RECEIVING, state_since=now)
    db.add(study)
    db.flush()
    db.add(StudyEvent(study_id=study.id, source=None, target=State.RECEIVING, at=now))
    return study.id


def advance(
    db: Session, study_id: int, source: State, target: State, *, reason: str | None = None
) -> None:
    """Move one study along `NEXT`.

    Raises:
        InvalidMoveError: the table has no such move.
        LostRaceError: another process moved the study first.
    """
    _advance(db, study_id, source, target, reason=reason)


def move(
    database: Database,
    doorbell: Doorbell | None,
    study_id: int,
    source: State,
    target: State,
    *,
    reason: str | None = None,
) -> None:
    """Move one study in a transaction of its own and, once committed, ring for the next task."""
    with database.transaction() as db:
        advance(db, study_id, source, target, reason=reason)
    ring(database, doorbell, study_id, target)


def ring(database: Database, doorbell: Doorbell | None, study_id: int, state: State) -> bool:
    """Whether the task that belongs to `state` was sent; notes when, so that no sweep does soon."""
    name = ON_ENTER.get(state)
    if name is None or doorbell is None or not doorbell.send(name, study_id):
        return False
    with database.transaction() as db:
        db.execute(update(Study).where(Study.id == study_id).values(rung_at=utc_now()))
    return True


def reopen(db: Session, study_id: int) -> State:
    """Note a new instance of a study; returns the state it is in now.

    The caller holds the study's row, so the state cannot change between the look and the move. An
    analysis under way goes on: `finish` sees by the revision that it is out of date.
    """
    state = State(db.execute(select(Study.state).where(Study.id == study_id)).scalar_one())
    if state in (State.RECEIVING, State.ANALYSING):
        return state
    _advance(db, study_id, state, State.RECEIVING, reason=LATE_INSTANCE, attempts=0)
    return State.RECEIVING


def claim(
    database: Database, study_id: int, *, owner: str, lease_s: float, now: datetime | None = None
) -> Claim | None:
    """The claim on a queued study, or nothing when it is not to be had: then the task just returns.

    `owner` names the process (`owner_here()`); a random part makes every claim's owner its own.
    """
    moment = now or utc_now()
    own = f"{owner}/{uuid4().hex}"
    with database.transaction() as db:
        row = db.execute(
            update(Study)
            .where(Study.id == study_id, Study.state == State.QUEUED)
            .values(
                state=State.ANALYSING,
                state_reason=None,
                state_since=moment,
                attempts=Study.attempts + 1,
                lease_owner=own,
                lease_until=moment + timedelta(seconds=lease_s),
                step=None,
                step_done=0,
                step_total=0,
            )
            .returning(Study.revision, Study.attempts)
        ).one_or_none()
        if row is None:
            return None
        db.execute(delete(StepResult).where(StepResult.study_id == study_id))
        db.add(
            StudyEvent(
                study_id=study_id,
                source=State.QUEUED,
                target=State.ANALYSING,
                reason=f"try {row.attempts}",
                at=moment,
            )
        )
    return Claim(study_id=study_id, revision=row.revision, attempt=row.attempts, owner=own)


def renew(database: Database, claim: Claim, *, lease_s: float, now: datetime | None = None) -> bool:
    """Whether the claim still holds, its lease prolonged if it does."""
    until = (now or utc_now()) + timedelta(seconds=lease_s)
    with database.transaction() as db:
        statement = update(Study).where(*held(claim)).values(lease_until=until)
        return db.scalar(statement.returning(Study.id)) is not None


class Lease:
    """Whether a claim kept by `keep` is still held; work that is pointless without it asks."""

    def __init__(self) -> None:
        self._lost = threading.Event()
        self._done = threading.Event()

    @property
    def lost(self) -> bool:
        """Whether another process took the study over."""
        return self._lost.is_set()

    def run(self, database: Database, claim: Claim, lease_s: float) -> None:
        """Renew until told to stop; a database that does not answer is tried again until then."""
        while not self._done.wait(lease_s / 3):
            try:
                kept = renew(database, claim, lease_s=lease_s)
            except SQLAlchemyError:
                log.warning("lease.not_renewed", study_id=claim.study_id)
                continue
            if not kept:
                log.warning("lease.lost", study_id=claim.study_id)
                self._lost.set()
                return

    def stop(self) -> None:
        """End the renewal."""
        self._done.set()


@contextmanager
def keep(database: Database, claim: Claim, *, lease_s: float) -> Iterator[Lease]:
    """Renew the claim from a thread of its own for as long as the block runs."""
    lease = Lease()
    thread = threading.Thread(
        target=lease.run, args=(database, claim, lease_s), name="lease", daemon=True
    )
    thread.start()
    try:
        yield lease
    finally:
        lease.stop()
        thread.join()


def finish(database: Database, claim: Claim, result: FinishedAnalysis) -> State:
    """Keep a finished analysis and move the study on; returns the state it is in now.

    The analysis becomes the current one and supersedes the last, unless instances came while it
    ran: then it is kept without being current and the study is received on.

    Raises:
        LostRaceError: the claim was lost; nothing is kept, whoever holds it now will finish.
    """
    with database.transaction() as db:
        complete = _hold(db, claim) == claim.revision
        analysis = Analysis(
            study_id=claim.study_id,
            revision=claim.revision,
            current=False,
            folder=result.folder,
            probability=result.probability,
            positive=result.positive,
            lesion_count=result.lesion_count,
            lesion_volume_ml=result.lesion_volume_ml,
            models=list(result.models),
            timings=dict(result.timings),
            lung_hu=result.lung_hu,
            created_at=utc_now(),
        )
        db.add(analysis)
        db.flush()
        if complete:
            _make_current(db, analysis)
            _note_end(db, claim, analysis.id)
        return _leave(db, claim, State.READY, reason=None)


def reject(database: Database, claim: Claim, *, reason: str) -> State:
    """Set the study aside as one that is not supported; `reason` is shown to people.

    When instances came meanwhile, the study is received on instead. Raises LostRaceError.
    """
    with database.transaction() as db:
        state = _leave(db, claim, State.REJECTED, reason=reason)
        if state is State.REJECTED:
            _note_end(db, claim, None)
        return state


def fail(
    database: Database,
    claim: Claim,
    *,
    reason: str,
    transient: bool,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
) -> State:
    """Give the study back for another try, or end it as FAILED.

    A permanent failure ends it at once. A transient one or a crash puts it back until
    `max_attempts` are used up; nothing is rung, the sweep does that later, so that a short trouble
    can pass. Raises LostRaceError.
    """
    with database.transaction() as db:
        return _give_back(db, claim, reason=reason, again=transient, max_attempts=max_attempts)


def expire(
    database: Database,
    *,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    now: datetime | None = None,
) -> list[tuple[int, State]]:
    """Take every study back whose lease has expired; returns each with the state it is in now."""
    moment = now or utc_now()
    stale = select(Study.id, Study.revision, Study.attempts, Study.lease_owner).where(
        Study.state == State.ANALYSING,
        or_(Study.lease_until.is_(None), Study.lease_until < moment),
    )
    with database.snapshot() as db:
        rows = db.execute(stale).all()
    moved = []
    for row in rows:
        stale_claim = Claim(row.id, row.revision, row.attempts, row.lease_owner or "")
        try:
            with database.transaction() as db:
                _hold(db, stale_claim, expired_at=moment)
                state = _give_back(
                    db, stale_claim, reason=LEASE_EXPIRED, again=True, max_attempts=max_attempts
                )
        except LostRaceError:
            continue  # it was renewed or finished after the look
        moved.append((row.id, state))
    return moved


def owner_named(process: str) -> str:
    """The owner's name of claims by one process of this machine."""
    return f"{socket.gethostname()}/{process}"


def owner_here() -> str:
    """The owner's name of claims by this process: what `claim` is given."""
    return owner_named(os.environ.get(PROCESS_VARIABLE, f"process-{os.getpid()}"))


def release(database: Database, *, owner: str) -> list[int]:
    """Put back what processes named `owner` were analysing when they were stopped in good order.

    An orderly stop is nobody's failure, so the try is not counted. Returns the study ids.
    """
    with database.transaction() as db:
        rows = db.execute(
            select(Study.id, Study.attempts)
            .where(
                Study.state == State.ANALYSING,
                Study.lease_owner.startswith(f"{owner}/", autoescape=True),
            )
            .with_for_update(of=Study)
        ).all()
        for row in rows:
            _advance(
                db,
                row.id,
                State.ANALYSING,
                State.QUEUED,
                reason="the appliance was stopped",
                attempts=max(0, row.attempts - 1),
            )
    return [row.id for row in rows]


def requeue(
    database: Database, study_id: int, *, actor: str, doorbell: Doorbell | None = None
) -> None:
    """Try a rejected or failed study again because a person asked.

    Raises:
        InvalidMoveError: the study is in another state.
    """
    with database.transaction() as db:
        state = db.scalar(select(Study.state).where(Study.id == study_id))
        if state not in (State.FAILED, State.REJECTED):
            raise InvalidMoveError(state or "nowhere", State.QUEUED)
        _advance(db, study_id, State(state), State.QUEUED, reason=BY_HAND, attempts=0)
        audit.record(
            db, actor=actor, tag="lifecycle:study:requeued", subject=f"study {study_id}", detail={}
        )
    ring(database, doorbell, study_id, State.QUEUED)


def _advance(
    db: Session,
    study_id: int,
    source: State,
    target: State,
    *,
    reason: str | None,
    **values: object,
) -> None:
    """The one statement that moves a study; `values` are further columns that change with it."""
    if target not in NEXT[source]:
        raise InvalidMoveError(source, target)
    now = utc_now()
    statement = (
        update(Study)
        .where(Study.id == study_id, Study.state == source)
        .values(
            state=target,
            state_reason=reason,
            state_since=now,
            lease_owner=None,
            lease_until=None,
            rung_at=None,
            step=None,
            **values,
        )
        .returning(Study.id)
    )
    if db.scalar(statement) is None:
        raise LostRaceError(study_id, source)
    db.add(StudyEvent(study_id=study_id, source=source, target=target, reason=reason, at=now))


def held(claim: Claim) -> tuple[Any, ...]:
    """The condition under which a claim is still its owner's."""
    return (
        Study.id == claim.study_id,
        Study.state == State.ANALYSING,
        Study.lease_owner == claim.owner,
        Study.attempts == claim.attempt,
    )


def _hold(db: Session, claim: Claim, *, expired_at: datetime | None = None) -> int:
    """The study's revision, its row locked until the transaction ends, if the claim still holds."""
    row = select(Study.revision).where(*held(claim))
    if expired_at is not None:
        row = row.where(or_(Study.lease_until.is_(None), Study.lease_until < expired_at))
    revision = db.scalar(row.with_for_update(of=Study, key_share=True))
    if revision is None:
        raise LostRaceError(claim.study_id, State.ANALYSING)
    return revision


def _leave(db: Session, claim: Claim, target: State, *, reason: str | None) -> State:
    """End a claim in `target`, or in RECEIVING when what was analysed is no longer all there is."""
    if _hold(db, claim) != claim.revision:
        target, reason = State.RECEIVING, LATE_INSTANCE
    _advance(db, claim.study_id, State.ANALYSING, target, reason=reason, attempts=0)
    return target


def _give_back(db: Session, claim: Claim, *, reason: str, again: bool, max_attempts: int) -> State:
    if _hold(db, claim) != claim.revision:
        return _leave(db, claim, State.RECEIVING, reason=LATE_INSTANCE)
    if again and claim.attempt < max_attempts:
        target, text = State.QUEUED, f"try {claim.attempt} of {max_attempts}: {reason}"
    elif again:
        target, text = State.FAILED, f"quarantined after {claim.attempt} tries: {reason}"
    else:
        target, text = State.FAILED, reason
    _advance(db, claim.study_id, State.ANALYSING, target, reason=text)
    return target


def _note_end(db: Session, claim: Claim, analysis_id: int | None) -> None:
    """Note what `deliveries` goes by, in the transaction of the move: it is never lost."""
    ended = Occasion(
        study_id=claim.study_id,
        revision=claim.revision,
        analysis_id=analysis_id,
        moment="analysed",
        at=utc_now(),
    )
    db.add(ended)


def _make_current(db: Session, analysis: Analysis) -> None:
    """Put `analysis` in the place of the current one; both are kept."""
    replaced = (
        update(Analysis)
        .where(Analysis.study_id == analysis.study_id, Analysis.current)
        .values(current=False, superseded_by=analysis.id)
    )
    db.execute(replaced)
    db.execute(update(Analysis).where(Analysis.id == analysis.id).values(current=True))
