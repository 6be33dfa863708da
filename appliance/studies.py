"""Facts about studies and questions about them: what came, what is shown, what was found.

Every function takes the caller's transaction (`db`), but for `start_step` and `record_step`, which
a running analysis calls with the whole `database`: each is a unit of work of its own.
"""

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Row,
    Select,
    bindparam,
    delete,
    exists,
    func,
    insert,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session, aliased

from appliance import audit, lifecycle
from appliance.database import Database, PlainStatement, storable, utc_now
from appliance.errors import ApplianceError, LostRaceError
from appliance.lifecycle import Claim, State
from appliance.priority import Priority
from appliance.tables import (
    Analysis,
    DeliveredObject,
    Delivery,
    Instance,
    InstanceConflict,
    Patient,
    Review,
    Series,
    StepResult,
    Study,
    StudyEvent,
)

VIEWED: Final = "web:study:viewed"
"""The audit's tag of a look at a study."""
UID_LIMIT: Final = 256
"""Characters of a UID that is taken. The standard allows 64 (PS3.5, 9.1); real senders pass it."""


@dataclass(frozen=True, kw_only=True)
class PatientAttributes:
    """The person as the instance names them (PS3.3, C.7.1.1), each "" when absent."""

    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    sex: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyAttributes:
    """The study as the instance describes it (PS3.3, C.7.2.1), each "" when absent."""

    accession_number: str = ""
    description: str = ""
    study_date: str = ""
    study_time: str = ""
    referring_physician: str = ""


@dataclass(frozen=True, kw_only=True)
class SeriesAttributes:
    """The series as the instance describes it (PS3.3, C.7.3.1), each "" when absent.

    `requested_priority` is Requested Procedure Priority (0040,1003), where a sender copies it.
    """

    modality: str = ""
    description: str = ""
    series_number: str = ""
    body_part: str = ""
    manufacturer: str = ""
    model: str = ""
    station_name: str = ""
    protocol_name: str = ""
    requested_priority: str = ""


@dataclass(frozen=True, kw_only=True)
class ReceivedInstance:
    """An instance whose bytes are durable in the store under `digest`."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    digest: str
    size_bytes: int
    source_ae: str
    is_image: bool = True
    patient: PatientAttributes = field(default_factory=PatientAttributes)
    study: StudyAttributes = field(default_factory=StudyAttributes)
    series: SeriesAttributes = field(default_factory=SeriesAttributes)


ANALYSED: Final = (State.ANALYSING, State.READY, State.REJECTED, State.FAILED)
"""Where the images of a study have been looked at, or are."""
ROUTES: Final = 256  # series under way at the same time that are remembered


class Recorded(StrEnum):
    """What an instance was to the appliance; Success is the answer to all three."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class Conflict(StrEnum):
    """Why an instance was kept aside."""

    BYTES = "bytes"
    """Its UID is there already, at the same place, with other bytes."""
    PLACE = "place"
    """Its UID is there already, in another series of the study; UIDs are unique (PS3.5, 9)."""


@dataclass(frozen=True)
class StoredInstance:
    """An instance and where its bytes are: `Store.path_of(digest)`."""

    digest: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    size_bytes: int


@dataclass(frozen=True)
class SeriesOutcome:
    """What the analysis did with a series; `reason` is shown to people when it was refused."""

    series_uid: str
    outcome: str
    reason: str | None = None


@dataclass(frozen=True)
class StepDone:
    """One finished step of an analysis, for the page that shows it as it comes."""

    step: str
    position: int
    seconds: float
    summary: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True)
class Progress:
    """How far a study is; `step` is under way, `steps` are done."""

    state: State
    state_reason: str | None
    step: str | None
    step_done: int
    step_total: int
    steps: tuple[StepDone, ...]


@dataclass(frozen=True, kw_only=True)
class WorklistRow:
    """One line of the worklist.

    `shares_uid`: another person's images came under the same Study Instance UID. `stale`: the
    result was made before the last instances came. `reviewed_by`, `reviewed_at`, `overridden`,
    `confirmed_positive` and `confirmed_lesion_count` are of the last review of the result; a study
    that is READY without one waits for it.
    """

    study_id: int
    study_uid: str
    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    accession_number: str
    description: str
    study_date: str
    study_time: str
    source_ae: str
    state: State
    state_reason: str | None
    state_since: datetime
    first_received_at: datetime
    last_received_at: datetime
    priority: Priority
    priority_reason: str | None
    attempts: int
    step: str | None
    step_done: int
    step_total: int
    instance_count: int
    conflict_count: int
    shares_uid: bool
    analysis_id: int | None
    probability: float | None
    positive: bool | None
    lesion_count: int | None
    lesion_volume_ml: float | None
    stale: bool
    reviewed_by: str | None
    reviewed_at: datetime | None
    overridden: bool | None
    confirmed_positive: bool | None
    confirmed_lesion_count: int | None

    @property
    def waits_for_review(self) -> bool:
        """Whether there is a result that nobody confirmed yet."""
        return self.state is State.READY and self.reviewed_by is None


class Routes:
    """Where instances of a series and a person went last, so that the next is added at a glance.

    Only a memory: whoever follows a route looks whether everything is still as it was.
    """

    def __init__(self) -> None:
        self._routes: OrderedDict[_Kind, _Route] = OrderedDict()

    def of(self, kind: "_Kind") -> "_Route | None":
        """The route of instances of this kind."""
        return self._routes.get(kind)

    def remember(self, kind: "_Kind", route: "_Route") -> None:
        """Keep a route, and forget the oldest of many."""
        self._routes[kind] = route
        self._routes.move_to_end(kind)
        if len(self._routes) > ROUTES:
            self._routes.popitem(last=False)

    @contextmanager
    def kept_if_committed(self) -> Iterator[None]:
        """Forget everything if the transaction in the block fails.

        Rows that never were leave their numbers to others, of another person perhaps.
        """
        committed = False
        try:
            yield
            committed = True
        finally:
            if not committed:
                self._routes.clear()


_Kind = tuple[str, str, PatientAttributes]
"""Study, series and person as instances name them."""

_Route = tuple[int, int, int]
"""The rows of the series, the study and the person that they belong to."""


def record_instance(
    db: Session, received: ReceivedInstance, routes: Routes | None = None
) -> Recorded:
    """Note an instance that is in the store.

    A new one counts up the study's revision and, when the study was closed, opens it again; a
    result of ours that a PACS sends back does neither, or each would bring the next. Nor does what
    is no image, once the images are being analysed: dose reports and documents come late every day,
    and the result would be sent once more under other UIDs. Where the images are passed on, so
    must they be, and it counts as any other. The same bytes again, and what is kept aside as a
    conflict, change nothing but, in a study being received, when it was last heard of.
    """
    now = utc_now()
    instance = _clean(received)
    kind = (instance.study_uid, instance.series_uid, instance.patient)
    known = routes.of(kind) if routes is not None and instance.is_image else None
    if known is not None and _follow(db, known, instance, now):
        return Recorded.NEW
    returned = _is_delivered(db, instance)
    recorded = _record(db, instance, now, returned=returned)
    if routes is not None and recorded is Recorded.NEW and not returned:
        routes.remember(kind, _route(db, instance))
    return recorded


def _follow(db: Session, route: _Route, instance: ReceivedInstance, now: datetime) -> bool:
    """Add a new instance where others like it went; changes nothing unless all is as it was."""
    series_id, study_id, patient_key = route
    connection = db.connection()
    if connection.dialect.name == "postgresql":
        LOCK_UID.run(connection, study_uid=instance.study_uid)
    counted = COUNT_IN_STUDY_AS_IT_WAS.run(
        connection,
        of_study=study_id,
        of_patient=patient_key,
        of_series=series_id,
        study_uid=instance.study_uid,
        series_uid=instance.series_uid,
        sop_instance_uid=instance.sop_instance_uid,
        now=now,
    )
    if not counted:
        return False
    ADD_INSTANCE.run(connection, **_instance_row(instance, study_id, series_id, now))
    COUNT_IN_SERIES.run(connection, of_series=series_id, instance_bytes=instance.size_bytes)
    return True


_OF_UID: Final = aliased(Study)
_of_that_uid: Final = _OF_UID.study_uid == bindparam("study_uid")
_places: Final = (
    select(func.count())
    .select_from(Series)
    .join(_OF_UID, Series.study_id == _OF_UID.id)
    .where(_of_that_uid, Series.series_uid == bindparam("series_uid"))
    .scalar_subquery()
)
_is_known: Final = exists().where(
    Instance.study_id == _OF_UID.id,
    _of_that_uid,
    Instance.sop_instance_uid == bindparam("sop_instance_uid"),
)
COUNT_IN_STUDY_AS_IT_WAS: Final = PlainStatement(
    update(Study)
    .where(
        Study.id == bindparam("of_study"),
        Study.study_uid == bindparam("study_uid"),
        Study.patient_key == bindparam("of_patient"),
        # What `lifecycle.reopen` leaves as it is.
        or_(Study.state == State.RECEIVING, Study.state == State.ANALYSING),
        exists().where(
            Series.id == bindparam("of_series"),
            Series.study_id == Study.id,
            Series.series_uid == bindparam("series_uid"),
        ),
        _places == 1,
        ~_is_known,
    )
    .values(revision=Study.revision + 1, last_received_at=bindparam("now"))
)
ADD_INSTANCE: Final = PlainStatement(
    insert(Instance)
    .inline()
    .values(
        {
            column: bindparam(column.name)
            for column in Instance.__table__.columns
            if not column.primary_key
        }
    )
)
COUNT_IN_SERIES: Final = PlainStatement(
    update(Series)
    .where(Series.id == bindparam("of_series"))
    .values(
        instance_count=Series.instance_count + 1,
        size_bytes=Series.size_bytes + bindparam("instance_bytes"),
    )
)
LOCK_UID: Final = PlainStatement(
    select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("study_uid"), 0)))
)


def _route(db: Session, instance: ReceivedInstance) -> _Route:
    """Where an instance went that was just recorded."""
    row = db.execute(
        select(Series.id, Study.id, Study.patient_key)
        .select_from(Instance)
        .join(Series, Instance.series_id == Series.id)
        .join(Study, Instance.study_id == Study.id)
        .where(Study.study_uid == instance.study_uid)
        .where(Instance.sop_instance_uid == instance.sop_instance_uid)
        .where(Instance.digest == instance.digest)
    ).first()
    if row is None:
        raise ApplianceError("an instance that was just recorded is not there")
    return (row[0], row[1], row[2])


def _is_delivered(db: Session, instance: ReceivedInstance) -> bool:
    """Whether it is a result that was made here of a study of that UID, and not held yet."""
    uid = instance.sop_instance_uid
    held = exists().where(Instance.study_id == Study.id, Instance.sop_instance_uid == uid)
    made = exists().where(
        DeliveredObject.sop_instance_uid == uid,
        DeliveredObject.delivery_id == Delivery.id,
        Delivery.study_id == Study.id,
        Study.study_uid == instance.study_uid,
        ~held,
    )
    return bool(db.scalar(select(made)))


def _is_passed_on(db: Session, study_id: int) -> bool:
    """Whether the images of a study went, or go, to some destination."""
    images = Delivery.what.contains("images")  # `deliveries.Content.IMAGES`, of the layer above
    return bool(db.scalar(select(exists().where(Delivery.study_id == study_id, images))))


def _record(db: Session, instance: ReceivedInstance, now: datetime, *, returned: bool) -> Recorded:
    parts = _locked_parts(db, instance.study_uid)
    kept = _kept(db, instance)
    for row in kept:
        if row.digest == instance.digest:
            _note_heard(db, row.study_id, now)
            return Recorded.DUPLICATE
    part = _part_of(db, parts, instance)
    for row in kept:
        if part is not None and row.study_id == part.id:
            _note_heard(db, part.id, now)
            _keep_aside(db, instance, row, now)
            return Recorded.CONFLICT
    if part is None:
        study_id = _begin(db, instance, len(parts), now)
    else:
        study_id = part.id
        _fill_in(db, part, instance)
    _add(db, instance, study_id, now)
    document = part is not None and part.state in ANALYSED and not instance.is_image
    if returned or (document and not _is_passed_on(db, study_id)):
        return Recorded.NEW
    lifecycle.reopen(db, study_id)
    values: dict[str, Any] = {"revision": Study.revision + 1, "last_received_at": now}
    db.execute(update(Study).where(Study.id == study_id).values(values))
    return Recorded.NEW


def worklist_row(db: Session, study_id: int) -> WorklistRow | None:
    """The worklist's line for one study."""
    return next(iter(worklist_rows(db, [study_id])), None)


def worklist_rows(db: Session, ids: Sequence[int]) -> list[WorklistRow]:
    """The worklist's lines for these studies, in this order; those that are gone have none."""
    found = {row[0].id: row for row in db.execute(_worklist_rows().where(Study.id.in_(ids)))}
    return [_worklist_row(*found[study_id]) for study_id in ids if study_id in found]


def _worklist_rows() -> Select[Study, Analysis | None, Review | None, int, bool]:
    conflicts = (
        select(func.count())
        .where(InstanceConflict.study_id == Study.id)
        .correlate(Study)
        .scalar_subquery()
    )
    other = aliased(Study)
    shares_uid = exists().where(other.study_uid == Study.study_uid, other.id != Study.id)
    last_review = (
        select(func.max(Review.version))
        .where(Review.analysis_id == Analysis.id)
        .correlate(Analysis)
        .scalar_subquery()
    )
    return (
        select(Study, Analysis, Review, conflicts, shares_uid)
        .outerjoin(Analysis, (Analysis.study_id == Study.id) & Analysis.current)
        .outerjoin(Review, (Review.analysis_id == Analysis.id) & (Review.version == last_review))
    )


def count(db: Session) -> int:
    """How many studies there are."""
    return db.scalar(select(func.count()).select_from(Study)) or 0


def named(db: Session, study_uid: str) -> Sequence[Study]:
    """The studies under this UID: one for each person named with it, in the order they came."""
    return db.scalars(_named(study_uid)).all()


def progress(db: Session, study_id: int) -> Progress | None:
    """How far a study is."""
    study = db.get(Study, study_id)
    if study is None:
        return None
    done = select(StepResult).where(StepResult.study_id == study_id).order_by(StepResult.position)
    return Progress(
        state=State(study.state),
        state_reason=study.state_reason,
        step=study.step,
        step_done=study.step_done,
        step_total=study.step_total,
        steps=tuple(
            StepDone(row.step, row.position, row.seconds, row.summary, row.at)
            for row in db.scalars(done)
        ),
    )


def analysis(db: Session, analysis_id: int) -> Analysis | None:
    """The analysis with this row id, superseded or not."""
    return db.get(Analysis, analysis_id)


def keep_origin(db: Session, analysis_id: int, origin: Mapping[str, str]) -> dict[str, str]:
    """Keep what the first objects of an analysis are named by; returns that of the first."""
    unnamed = update(Analysis).where(Analysis.id == analysis_id, Analysis.origin.is_(null()))
    db.execute(unnamed.values(origin=dict(origin)))
    return dict(db.scalar(select(Analysis.origin).where(Analysis.id == analysis_id)) or origin)


def current_analysis(db: Session, study_id: int) -> Analysis | None:
    """The analysis to show."""
    return db.scalar(select(Analysis).where(Analysis.study_id == study_id, Analysis.current))


def analyses_of(db: Session, study_id: int) -> Sequence[Analysis]:
    """Every analysis of a study, oldest first, superseded ones too."""
    return db.scalars(
        select(Analysis).where(Analysis.study_id == study_id).order_by(Analysis.id)
    ).all()


def series_of(db: Session, study_id: int) -> Sequence[Series]:
    """The series of a study in the order they came."""
    return db.scalars(select(Series).where(Series.study_id == study_id).order_by(Series.id)).all()


def conflicts_of(db: Session, study_id: int) -> Sequence[InstanceConflict]:
    """What was kept aside, and for which `Conflict`."""
    kept_aside = select(InstanceConflict).where(InstanceConflict.study_id == study_id)
    return db.scalars(kept_aside.order_by(InstanceConflict.id)).all()


def conflict_with(db: Session, study_uid: str, digest: str) -> InstanceConflict:
    """What these bytes, sent under this UID, were kept aside for."""
    under_uid = InstanceConflict.study_id.in_(_named(study_uid).with_only_columns(Study.id))
    return db.scalars(
        select(InstanceConflict)
        .where(under_uid, InstanceConflict.other_digest == digest)
        .order_by(InstanceConflict.id.desc())
        .limit(1)
    ).one()


def events_of(db: Session, study_id: int) -> Sequence[StudyEvent]:
    """Every move of a study, oldest first."""
    return db.scalars(
        select(StudyEvent).where(StudyEvent.study_id == study_id).order_by(StudyEvent.id)
    ).all()


def instances_of(db: Session, study_id: int) -> list[StoredInstance]:
    """Every instance of a study, ordered by UID: whatever order they came in, the order is one."""
    rows = db.execute(
        select(
            Instance.digest,
            Series.series_uid,
            Instance.sop_instance_uid,
            Instance.sop_class_uid,
            Instance.transfer_syntax_uid,
            Instance.size_bytes,
        )
        .join(Series, Instance.series_id == Series.id)
        .where(Series.study_id == study_id)
        .order_by(Series.series_uid, Instance.sop_instance_uid)
    )
    return [StoredInstance(*row) for row in rows]


def record_series_outcomes(db: Session, study_id: int, outcomes: Iterable[SeriesOutcome]) -> None:
    """Note what the analysis did with each series."""
    for outcome in outcomes:
        db.execute(
            update(Series)
            .where(Series.study_id == study_id, Series.series_uid == outcome.series_uid)
            .values(outcome=outcome.outcome, outcome_reason=outcome.reason)
        )


def start_step(database: Database, claim: Claim, *, step: str, done: int, total: int) -> None:
    """Say which step is under way, `done` of `total` behind it. Raises LostRaceError."""
    with database.transaction() as db:
        _set_step(db, claim, {"step": step, "step_done": done, "step_total": total})


def record_step(
    database: Database,
    claim: Claim,
    *,
    step: str,
    position: int,
    total: int,
    seconds: float,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Publish what step number `position` (from 0) of `total` found, in place of an earlier try.

    Raises LostRaceError.
    """
    with database.transaction() as db:
        _set_step(db, claim, {"step": step, "step_done": position + 1, "step_total": total})
        this_try = {"study_id": claim.study_id, "attempt": claim.attempt, "position": position}
        db.execute(delete(StepResult).filter_by(**this_try))
        db.add(
            StepResult(
                study_id=claim.study_id,
                attempt=claim.attempt,
                step=step,
                position=position,
                seconds=seconds,
                summary=dict(summary or {}),
                at=utc_now(),
            )
        )


def _set_step(db: Session, claim: Claim, values: dict[str, Any]) -> None:
    statement = update(Study).where(*lifecycle.held(claim)).values(values).returning(Study.id)
    if db.scalar(statement) is None:
        raise LostRaceError(claim.study_id, State.ANALYSING)


def _clean(received: ReceivedInstance) -> ReceivedInstance:
    """The same instance with text that both databases can hold, or a refusal."""
    uids = {name: storable(getattr(received, name)).strip() for name in _UIDS}
    for name, uid in uids.items():
        if not 0 < len(uid) <= UID_LIMIT:
            raise ApplianceError(f"the instance's {name} is {'empty' if not uid else 'too long'}")
    return ReceivedInstance(
        **uids,
        digest=received.digest,
        size_bytes=received.size_bytes,
        source_ae=storable(received.source_ae).strip(),
        is_image=received.is_image,
        patient=PatientAttributes(**_texts(received.patient)),
        study=StudyAttributes(**_texts(received.study)),
        series=SeriesAttributes(**_texts(received.series)),
    )


_UIDS: Final = (
    "study_uid",
    "series_uid",
    "sop_instance_uid",
    "sop_class_uid",
    "transfer_syntax_uid",
)


def _texts(attributes: PatientAttributes | StudyAttributes | SeriesAttributes) -> dict[str, str]:
    return {name: storable(value) for name, value in vars(attributes).items()}


def lock(db: Session, study_id: int) -> bool:
    """Whether the study is there; if so, nothing is added to it until the transaction ends."""
    study_uid = db.scalar(select(Study.study_uid).where(Study.id == study_id))
    if study_uid is None:
        return False
    if db.get_bind().dialect.name == "postgresql":
        LOCK_UID.run(db.connection(), study_uid=study_uid)
    there = select(Study.id).where(Study.id == study_id).with_for_update(of=Study)
    return db.scalar(there) is not None


def _named(study_uid: str) -> Select[Study]:
    return select(Study).where(Study.study_uid == study_uid).order_by(Study.part)


def _locked_parts(db: Session, study_uid: str) -> Sequence[Study]:
    """The studies under this UID; no other transaction changes or adds one until this one ends.

    SQLite has one writer anyway. In PostgreSQL the UID itself is locked first, for there may be no
    row yet, and then the rows, against their moving through the lifecycle meanwhile.
    """
    if db.get_bind().dialect.name == "postgresql":
        LOCK_UID.run(db.connection(), study_uid=study_uid)
    locked = _named(study_uid).with_for_update(of=Study, key_share=True)
    return db.scalars(locked.execution_options(populate_existing=True)).all()


def _kept(db: Session, instance: ReceivedInstance) -> Sequence[Row[str, int, str]]:
    """What is kept of this UID under its Study Instance UID: digest, study_id and series_uid."""
    return db.execute(
        select(Instance.digest, Instance.study_id, Series.series_uid)
        .join(Series, Instance.series_id == Series.id)
        .join(Study, Instance.study_id == Study.id)
        .where(Study.study_uid == instance.study_uid)
        .where(Instance.sop_instance_uid == instance.sop_instance_uid)
    ).all()


def _note_heard(db: Session, study_id: int, now: datetime) -> None:
    receiving = (Study.id == study_id, Study.state == State.RECEIVING)
    db.execute(update(Study).where(*receiving).values(last_received_at=now))


def _begin(db: Session, instance: ReceivedInstance, part: int, now: datetime) -> int:
    """The id of a new study with the instance's attributes."""
    return lifecycle.begin(
        db,
        {
            "study_uid": instance.study_uid,
            "part": part,
            "patient_key": _patient(db, vars(instance.patient)),
            "source_ae": instance.source_ae,
            "first_received_at": now,
            "last_received_at": now,
            **vars(instance.study),
        },
    )


def _keep_aside(
    db: Session, instance: ReceivedInstance, kept: Row[str, int, str], now: datetime
) -> None:
    conflict = {
        "study_id": kept.study_id,
        "sop_instance_uid": instance.sop_instance_uid,
        "reason": Conflict.BYTES if kept.series_uid == instance.series_uid else Conflict.PLACE,
        "kept_digest": kept.digest,
        "other_digest": instance.digest,
        "source_ae": instance.source_ae,
        "received_at": now,
    }
    _insert_once(db, InstanceConflict, conflict)


def _add(db: Session, instance: ReceivedInstance, study_id: int, now: datetime) -> None:
    series = {"study_id": study_id, "series_uid": instance.series_uid}
    if (series_id := db.scalar(select(Series.id).filter_by(**series))) is None:
        new = Series(**series, **vars(instance.series))
        db.add(new)
        db.flush()
        series_id = new.id
    connection = db.connection()
    ADD_INSTANCE.run(connection, **_instance_row(instance, study_id, series_id, now))
    COUNT_IN_SERIES.run(connection, of_series=series_id, instance_bytes=instance.size_bytes)


def _instance_row(
    instance: ReceivedInstance, study_id: int, series_id: int, now: datetime
) -> dict[str, Any]:
    return {
        "study_id": study_id,
        "series_id": series_id,
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "digest": instance.digest,
        "size_bytes": instance.size_bytes,
        "source_ae": instance.source_ae,
        "received_at": now,
    }


def _part_of(db: Session, parts: Sequence[Study], instance: ReceivedInstance) -> Study | None:
    """The study that is the named person's, None where it is nobody's or may be several people's.

    Number with issuer, name and birth date decide: one person's images under another's banner is
    the worst that can happen here, one person's in two lines of the worklist is not. None may
    differ, and number or name must be the same. Only in the image's own series, or where there is
    but one study, may it or the image name nobody. Of several that fit, the one that agrees in most
    is meant, if there is one; a study that may be another one's person is added to by series and by
    the very same attributes alone.
    """
    asked = _identity(instance.patient)
    known = [(study, _identity(study.patient)) for study in parts]
    in_series = db.scalars(
        select(Series.study_id)
        .where(Series.series_uid == instance.series_uid)
        .where(Series.study_id.in_([study.id for study in parts]))
    ).all()
    for study, identity in known:
        if [study.id] == in_series and _agree(identity, asked, leniently=True):
            return study
    for study, identity in known:
        if identity == asked:
            return study
    clear = [
        (study, identity)
        for study, identity in known
        if not any(_agree(identity, other) for one, other in known if one is not study)
    ]
    fitting = [
        (_agreement(identity, asked), study)
        for study, identity in clear
        if _agree(identity, asked, leniently=len(parts) == 1)
    ]
    most = max((agreed for agreed, _ in fitting), default=0)
    best = [study for agreed, study in fitting if agreed == most]
    return best[0] if len(best) == 1 else None


Identity = tuple[str, ...]
"""Number, the name's three groups, issuer and birth date as they are compared."""

NAMES: Final = slice(0, 4)
"""What of an identity says who somebody is."""


def same_person(one: Patient, other: Patient) -> bool:
    """Whether two rows describe one person, however a station spells the name."""
    return one is other or _agree(_identity(one), _identity(other))


def _identity(person: Patient | PatientAttributes) -> Identity:
    number, issuer, birth_date = (
        value.strip() for value in (person.patient_id, person.issuer, person.birth_date)
    )
    return (number, *_spelt(person.name), issuer, birth_date)


def _agree(known: Identity, given: Identity, *, leniently: bool = False) -> bool:
    """Whether it is the same person; leniently, also where one of the two names nobody."""
    if any(a != b for a, b in zip(known, given, strict=True) if a and b):
        return False
    named = any(a and b for a, b in zip(known[NAMES], given[NAMES], strict=True))
    return named or (leniently and not (any(known[NAMES]) and any(given[NAMES])))


def _agreement(known: Identity, given: Identity) -> int:
    """How many attributes both have."""
    return sum(bool(a and b) for a, b in zip(known, given, strict=True))


def _fill_in(db: Session, study: Study, instance: ReceivedInstance) -> None:
    """Take over what the study lacks, else a second and a third person would both fit it.

    An issuer belongs to its number, and is never joined to that of another image.
    """
    given = instance.patient
    known = {name: getattr(study.patient, name) for name in vars(given)}
    blank = {name for name in known if not known[name].strip()}
    if not any(_spelt(known["name"])):
        blank.add("name")
    if "patient_id" in blank and given.patient_id.strip():
        blank.add("issuer")
    elif not given.patient_id.strip():
        blank.discard("issuer")
    filled = {name: vars(given)[name] if name in blank else known[name] for name in known}
    if filled == known:
        return
    values = {"patient_key": _patient(db, filled)}
    db.execute(update(Study).where(Study.id == study.id).values(values))
    db.expire(study)
    if _identity(study.patient) != _identity(PatientAttributes(**known)):
        audit.record(
            db,
            actor=f"peer {instance.source_ae}",
            tag="reception:patient:completed",
            subject=f"study {study.id}",
        )


def _spelt(name: str) -> tuple[str, str, str]:
    """A name's alphabetic, ideographic and phonetic group (PS3.5, 6.2.1) as they are compared.

    Stations spell one name in several ways, so case, separators and, in the alphabetic group,
    accents do not count. A group without a letter or digit is empty.
    """
    groups = [*name.split("="), "", ""]
    letters = unicodedata.normalize("NFKD", groups[0])
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    alphabetic, ideographic, phonetic = (
        " ".join(re.sub(r"[\W_]+", " ", group.casefold()).split())
        for group in (plain, *(unicodedata.normalize("NFKC", group) for group in groups[1:3]))
    )
    return alphabetic, ideographic, phonetic


def _patient(db: Session, attributes: Mapping[str, str]) -> int:
    """The id of the row of this person, made if there is none; it stays as long as `db` lasts."""
    kept = select(Patient.id).filter_by(**attributes).with_for_update(read=True, key_share=True)
    while (patient := db.scalar(kept)) is None:  # never was, or goes with a study removed just now
        _insert_once(db, Patient, attributes)
    return patient


def _insert_once(db: Session, table: type[DeclarativeBase], values: Mapping[str, Any]) -> bool:
    """Whether it was inserted, not if another transaction did; waits for that one to end."""
    dialect = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
    inserted = dialect.insert(table).values(**values).on_conflict_do_nothing()
    return db.execute(inserted.returning(*table.__table__.primary_key)).first() is not None


def _worklist_row(
    study: Study,
    analysis: Analysis | None,
    review: Review | None,
    conflicts: int,
    shares_uid: bool,  # noqa: FBT001 - a column of the query above
) -> WorklistRow:
    patient = study.patient
    return WorklistRow(
        study_id=study.id,
        study_uid=study.study_uid,
        patient_id=patient.patient_id,
        patient_name=patient.name,
        birth_date=patient.birth_date,
        sex=patient.sex,
        accession_number=study.accession_number,
        description=study.description,
        study_date=study.study_date,
        study_time=study.study_time,
        source_ae=study.source_ae,
        state=State(study.state),
        state_reason=study.state_reason,
        state_since=study.state_since,
        first_received_at=study.first_received_at,
        last_received_at=study.last_received_at,
        priority=Priority(study.priority),
        priority_reason=study.priority_reason,
        attempts=study.attempts,
        step=study.step,
        step_done=study.step_done,
        step_total=study.step_total,
        instance_count=study.revision,
        conflict_count=conflicts,
        shares_uid=shares_uid,
        analysis_id=analysis.id if analysis else None,
        probability=analysis.probability if analysis else None,
        positive=analysis.positive if analysis else None,
        lesion_count=analysis.lesion_count if analysis else None,
        lesion_volume_ml=analysis.lesion_volume_ml if analysis else None,
        stale=analysis is not None and analysis.revision != study.revision,
        reviewed_by=review.reviewer if review else None,
        reviewed_at=review.at if review else None,
        overridden=review.overridden if review else None,
        confirmed_positive=review.positive if review else None,
        confirmed_lesion_count=review.lesion_count(analysis) if review and analysis else None,
    )
