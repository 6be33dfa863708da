"""The worklist: which studies are shown, in which order and why, and what is looked for in them.

A page is found in two steps: the numbers of its studies, from few columns, then all that is known
of those. Every function takes the caller's transaction.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import IntEnum, StrEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Session

from appliance import studies
from appliance.database import utc_now
from appliance.lifecycle import State
from appliance.matching import contains
from appliance.priority import Priority
from appliance.retrievals import Aim, Why
from appliance.studies import WorklistRow
from appliance.tables import Analysis, AuditEntry, Patient, Retrieval, Review, Series, Study

OLD_AFTER: Final = timedelta(days=30)
"""A study of an earlier date that was asked for as a prior, or has been here as long, is here for
comparison, not to be read."""

WORDS_LIMIT: Final = 8
SEPARATORS: Final = re.compile(r"[\s^=,*?]+")
"""What stands between the words of a search: a name's own marks and wildcards among them."""


class Stage(StrEnum):
    """Where a study stands, as people who read studies see it."""

    WAITING = "waiting"
    RUNNING = "running"
    REVIEW = "review"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    REFUSED = "refused"


class Rank(IntEnum):
    """Why a study stands where it does when the most suspicious come first."""

    URGENT = 0
    SUSPICIOUS = 1
    OPEN = 2
    OLD = 3
    CONFIRMED = 4


class Order(StrEnum):
    """What comes first."""

    SUSPICION = "suspicion"
    """By `Rank`, then by probability, then the newest."""
    ARRIVAL = "arrival"
    DATE = "date"
    PATIENT = "patient"
    RESULT = "result"


class Outcome(StrEnum):
    """What the analysis found."""

    SUSPICIOUS = "suspicious"
    BELOW = "below"
    LESIONS = "lesions"


class Mine(StrEnum):
    """What the person who asks has to do with a study."""

    CONFIRMED = "confirmed"
    OPENED = "opened"


def today_here() -> date:
    """Today by this machine's clock and zone, which are the hospital's."""
    return utc_now().astimezone().date()


@dataclass(frozen=True, kw_only=True)
class View:
    """What a person wants to see; what is empty or absent does not matter.

    `first` and `last` are days of the study, or of its arrival where it has no date; `device` is a
    manufacturer and a model; `account_id` and `account` say who asks.
    """

    account_id: int
    account: str
    stage: Stage | None = None
    first: date | None = None
    last: date | None = None
    source: str = ""
    station: str = ""
    device: tuple[str, str] | None = None
    outcome: Outcome | None = None
    mine: Mine | None = None
    search: str = ""
    order: Order = Order.SUSPICION
    reverse: bool = False
    today: date = field(default_factory=today_here)


@dataclass(frozen=True)
class Line:
    """A line of the worklist: `earlier` and `later` count the other studies of its patient."""

    row: WorklistRow
    rank: Rank
    earlier: int
    later: int


@dataclass(frozen=True)
class Choices:
    """What there is to choose from, each as it came."""

    sources: Sequence[str]
    stations: Sequence[str]
    devices: Sequence[tuple[str, str]]


def page(db: Session, view: View, *, limit: int, offset: int = 0) -> list[Line]:
    """Some lines of a view, in its order."""
    found = db.execute(_ordered(view).limit(limit).offset(offset)).all()
    ids = [one.id for one in found]
    others = _others(db, ids)
    lines = []
    for row, one in zip(studies.worklist_rows(db, ids), found, strict=True):
        of_person = others.get(row.study_id, ())
        earlier = sum(_when(other) < _when(row) for other in of_person)
        lines.append(Line(row, Rank(one.rank), earlier, len(of_person) - earlier))
    return lines


def count(db: Session, view: View, *, newer_than: int = 0) -> int:
    """How many studies a view has, of those that came after the one named."""
    newer = [Study.id > newer_than] if newer_than else []
    counted = select(func.count()).select_from(Study).where(*_conditions(view), *newer)
    return db.scalar(counted) or 0


def newest(db: Session) -> int:
    """The number of the study that came last; 0 where there is none."""
    return db.scalar(select(func.max(Study.id))) or 0


def counts(db: Session) -> dict[Stage, int]:
    """How many studies are at each stage."""
    by_state = db.execute(select(Study.state, func.count()).group_by(Study.state))
    found = dict.fromkeys(Stage, 0)
    for state, number in by_state:
        found[STAGE_OF[State(state)]] += number
    unread = select(func.count()).select_from(Study).where(_at(Stage.REVIEW))
    found[Stage.REVIEW] = db.scalar(unread) or 0
    found[Stage.CONFIRMED] -= found[Stage.REVIEW]
    return found


def next_to_review(db: Session, view: View, *, after: int) -> int | None:
    """The study that waits for review after this one in a view; the first where none is behind it.

    The one to start from may be anywhere, and keeps the place that it had before it was confirmed.
    """
    ids = [row.id for row in db.execute(_ordered(view, to_review_and=after))]
    start = ids.index(after) + 1 if after in ids else 0
    return next((one for one in (*ids[start:], *ids[:start]) if one != after), None)


def others_of_patient(db: Session, study_id: int) -> list[WorklistRow]:
    """The other studies of the same person, the newest first."""
    others = _others(db, [study_id]).get(study_id, [])
    newest_first = sorted(others, key=_when, reverse=True)
    return studies.worklist_rows(db, [other.id for other in newest_first])


def choices(db: Session) -> Choices:
    """What studies came from, for filters to offer."""
    devices = select(Series.manufacturer, Series.model).distinct()
    return Choices(
        sources=sorted(filter(None, db.scalars(select(Study.source_ae).distinct()))),
        stations=sorted(filter(None, db.scalars(select(Series.station_name).distinct()))),
        devices=sorted((row[0], row[1]) for row in db.execute(devices) if any(row)),
    )


STAGE_OF: Final[Mapping[State, Stage]] = {
    State.RECEIVING: Stage.WAITING,
    State.QUEUED: Stage.WAITING,
    State.ANALYSING: Stage.RUNNING,
    State.READY: Stage.CONFIRMED,
    State.REJECTED: Stage.REFUSED,
    State.FAILED: Stage.FAILED,
}
"""The stage of each state; what is READY waits for review until somebody confirmed it."""

_of_study: Final = and_(Analysis.study_id == Study.id, Analysis.current)
_reviewed: Final = exists().where(Review.analysis_id == Analysis.id).correlate(Analysis)
_confirmed: Final = and_(Study.state == State.READY, _reviewed)
_SUSPICION: Final = case((Analysis.positive.is_(True), Analysis.probability), else_=-1.0)


def _ordered(view: View, *, to_review_and: int | None = None) -> Select[int, int]:
    """The studies of a view in its order, with their rank.

    With `to_review_and`, those that wait for review, and that one in the place that it has, or had,
    among them.
    """
    conditions = _conditions(view)
    rank, suspicion = _rank(view.today), _SUSPICION
    if to_review_and is None:
        rank = case((_confirmed, int(Rank.CONFIRMED)), else_=rank)
        # Of what is confirmed the newest: how suspicious it was no longer matters.
        suspicion = case((_confirmed, -1.0), else_=suspicion)
    else:
        waiting = and_(_at(Stage.REVIEW), *conditions)
        conditions = [or_(waiting, Study.id == to_review_and)]
    keys = [*_keys(view.order, rank, suspicion), (Study.id, True)]
    return (
        select(Study.id, rank.label("rank"))
        .join(Patient, Study.patient_key == Patient.id)
        .outerjoin(Analysis, _of_study)
        .where(*conditions)
        .order_by(*(key.desc() if falls is not view.reverse else key.asc() for key, falls in keys))
    )


def _keys(
    order: Order, rank: ColumnElement[int], suspicion: ColumnElement[float]
) -> list[tuple[Any, bool]]:
    """What a view is ordered by, each with whether it falls."""
    match order:
        case Order.SUSPICION:
            return [(rank, False), (suspicion, True), (Study.first_received_at, True)]
        case Order.ARRIVAL:
            return [(Study.first_received_at, True)]
        case Order.DATE:
            return [(Study.study_date, True), (Study.study_time, True)]
        case Order.PATIENT:
            return [
                (func.lower(Patient.name), False),
                (Patient.patient_id, False),
                (Study.study_date, True),
            ]
        case Order.RESULT:
            return [
                (func.coalesce(Analysis.probability, -1.0), True),
                (func.coalesce(Analysis.lesion_volume_ml, -1.0), True),
            ]


def _rank(today: date) -> ColumnElement[int]:
    """The rank of what nobody confirmed."""
    day = func.replace(Study.study_date, ".", "")  # ACR-NEMA wrote dates with dots
    border = today - OLD_AFTER
    # The date alone may be a scanner's wrong clock.
    long_here = Study.first_received_at < _midnight(border)
    old = and_(day != "", day < f"{border:%Y%m%d}", or_(long_here, _asked_as_prior))
    return case(
        (Study.priority == Priority.URGENT, int(Rank.URGENT)),
        (old, int(Rank.OLD)),
        (Analysis.positive.is_(True), int(Rank.SUSPICIOUS)),
        else_=int(Rank.OPEN),
    )


def _conditions(view: View) -> list[ColumnElement[bool]]:
    found = [*_days(view.first, view.last), *(_word(word) for word in _words(view.search))]
    if view.stage is not None:
        found.append(_at(view.stage))
    if view.source:
        found.append(Study.source_ae == view.source)
    if view.station:
        found.append(_has_series(Series.station_name == view.station))
    if view.device is not None:
        manufacturer, model = view.device
        found.append(_has_series(Series.manufacturer == manufacturer, Series.model == model))
    if view.outcome is not None:
        found.append(exists().where(_of_study, _OUTCOMES[view.outcome]).correlate(Study))
    if view.mine is not None:
        found.append(_mine(view))
    return found


def _at(stage: Stage) -> ColumnElement[bool]:
    states = [state for state, other in STAGE_OF.items() if other is stage]
    if stage in (Stage.REVIEW, Stage.CONFIRMED):
        confirmed = exists().where(_of_study, Review.analysis_id == Analysis.id).correlate(Study)
        return and_(
            Study.state == State.READY, confirmed if stage is Stage.CONFIRMED else ~confirmed
        )
    return Study.state.in_(states)


_asked_as_prior: Final = (
    exists()
    .where(
        Retrieval.study_uid == Study.study_uid,
        Retrieval.aim == Aim.STUDY,
        Retrieval.why == Why.PRIOR,
        Retrieval.created_at <= Study.first_received_at,
    )
    .correlate(Study)
)

_OUTCOMES: Final[Mapping[Outcome, ColumnElement[bool]]] = {
    Outcome.SUSPICIOUS: Analysis.positive.is_(True),
    Outcome.BELOW: Analysis.positive.is_(False),
    Outcome.LESIONS: Analysis.lesion_count > 0,
}


def _has_series(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return Study.id.in_(select(Series.study_id).where(*conditions))


def _mine(view: View) -> ColumnElement[bool]:
    if view.mine is Mine.CONFIRMED:
        confirmed = exists().where(
            _of_study, Review.analysis_id == Analysis.id, Review.account_id == view.account_id
        )
        return confirmed.correlate(Study)
    opened = select(func.substr(AuditEntry.subject, len("study ") + 1)).where(
        AuditEntry.tag == studies.VIEWED, AuditEntry.actor == view.account
    )
    return cast(Study.id, Text).in_(opened)


def _days(first: date | None, last: date | None) -> Iterable[ColumnElement[bool]]:
    day = func.replace(Study.study_date, ".", "")
    undated = Study.study_date == ""
    if first is not None:
        began = _midnight(first)
        yield or_(day >= f"{first:%Y%m%d}", and_(undated, Study.first_received_at >= began))
    if last is not None:
        ended = _midnight(last + timedelta(days=1))
        dated = and_(~undated, day <= f"{last:%Y%m%d}")
        yield or_(dated, and_(undated, Study.first_received_at < ended))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time()).astimezone()


def _words(search: str) -> list[str]:
    return [word for word in SEPARATORS.split(search) if word][:WORDS_LIMIT]


def _word(word: str) -> ColumnElement[bool]:
    """Whether a word is part of a name or a number, or the Study Instance UID."""
    person = select(Patient.id).where(
        or_(contains(Patient.name, word), Patient.patient_id.icontains(word, autoescape=True))
    )
    return or_(
        Study.patient_key.in_(person),
        Study.accession_number.icontains(word, autoescape=True),
        Study.study_uid == word,
    )


def _others(db: Session, ids: Sequence[int]) -> dict[int, list[Study]]:
    """The other studies of each one's person, who is known by a number: names alone are shared."""
    numbers = select(Patient.patient_id).join(Study, Study.patient_key == Patient.id)
    same_number = (
        select(Study)
        .where(Study.patient_key == Patient.id, Patient.patient_id != "")
        .where(Patient.patient_id.in_(numbers.where(Study.id.in_(ids)).correlate(None)))
    )
    of_number: dict[str, list[Study]] = {}
    for study in db.scalars(same_number):
        of_number.setdefault(study.patient.patient_id, []).append(study)
    return {
        study.id: [
            other
            for other in known
            if other is not study and studies.same_person(study.patient, other.patient)
        ]
        for known in of_number.values()
        for study in known
        if study.id in ids
    }


def _when(study: Study | WorklistRow) -> tuple[str, str, datetime]:
    """What studies of one person are ordered by: their own date, else that of their arrival."""
    arrived = f"{study.first_received_at.astimezone():%Y%m%d}"
    day = study.study_date.replace(".", "").strip() or arrived
    return (day, study.study_time, study.first_received_at)
