"""What Prometheus is told, read from the database at each scrape.

So it is true with any number of processes and after a restart. What all rows are read for is at
most `KEPT_S` old, however often somebody asks. No name, number or UID of a person, study or
instance is in any of it. Labels are of closed sets, or are names that the settings gave: their
number is bounded.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from appliance import (
    doctor,
    maintenance,
    quality_report,
    queue,
    supervisor,
    tallies,
    vital_signs,
)
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.deliveries import DeliveryState
from appliance.lifecycle import State
from appliance.retrievals import RetrievalState
from appliance.tables import CommitmentRequest, Delivery, Retrieval, Study

PREFIX: Final = "chestct_"
KEPT_S: Final = 15.0

WAITING: Final = (State.RECEIVING, State.QUEUED, State.ANALYSING)

TOTALS: Final = {
    tallies.STUDIES: ("studies_received", "Studies that began to arrive.", ()),
    tallies.INSTANCES: ("instances_received", "Instances that were taken in.", ()),
    tallies.BYTES: ("received_bytes", "Bytes of the instances that were taken in.", ()),
    tallies.ANALYSES: ("analyses", "Finished analyses by their answer.", ("answer",)),
    tallies.CONFIRMATIONS: (
        "confirmations",
        "Results that people confirmed or amended, by whether they agreed.",
        ("decision",),
    ),
    tallies.FAILURES: ("failures", "What went wrong with studies, by kind.", ("kind",)),
}


class Metrics(Collector):
    """Everything; one for all threads of a process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._lock = threading.Lock()
        self._history: list[Metric] = []
        self._read_at = float("-inf")

    def collect(self) -> Iterator[Metric]:
        """Yield each family of metrics."""
        build = {"version": version("chest-ct-appliance")}
        yield InfoMetricFamily(f"{PREFIX}build", "This release.", value=build)
        with self._database.snapshot() as db:
            yield from self._of_all_rows(db)
            yield from _studies(db)
            yield from _exchanges(db)
            yield _leases(db)
        yield from _disk(self._settings)
        yield from _processes(self._settings)

    def _of_all_rows(self, db: Session) -> list[Metric]:
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_S:
                grown = tallies.grown(db)
                self._history = [*_totals(grown), _steps(grown), _warnings(db, self._settings)]
                self._read_at = time.monotonic()
            return self._history


def _totals(grown: dict[tallies.Key, int]) -> Iterator[Metric]:
    for metric, (name, meaning, labels) in TOTALS.items():
        family = CounterMetricFamily(PREFIX + name, meaning, labels=labels)
        for (key, values), value in sorted(grown.items()):
            if key == metric:
                family.add_metric(values, value)
        yield family


def _steps(grown: dict[tallies.Key, int]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}analysis_step_seconds", "How long each step of an analysis took.", labels=["step"]
    )
    for (metric, labels), count in sorted(grown.items()):
        if metric != tallies.STEP_COUNT:
            continue
        (step,) = labels
        within = [
            (str(limit), float(grown.get((tallies.STEP_WITHIN, (step, str(limit))), 0)))
            for limit in tallies.STEP_LIMITS_S
        ]
        seconds = grown.get((tallies.STEP_SECONDS, (step,)), 0)
        family.add_metric([step], [*within, ("+Inf", float(count))], sum_value=seconds)
    return family


def _studies(db: Session) -> Iterator[Metric]:
    rows = db.execute(
        select(Study.state, func.count(), func.min(Study.state_since)).group_by(Study.state)
    )
    found = {row[0]: (row[1], row[2]) for row in rows}
    now = utc_now()
    held = GaugeMetricFamily(
        f"{PREFIX}studies", "Studies that are held, by state.", labels=["state"]
    )
    oldest = GaugeMetricFamily(
        f"{PREFIX}oldest_study_seconds",
        "For how long the oldest study of those that are not at their end is in its state.",
        labels=["state"],
    )
    for state in State:
        count, since = found.get(state, (0, None))
        held.add_metric([state], count)
        if state in WAITING:
            oldest.add_metric([state], (now - since).total_seconds() if since else 0.0)
    yield from (held, oldest)


def _exchanges(db: Session) -> Iterator[Metric]:
    for name, what, table in (
        ("deliveries", "Deliveries of studies that are held", Delivery),
        ("retrievals", "Retrievals", Retrieval),
    ):
        family = GaugeMetricFamily(
            PREFIX + name, f"{what}, by destination and state.", labels=["destination", "state"]
        )
        counted = select(table.destination, table.state, func.count())
        for destination, state, count in db.execute(
            counted.group_by(table.destination, table.state)
        ):
            family.add_metric([destination, state], count)
        yield family
    late = GaugeMetricFamily(
        f"{PREFIX}oldest_delivery_seconds",
        "For how long the oldest delivery that is not sent yet was queued.",
        labels=["destination"],
    )
    unsent = Delivery.state.in_((DeliveryState.WAITING, DeliveryState.SENDING))
    oldest = select(Delivery.destination, func.min(Delivery.queued_at)).where(unsent)
    for destination, since in db.execute(oldest.group_by(Delivery.destination)):
        late.add_metric([destination], (utc_now() - since).total_seconds())
    yield late
    asked = GaugeMetricFamily(
        f"{PREFIX}commitment_requests",
        "What peers asked to be kept for them, by state.",
        labels=["state"],
    )
    states = select(CommitmentRequest.state, func.count()).group_by(CommitmentRequest.state)
    for state, count in db.execute(states):
        asked.add_metric([state], count)
    yield asked


def _leases(db: Session) -> Metric:
    now = utc_now()
    family = GaugeMetricFamily(
        f"{PREFIX}leases",
        "Work that somebody holds, by kind and by whether the lease is renewed or has expired.",
        labels=["kind", "standing"],
    )
    for kind, table, under_way in (
        ("analysis", Study, Study.state == State.ANALYSING),
        ("delivery", Delivery, Delivery.lease_until.is_not(None)),
        ("retrieval", Retrieval, Retrieval.state == RetrievalState.RUNNING),
    ):
        ends = select(table.lease_until).where(under_way)
        held = [until is not None and until >= now for until in db.scalars(ends)]
        family.add_metric([kind, "held"], sum(held))
        family.add_metric([kind, "expired"], len(held) - sum(held))
    return family


def _warnings(db: Session, settings: Settings) -> Metric:
    report = quality_report.make(db, doctor.weights_dir(settings), now=utc_now())
    return GaugeMetricFamily(
        f"{PREFIX}quality_warnings",
        "What the page of quality over time warns of.",
        value=len(report.warnings),
    )


def _disk(settings: Settings) -> Iterator[Metric]:
    usage = shutil.disk_usage(settings.data_dir)
    for name, meaning, value in (
        ("disk_size_bytes", "Size of the disk that holds the data folder.", usage.total),
        ("disk_free_bytes", "What is free on it.", usage.free),
        (
            "disk_reserve_bytes",
            "What must be free for reception to go on.",
            settings.dicom.min_free_bytes,
        ),
    ):
        yield GaugeMetricFamily(PREFIX + name, meaning, value=value)


def _processes(settings: Settings) -> Iterator[Metric]:
    now = time.time()
    silent = GaugeMetricFamily(
        f"{PREFIX}silent_seconds",
        "Since when nothing was heard of a process that is to give signs of life.",
        labels=["process"],
    )
    for name in queue.QUEUES:
        try:
            heard = maintenance.heard_file(settings, name).stat().st_mtime
        except FileNotFoundError:
            continue  # it never ran
        silent.add_metric([f"worker-{name}"], now - heard)
    if (sign := vital_signs.last(settings)) is not None:
        silent.add_metric(["listener"], now - sign.at)
        yield GaugeMetricFamily(
            f"{PREFIX}listener_connections",
            "Connections that the listener has open.",
            value=sign.connections,
        )
    yield silent
    yield GaugeMetricFamily(
        f"{PREFIX}listener_associations_limit",
        "Associations that may be open at once.",
        value=settings.dicom.max_associations,
    )
    restarts = CounterMetricFamily(
        f"{PREFIX}process_restarts",
        "How often `appliance serve` started a process again.",
        labels=["process"],
    )
    report = supervisor.read_report(settings)
    for child in report.children if report is not None else ():
        restarts.add_metric([child.name], child.restarts)
    yield restarts
