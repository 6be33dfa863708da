"""What people ask in their browser and the DICOM worker answers, and the answers for a while.

    WAITING ──claim──► RUNNING ──► DONE
                          └──────► FAILED

Which studies another node has, whether it answers at all, what the routing rules say of a study:
the page that asks may not speak DICOM, so the question lies here until a worker takes it. What a
node has names patients who may never have been here: only who asked reads it, and after `KEPT` it
is gone. A question whose worker died is not asked again; who still wants to know asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from appliance import audit
from appliance.database import Database, storable, utc_now
from appliance.retrievals import RetrievalState
from appliance.tables import RemoteQuery

KEPT: Final = timedelta(minutes=15)
ANSWERED_WITHIN: Final = timedelta(minutes=3)
"""A peer that is silent for longer was given up, or the worker has died."""

TOO_LATE: Final = "no answer came in time: see whether the DICOM worker runs, and search again"


class Kind(StrEnum):
    """What is asked."""

    STUDIES = "studies"
    """Which studies a node has (C-FIND)."""
    ECHO = "echo"
    """Whether a node answers (C-ECHO)."""
    RULES = "rules"
    """What each routing rule says of a study; of no node."""


@dataclass(frozen=True, kw_only=True)
class RemoteStudy:
    """One study as a node describes it: received text, "" where it says nothing."""

    study_uid: str
    patient_id: str = ""
    patient_name: str = ""
    birth_date: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    modalities: str = ""
    description: str = ""
    instance_count: int = 0


@dataclass(frozen=True)
class Question:
    """What one person wants to know; `keys` by the names of the query's, or the `study`."""

    id: int
    kind: Kind
    destination: str
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Answers:
    """How far a question is, and what the node answered."""

    destination: str
    keys: Mapping[str, str]
    state: RetrievalState
    problem: str | None
    cut_off: bool
    studies: tuple[RemoteStudy, ...]


@dataclass(frozen=True)
class Said:
    """How far a question is that is answered in words."""

    kind: Kind
    destination: str
    keys: Mapping[str, str]
    state: RetrievalState
    problem: str | None
    lines: tuple[str, ...]
    asked_at: datetime


def ask(
    db: Session,
    *,
    destination: str,
    keys: Mapping[str, str],
    asked_by: str,
    kind: Kind = Kind.STUDIES,
) -> int:
    """Note a question, with its entry in the audit; returns its id."""
    row = RemoteQuery(
        kind=kind,
        destination=destination,
        keys={name: storable(value) for name, value in keys.items()},
        asked_by=asked_by,
        state=RetrievalState.WAITING,
        answers=[],
        cut_off=False,
        asked_at=utc_now(),
    )
    db.add(row)
    db.flush()
    # Which keys, not their values: who was looked for is in no audit of a box that has nothing of
    # them.
    audit.record(
        db,
        actor=asked_by,
        tag="web:rules:asked" if kind is Kind.RULES else "web:node:asked",
        subject=f"query {row.id}",
        detail={"destination": destination, "keys": sorted(k for k, v in keys.items() if v)},
    )
    return row.id


def is_any_kept(db: Session) -> bool:
    """Whether there is a question, put or not: a look that keeps no writer waiting."""
    return db.scalar(select(RemoteQuery.id).limit(1)) is not None


def claim_next(database: Database) -> Question | None:
    """The oldest question that nobody has put yet, now the caller's; None if there is none."""
    oldest = (
        select(RemoteQuery.id)
        .where(RemoteQuery.state == RetrievalState.WAITING, ~_expired(utc_now()))
        .order_by(RemoteQuery.id)
        .limit(1)
        .scalar_subquery()
    )
    claim = (
        update(RemoteQuery)
        .where(RemoteQuery.id == oldest, RemoteQuery.state == RetrievalState.WAITING)
        .values(state=RetrievalState.RUNNING)
        .returning(RemoteQuery.id, RemoteQuery.kind, RemoteQuery.destination, RemoteQuery.keys)
    )
    with database.transaction() as db:
        row = db.execute(claim, execution_options={"synchronize_session": False}).one_or_none()
    return None if row is None else Question(row.id, Kind(row.kind), row.destination, row.keys)


def answer(
    database: Database, question: Question, studies: Sequence[RemoteStudy], *, cut_off: bool
) -> None:
    """Keep what the node answered; `cut_off` says that it had more."""
    found = [asdict(study) for study in studies]
    _end(database, question, state=RetrievalState.DONE, answers=found, cut_off=cut_off)


def say(database: Database, question: Question, lines: Sequence[str]) -> None:
    """Keep an answer in words."""
    said: list[Any] = [storable(line) for line in lines]
    _end(database, question, state=RetrievalState.DONE, answers=said)


def fail(database: Database, question: Question, problem: str) -> None:
    """Keep why the node did not answer."""
    _end(database, question, state=RetrievalState.FAILED, problem=storable(problem))


def find(
    db: Session, query_id: int, *, asked_by: str, now: datetime | None = None
) -> Answers | None:
    """What became of a question; None if this person asked none of this id of late."""
    moment = now or utc_now()
    row = db.scalar(
        select(RemoteQuery).where(
            RemoteQuery.id == query_id,
            RemoteQuery.kind == Kind.STUDIES,
            RemoteQuery.asked_by == asked_by,
            ~_expired(moment),
        )
    )
    if row is None:
        return None
    state, problem = _standing(row, moment)
    studies = tuple(RemoteStudy(**study) for study in row.answers)
    return Answers(row.destination, row.keys, state, problem, row.cut_off, studies)


def said(db: Session, kind: Kind, *, now: datetime | None = None) -> list[Said]:
    """The questions of a kind that are answered in words, whoever asked, the newest first."""
    moment = now or utc_now()
    rows = select(RemoteQuery).where(RemoteQuery.kind == kind, ~_expired(moment))
    return [
        Said(
            kind,
            row.destination,
            row.keys,
            *_standing(row, moment),
            tuple(row.answers),
            row.asked_at,
        )
        for row in db.scalars(rows.order_by(RemoteQuery.id.desc()))
    ]


def _standing(row: RemoteQuery, moment: datetime) -> tuple[RetrievalState, str | None]:
    """How far a question is, and what went wrong."""
    state = RetrievalState(row.state)
    is_open = state in {RetrievalState.WAITING, RetrievalState.RUNNING}
    if is_open and moment - row.asked_at > ANSWERED_WITHIN:
        return RetrievalState.FAILED, TOO_LATE
    return state, row.problem


def remove_expired(database: Database, *, now: datetime | None = None) -> None:
    """Forget questions and answers that are older than they are kept."""
    with database.transaction() as db:
        db.execute(delete(RemoteQuery).where(_expired(now or utc_now())))


def _expired(moment: datetime) -> ColumnElement[bool]:
    return RemoteQuery.asked_at < moment - KEPT


def _end(database: Database, question: Question, **values: object) -> None:
    statement = update(RemoteQuery).where(
        RemoteQuery.id == question.id, RemoteQuery.state == RetrievalState.RUNNING
    )
    with database.transaction() as db:
        db.execute(statement.values(**values))
