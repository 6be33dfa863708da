"""Removing studies that nobody waits for any more: by age, and when the disk fills up.

A study goes with all that is known of it but the audit, its share of the totals (`tallies`) and the
measures of its results, which name nobody (`QualityRecord`): rows, results, and the stored bytes
that no other study has. What `HOLDS` names keeps it, however old it is and however full the disk:
then reception stops at its own watermark, and an administrator is told what holds the studies.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import structlog
from celery import shared_task
from sqlalchemy import (
    ColumnElement,
    Table,
    Text,
    and_,
    cast,
    delete,
    exists,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from appliance import audit, queue, studies, tallies
from appliance.config import RetentionSettings, Settings
from appliance.database import Base, Database, utc_now
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.retrievals import RetrievalState
from appliance.store import Store
from appliance.tables import (
    Analysis,
    AuditEntry,
    Delivery,
    Instance,
    InstanceConflict,
    Occasion,
    Patient,
    Retrieval,
    Review,
    Study,
)

log = structlog.get_logger()

LOOKED_AT: Final = timedelta(days=1)
ENOUGH: Final = 1.1
"""How much of the wanted free space is made, so that not each image that comes has one removed."""
DIGESTS_AT_ONCE: Final = 500

NAMED: Final = (Instance.digest, InstanceConflict.kept_digest, InstanceConflict.other_digest)
"""The columns that name stored bytes."""


class Why(StrEnum):
    """What a study was removed for."""

    AGE = "age"
    DISK = "disk"
    BY_HAND = "by hand"


@dataclass(frozen=True)
class Hold:
    """What keeps a study; `of` says for which, under these settings and at this moment."""

    reason: str
    of: Callable[[RetentionSettings, datetime], ColumnElement[bool]]


def _unfinished(_settings: RetentionSettings, _now: datetime) -> ColumnElement[bool]:
    return Study.state.in_((State.RECEIVING, State.QUEUED, State.ANALYSING))


def _failed(_settings: RetentionSettings, _now: datetime) -> ColumnElement[bool]:
    return Study.state == State.FAILED


def _unreported(settings: RetentionSettings, _now: datetime) -> ColumnElement[bool]:
    if settings.unconfirmed:
        return false()
    confirmed = exists().where(Review.analysis_id == Analysis.id)
    return exists().where(Analysis.study_id == Study.id, Analysis.current, ~confirmed)


def _unsent(_settings: RetentionSettings, _now: datetime) -> ColumnElement[bool]:
    to_do = or_(Delivery.next_try_at.is_not(None), Delivery.state == DeliveryState.FAILED)
    return or_(
        exists().where(Delivery.study_id == Study.id, to_do),
        exists().where(Occasion.study_id == Study.id, ~Occasion.considered),
    )


def _wanted(_settings: RetentionSettings, _now: datetime) -> ColumnElement[bool]:
    under_way = Retrieval.state.in_((RetrievalState.WAITING, RetrievalState.RUNNING))
    return exists().where(Retrieval.study_uid == Study.study_uid, under_way)


def _looked_at(_settings: RetentionSettings, now: datetime) -> ColumnElement[bool]:
    # Not one look at the audit for each study: it is long, and has no index by subject.
    numbers = select(func.substr(AuditEntry.subject, len("study ") + 1)).where(
        AuditEntry.tag == studies.VIEWED, AuditEntry.at >= now - LOOKED_AT
    )
    return cast(Study.id, Text).in_(numbers)


def _young(settings: RetentionSettings, now: datetime) -> ColumnElement[bool]:
    return Study.last_received_at > now - timedelta(days=settings.at_least_days)


HOLDS: Final = (
    Hold("still arriving, waiting or being analysed", _unfinished),
    Hold("their analysis failed: send them again or remove them by hand", _failed),
    Hold("nobody confirmed their result ([retention] unconfirmed)", _unreported),
    Hold(
        "results of them are not sent yet, or could not be: `appliance dicom deliveries`", _unsent
    ),
    Hold("more of them is being retrieved", _wanted),
    Hold("somebody looked at them within a day", _looked_at),
    Hold("younger than [retention] at_least_days", _young),
)


def enforce(database: Database, settings: Settings, *, now: datetime | None = None) -> list[int]:
    """Remove what is too old, then the oldest until the disk has room; returns the studies."""
    moment = now or utc_now()
    chosen = settings.retention
    store = Store(settings.store_dir)
    free = and_(*(~hold.of(chosen, moment) for hold in HOLDS))
    removed = []
    if chosen.keep_days:
        before = moment - timedelta(days=chosen.keep_days)
        removed += [
            study_id
            for study_id in _oldest_first(database, free, Study.last_received_at < before)
            if _remove(database, store, settings, study_id, free, Why.AGE)
        ]
    if store.free_bytes() < chosen.free_bytes:
        for study_id in _oldest_first(database, free):
            if _remove(database, store, settings, study_id, free, Why.DISK):
                removed.append(study_id)
            if store.free_bytes() >= ENOUGH * chosen.free_bytes:
                break
        else:
            log.warning("retention.disk_stays_full")
    return removed


def remove(database: Database, settings: Settings, study_id: int, *, actor: str) -> bool:
    """Remove a study that a person wants gone, held or not; whether it went.

    One that is still arriving or being analysed stays.
    """
    store = Store(settings.store_dir)
    free = ~_unfinished(settings.retention, utc_now())
    return _remove(database, store, settings, study_id, free, Why.BY_HAND, actor=actor)


def held(database: Database, settings: Settings, *, now: datetime | None = None) -> dict[str, int]:
    """How many studies each hold keeps, under the first that does; those that none keeps as ""."""
    moment = now or utc_now()
    counts = {}
    with database.snapshot() as db:
        before: list[ColumnElement[bool]] = []
        for hold in HOLDS:
            applies = hold.of(settings.retention, moment)
            counts[hold.reason] = _count(db, applies, *(~other for other in before))
            before.append(applies)
        counts[""] = _count(db, *(~other for other in before))
    return counts


def discard_unnamed(database: Database, settings: Settings) -> int:
    """Remove stored bytes that no row names, which a crash can leave; returns how many."""
    store = Store(settings.store_dir)
    discarded = store.finish_discarding(is_named=_asking(database))
    for digests in store.settled(DIGESTS_AT_ONCE):
        discarded += _discard(database, store, digests)
    return discarded


def _oldest_first(database: Database, *conditions: ColumnElement[bool]) -> Sequence[int]:
    """The studies for which this holds, the longest unheard of first."""
    found = select(Study.id).where(*conditions).order_by(Study.last_received_at, Study.id)
    with database.snapshot() as db:
        return db.scalars(found).all()


def _count(db: Session, *conditions: ColumnElement[bool]) -> int:
    return db.scalar(select(func.count()).select_from(Study).where(*conditions)) or 0


def _remove(
    database: Database,
    store: Store,
    settings: Settings,
    study_id: int,
    free: ColumnElement[bool],
    why: Why,
    *,
    actor: str = "retention",
) -> bool:
    """Remove a study if it still is `free`; whether it went.

    The rows go first. What a crash leaves of the files is found by `maintenance.remove_orphans` and
    `discard_unnamed`.
    """
    person = select(Study.patient_key).where(Study.id == study_id, free)
    with database.transaction() as db:
        if not studies.lock(db, study_id) or (patient := db.scalar(person)) is None:
            return False
        digests = sorted(set(_digests_of(db, study_id)))
        tallies.keep(db, study_id)
        _remove_rows(db, study_id)
        audit.record(
            db,
            actor=actor,
            tag="retention:study:removed",
            subject=f"study {study_id}",
            detail={"why": why, "images": len(digests)},
        )
    _remove_person(database, patient)
    shutil.rmtree(settings.analyses_dir / str(study_id), ignore_errors=True)
    _discard(database, store, digests)
    log.info("study.removed", study_id=study_id, why=why, images=len(digests))
    return True


def _digests_of(db: Session, study_id: int) -> list[str]:
    """What lies in the store for a study, also what was kept aside."""
    return [
        digest
        for column in NAMED
        for digest in db.scalars(select(column).where(column.class_.study_id == study_id))
    ]


def _remove_rows(db: Session, study_id: int) -> None:
    """Remove the study's row and every one that refers to it, by whatever foreign keys."""
    for table in reversed(Base.metadata.sorted_tables):
        if (of_study := _of_study(table, study_id)) is not None:
            db.execute(table.delete().where(of_study))


def _of_study(table: Table, study_id: int) -> ColumnElement[bool] | None:
    """Which rows of a table belong to a study, None where none can."""
    if table is Study.__table__:
        return table.c.id == study_id
    belongs = []
    for key in table.foreign_keys:
        other = key.column.table
        if other is not table and (of_study := _of_study(other, study_id)) is not None:
            belongs.append(key.parent.in_(select(key.column).where(of_study)))
    return or_(*belongs) if belongs else None


def _remove_person(database: Database, patient: int) -> None:
    """Remove what is known of a person who has no study left."""
    has_study = exists().where(Study.patient_key == Patient.id)
    try:
        with database.transaction() as db:
            db.execute(delete(Patient).where(Patient.id == patient, ~has_study))
    except IntegrityError:
        log.info("retention.person_stays")  # a study of theirs came at this very moment


def _discard(database: Database, store: Store, digests: Sequence[str]) -> int:
    """Remove stored bytes but for those that a row names; returns how many are gone."""
    named = _named(database, digests)
    is_named = _asking(database)
    return sum(store.discard(d, is_named=is_named) for d in digests if d not in named)


def _asking(database: Database) -> Callable[[str], bool]:
    return lambda digest: bool(_named(database, [digest]))


def _named(database: Database, digests: Sequence[str]) -> set[str]:
    """Which of these a row names."""
    found: set[str] = set()
    with database.snapshot() as db:
        for column in NAMED:
            found.update(db.scalars(select(column).where(column.in_(digests))))
    return found


@shared_task(name="appliance.retention")
def retention_task() -> None:
    """Run `enforce` in a worker."""
    app = queue.current()
    enforce(app.database, app.settings)


@shared_task(name="appliance.discard_unnamed")
def discard_unnamed_task() -> None:
    """Run `discard_unnamed` in a worker."""
    app = queue.current()
    discard_unnamed(app.database, app.settings)
