"""What went on in the last hours: how much came, what became of it, how long it took."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from appliance.lifecycle import State
from appliance.tables import Study, StudyEvent

HOURS: Final = 24


@dataclass(frozen=True)
class Hour:
    """One hour, by the time of its beginning.

    Attributes:
        arrived: studies whose first image came.
        ready: results.
        failed: studies that failed or were refused.
        minutes: median from the last image to the result; None without a result.
    """

    begins: datetime
    arrived: int
    ready: int
    failed: int
    minutes: float | None


def hours(db: Session, *, now: datetime, count: int = HOURS) -> Sequence[Hour]:
    """The last hours, oldest first; the one under way is the last."""
    this = now.replace(minute=0, second=0, microsecond=0)
    first = this - timedelta(hours=count - 1)
    arrived: dict[datetime, int] = defaultdict(int)
    for at in db.scalars(select(Study.first_received_at).where(Study.first_received_at >= first)):
        arrived[_hour(at)] += 1
    ended: dict[tuple[datetime, str], list[float]] = defaultdict(list)
    targets = (State.READY, State.FAILED, State.REJECTED)
    rows = select(StudyEvent.at, StudyEvent.target, Study.last_received_at)
    rows = rows.join(Study, StudyEvent.study_id == Study.id).where(
        StudyEvent.at >= first,
        StudyEvent.target.in_(targets),
        StudyEvent.source != StudyEvent.target,  # a change of priority
    )
    for at, target, last_image in db.execute(rows):
        ended[_hour(at), target].append((at - last_image).total_seconds() / 60)
    moments = [first + timedelta(hours=number) for number in range(count)]
    return [
        Hour(
            begins=moment,
            arrived=arrived[moment],
            ready=len(ended[moment, State.READY]),
            failed=len(ended[moment, State.FAILED]) + len(ended[moment, State.REJECTED]),
            minutes=_median(ended[moment, State.READY]),
        )
        for moment in moments
    ]


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _median(minutes: Sequence[float]) -> float | None:
    # A late image came after the result that it made out of date.
    known = [value for value in minutes if value >= 0]
    return median(known) if known else None
