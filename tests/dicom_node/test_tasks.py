"""What is retrieved by itself: by standing queries, and as priors, from an Orthanc."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, StudyRootQueryRetrieveInformationModelGet

from appliance import doctor, queue, remote_queries, retrievals, studies, supervisor
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.queue import DICOM
from appliance.reception import Command, Reception
from appliance.retrievals import RetrievalState
from appliance.tables import Retrieval
from dicom_node import tasks
from dicom_node.scp import Listener
from tests.appliance import world
from tests.support import archives, brokers
from tests.support.archives import Orthanc
from tests.support.databases import settings_in
from tests.support.instances import Names, ct_instance, encoded
from tests.support.pacs import free_port
from tests.support.programs import BEAT, WORKER, running

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
    return lambda: tasks.run_standing_query(settings, database, 0)


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


def test_the_doctor_tells_of_a_standing_query_that_does_not_bring_all(
    settings: Settings, database: Database, listener: Listener, tmp_path: Path
):
    def said() -> str:
        subject = "standing query 1 to pacs"
        return next(f.text for f in doctor.check_exchanges(settings) if f.subject == subject)

    few = replace(settings, retrieve=replace(settings.retrieve, max_answers=2))
    (destination,) = settings.dicom.destinations
    assert said() == "not yet run"
    tasks.run_standing_query(few, database, 0)
    assert "nothing listens there" in said()

    with archives.orthanc(tmp_path, box_port=listener.port, dicom_port=destination.port) as orthanc:
        for _ in range(3):
            orthanc.keep(today(Names.fresh(), 1), tmp_path, ExplicitVRLittleEndian)
        tasks.run_standing_query(few, database, 0)
        assert said() == "it matches more than 2 studies, of which 2 are looked at"
        tasks.run_standing_query(settings, database, 0)
        assert said() == "brings what it asks for; 3 studies matched"


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


@pytest.mark.parametrize(
    ("now", "days", "asked"),
    [
        ("2026-01-15T12:30", 1, "20260115-20260116"),
        ("2026-01-15T00:05", 1, "20260114-20260115"),  # what was scanned before midnight
        ("2026-01-15T23:55", 1, "20260115-20260116"),  # where it is tomorrow already
        ("2026-03-01T06:00", 3, "20260226-20260301"),
    ],
)
def test_a_day_is_asked_for_wherever_it_has_begun(now: str, days: int, asked: str):
    moment = datetime.fromisoformat(now).astimezone()

    assert tasks.dates_asked(moment, days) == asked


def noted(database: Database, expected: int) -> retrievals.Order:
    with database.transaction() as db:
        assert retrievals.ask(
            db,
            destination="pacs",
            aim=retrievals.Aim.STUDY,
            study_uid="1.2.3",
            why=retrievals.Why.STANDING_QUERY,
            expected=expected,
        )
    order = retrievals.claim_next(database, lease_s=600)
    assert order is not None
    return order


@contextmanager
def pacs_that_gets(
    settings: Settings, handle: Callable[[evt.Event], Iterator[Any]]
) -> Iterator[None]:
    """A PACS of pynetdicom at the destination's address that answers C-GET."""
    (destination,) = settings.dicom.destinations
    ae = AE(destination.ae_title)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    address = (destination.host, destination.port)
    server = ae.start_server(address, block=False, evt_handlers=[(evt.EVT_C_GET, handle)])
    try:
        yield
    finally:
        server.shutdown()


def to_send(names: Names) -> Dataset:
    ds = ct_instance(names)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def test_a_peer_that_sends_nothing_and_calls_it_success_is_not_believed(
    settings: Settings, database: Database
):
    order = noted(database, 0)

    with pacs_that_gets(settings, lambda _event: iter([0])):
        tasks._carry_out(settings, database, order)

    with database.snapshot() as db:
        (row,) = retrievals.unfinished(db)
    assert (row.state, row.last_problem) == ("WAITING", "C-GET: no instances are here")


def test_what_is_here_whole_is_done_whatever_the_peer_says(settings: Settings, database: Database):
    order = noted(database, 2)
    names = Names("1.2.3", "1.2.3.1")

    def send_and_fail(_event: evt.Event) -> Iterator[Any]:
        yield 3
        for _ in range(2):
            yield 0xFF00, to_send(names)
        yield 0xC001, None

    with pacs_that_gets(settings, send_and_fail):
        tasks._carry_out(settings, database, order)

    assert kept(database, names.study_uid) == [2]
    assert states(database) == ["DONE"]


def test_what_came_by_itself_is_not_asked_for(settings: Settings, database: Database):
    order = noted(database, 1)
    world.receive(database, world.instance(study_uid="1.2.3"))

    tasks._carry_out(settings, database, order)  # nothing listens there

    assert states(database) == ["DONE"]


def test_a_retrieval_that_is_given_up_ends(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tasks, "RENEW_S", 0.0)
    order = noted(database, 100)
    cancelled = threading.Event()

    def endless(event: evt.Event) -> Iterator[Any]:
        yield 100
        for number in range(100):
            if event.is_cancelled:
                cancelled.set()
                yield 0xFE00, None
                return
            if number == 1:
                with database.transaction() as db:
                    assert retrievals.give_up(db, order.id, by="reader")
            yield 0xFF00, to_send(Names("1.2.3", "1.2.3.1"))
            time.sleep(0.05)

    with pacs_that_gets(settings, endless):
        tasks._carry_out(settings, database, order)

    assert cancelled.is_set()
    with database.snapshot() as db:
        (row,) = retrievals.unfinished(db)
    assert (row.state, row.last_problem) == ("FAILED", "given up by reader")


def test_a_person_asks_and_fetches(
    settings: Settings, database: Database, orthanc: Orthanc, tmp_path: Path
):
    names = Names.fresh()
    orthanc.keep(today(names, PatientID="P-7"), tmp_path, ExplicitVRLittleEndian)
    keys = {"patient_id": "P-7", "accession_number": "", "study_date": ""}
    with database.transaction() as db:
        query_id = remote_queries.ask(db, destination="pacs", keys=keys, asked_by="reader")

    assert tasks.answer_queries(settings, database) == 1
    assert tasks.answer_queries(settings, database) == 0

    with database.snapshot() as db:
        answers = remote_queries.find(db, query_id, asked_by="reader")
    assert answers is not None
    assert [(study.study_uid, study.instance_count) for study in answers.studies] == [
        (names.study_uid, 2)
    ]


def test_a_person_learns_why_a_node_does_not_answer(settings: Settings, database: Database):
    with database.transaction() as db:
        keys = {"patient_id": "P-7"}
        query_id = remote_queries.ask(db, destination="pacs", keys=keys, asked_by="reader")

    tasks.answer_queries(settings, database)

    with database.snapshot() as db:
        answers = remote_queries.find(db, query_id, asked_by="reader")
    assert answers is not None
    assert answers.state == "FAILED"
    assert "nothing listens there" in (answers.problem or "")


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
    assert schedule["answer queries"]["task"] == tasks.answer_queries_task.name
    none = Settings.parse({})
    by_hand = replace(settings, retrieve=none.retrieve)
    assert {"retrieve waiting", "answer queries"} <= set(queue.make_app(by_hand).conf.beat_schedule)
    quiet = replace(by_hand, dicom=none.dicom)
    assert "retrieve waiting" not in queue.make_app(quiet).conf.beat_schedule
    assert schedule["deliver waiting"]["task"] == tasks.deliver_waiting_task.name
    (pacs,) = settings.dicom.destinations
    sent_to = replace(quiet, dicom=replace(none.dicom, destinations=(replace(pacs, query=False),)))
    assert [dicom_processes(each) for each in (settings, sent_to, quiet)] == ["3", "2", "1"]


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


def test_beat_and_worker_go_on_by_themselves_when_the_pacs_is_back(
    settings: Settings, database: Database, tmp_path: Path
):
    file = tmp_path / "settings.toml"
    port = free_port()
    file.write_text(SETTINGS.format(data_dir=settings.data_dir, port=port))
    names = Names.fresh()

    with brokers.running(settings), running(file, *WORKER), running(file, *BEAT):
        time.sleep(8)  # some queries fail
        with archives.orthanc(tmp_path, box_port=1, dicom_port=port) as orthanc:
            orthanc.keep(today(names), tmp_path, ExplicitVRLittleEndian)
            deadline = time.monotonic() + 60
            while kept(database, names.study_uid) != [2] or states(database) != ["DONE"]:
                assert time.monotonic() < deadline
                time.sleep(0.2)
