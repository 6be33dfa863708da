"""What goes to other nodes, and how far it is: rows moved by compare-and-set, like studies.

    WAITING ──claim──► SENDING ──► SENT ──► COMMITTED   where the destination commits itself
       ▲                 │  │       │           ▲
       ├── try later ────┘  └─┬─────┴─► FAILED ─┘ refused for good, or too old: waits for a person,
       └── not kept there ────┘                   or for a report that comes after all
    from every state that is no end ──► DROPPED   by an administrator, or a newer result came

What ended is noted as an `Occasion` in the transaction of its end. The rules are asked about each
occasion once (`take`), in the transaction that queues what they say: nothing is lost, nothing
is queued twice, and a new rule sends nothing old.

A claim is a lease on the delivery and on its destination, to which one worker sends at a time; when
it expires or is ended, because its worker died, the next claim goes on with the objects that are
left.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select, text, true, update
from sqlalchemy.orm import Session, aliased

from appliance import audit
from appliance.database import Database, storable, utc_now
from appliance.errors import ApplianceError
from appliance.tables import DeliveredObject, Delivery, Occasion, Study

LONGEST_DELAY_S: Final = 3600.0
CLAIM_LOCK: Final = 0x64656C69  # "deli": the advisory lock that orders claims on PostgreSQL
ROWS_AT_ONCE: Final = 1000  # of a list that may be of years
SUPERSEDED: Final = "a newer result came before this one was sent"


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    WAITING = "WAITING"
    SENDING = "SENDING"
    SENT = "SENT"
    """The destination took every object."""
    COMMITTED = "COMMITTED"
    """It has also committed itself to keep them."""
    FAILED = "FAILED"
    DROPPED = "DROPPED"


FAILED: Final = Delivery.state == DeliveryState.FAILED
UNFINISHED: Final = or_(FAILED, Delivery.next_try_at.is_not(None))


class ObjectState(StrEnum):
    """Where one object of a delivery stands."""

    WAITING = "WAITING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    REFUSED = "REFUSED"


class Moment(StrEnum):
    """After what results may go out by themselves."""

    ANALYSED = "analysed"
    CONFIRMED = "confirmed"


class Content(StrEnum):
    """What can be sent, in the order in which it is."""

    IMAGES = "images"
    """The study's own instances, as they came."""
    SEG = "seg"
    SR = "sr"
    SC = "sc"
    PDF = "pdf"
    MESSAGE = "message"
    """What a system that is no DICOM node is told of the result."""


CONFIRMED_CONTENTS: Final = frozenset({Content.SR, Content.SC, Content.PDF, Content.MESSAGE})
"""What says who confirmed, or lacks what they rejected: another object after each review."""


class Kind(StrEnum):
    """What kind of node a destination is."""

    DICOM = "dicom"
    MESSAGE = "message"
    """One of `[[messages.hl7]]` or `[[messages.fhir]]`."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is delivered: a result as the machine or a person left it, or a rejected study.

    Attributes:
        revision: of the study.
        analysis_id: None for a rejected study.
        review: the version of the result's review, 0 as long as only the machine speaks.
    """

    study_id: int
    revision: int
    analysis_id: int | None
    review: int = 0


@dataclass(frozen=True, kw_only=True)
class Order:
    """The right to work on one delivery, as long as its lease is renewed.

    Attributes:
        repetition: counts what a person had sent once more, 0 for the first time.
        state: SENDING, or SENT when a commitment is to be asked for.
        attempt: its number, by which the right is told from earlier and later ones.
        failures: since something last went well.
    """

    id: int
    subject: Subject
    destination: str
    kind: Kind
    contents: tuple[Content, ...]
    repetition: int
    state: DeliveryState
    attempt: int
    failures: int
    queued_at: datetime


@dataclass(frozen=True, kw_only=True)
class ObjectFile:
    """One object that is to be sent; `file` is relative to the data folder."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    file: str


def note_confirmed(db: Session, subject: Subject) -> None:
    """Note in the caller's transaction that a person confirmed a result."""
    db.add(
        Occasion(
            study_id=subject.study_id,
            revision=subject.revision,
            analysis_id=subject.analysis_id,
            moment=Moment.CONFIRMED,
            review=subject.review,
            at=utc_now(),
        )
    )


def open_occasions(db: Session) -> Sequence[int]:
    """The ids of the occasions about which no rule was asked yet, oldest first."""
    rows = select(Occasion.id).where(~Occasion.considered).order_by(Occasion.id)
    return db.scalars(rows).all()


def take(db: Session, occasion_id: int) -> tuple[Moment, Subject] | None:
    """An occasion, which is considered with the caller's transaction; None if it was before."""
    statement = (
        update(Occasion)
        .where(Occasion.id == occasion_id, ~Occasion.considered)
        .values(considered=True)
        .returning(Occasion)
    )
    row = db.scalars(statement).one_or_none()
    return None if row is None else (Moment(row.moment), _subject(row))


def is_current(db: Session, subject: Subject) -> bool:
    """Whether its study did not end anew since: another review is no other end."""
    newest = latest(db, subject.study_id)
    return newest is not None and replace(newest, review=subject.review) == subject


def latest(db: Session, study_id: int) -> Subject | None:
    """The newest subject of a study, confirmed or not; None before its first end."""
    newest = (
        select(Occasion).where(Occasion.study_id == study_id).order_by(Occasion.id.desc()).limit(1)
    )
    row = db.scalars(newest).one_or_none()
    return None if row is None else _subject(row)


def queue(
    db: Session,
    subject: Subject,
    *,
    destination: str,
    kind: Kind,
    contents: Collection[Content],
) -> int | None:
    """Queue what of the contents was not queued before; the delivery's id, None if nothing was."""
    _lock(db, subject)
    wanted = set(contents)
    for row in _of(db, subject, destination):
        there = set(_contents(row))
        wanted -= there if row.review == subject.review else there - CONFIRMED_CONTENTS
    return _add(db, subject, destination, kind, wanted, repetition=0) if wanted else None


def request(
    db: Session,
    subject: Subject,
    *,
    destination: str,
    kind: Kind,
    contents: Collection[Content],
    actor: str,
) -> int:
    """Queue a delivery because a person wants it, also once more; returns its id.

    Raises:
        ApplianceError: the same is under way.
    """
    _lock(db, subject)
    same = [
        row
        for row in _of(db, subject, destination)
        if row.review == subject.review and row.what == _what(contents)
    ]
    if under_way := [row.id for row in same if row.next_try_at is not None]:
        raise ApplianceError(f"delivery {under_way[0]} of the same is under way")
    repetition = max((row.repetition + 1 for row in same), default=0)
    delivery_id = _add(db, subject, destination, kind, contents, repetition=repetition)
    _audit(db, actor, "requested", delivery_id)
    return delivery_id


def due_destinations(database: Database, *, now: datetime | None = None) -> list[str]:
    """The destinations to which something can be sent now, the longest waiting first."""
    moment = now or utc_now()
    rows = (
        select(Delivery.destination)
        .where(_due(Delivery, moment), ~_busy(Delivery, moment))
        .group_by(Delivery.destination)
        .order_by(func.min(Delivery.next_try_at))
    )
    with database.snapshot() as db:
        return list(db.scalars(rows))


def claim_next(
    database: Database, destination: str, *, lease_s: float, now: datetime | None = None
) -> Order | None:
    """The delivery to a destination whose turn it is, or nothing: none is due, or one is sent."""
    moment = now or utc_now()
    until = moment + timedelta(seconds=lease_s)
    first = aliased(Delivery)
    oldest = (
        select(first.id)
        .where(first.destination == destination, _due(first, moment))
        .order_by(first.next_try_at, first.id)
    )
    starting = Delivery.state == DeliveryState.WAITING
    claim = (
        update(Delivery)
        .where(Delivery.id == oldest.limit(1).scalar_subquery())
        .where(_due(Delivery, moment), ~_busy(Delivery, moment))
        .values(
            state=case((starting, DeliveryState.SENDING.value), else_=Delivery.state),
            attempts=Delivery.attempts + 1,
            lease_until=until,
            next_try_at=until,  # behind the others, if its worker dies
        )
        .returning(Delivery)
    )
    with database.transaction() as db:
        if db.get_bind().dialect.name == "postgresql":
            # Of two claims at once neither would see the other's lease on the destination.
            db.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CLAIM_LOCK})
        row = db.scalars(claim, execution_options={"synchronize_session": False}).one_or_none()
        return None if row is None else _order(row)


def end_leases(database: Database) -> None:
    """Make due what a dead worker was at; for whoever knows that nobody is at work any more."""
    due = case((Delivery.next_try_at.is_not(None), utc_now()))
    with database.transaction() as db:
        held = update(Delivery).where(Delivery.lease_until.is_not(None))
        db.execute(held.values(lease_until=None, next_try_at=due))


def renew(database: Database, order: Order, *, lease_s: float) -> bool:
    """Whether the order still holds, its lease prolonged if it does."""
    with database.transaction() as db:
        return _renew(db, order, lease_s)


def note_objects(database: Database, order: Order, objects: Iterable[ObjectFile]) -> bool:
    """Note what a delivery consists of, once; whether the order still held."""
    with database.transaction() as db:
        if not _change(db, order):
            return False
        for each in objects:
            db.add(DeliveredObject(delivery_id=order.id, state=ObjectState.WAITING, **asdict(each)))
    return True


def objects_of(db: Session, delivery_id: int) -> Sequence[DeliveredObject]:
    """The objects of a delivery in the order in which they go out."""
    rows = select(DeliveredObject).where(DeliveredObject.delivery_id == delivery_id)
    return db.scalars(rows.order_by(DeliveredObject.id)).all()


def sent_before(db: Session, study_id: int, destination: str) -> set[str]:
    """The SOP Instance UIDs that a destination took of a study."""
    taken = (
        select(DeliveredObject.sop_instance_uid)
        .join(Delivery, DeliveredObject.delivery_id == Delivery.id)
        .where(Delivery.study_id == study_id, Delivery.destination == destination)
        .where(DeliveredObject.state.in_((ObjectState.SENT, ObjectState.COMMITTED)))
    )
    return set(db.scalars(taken))


def results_of(db: Session, study_id: int, *, folder: str) -> set[str]:
    """The SOP Instance UIDs of what was made here of a study to be sent, and kept in `folder`."""
    made = (
        select(DeliveredObject.sop_instance_uid)
        .join(Delivery, DeliveredObject.delivery_id == Delivery.id)
        .where(Delivery.study_id == study_id)
        .where(DeliveredObject.file.startswith(f"{folder}/", autoescape=True))
    )
    return set(db.scalars(made))


def note_answer(
    database: Database,
    order: Order,
    object_id: int,
    state: ObjectState,
    *,
    problem: str | None,
    answered: bool = True,
    lease_s: float,
) -> bool:
    """Keep what the destination said to one object, if it did; whether the order still held."""
    statement = (
        update(DeliveredObject)
        .where(DeliveredObject.id == object_id)
        .values(
            state=state,
            problem=None if problem is None else storable(problem),
            answered_at=utc_now() if answered else DeliveredObject.answered_at,
        )
    )
    with database.transaction() as db:
        if not _renew(db, order, lease_s):
            return False
        db.execute(statement)
    return True


def give_back(database: Database, order: Order) -> bool:
    """Go on with it soon: it was interrupted in good order; whether the order still held."""
    values = {"next_try_at": utc_now(), "lease_until": None}
    return _end_order(database, order, _before_claim(order), values)


def sent(database: Database, order: Order, *, commitment: bool) -> bool:
    """Note that every object was taken; whether the order still held.

    Where a commitment is wanted, asking for it is what is due next.
    """
    values = {
        "failures": 0,
        "last_problem": None,
        "next_try_at": utc_now() if commitment else None,
        "lease_until": None,
    }
    return _end_order(database, order, DeliveryState.SENT, values)


def committed(database: Database, order: Order) -> bool:
    """Note that the destination keeps every object already; whether the order still held."""
    values = {"next_try_at": None, "lease_until": None, "last_problem": None}
    return _end_order(database, order, DeliveryState.COMMITTED, values)


def put_off(
    database: Database, order: Order, problem: str, *, retry_s: float, max_age_s: float
) -> DeliveryState | None:
    """Try again later, ever later, or give it up for its age; its state, None if it was lost."""
    now = utc_now()
    if now - order.queued_at > timedelta(seconds=max_age_s):
        return fail(database, order, problem)
    delay_s = min(LONGEST_DELAY_S, retry_s * 2.0 ** min(order.failures, 30))
    state = _before_claim(order)
    values = {
        "failures": order.failures + 1,
        "next_try_at": now + timedelta(seconds=delay_s),
        "lease_until": None,
        "last_problem": storable(problem),
    }
    return state if _end_order(database, order, state, values) else None


def fail(database: Database, order: Order, problem: str) -> DeliveryState | None:
    """Give it up until a person looks; its state, None if the order was lost."""
    values = {"next_try_at": None, "lease_until": None, "last_problem": storable(problem)}
    ended = _end_order(database, order, DeliveryState.FAILED, values)
    return DeliveryState.FAILED if ended else None


def supersede(database: Database, order: Order) -> bool:
    """Drop what a newer result makes worthless; whether the order still held."""
    values = {"next_try_at": None, "lease_until": None, "last_problem": SUPERSEDED}
    return _end_order(database, order, DeliveryState.DROPPED, values)


def retry(db: Session, delivery_id: int, *, actor: str) -> None:
    """Try a delivery that failed or waits for its next try now: the objects that are left.

    Raises:
        ApplianceError: there is none, or it is neither.
    """
    if not _retry(db, Delivery.id == delivery_id, actor=actor):
        raise _not_so(db, delivery_id, "one that waits or FAILED can be tried again")


def retry_all(db: Session, *, actor: str) -> int:
    """Try everything now that failed or waits, as `retry` does; returns how many deliveries."""
    return _retry(db, true(), actor=actor)


def _retry(db: Session, which: ColumnElement[bool], *, actor: str) -> int:
    now = utc_now()
    waits = Delivery.state == DeliveryState.WAITING
    again = (
        update(Delivery)
        .where(which, or_(FAILED, waits))
        .values(
            state=DeliveryState.WAITING,
            failures=0,
            next_try_at=now,
            queued_at=case((FAILED, now), else_=Delivery.queued_at),
        )
        .returning(Delivery.id)
    )
    retried = sorted(db.scalars(again))
    refused = (
        DeliveredObject.delivery_id.in_(retried),
        DeliveredObject.state == ObjectState.REFUSED,
    )
    db.execute(
        update(DeliveredObject).where(*refused).values(state=ObjectState.WAITING, problem=None)
    )
    for delivery_id in retried:
        _audit(db, actor, "retried", delivery_id)
    return len(retried)


def drop(db: Session, delivery_id: int, *, actor: str) -> None:
    """Send no more of a delivery because a person says so.

    Raises:
        ApplianceError: there is none, or it has ended.
    """
    statement = (
        update(Delivery)
        .where(Delivery.id == delivery_id, UNFINISHED)
        # Whoever is sending it finds its order lost after the object under way.
        .values(state=DeliveryState.DROPPED, next_try_at=None)
        .returning(Delivery.id)
    )
    if db.scalar(statement) is None:
        raise _not_so(db, delivery_id, "one that waits or FAILED can be dropped")
    _audit(db, actor, "dropped", delivery_id)


def unfinished(
    db: Session, *, failed_only: bool = False, limit: int | None = None
) -> Sequence[Delivery]:
    """What failed, then what waits, is being sent or committed, each oldest first."""
    wanted = FAILED if failed_only else UNFINISHED
    rows = select(Delivery).where(wanted).order_by(case((FAILED, 0), else_=1), Delivery.id)
    return db.scalars(rows.limit(limit)).all()


def count_unfinished(db: Session) -> int:
    """How many deliveries `unfinished` has without a limit."""
    return db.scalar(select(func.count(Delivery.id)).where(UNFINISHED)) or 0


def listed(
    db: Session, *, study_id: int | None = None
) -> Iterator[tuple[Delivery, Sequence[DeliveredObject]]]:
    """Yield every delivery with its objects, of one study or of all, oldest first."""
    chosen = (
        select(Delivery, DeliveredObject)
        .outerjoin(DeliveredObject, DeliveredObject.delivery_id == Delivery.id)
        .order_by(Delivery.id, DeliveredObject.id)
        .execution_options(yield_per=ROWS_AT_ONCE)
    )
    if study_id is not None:
        chosen = chosen.where(Delivery.study_id == study_id)
    found: Iterable[tuple[Delivery, DeliveredObject | None]] = db.execute(chosen)
    for delivery, rows in groupby(found, key=itemgetter(0)):
        yield delivery, [each for _, each in rows if each is not None]


def counts(db: Session) -> dict[DeliveryState, int]:
    """How many deliveries there are in each state that has some."""
    rows = db.execute(select(Delivery.state, func.count()).group_by(Delivery.state))
    return {DeliveryState(row[0]): row[1] for row in rows}


def late(db: Session, *, since: datetime) -> int:
    """How many deliveries were queued before then and are not sent yet."""
    unsent = (DeliveryState.WAITING, DeliveryState.SENDING)
    rows = select(func.count()).where(Delivery.state.in_(unsent), Delivery.queued_at < since)
    return db.scalar(rows) or 0


def unfinished_results(db: Session) -> set[tuple[int, int]]:
    """The results (analysis, review) whose objects are still needed."""
    rows = select(Delivery.analysis_id, Delivery.review).where(UNFINISHED)
    found = db.execute(rows.distinct())
    return {(analysis, review) for analysis, review in found if analysis is not None}


def _due(table: Any, moment: datetime) -> ColumnElement[bool]:
    """Whose time has come, or whose worker has died; what has ended has no next try."""
    return and_(table.next_try_at.is_not(None), table.next_try_at <= moment)


def _busy(table: Any, moment: datetime) -> ColumnElement[bool]:
    """Whether somebody sends to the destination."""
    other = aliased(Delivery)
    return exists().where(other.destination == table.destination, other.lease_until > moment)


def _of(db: Session, subject: Subject, destination: str) -> Sequence[Delivery]:
    """The deliveries of the subject's result, whatever the review, to a destination."""
    same: tuple[ColumnElement[bool], ...] = (Delivery.analysis_id == subject.analysis_id,)
    if subject.analysis_id is None:
        same = (
            Delivery.analysis_id.is_(None),
            Delivery.study_id == subject.study_id,
            Delivery.revision == subject.revision,
        )
    return db.scalars(select(Delivery).where(*same, Delivery.destination == destination)).all()


def _add(
    db: Session,
    subject: Subject,
    destination: str,
    kind: Kind,
    contents: Collection[Content],
    *,
    repetition: int,
) -> int:
    now = utc_now()
    delivery = Delivery(
        study_id=subject.study_id,
        revision=subject.revision,
        analysis_id=subject.analysis_id,
        review=subject.review,
        destination=destination,
        kind=kind,
        what=_what(contents),
        repetition=repetition,
        state=DeliveryState.WAITING,
        next_try_at=now,
        queued_at=now,
    )
    db.add(delivery)
    db.flush()
    return delivery.id


def _lock(db: Session, subject: Subject) -> None:
    """Let one transaction at a time look what is queued of a study and queue more."""
    db.execute(
        select(Study.id)
        .where(Study.id == subject.study_id)
        .with_for_update(of=Study, key_share=True)
    )


def _before_claim(order: Order) -> DeliveryState:
    return DeliveryState.SENT if order.state is DeliveryState.SENT else DeliveryState.WAITING


def _end_order(
    database: Database, order: Order, state: DeliveryState, values: Mapping[str, object]
) -> bool:
    """End an order in `state`; whether it still held.

    A report may have moved the delivery meanwhile. Then only the lease ends.
    """
    with database.transaction() as db:
        if _change(db, order, state=state, **values):
            return True
        own = (Delivery.id == order.id, Delivery.attempts == order.attempt)
        db.execute(update(Delivery).where(*own).values(lease_until=None))
        return False


def _renew(db: Session, order: Order, lease_s: float) -> bool:
    until = utc_now() + timedelta(seconds=lease_s)
    return _change(db, order, lease_until=until, next_try_at=until)


def _change(db: Session, order: Order, **values: object) -> bool:
    """Change a delivery if the order still holds; the row is locked then."""
    statement = (
        update(Delivery)
        .where(
            Delivery.id == order.id,
            Delivery.state == order.state,
            Delivery.attempts == order.attempt,
        )
        .values(**(values or {"attempts": order.attempt}))
        .returning(Delivery.id)
    )
    return db.scalar(statement) is not None


def _not_so(db: Session, delivery_id: int, what: str) -> ApplianceError:
    state = db.scalar(select(Delivery.state).where(Delivery.id == delivery_id))
    if state is None:
        return ApplianceError(f"there is no delivery {delivery_id}")
    return ApplianceError(f"delivery {delivery_id} is {state}: {what}")


def _audit(db: Session, actor: str, action: str, delivery_id: int) -> None:
    audit.record(
        db, actor=actor, tag=f"deliveries:delivery:{action}", subject=f"delivery {delivery_id}"
    )


def _what(contents: Collection[Content]) -> str:
    return ",".join(content for content in Content if content in contents)


def _contents(row: Delivery) -> tuple[Content, ...]:
    return tuple(Content(content) for content in row.what.split(","))


def _subject(row: Occasion | Delivery) -> Subject:
    return Subject(
        study_id=row.study_id,
        revision=row.revision,
        analysis_id=row.analysis_id,
        review=row.review,
    )


def _order(row: Delivery) -> Order:
    return Order(
        id=row.id,
        subject=_subject(row),
        destination=row.destination,
        kind=Kind(row.kind),
        contents=_contents(row),
        repetition=row.repetition,
        state=DeliveryState(row.state),
        attempt=row.attempts,
        failures=row.failures,
        queued_at=row.queued_at,
    )
