"""Totals that only ever grow, counted from the rows themselves.

Nothing is counted while a study is received or analysed: the rows are the count, true with any
number of processes and after each restart. What is removed by retention leaves its share in the
table `tally`, in the transaction that removes it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Float, and_, case, cast, func, select, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from appliance.lifecycle import State
from appliance.tables import (
    Analysis,
    InstanceConflict,
    Review,
    Series,
    Study,
    StudyEvent,
    Tally,
)

STUDIES: Final = "studies_received"
INSTANCES: Final = "instances_received"
BYTES: Final = "bytes_received"
ANALYSES: Final = "analyses"
"""By their answer: positive, negative, none."""
CONFIRMATIONS: Final = "confirmations"
"""By what was decided: agreed, overridden; an amendment counts once more."""
FAILURES: Final = "failures"
"""By the kinds of `FAILURE_KINDS`."""
STEP_COUNT: Final = "step_count"
STEP_SECONDS: Final = "step_seconds"
STEP_WITHIN: Final = "step_within"
"""By step; the last also by the upper limit in seconds: how many took no longer."""

STEP_LIMITS_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 900.0)

FAILURE_KINDS: Final = {
    "study failed": (StudyEvent.target == State.FAILED,),
    "study refused": (StudyEvent.target == State.REJECTED,),
    "try failed": (
        StudyEvent.source == State.ANALYSING,
        StudyEvent.target == State.QUEUED,
        StudyEvent.reason.startswith("try "),  # not one that was stopped in good order
    ),
}
CONFLICT: Final = "instance conflict"

Key = tuple[str, tuple[str, ...]]
"""A total's name and the values of its labels."""


def grown(db: Session) -> Counter[Key]:
    """Every total, those of removed studies included."""
    totals = _totals(db)
    for row in db.scalars(select(Tally)):
        totals[row.metric, tuple(json.loads(row.labels))] += row.value  # type: ignore[assignment]
    return totals


def keep(db: Session, study_id: int) -> None:
    """Keep what a study adds to the totals, in the transaction that is about to remove it."""
    dialect: Any = postgresql if db.get_bind().dialect.name == "postgresql" else sqlite
    # In one order, so that two removals at once never wait for each other.
    for (metric, labels), value in sorted(_totals(db, study_id).items()):
        if not value:
            continue
        added = dialect.insert(Tally).values(
            metric=metric, labels=json.dumps(labels), value=float(value)
        )
        db.execute(
            added.on_conflict_do_update(
                index_elements=["metric", "labels"],
                set_={"value": Tally.value + added.excluded.value},
            )
        )


def _totals(db: Session, study_id: int | None = None) -> Counter[Key]:
    """What the rows add up to, of one study or of all."""

    def of(column: Any) -> ColumnElement[bool]:
        return true() if study_id is None else column == study_id

    totals: Counter[Key] = Counter()
    totals[STUDIES, ()] = db.scalar(select(func.count(Study.id)).where(of(Study.id))) or 0
    counted = select(func.sum(Series.instance_count), func.sum(Series.size_bytes))
    instances, size = db.execute(counted.where(of(Series.study_id))).one()
    totals[INSTANCES, ()], totals[BYTES, ()] = int(instances or 0), int(size or 0)
    answers = select(Analysis.positive, func.count()).where(of(Analysis.study_id))
    for positive, count in db.execute(answers.group_by(Analysis.positive)):
        answer = {True: "positive", False: "negative", None: "none"}[positive]
        totals[ANALYSES, (answer,)] = count
    decided = (
        select(Review.reason.is_not(None), func.count())
        .join(Analysis, Review.analysis_id == Analysis.id)
        .where(of(Analysis.study_id))
        .group_by(Review.reason.is_not(None))
    )
    for overridden, count in db.execute(decided):
        totals[CONFIRMATIONS, ("overridden" if overridden else "agreed",)] = count
    totals.update(dict(_failures(db, of)))
    totals.update(dict(_steps(db, of(Analysis.study_id))))
    return totals


def _failures(db: Session, of: Any) -> Iterator[tuple[Key, int]]:
    kinds = [func.sum(case((and_(*which), 1), else_=0)) for which in FAILURE_KINDS.values()]
    row = db.execute(select(*kinds).where(of(StudyEvent.study_id))).one()
    for kind, count in zip(FAILURE_KINDS, row, strict=True):
        yield (FAILURES, (kind,)), int(count or 0)
    conflicts = select(func.count(InstanceConflict.id)).where(of(InstanceConflict.study_id))
    yield (FAILURES, (CONFLICT,)), db.scalar(conflicts) or 0


def _steps(db: Session, where: ColumnElement[bool]) -> Iterator[tuple[Key, Any]]:
    """How long each step of the analyses took."""
    is_postgresql = db.get_bind().dialect.name == "postgresql"
    pairs = func.json_each_text if is_postgresql else func.json_each
    step = pairs(Analysis.timings).table_valued("key", "value", joins_implicitly=True)
    seconds = cast(step.c.value, Float)
    within = [func.sum(case((seconds <= limit, 1), else_=0)) for limit in STEP_LIMITS_S]
    rows = select(step.c.key, func.count(), func.sum(seconds), *within)
    rows = rows.select_from(Analysis).where(where).group_by(step.c.key)
    for name, count, total, *counts in db.execute(rows):
        yield (STEP_COUNT, (name,)), count
        yield (STEP_SECONDS, (name,)), total
        for limit, number in zip(STEP_LIMITS_S, counts, strict=True):
            yield (STEP_WITHIN, (name, str(limit))), number
