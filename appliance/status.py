"""`appliance status`: what runs, what waits, what failed and why, as plain tables."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from appliance import certificates, deliveries, retrievals
from appliance.config import DicomSettings
from appliance.database import Database, utc_now
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.supervisor import Report
from appliance.tables import Series, Study

SHOWN: Final = 20


def processes(report: Report | None) -> list[str]:
    """The processes of a running appliance, a line each."""
    if report is None:
        return ["The appliance does not run. Start it with `appliance serve`."]
    now = utc_now().timestamp()
    rows = [
        (
            child.name,
            f"process {child.pid}" if child.pid else "waits to be started again",
            _span(now - child.started_at),
            f"{child.restarts} restarts" if child.restarts else "",
            f"last ended by {child.last_exit}" if child.last_exit else "",
        )
        for child in report.children
    ]
    down = ", ".join(child.name for child in report.children if child.pid is None)
    state = "runs" if report.ready else "is starting"
    if report.ready and down:
        state += f", but for what is starting again ({down})"
    return [
        f"The appliance {state}: DICOM {report.dicom_address}, pages {report.viewer_url}",
        *_table(rows),
    ]


def security(dicom: DicomSettings) -> list[str]:
    """What is wrong with the files of DICOM TLS, where anything is."""
    looked = certificates.look(dicom, now=utc_now())
    return [f"DICOM TLS is not in order: {looked.problem}"] if looked and looked.problem else []


def work(database: Database) -> list[str]:
    """How many studies are in each state, and each that is not READY with its reason.

    Studies go by their number in the database: this text ends in mails and tickets.
    """
    with database.snapshot() as db:
        by_state = select(Study.state, func.count()).group_by(Study.state)
        counts = {row[0]: row[1] for row in db.execute(by_state)}
        lines = ["", "  ".join(f"{state} {counts.get(state, 0)}" for state in State)]
        for title, states in (
            ("Under way", (State.ANALYSING,)),
            ("Waiting", (State.QUEUED, State.RECEIVING)),
            ("Failed", (State.FAILED,)),
            ("Rejected", (State.REJECTED,)),
        ):
            rows = _studies(db, states)
            if rows:
                lines += ["", f"{title}:", *_table(rows)]
            if (more := sum(counts.get(state, 0) for state in states) - len(rows)) > 0:
                lines.append(f"  and {more} more")
        lines += _exchanges(db)
    return lines


def _exchanges(db: Session) -> list[str]:
    """What goes to other nodes and comes from them, where there is any."""
    lines = []
    if by_state := deliveries.counts(db):
        counted = (f"{state} {by_state[state]}" for state in DeliveryState if state in by_state)
        lines += ["", f"Deliveries:  {'  '.join(counted)}"]
    if given_up := retrievals.given_up(db):
        lines += ["", f"Retrievals given up: {given_up}"]
    return lines


def _studies(db: Session, states: Sequence[State]) -> list[tuple[str, ...]]:
    found = db.scalars(
        select(Study).where(Study.state.in_(states)).order_by(Study.state_since).limit(SHOWN)
    )
    return [_row(db, study) for study in found]


def _row(db: Session, study: Study) -> tuple[str, ...]:
    step = ""
    if study.state == State.ANALYSING:
        step = f"{study.step or 'starting'} ({study.step_done} of {study.step_total}),"
        step += f" try {study.attempts}"
    series = db.scalar(select(func.count()).where(Series.study_id == study.id))
    return (
        f"study {study.id}",
        study.state.lower(),
        f"for {_span(_seconds_since(study.state_since))}",
        f"{study.revision} images in {series} series",
        step or study.state_reason or "",
    )


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows in columns as wide as their longest entry."""
    listed = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return [
        "  "
        + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in listed
    ]


def _seconds_since(moment: datetime) -> float:
    return (utc_now() - moment).total_seconds()


def _span(seconds: float) -> str:
    """A span of time as a person says it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
