"""The periodic tasks: close studies that went quiet, find stuck ones, hear the workers.

Each works from the database alone and may run at any time, twice, or half: it decides by
compare-and-set, and whoever comes second finds nothing to do.
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog
from celery import shared_task
from celery.signals import task_postrun, task_prerun, worker_ready
from sqlalchemy import ColumnElement, and_, or_, select

from appliance import lifecycle, priority, queue, uploads
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.errors import LostRaceError
from appliance.lifecycle import Doorbell, State
from appliance.priority import Priority
from appliance.store import Store
from appliance.tables import Analysis, Study

log = structlog.get_logger()

RING_AT_MOST: Final = 8
"""Studies rung again in one sweep, urgent ones first, then the oldest, so that a long queue does
not flood the broker."""


ORPHAN_MARGIN_S: Final = 600


@dataclass(frozen=True)
class Swept:
    """What one sweep did, in study ids, and how many dead files it removed."""

    given_back: tuple[int, ...]
    failed: tuple[int, ...]
    rung: tuple[int, ...]
    removed_files: int


def close_quiet_studies(
    database: Database, doorbell: Doorbell, settings: Settings, *, now: datetime | None = None
) -> list[int]:
    """Queue every study of which nothing came for a while; returns their ids.

    That while is `receive.quiet_s`, and `priority.quiet_s` for those that are urgent, which is
    decided first.
    """
    if settings.priority.rules:
        with database.transaction() as db:
            priority.apply_rules(db, settings.priority.rules)
    quiet = _quiet(settings, now or utc_now())
    with database.snapshot() as db:
        ids = db.scalars(select(Study.id).where(quiet).order_by(Study.last_received_at)).all()
    closed = []
    for study_id in ids:
        try:
            _close(database, study_id, quiet)
        except LostRaceError:
            continue  # an instance came after the look, or another process closed it
        lifecycle.ring(database, doorbell, study_id, State.QUEUED)
        closed.append(study_id)
        log.info("study.closed", study_id=study_id)
    return closed


def sweep(
    database: Database,
    doorbell: Doorbell,
    settings: Settings,
    *,
    now: datetime | None = None,
) -> Swept:
    """Take back what dead workers held, ring for what waits unheard, remove what is left over."""
    moment = now or utc_now()
    moved = lifecycle.expire(database, max_attempts=settings.lifecycle.max_attempts, now=moment)
    for study_id, state in moved:
        log.warning("study.taken_back", study_id=study_id, state=state)
        lifecycle.ring(database, doorbell, study_id, state)
    just_rung = {study_id for study_id, _ in moved}
    swept = Swept(
        given_back=tuple(study_id for study_id, state in moved if state is State.QUEUED),
        failed=tuple(study_id for study_id, state in moved if state is State.FAILED),
        rung=tuple(_ring_again(database, doorbell, settings, moment, but=just_rung)),
        removed_files=Store(settings.store_dir).sweep_incoming(),
    )
    if swept.rung or swept.removed_files:
        log.info("sweep.done", rung=swept.rung, removed_files=swept.removed_files)
    return swept


def remove_orphans(database: Database, settings: Settings, *, now: datetime | None = None) -> int:
    """Remove result folders that no analysis names, whole or half written; returns how many.

    A worker that is killed leaves them. A younger one may belong to a task that still runs and
    whose row comes last; no task outlives its time limit.
    """
    age_s = settings.lifecycle.task_time_limit_s + ORPHAN_MARGIN_S
    before = (now or utc_now()).timestamp() - age_s
    # Listed before the rows are read: what is named in between is not taken for an orphan.
    folders = list(settings.analyses_dir.glob("*/*"))
    with database.snapshot() as db:
        named = set(db.scalars(select(Analysis.folder)))
    removed = 0
    for folder in folders:
        if str(folder.relative_to(settings.data_dir)) in named or not _older(folder, before):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        removed += 1
        log.info("orphan.removed", study_id=folder.parent.name)
    return removed


def heard_file(settings: Settings, name: str) -> Path:
    """The file that a worker of queue `name` touches whenever it is heard to work."""
    return settings.run_dir / f"heard-{name}"


@worker_ready.connect
@task_prerun.connect
@task_postrun.connect
def hear(**_arguments: Any) -> None:
    """Leave a sign of life that only a worker which really consumes its queue can leave.

    Every task counts, from its start to its end: behind a backlog of analyses the periodic
    `appliance.hear`, which is there for quiet times, expires before its turn comes.
    """
    app = queue.current()
    for name in app.amqp.queues.consume_from:
        heard_file(app.settings, name).touch()


def _older(folder: Path, before: float) -> bool:
    """Whether nothing was written directly into `folder` since `before` (seconds of the epoch)."""
    try:
        return folder.is_dir() and folder.stat().st_mtime < before
    except FileNotFoundError:
        return False  # its task just gave it its final name


def _quiet(settings: Settings, moment: datetime) -> ColumnElement[bool]:
    """The condition under which a study counts as complete."""
    routine_s = settings.receive.quiet_s
    urgent_s = routine_s if settings.priority.quiet_s is None else settings.priority.quiet_s
    heard = Study.last_received_at
    return and_(
        Study.state == State.RECEIVING,
        or_(
            and_(Study.priority == Priority.URGENT, heard <= moment - timedelta(seconds=urgent_s)),
            heard <= moment - timedelta(seconds=routine_s),
        ),
    )


def _close(database: Database, study_id: int, quiet: ColumnElement[bool]) -> None:
    """Queue one study if it is still quiet, under a lock that keeps instances out meanwhile."""
    still_quiet = select(Study.id).where(Study.id == study_id, quiet)
    with database.transaction() as db:
        if db.scalar(still_quiet.with_for_update(of=Study, key_share=True)) is None:
            raise LostRaceError(study_id, "quiet")
        lifecycle.advance(db, study_id, State.RECEIVING, State.QUEUED)


def _ring_again(
    database: Database,
    doorbell: Doorbell,
    settings: Settings,
    moment: datetime,
    *,
    but: Collection[int],
) -> list[int]:
    """Ring for studies that wait longer than they should; returns those the broker took."""
    before = moment - timedelta(seconds=settings.lifecycle.ring_again_s)
    unheard = (
        select(Study.id)
        .where(
            Study.state == State.QUEUED,
            Study.id.not_in(but),
            Study.state_since <= before,
            or_(Study.rung_at.is_(None), Study.rung_at <= before),
        )
        .order_by(priority.urgent_first(), Study.state_since)
        .limit(RING_AT_MOST)
    )
    with database.snapshot() as db:
        ids = db.scalars(unheard).all()
    return [
        study_id for study_id in ids if lifecycle.ring(database, doorbell, study_id, State.QUEUED)
    ]


@shared_task(name="appliance.close_quiet_studies")
def close_quiet_studies_task() -> None:
    """Run `close_quiet_studies` in a worker."""
    app = queue.current()
    close_quiet_studies(app.database, queue.Queue(app), app.settings)


@shared_task(name="appliance.sweep")
def sweep_task() -> None:
    """Run `sweep` in a worker."""
    app = queue.current()
    sweep(app.database, queue.Queue(app), app.settings)


@shared_task(name="appliance.remove_orphans")
def remove_orphans_task() -> None:
    """Run `remove_orphans` in a worker, and remove uploads that nobody finished."""
    app = queue.current()
    remove_orphans(app.database, app.settings)
    if removed := uploads.remove_old(app.settings):
        log.info("uploads.removed", count=removed)


@shared_task(name="appliance.hear")
def hear_task() -> None:
    """Do nothing: that it runs is the sign of life."""
