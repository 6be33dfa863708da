"""Storage commitment: peers that wait for the answer, that hang up, that are away; Orthanc."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from appliance import commitments
from appliance.commitments import Reference
from appliance.config import SETTINGS_VARIABLE, DestinationSettings, Settings
from appliance.database import Database, utc_now
from appliance.reception import Reception
from appliance.store import Store
from appliance.tables import CommitmentRequest
from dicom_node import commitment
from dicom_node.scp import Listener, listening
from tests.support import archives, brokers
from tests.support.instances import Names, as_file, ct_instance
from tests.support.pacs import HOST, association, await_port, free_port, store
from tests.support.programs import BEAT, WORKER, running

ASKING = [(StorageCommitmentPushModel, "1.2.840.10008.1.2")]
SETTINGS = """
data_dir = "{data_dir}"
[dicom]
port = {listener}
min_free_bytes = 0
[[dicom.destinations]]
name = "ct"
ae_title = "SCANNER"
host = "127.0.0.1"
port = {peer}
"""
STORING = [(CTImageStorage, ExplicitVRLittleEndian)]


@dataclass
class Reports:
    """What a peer is told, and what it answers."""

    status: int = 0
    heard: list[tuple[int, Dataset]] = field(default_factory=list)

    def handlers(self) -> list[tuple[Any, ...]]:
        return [(evt.EVT_N_EVENT_REPORT, self.hear)]

    def hear(self, event: evt.Event) -> tuple[int, None]:
        self.heard.append((event.event_type, event.event_information))
        return self.status, None

    def one(self, timeout_s: float = 30.0) -> tuple[int, Dataset]:
        """The only report, once it is there."""
        deadline = time.monotonic() + timeout_s
        while not self.heard:
            assert time.monotonic() < deadline, "no report"
            time.sleep(0.05)
        (report,) = self.heard
        return report


@contextmanager
def scanner(reports: Reports, port: int = 0) -> Iterator[int]:
    """A scanner that hears reports over associations of ours, in the role that we propose."""
    ae = AE("SCANNER")
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = ae.start_server((HOST, port), block=False, evt_handlers=reports.handlers())
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def question(*instances: tuple[str, str]) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = generate_uid()
    asked.ReferencedSOPSequence = []
    for sop_class_uid, sop_instance_uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        asked.ReferencedSOPSequence.append(item)
    return asked


def ask(
    assoc: Association,
    asked: Dataset,
    action: int = 1,
    instance: str = StorageCommitmentPushModelInstance,
) -> int:
    status, _ = assoc.send_n_action(asked, action, StorageCommitmentPushModel, instance)
    return int(status.get("Status", -1))


def ask_and_hang_up(listener: Listener, *instances: tuple[str, str]) -> Dataset:
    asked = question(*instances)
    with association(listener.port, ASKING) as assoc:
        assert ask(assoc, asked) == 0
    return asked


def reasons(report: Dataset) -> dict[str, int]:
    return {item.ReferencedSOPInstanceUID: item.FailureReason for item in report.FailedSOPSequence}


def row(database: Database) -> CommitmentRequest:
    with database.snapshot() as db:
        (found,) = db.query(CommitmentRequest)
        return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def handed_over(database: Database) -> bool:
    found = row(database)
    return found.state == "WAITING" and found.next_try_at <= utc_now()


def knowing(settings: Settings, port: int) -> Settings:
    node = DestinationSettings(name="ct", ae_title="SCANNER", host=HOST, port=port)
    return replace(settings, dicom=replace(settings.dicom, destinations=(node,)))


@pytest.fixture
def listener(listen: Callable[..., Listener]) -> Listener:
    """One that is patient with a slow machine."""
    return listen(network_timeout_s=60)


@pytest.fixture
def kept(listener: Listener) -> Dataset:
    """An instance that was stored."""
    ds = ct_instance(Names.fresh())
    assert store(listener.port, ds, transfer_syntax_uid=ExplicitVRLittleEndian) == [0]
    return ds


def test_who_waits_is_answered_on_the_same_association(listener: Listener, database: Database):
    here, other = ct_instance(Names.fresh()), ct_instance(Names.fresh())
    unknown = generate_uid()
    asked = question(
        (CTImageStorage, here.SOPInstanceUID),
        (MRImageStorage, other.SOPInstanceUID),
        (CTImageStorage, unknown),
    )
    reports = Reports()
    with association(listener.port, [*STORING, *ASKING], evt_handlers=reports.handlers()) as assoc:
        for ds in (here, other):
            ds.file_meta = Dataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            assert assoc.send_c_store(ds).Status == 0
        assert ask(assoc, asked) == 0
        event_type, report = reports.one()
        until(lambda: row(database).state == "DONE")
        assert assoc.is_established

    assert event_type == 2
    assert report.TransactionUID == asked.TransactionUID
    (item,) = report.ReferencedSOPSequence
    assert item.ReferencedSOPInstanceUID == here.SOPInstanceUID
    assert reasons(report) == {other.SOPInstanceUID: 0x0119, unknown: 0x0112}


def test_messages_while_the_answer_is_due_are_served(listener: Listener, kept: Dataset):
    reports = Reports()
    with association(listener.port, [*STORING, *ASKING], evt_handlers=reports.handlers()) as assoc:
        ask(assoc, question((CTImageStorage, kept.SOPInstanceUID)))
        statuses = []
        while not reports.heard:
            ds = ct_instance(Names.fresh())
            ds.file_meta = Dataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            statuses.append(assoc.send_c_store(ds).get("Status", -1))
            time.sleep(0.05)

    assert set(statuses) == {0}
    assert reports.one()[0] == 1


def test_what_is_said_to_a_report_that_was_given_up_is_not_said_to_the_next(
    listener: Listener, database: Database, kept: Dataset, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commitment, "ANSWER_TIMEOUT_S", 1.0)
    heard = []

    said = []

    def answer_slowly(event: evt.Event) -> tuple[int, None]:
        heard.append(event)
        status = 0x0000 if len(heard) == 1 else 0x0110
        time.sleep(1.5)
        said.append(status)
        return status, None

    handlers = [(evt.EVT_N_EVENT_REPORT, answer_slowly)]
    with association(listener.port, ASKING, evt_handlers=handlers) as assoc:
        for _ in range(2):
            assert ask(assoc, question((CTImageStorage, kept.SOPInstanceUID))) == 0
        until(lambda: len(said) == 2)
        time.sleep(0.5)
        with database.snapshot() as db:
            states = [one.state for one in db.query(CommitmentRequest)]

    assert states == ["WAITING", "WAITING"]


def test_who_hangs_up_is_called(
    listener: Listener, settings: Settings, database: Database, kept: Dataset
):
    reports = Reports()
    asked = ask_and_hang_up(listener, (CTImageStorage, kept.SOPInstanceUID))
    until(lambda: handed_over(database))
    with scanner(reports) as port:
        assert commitment.answer_waiting(knowing(settings, port), database) == 1
        assert commitment.answer_waiting(knowing(settings, port), database) == 0
        event_type, report = reports.one()

    assert event_type == 1
    assert report.TransactionUID == asked.TransactionUID
    assert "FailedSOPSequence" not in report
    assert row(database).state == "DONE"


@pytest.mark.parametrize("harm", ["shortened", "changed", "gone", "kept aside"])
def test_nobody_is_told_that_damaged_bytes_are_kept(
    listener: Listener,
    settings: Settings,
    database: Database,
    store: Store,
    kept: Dataset,
    harm: str,
):
    (path,) = store.objects_dir.rglob("*.dcm")
    match harm:
        case "shortened":
            path.write_bytes(path.read_bytes()[:-1])
        case "changed":
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        case "gone":
            path.unlink()
        case "kept aside":
            with association(listener.port, STORING) as assoc:
                kept.PixelData = bytes(128)
                assert assoc.send_c_store(kept).Status == 0
    asked = (Reference(CTImageStorage, kept.SOPInstanceUID),)

    (answer,) = commitments.judged(database, store, asked)

    assert answer.failure == 0x0110


# pynetdicom 3.0.4 drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_is_away_or_refuses_is_called_again(
    listener: Listener, settings: Settings, database: Database, kept: Dataset
):
    port = free_port()
    ask_and_hang_up(listener, (CTImageStorage, kept.SOPInstanceUID))
    until(lambda: handed_over(database))

    commitment.answer_waiting(knowing(settings, port), database)
    away = row(database)
    commitments.hand_over(database, away.id)
    with scanner(Reports(status=0x0110)) as busy:
        commitment.answer_waiting(knowing(settings, busy), database)
    refused = row(database)
    commitments.hand_over(database, away.id)
    reports = Reports()
    with scanner(reports, port):
        commitment.answer_waiting(knowing(settings, port), database)
        reports.one()

    assert (away.state, away.attempts) == ("WAITING", 1)
    assert away.next_try_at > utc_now()
    assert "nothing listens there" in str(away.last_problem)
    assert refused.last_problem == "the peer answers 0x0110"
    assert row(database).state == "DONE"


def test_a_request_outlives_the_listener(
    settings: Settings, reception: Reception, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(commitment, "PATIENCE_S", 60.0)  # it dies before it answers
    monkeypatch.setattr(commitments, "hand_over", lambda *_: None)
    with listening(settings.dicom, reception) as listener:
        asked = ask_and_hang_up(listener, (CTImageStorage, "1.2.3"))

    assert commitments.claim_next(database, lease_s=60) is None
    later = utc_now() + timedelta(seconds=commitment.LEFT_TO_LISTENER_S)
    request = commitments.claim_next(database, lease_s=60, now=later)

    assert request is not None
    assert request.transaction_uid == asked.TransactionUID
    assert request.instances == (Reference(CTImageStorage, "1.2.3"),)


def test_a_listener_that_dies_before_it_answers_is_followed_by_a_worker(
    settings: Settings, database: Database, tmp_path: Path
):
    file = tmp_path / "settings.toml"
    port = free_port()
    file.write_text(SETTINGS.format(data_dir=settings.data_dir, listener=port, peer=free_port()))
    chosen = Settings.load(file)
    reports = Reports()
    with subprocess.Popen(
        [sys.executable, "-m", "appliance.cli", "listen"],
        env={**os.environ, SETTINGS_VARIABLE: str(file)},
    ) as process:
        await_port(port)
        with association(port, ASKING) as assoc:
            assert ask(assoc, question((CTImageStorage, "1.2.3"))) == 0
            process.kill()
    noted = row(database)
    commitments.hand_over(database, noted.id)  # as time does

    with (
        scanner(reports, chosen.dicom.destinations[0].port),
        brokers.running(chosen),
        running(file, *WORKER),
        running(file, *BEAT),
    ):
        event_type, report = reports.one(timeout_s=120)
        until(lambda: row(database).state == "DONE")

    assert (noted.state, noted.attempts) == ("WAITING", 0)
    assert event_type == 2
    assert reasons(report) == {"1.2.3": 0x0112}


def test_who_is_no_destination_and_hangs_up_is_given_up(
    listener: Listener, settings: Settings, database: Database, kept: Dataset
):
    ask_and_hang_up(listener, (CTImageStorage, kept.SOPInstanceUID))
    until(lambda: handed_over(database))

    commitment.answer_waiting(settings, database)

    assert row(database).state == "FAILED"
    assert row(database).last_problem == "no destination has the AE title that asked"


@pytest.mark.parametrize(
    ("asked", "action", "instance", "status"),
    [
        (question(), 1, StorageCommitmentPushModelInstance, 0x0115),
        (question((CTImageStorage, "")), 1, StorageCommitmentPushModelInstance, 0x0115),
        (question((CTImageStorage, "1.2")), 2, StorageCommitmentPushModelInstance, 0x0123),
        (question((CTImageStorage, "1.2")), 1, "1.2.3", 0x0112),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    listener: Listener, database: Database, asked: Dataset, action: int, instance: str, status: int
):
    with association(listener.port, ASKING) as assoc:
        assert ask(assoc, asked, action, instance) == status

    with database.snapshot() as db:
        assert not db.query(CommitmentRequest).count()


def test_orthanc_asks_and_is_told(
    listener: Listener, settings: Settings, database: Database, tmp_path: Path
):
    path = as_file(ct_instance(Names.fresh()), tmp_path / "a.dcm")
    with archives.orthanc(tmp_path, box_port=listener.port) as orthanc:
        uploaded = orthanc.post("/instances", path.read_bytes())
        orthanc.post("/modalities/box/store", str(uploaded["ID"]).encode())
        asked = orthanc.post(
            "/modalities/box/storage-commitment",
            json.dumps({"Resources": [uploaded["ID"]]}).encode(),
        )
        until(lambda: handed_over(database))
        node = DestinationSettings(
            name="pacs", ae_title=archives.ORTHANC_AE, host=HOST, port=orthanc.dicom_port
        )
        knowing_it = replace(settings, dicom=replace(settings.dicom, destinations=(node,)))
        assert commitment.answer_waiting(knowing_it, database) == 1
        report = json.loads(orthanc.get(str(asked["Path"])))

    assert report["Status"] == "Success", report
    assert len(report["Success"]) == 1
