"""What is retrieved by itself: by standing queries, and as priors, from an Orthanc."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from appliance import queue, retrievals, studies, supervisor
from appliance.config import SETTINGS_VARIABLE, Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.queue import DICOM
from appliance.reception import Command, Reception
from appliance.retrievals import RetrievalState
from appliance.tables import Retrieval
from dicom_node import tasks
from dicom_node.scp import Listener
from tests.support import archives, brokers
from tests.support.archives import Orthanc
from tests.support.databases import settings_in
from tests.support.instances import Names, ct_instance, encoded
from tests.support.pacs import free_port

TODAY = datetime.now(UTC).astimezone().strftime("%Y%m%d")
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An appliance that asks one PACS, which may not be there."""
    return settings_in(
        tmp_path,
        dicom={
            "port": free_port(),
            "min_free_bytes": 0,
            "network_timeout_s": 5,
            "destinations": [
                {
                    "name": "pacs",
                    "ae_title": archives.ORTHANC_AE,
                    "host": "127.0.0.1",
                    "port": free_port(),
                    "query": True,
                }
            ],
        },
        retrieve={
            "priors": 2,
            "retry_s": 1.0,
            "standing_queries": [{"destination": "pacs", "description": "*horax*"}],
        },
    )


@pytest.fixture
def orthanc(settings: Settings, listener: Listener, tmp_path: Path) -> Iterator[Orthanc]:
    (destination,) = settings.dicom.destinations
    with archives.orthanc(tmp_path, box_port=listener.port, dicom_port=destination.port) as running:
        yield running


@pytest.fixture
def query(settings: Settings, database: Database) -> Callable[[], int]:
    """Run the standing query once; returns how many studies it noted."""
    (standing,) = settings.retrieve.standing_queries
    return lambda: tasks.run_standing_query(settings, database, standing)


def kept(database: Database, *study_uids: str) -> list[int]:
    """How many instances of each study are here."""
    with database.snapshot() as db:
        return [retrievals.held(db, uid) for uid in study_uids]


def let_time_pass(database: Database) -> None:
    """Everything that waits is due."""
    with database.transaction() as db:
        for row in db.query(Retrieval).filter_by(state=RetrievalState.WAITING):
            row.next_try_at = utc_now() - timedelta(seconds=1)


def close(database: Database) -> None:
    """Every study has been quiet for long enough."""
    with database.transaction() as db:
        for study in db.query(studies.Study).filter_by(state=State.RECEIVING):
            studies.lifecycle.advance(db, study.id, State.RECEIVING, State.QUEUED)


def states(database: Database) -> list[str]:
    with database.snapshot() as db:
        return [row.state for row in db.query(Retrieval).order_by(Retrieval.id)]


def today(names: Names, count: int = 2, **changes: Any) -> list[Dataset]:
    return [ct_instance(names, StudyDate=TODAY, **changes) for _ in range(count)]


def test_a_standing_query_brings_what_matches_once(
    settings: Settings, database: Database, orthanc: Orthanc, query: Callable[[], int],
    tmp_path: Path,
):  # fmt: skip
    chest, head, mr, old = (Names.fresh() for _ in range(4))
    orthanc.keep(
        [
            *today(chest),
            *today(head, StudyDescription="Kopf"),
            *today(mr, Modality="MR"),
            ct_instance(old, StudyDate="20200101"),
        ],
        tmp_path,
        ExplicitVRLittleEndian,
    )
    settings = replace(settings, retrieve=replace(settings.retrieve, priors=0))

    assert query() == 1
    assert tasks.retrieve_waiting(settings, database) == 1
    assert kept(database, *(n.study_uid for n in (chest, head, mr, old))) == [2, 0, 0, 0]

    close(database)
    assert query() == 0
    assert tasks.retrieve_waiting(settings, database) == 0

    orthanc.keep(today(chest, 1), tmp_path, ExplicitVRLittleEndian)
    assert query() == 1
    assert tasks.retrieve_waiting(settings, database) == 1
    assert kept(database, chest.study_uid) == [3]
    assert states(database) == ["DONE"]


def test_a_pacs_that_was_down_is_asked_again_by_itself(
    settings: Settings,
    database: Database,
    listener: Listener,
    query: Callable[[], int],
    tmp_path: Path,
):
    (destination,) = settings.dicom.destinations
    names = Names.fresh()
    assert query() == 0  # it is down

    with archives.orthanc(tmp_path, box_port=listener.port, dicom_port=destination.port) as orthanc:
        orthanc.keep(today(names), tmp_path, ExplicitVRLittleEndian)
        assert query() == 1
    tasks.retrieve_waiting(settings, database)  # it is down again
    assert states(database) == ["WAITING"]
    assert kept(database, names.study_uid) == [0]

    with archives.orthanc(tmp_path, box_port=listener.port, dicom_port=destination.port):
        let_time_pass(database)
        tasks.retrieve_waiting(settings, database)

    assert states(database) == ["DONE"]
    assert kept(database, names.study_uid) == [2]


def test_the_last_chest_cts_of_a_new_patient_come_and_bring_nothing_further(
    settings: Settings,
    database: Database,
    orthanc: Orthanc,
    reception: Reception,
    tmp_path: Path,
):
    new = Names.fresh()
    dates = {"20260101": Names.fresh(), "20251101": Names.fresh(), "20251001": Names.fresh()}
    head, namesake, future = (Names.fresh() for _ in range(3))
    orthanc.keep(
        [
            *(ct_instance(names, StudyDate=date) for date, names in dates.items()),
            ct_instance(
                head,
                StudyDate="20260102",
                BodyPartExamined="HEAD",
                StudyDescription="CCT",
                SeriesDescription="Kopf",
            ),
            ct_instance(namesake, StudyDate="20260103", PatientBirthDate="19300101"),
            ct_instance(future, StudyDate="20260301"),
        ],
        tmp_path,
        ExplicitVRLittleEndian,
    )
    ds = ct_instance(new, StudyDate="20260201")
    reception.take(
        encoded(ds),
        Command(
            sop_class_uid=ds.SOPClassUID,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            source_ae="CT1",
        ),
    )

    assert tasks.seek_priors(settings, database) == 1
    assert tasks.seek_priors(settings, database) == 0
    assert tasks.retrieve_waiting(settings, database) == 3
    assert tasks.seek_priors(settings, database) == 0

    uids = [names.study_uid for names in (*dates.values(), head, namesake, future)]
    assert kept(database, *uids) == [1, 1, 0, 0, 0, 0]


def test_priors_are_off_by_default(database: Database, settings: Settings):
    off = replace(settings, retrieve=Settings.parse({}).retrieve)

    assert not off.retrieve.active
    assert tasks.seek_priors(off, database) == 0


def test_a_destination_that_left_the_settings_is_given_up(database: Database, settings: Settings):
    with database.transaction() as db:
        retrievals.ask(
            db,
            destination="gone",
            aim=retrievals.Aim.STUDY,
            study_uid="1.2",
            why=retrievals.Why.STANDING_QUERY,
        )

    tasks.retrieve_waiting(settings, database)

    with database.snapshot() as db:
        (row,) = retrievals.unfinished(db)
    assert row.state == "FAILED"
    assert "no destination is called 'gone'" in row.last_problem


def test_beat_rings_for_what_the_settings_want(settings: Settings):
    schedule = queue.make_app(settings).conf.beat_schedule

    assert schedule["standing query 0"]["task"] == tasks.run_standing_query_task.name
    assert schedule["standing query 0"]["schedule"] == 300.0
    assert schedule["retrieve waiting"]["task"] == tasks.retrieve_waiting_task.name
    assert {queue.queue_of(entry["task"]) for entry in schedule.values()} == {DICOM}
    quiet = replace(settings, retrieve=Settings.parse({}).retrieve)
    assert "retrieve waiting" not in queue.make_app(quiet).conf.beat_schedule
    assert (dicom_processes(settings), dicom_processes(quiet)) == ("2", "1")


def dicom_processes(settings: Settings) -> str:
    (worker,) = (p for p in supervisor.programs(settings) if p.name == "worker-dicom")
    return worker.command[worker.command.index("--concurrency") + 1]


def test_what_killed_every_worker_is_given_up(database: Database, settings: Settings):
    settings = replace(settings, retrieve=replace(settings.retrieve, max_attempts=1))
    with database.transaction() as db:
        retrievals.ask(
            db,
            destination="pacs",
            aim=retrievals.Aim.STUDY,
            study_uid="1.2",
            why=retrievals.Why.STANDING_QUERY,
        )
    retrievals.claim_next(database, lease_s=0)

    tasks.retrieve_waiting(settings, database)

    assert states(database) == ["FAILED"]


SETTINGS = """
data_dir = "{data_dir}"
[dicom]
min_free_bytes = 0
[[dicom.destinations]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
query = true
[retrieve]
retry_s = 1.0
standing_queries = [{{ destination = "pacs", every_s = 2.0 }}]
"""


@contextmanager
def running(settings_file: Path, *arguments: str) -> Iterator[None]:
    """One of Celery's programs, ended with its pool by the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "celery", "--app", "appliance.worker:app", *arguments],
        env={**os.environ, SETTINGS_VARIABLE: str(settings_file)},
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_beat_and_worker_go_on_by_themselves_when_the_pacs_is_back(
    settings: Settings, database: Database, tmp_path: Path
):
    file = tmp_path / "settings.toml"
    port = free_port()
    file.write_text(SETTINGS.format(data_dir=settings.data_dir, port=port))
    names = Names.fresh()
    worker = ("worker", "--queues", DICOM, "--concurrency", "2", "--include", "dicom_node.tasks")
    beat = ("beat", "--scheduler", "celery.beat:Scheduler", "--pidfile", "")

    with brokers.running(settings), running(file, *worker), running(file, *beat):
        time.sleep(8)  # some queries fail
        with archives.orthanc(tmp_path, box_port=1, dicom_port=port) as orthanc:
            orthanc.keep(today(names), tmp_path, ExplicitVRLittleEndian)
            deadline = time.monotonic() + 60
            while kept(database, names.study_uid) != [2] or states(database) != ["DONE"]:
                assert time.monotonic() < deadline
                time.sleep(0.2)
