"""Which studies are urgent, and whose turn it is.

A study is urgent by a rule of the settings, as long as it is being received, or because a person
said so. What a person said, either way, no rule changes.

A message to a worker says no more than that something waits: whoever is rung claims the oldest
urgent study, else the oldest. So that none waits for ever, after `priority.in_a_row` urgent ones
the oldest of all has its turn, urgent or not. Nothing that is under way is interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import structlog
from sqlalchemy import ColumnElement, case, or_, select, update
from sqlalchemy.orm import Session

from appliance import audit, lifecycle
from appliance.config import PriorityRuleSettings
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError
from appliance.lifecycle import Claim, State
from appliance.matching import fits
from appliance.tables import Series, Study, StudyEvent

log = structlog.get_logger()


class Priority(StrEnum):
    """Whether a study may overtake others."""

    ROUTINE = "ROUTINE"
    URGENT = "URGENT"


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """What the rules look at: a series, with what is known of its study."""

    source_ae: str
    study_description: str
    series_description: str
    modality: str
    protocol_name: str
    station_name: str
    requested_priority: str


def matching(
    rules: Sequence[PriorityRuleSettings], series: Sequence[SeriesFacts]
) -> PriorityRuleSettings | None:
    """The first rule under which one of a study's series is urgent."""
    for rule in rules:
        if any(_matches(rule, one) for one in series):
            return rule
    return None


def apply_rules(db: Session, rules: Sequence[PriorityRuleSettings]) -> list[int]:
    """Make urgent, of the studies being received, those that the rules name; returns their ids.

    It is called where studies are closed, not for each instance: rules cost reception nothing.
    """
    undecided = (
        select(
            Study.id,
            Study.source_ae,
            Study.description.label("study_description"),
            Series.description.label("series_description"),
            Series.modality,
            Series.protocol_name,
            Series.station_name,
            Series.requested_priority,
        )
        .join(Series, Series.study_id == Study.id)
        .where(Study.state == State.RECEIVING, Study.priority_reason.is_(None))
        .order_by(Study.id, Series.id)
    )
    known: dict[int, list[SeriesFacts]] = {}
    for row in db.execute(undecided).mappings():
        facts = {name: value for name, value in row.items() if name != "id"}
        known.setdefault(row["id"], []).append(SeriesFacts(**facts))
    urgent = []
    for study_id, series in known.items():
        rule = matching(rules, series)
        if rule is not None and _decide(db, study_id, Priority.URGENT, f"rule {rule.name}"):
            urgent.append(study_id)
            log.info("study.urgent", study_id=study_id, rule=rule.name)
    return urgent


def mark(db: Session, study_id: int, priority: Priority, *, actor: str, who: str) -> None:
    """Give a study a priority because a person said so, whatever the rules say.

    `who` stands in the worklist, `actor` in the audit. Raises ApplianceError if there is no such
    study.
    """
    if not _decide(db, study_id, priority, f"by {who}", by_hand=True):
        raise ApplianceError(f"there is no study {study_id}")
    audit.record(
        db,
        actor=actor,
        tag="priority:study:marked",
        subject=f"study {study_id}",
        detail={"priority": priority},
    )


def claim_next(
    database: Database, rung_id: int, *, owner: str, lease_s: float, in_a_row: int
) -> Claim | None:
    """The claim on the study whose turn it is, by a worker rung for `rung_id`; None if none waits.

    `owner` and `lease_s` are those of `lifecycle.claim`.
    """
    while True:
        with database.snapshot() as db:
            study_id = whose_turn(db, rung_id, in_a_row=in_a_row)
        if study_id is None:
            return None
        claim = lifecycle.claim(database, study_id, owner=owner, lease_s=lease_s)
        if claim is not None:
            return claim
        # Another worker was faster: there is one less that waits, so this comes to an end.


def whose_turn(db: Session, rung_id: int, *, in_a_row: int) -> int | None:
    """The id of the queued study that is next.

    One that nobody rang for is passed over: after a failure the sweep rings later on purpose, so
    that a short trouble can pass. The message may come before its sending is noted, hence
    `rung_id`.
    """
    rung = or_(Study.id == rung_id, Study.rung_at.is_not(None))
    waiting = select(Study.id).where(Study.state == State.QUEUED, rung).limit(1)
    oldest = (Study.state_since, Study.id)
    if _enough_urgent(db, in_a_row):
        return db.scalar(waiting.order_by(*oldest))
    return db.scalar(waiting.order_by(urgent_first(), *oldest))


def urgent_first() -> ColumnElement[int]:
    """What a query orders by before it goes by time."""
    return case((Study.priority == Priority.URGENT, 0), else_=1)


def _enough_urgent(db: Session, in_a_row: int) -> bool:
    """Whether the studies taken up last were urgent ones, as many as may be."""
    latest = (
        select(Study.priority)
        .join(StudyEvent, StudyEvent.study_id == Study.id)
        .where(StudyEvent.source == State.QUEUED, StudyEvent.target == State.ANALYSING)
        .order_by(StudyEvent.id.desc())
        .limit(in_a_row)
    )
    taken = db.scalars(latest).all()
    return len(taken) == in_a_row and all(priority == Priority.URGENT for priority in taken)


def _decide(
    db: Session, study_id: int, priority: Priority, reason: str, *, by_hand: bool = False
) -> bool:
    """Whether the study was given this priority; leaves an event. Rules change no decision."""
    statement = update(Study).where(Study.id == study_id)
    if not by_hand:
        statement = statement.where(Study.priority_reason.is_(None))
    state = db.scalar(
        statement.values(priority=priority, priority_reason=reason).returning(Study.state)
    )
    if state is None:
        return False
    event = {"source": state, "target": state, "reason": f"{priority.lower()} {reason}"}
    db.add(StudyEvent(study_id=study_id, at=utc_now(), **event))
    return True


def _matches(rule: PriorityRuleSettings, series: SeriesFacts) -> bool:
    described = (series.study_description, series.series_description)
    return any(fits(rule.description, text) for text in described) and all(
        fits(getattr(rule, name), getattr(series, name))
        for name in ("source_ae", "modality", "protocol_name", "station_name", "requested_priority")
    )
