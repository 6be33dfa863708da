"""What moves right now, for pages that follow it live: asked every second, whatever there is.

It reads what is under way and the ends of three tables. How many studies are at each stage is
counted anew only after something moved, or when it was counted a while ago.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from appliance import studies, worklist
from appliance.database import utc_now
from appliance.lifecycle import State
from appliance.studies import StepDone
from appliance.tables import InstanceConflict, Review, StepResult, Study, StudyEvent
from appliance.worklist import Stage

NOTED: Final = (StudyEvent, InstanceConflict, Review)
"""Each gets a row whenever a fact of the worklist changes."""

END_ROWS: Final = 200
COUNTED_FOR: Final = timedelta(seconds=30)
"""A removed study leaves nothing that could be noted: its absence is seen at the next count."""


@dataclass(frozen=True)
class Moving:
    """A study that is being received or analysed."""

    study_id: int
    state: State
    instance_count: int
    step: str | None
    step_done: int
    step_total: int
    steps: tuple[StepDone, ...]


@dataclass(frozen=True)
class Pulse:
    """What moves right now. `marker` differs whenever any other fact of the worklist may have."""

    noted: str
    counts: Mapping[Stage, int]
    counted_at: datetime
    moving: tuple[Moving, ...]

    @property
    def marker(self) -> str:
        """What `marker` said when this was read, or a while before."""
        return _marker(self.noted, sum(self.counts.values()))


def marker(db: Session) -> str:
    """What a page remembers with its rows: as long as the pulse says the same, they are right."""
    return _marker(_noted(db), studies.count(db))


def read(db: Session, *, before: Pulse | None = None, now: datetime | None = None) -> Pulse:
    """The pulse now; with the one `before`, what cannot have changed is taken from it."""
    moment = now or utc_now()
    noted = _noted(db)
    if before is not None and before.noted == noted and moment < before.counted_at + COUNTED_FOR:
        return Pulse(noted, before.counts, before.counted_at, _moving(db))
    return Pulse(noted, worklist.counts(db), moment, _moving(db))


def _marker(noted: str, total: int) -> str:
    return f"{noted}.{total}"


def _noted(db: Session) -> str:
    return ".".join(_end_of(db, table) for table in NOTED)


def _end_of(db: Session, table: type[StudyEvent | InstanceConflict | Review]) -> str:
    """What differs whenever a row was added, also one with a lower number than the last.

    A transaction that began earlier may commit a lower number later (PostgreSQL).
    """
    last = select(table.id).order_by(table.id.desc()).limit(END_ROWS).subquery()
    newest, total = db.execute(select(func.max(last.c.id), func.sum(last.c.id))).one()
    return f"{newest or 0}-{total or 0}"


def _moving(db: Session) -> tuple[Moving, ...]:
    under_way = db.scalars(
        select(Study).where(Study.state.in_((State.RECEIVING, State.ANALYSING))).order_by(Study.id)
    ).all()
    found: dict[int, list[StepDone]] = {}
    analysing = [study.id for study in under_way if study.state == State.ANALYSING]
    done = select(StepResult).where(StepResult.study_id.in_(analysing))
    for row in db.scalars(done.order_by(StepResult.position)):
        step = StepDone(row.step, row.position, row.seconds, row.summary, row.at)
        found.setdefault(row.study_id, []).append(step)
    return tuple(
        Moving(
            study_id=study.id,
            state=State(study.state),
            instance_count=study.revision,
            step=study.step,
            step_done=study.step_done,
            step_total=study.step_total,
            steps=tuple(found.get(study.id, ())),
        )
        for study in under_way
    )
