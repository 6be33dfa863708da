"""What is asked of other nodes, and how far it is: rows moved by compare-and-set, like studies.

    WAITING ──claim──► RUNNING ──► DONE
       ▲                 │  └────► FAILED    the peer refuses for good, or every try used up
       ├── try later ────┘
       └── retry ── FAILED    a person wants it after all

A claim is a lease; when it expires, because its worker died, the next claim takes the row again.
A study is asked for once, and again only when the peer has come to have more of it than it had.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, distinct, exists, func, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from appliance.config import Settings
from appliance.database import Database, storable, utc_now
from appliance.lifecycle import State
from appliance.tables import (
    DeliveredObject,
    Delivery,
    Instance,
    InstanceConflict,
    Patient,
    Retrieval,
    Study,
)

LONGEST_DELAY_S: Final = 3600.0
NEW_FOR: Final = timedelta(days=2)
"""What was made so lately is on its way by itself, and is nobody's prior only."""


class RetrievalState(StrEnum):
    """Where a retrieval stands."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


ENDED: Final = (RetrievalState.DONE, RetrievalState.FAILED)


class Aim(StrEnum):
    """What is wanted of the peer."""

    STUDY = "study"
    """The images of the study."""
    PRIORS = "priors"
    """To know which earlier studies there are of the study's patient."""


class Why(StrEnum):
    """What asked for it."""

    STANDING_QUERY = "standing query"
    PRIOR = "prior"
    NEW_STUDY = "new study"
    BY_HAND = "by hand"


@dataclass(frozen=True)
class Order:
    """The right to carry out one retrieval, as long as its lease is renewed."""

    id: int
    destination: str
    aim: Aim
    study_uid: str
    expected: int
    attempt: int
    claimed_until: datetime
    """Tells this claim from others of the same attempt: a row asked for again counts anew."""


@dataclass(frozen=True)
class Fresh:
    """A study that came lately and whose priors nobody asked for."""

    study_id: int
    study_uid: str
    people: int
    """How many people's images came under its UID so far (`Study.part`)."""


def ask(
    db: Session, *, destination: str, aim: Aim, study_uid: str, why: Why, expected: int = 0
) -> bool:
    """Note that something is wanted of a peer; whether there was anything to note.

    Nothing is when the study is here, is coming in right now, or was asked for when the peer had as
    much of it. A person may ask again for what failed, or did not bring what is lacking. Once a
    study was wanted for itself it is no mere prior any more, whatever asks next.

    Args:
        db: the caller's transaction.
        destination: the peer's name in the settings.
        aim: what is wanted.
        study_uid: of the study that is wanted, or whose priors are.
        why: what asked for it.
        expected: how many instances the peer says it has, 0 where it does not say; of priors, how
            many people's they are.
    """
    if aim is Aim.STUDY and why is not Why.PRIOR:
        _is_no_mere_prior(db, Retrieval.study_uid == study_uid, why)
    if aim is Aim.STUDY and not _lacking(db, destination, study_uid, expected, why):
        return False
    # Images may come from any peer; what one knows of priors another does not.
    same = [Retrieval.destination == destination]
    if aim is Aim.STUDY:
        same.append(Retrieval.state != RetrievalState.FAILED)
    asked_before = exists().where(
        Retrieval.study_uid == study_uid,
        Retrieval.aim == aim,
        Retrieval.expected >= expected,
        or_(*same),
        Retrieval.state.not_in(ENDED) if why is Why.BY_HAND else true(),
    )
    if db.scalar(select(asked_before)):
        return False
    now = utc_now()
    again = {
        "expected": expected,
        "why": why,
        "state": RetrievalState.WAITING,
        "attempts": 0,
        "next_try_at": now,
        "last_problem": None,
    }
    key = {"destination": destination, "aim": aim, "study_uid": study_uid}
    dialect = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
    inserted = dialect.insert(Retrieval).values(**key, **again, created_at=now)
    noted = inserted.on_conflict_do_update(
        index_elements=list(key),
        set_=again | {"why": case((Retrieval.why == Why.PRIOR, why), else_=Retrieval.why)},
        where=Retrieval.state.in_(ENDED),
    )
    return db.execute(noted.returning(Retrieval.id)).first() is not None


def _is_no_mere_prior(db: Session, which: ColumnElement[bool], why: Why) -> None:
    db.execute(update(Retrieval).where(which, Retrieval.why == Why.PRIOR).values(why=why))


def held(db: Session, study_uid: str) -> int:
    """How many instances under this UID are here, those that were kept aside too."""
    of_study = select(Study.id).where(Study.study_uid == study_uid)
    return sum(
        db.scalar(select(func.count()).where(table.study_id.in_(of_study))) or 0
        for table in (Instance, InstanceConflict)
    )


def fresh(db: Session, *, destination: str, since: datetime) -> list[Fresh]:
    """The studies that came since then whose priors this peer was not asked for.

    Those that came as priors themselves are left out, or one would bring the whole past.
    """
    of_study = Retrieval.study_uid == Study.study_uid
    sought = exists().where(
        of_study,
        Retrieval.aim == Aim.PRIORS,
        Retrieval.destination == destination,
        Retrieval.expected > Study.part,
    )
    is_prior = exists().where(of_study, Retrieval.why == Why.PRIOR)
    rows = db.execute(
        select(Study.id, Study.study_uid, Study.part + 1)
        .join(Patient, Study.patient_key == Patient.id)
        .where(Study.first_received_at >= since, Patient.patient_id != "", ~sought, ~is_prior)
        .order_by(Study.id)
    )
    return [Fresh(*row) for row in rows]


def came_as_prior(db: Session, study: Study) -> bool:
    """Whether a study came because it was asked for as a prior of another.

    One that was here before may have had missing images fetched as a prior: it came by itself. So
    did one that failed to come as a prior, one that was wanted for itself as well, and one of these
    days, though a still newer one had it asked for.
    """
    wanted = exists().where(
        Retrieval.study_uid == study.study_uid,
        Retrieval.aim == Aim.STUDY,
        Retrieval.why != Why.PRIOR,
    )
    asked = select(func.max(Retrieval.created_at)).where(
        Retrieval.study_uid == study.study_uid,
        Retrieval.aim == Aim.STUDY,
        Retrieval.why == Why.PRIOR,
        Retrieval.state != RetrievalState.FAILED,
        Retrieval.created_at <= study.first_received_at,
        ~wanted,
    )
    asked_at = db.scalar(asked)
    return asked_at is not None and study.study_date < f"{asked_at - NEW_FOR:%Y%m%d}"


def claim_next(database: Database, *, lease_s: float, now: datetime | None = None) -> Order | None:
    """The retrieval whose turn it is, or nothing: none is due, or one is under way.

    One at a time, so that retrieving never takes every worker from what else they have to do.
    """
    moment = now or utc_now()
    until = moment + timedelta(seconds=lease_s)
    first, other = aliased(Retrieval), aliased(Retrieval)
    oldest = select(first.id).where(_due(first, moment)).order_by(first.next_try_at, first.id)
    under_way = exists().where(other.state == RetrievalState.RUNNING, other.lease_until >= moment)
    claim = (
        update(Retrieval)
        .where(Retrieval.id == oldest.limit(1).scalar_subquery())
        .where(_due(Retrieval, moment), ~under_way)
        .values(
            state=RetrievalState.RUNNING,
            attempts=Retrieval.attempts + 1,
            lease_until=until,
            next_try_at=until,  # behind the others, if its worker dies
        )
        .returning(
            Retrieval.id,
            Retrieval.destination,
            Retrieval.aim,
            Retrieval.study_uid,
            Retrieval.expected,
            Retrieval.attempts,
            Retrieval.next_try_at,
        )
    )
    with database.transaction() as db:
        row = db.execute(claim, execution_options={"synchronize_session": False}).one_or_none()
    if row is None:
        return None
    return Order(row.id, row.destination, Aim(row.aim), *row[3:])


def renew(database: Database, order: Order, *, lease_s: float) -> bool:
    """Whether the order still holds, its lease prolonged if it does."""
    until = utc_now() + timedelta(seconds=lease_s)
    return _change(database, order, lease_until=until)


def finish(database: Database, order: Order) -> bool:
    """End a retrieval as done; whether the order still held."""
    return _change(database, order, state=RetrievalState.DONE, lease_until=None, last_problem=None)


def put_off(
    database: Database,
    order: Order,
    problem: str,
    *,
    retriable: bool,
    max_attempts: int,
    retry_s: float,
) -> RetrievalState | None:
    """Try again later, ever later, or give it up; the state it is in now, none if it was lost."""
    state = RetrievalState.WAITING
    if not retriable or order.attempt >= max_attempts:
        state = RetrievalState.FAILED
    delay_s = min(LONGEST_DELAY_S, retry_s * 2.0 ** min(order.attempt - 1, 30))
    changed = _change(
        database,
        order,
        state=state,
        lease_until=None,
        next_try_at=utc_now() + timedelta(seconds=delay_s),
        last_problem=storable(problem),
    )
    return state if changed else None


def unfinished(db: Session) -> Sequence[Retrieval]:
    """What waits, runs or was given up, oldest first."""
    rows = select(Retrieval).where(Retrieval.state != RetrievalState.DONE)
    return db.scalars(rows.order_by(Retrieval.id)).all()


def id_of(db: Session, destination: str, study_uid: str) -> int:
    """The row id of a study's retrieval from a peer, which was asked for before."""
    return db.scalars(
        select(Retrieval.id).where(
            Retrieval.destination == destination,
            Retrieval.aim == Aim.STUDY,
            Retrieval.study_uid == study_uid,
        )
    ).one()


def recent(db: Session, *, limit: int) -> Sequence[Retrieval]:
    """The retrievals of studies: what is not done first, then the newest."""
    is_done = Retrieval.state == RetrievalState.DONE
    rows = select(Retrieval).where(Retrieval.aim == Aim.STUDY)
    return db.scalars(rows.order_by(is_done, Retrieval.id.desc()).limit(limit)).all()


def retry(db: Session, retrieval_id: int) -> bool:
    """Try again at once what waits for its next try or was given up; whether there was such.

    A person wants it now: what comes is no mere prior.
    """
    _is_no_mere_prior(db, Retrieval.id == retrieval_id, Why.BY_HAND)
    return _set(
        db,
        retrieval_id,
        (RetrievalState.WAITING, RetrievalState.FAILED),
        state=RetrievalState.WAITING,
        attempts=0,
        next_try_at=utc_now(),
    )


def give_up(db: Session, retrieval_id: int, *, by: str) -> bool:
    """Ask for it no more; whether it was still wanted. One under way ends at its next image."""
    return _set(
        db,
        retrieval_id,
        (RetrievalState.WAITING, RetrievalState.RUNNING),
        state=RetrievalState.FAILED,
        lease_until=None,
        last_problem=f"given up by {by}",
    )


@dataclass(frozen=True)
class Standing:
    """How a standing query went; `trouble` says why it does not bring all that it asks for."""

    matched: int
    trouble: str = ""


def note_standing(settings: Settings, number: int, standing: Standing) -> None:
    """Note how a standing query went."""
    file = _standing_file(settings, number)
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(asdict(standing)), encoding="utf-8")
    aside.replace(file)


def last_standing(settings: Settings, number: int) -> Standing | None:
    """How a standing query went when it was last run; None before the first time."""
    try:
        return Standing(**json.loads(_standing_file(settings, number).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _standing_file(settings: Settings, number: int) -> Path:
    return settings.run_dir / f"standing-query-{number}.json"


def _set(
    db: Session, retrieval_id: int, states: Sequence[RetrievalState], **values: object
) -> bool:
    statement = (
        update(Retrieval)
        .where(Retrieval.id == retrieval_id, Retrieval.state.in_(states))
        .values(**values)
        .returning(Retrieval.id)
    )
    return db.scalar(statement) is not None


def given_up(db: Session) -> int:
    """How many retrievals were given up."""
    rows = select(func.count()).where(Retrieval.state == RetrievalState.FAILED)
    return db.scalar(rows) or 0


def _due(table: Any, moment: datetime) -> ColumnElement[bool]:
    """Whose time has come, or whose worker has died."""
    waiting = and_(table.state == RetrievalState.WAITING, table.next_try_at <= moment)
    left = and_(table.state == RetrievalState.RUNNING, table.lease_until < moment)
    return or_(waiting, left)


def _lacking(db: Session, destination: str, study_uid: str, expected: int, why: Why) -> bool:
    """Whether something of a study is still to be had, and nobody is sending it right now.

    The results that we sent there are among what the peer counts, and need not come back, unless a
    person asks, who may know that images are lacking.
    """
    coming = select(Study.id).where(Study.study_uid == study_uid, Study.state == State.RECEIVING)
    if db.scalar(coming.limit(1)) is not None:
        return False
    here = held(db, study_uid)
    if here < expected and why is not Why.BY_HAND:
        here += _ours(db, destination, study_uid)
    return here < (expected or 1)


def _ours(db: Session, destination: str, study_uid: str) -> int:
    """How many instances of a study a peer has of us that are not held as instances here."""
    uid = DeliveredObject.sop_instance_uid
    came_back = exists().where(Instance.study_id == Study.id, Instance.sop_instance_uid == uid)
    rows = (
        select(func.count(distinct(uid)))
        .join(Delivery, DeliveredObject.delivery_id == Delivery.id)
        .join(Study, Delivery.study_id == Study.id)
        .where(Study.study_uid == study_uid, Delivery.destination == destination)
        .where(DeliveredObject.state.in_(("SENT", "COMMITTED")), ~came_back)
    )
    return db.scalar(rows) or 0


def _change(database: Database, order: Order, **values: object) -> bool:
    statement = (
        update(Retrieval)
        .where(
            Retrieval.id == order.id,
            Retrieval.state == RetrievalState.RUNNING,
            Retrieval.attempts == order.attempt,
            Retrieval.next_try_at == order.claimed_until,
        )
        .values(**values)
        .returning(Retrieval.id)
    )
    with database.transaction() as db:
        return db.scalar(statement) is not None
