"""What taking an instance leaves behind, and what it never does."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from appliance import lifecycle, part10, studies
from appliance.config import Settings
from appliance.database import Base, Database, open_database, utc_now
from appliance.errors import DatasetMismatchError, OutOfResourcesError, UnreadableDatasetError
from appliance.lifecycle import State
from appliance.part10 import plain_uid
from appliance.reception import BEGINNING_BYTES, Command, Durability, Reception, _Waiting
from appliance.store import Incoming, Store, StoredObject
from appliance.studies import ReceivedInstance, Recorded
from appliance.tables import AuditEntry, Delivery, Instance, InstanceConflict, Series, Study
from tests.support.databases import settings_in
from tests.support.instances import Names, ct_instance, dataset_bytes, encoded


def command(
    ds: Dataset, transfer_syntax_uid: str = ExplicitVRLittleEndian, **changes: Any
) -> Command:
    values = {
        "sop_class_uid": str(ds.SOPClassUID),
        "sop_instance_uid": str(ds.SOPInstanceUID),
        "transfer_syntax_uid": transfer_syntax_uid,
        "source_ae": "SCANNER",
    }
    return Command(**{**values, **changes})


def take(
    reception: Reception,
    ds: Dataset,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    **changes: Any,
) -> Recorded:
    dataset = encoded(ds, transfer_syntax_uid)
    return reception.take(dataset, command(ds, transfer_syntax_uid, **changes))


def rows(database: Database, table: type[Base]) -> int:
    with database.snapshot() as db:
        return db.scalar(select(func.count()).select_from(table))


def files(store: Store) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_an_instance_is_kept_byte_for_byte_and_noted(
    reception: Reception, database: Database, store: Store
):
    names = Names.fresh()
    ds = ct_instance(names)

    assert take(reception, ds) is Recorded.NEW

    with database.snapshot() as db:
        study = studies.named(db, names.study_uid)[0]
        (instance,) = studies.instances_of(db, study.id)
        assert (study.state, study.revision, study.source_ae) == (State.RECEIVING, 1, "SCANNER")
        assert study.patient.name == "Test^Zoë"
    assert dataset_bytes(store.path_of(instance.digest)) == encoded(ds)
    assert store.path_of(instance.digest).read_bytes()[:128] == bytes(128)


def test_a_duplicate_is_kept_once(reception: Reception, database: Database, store: Store):
    ds = ct_instance(Names.fresh())

    answers = [take(reception, ds, source_ae=sender) for sender in ("CT1", "PACS", "CT1")]

    assert answers == [Recorded.NEW, Recorded.DUPLICATE, Recorded.DUPLICATE]
    assert len(files(store)) == rows(database, Instance) == 1


def test_other_bytes_under_one_uid_are_kept_aside_and_reported(
    reception: Reception, database: Database, store: Store
):
    names = Names.fresh()
    ds = ct_instance(names)
    take(reception, ds)
    other = ct_instance(names, SOPInstanceUID=ds.SOPInstanceUID, PixelData=bytes(128))

    assert take(reception, other) is Recorded.CONFLICT

    with database.snapshot() as db:
        study = studies.named(db, names.study_uid)[0]
        (kept,) = studies.instances_of(db, study.id)
        (conflict,) = studies.conflicts_of(db, study.id)
        (entry,) = db.scalars(select(AuditEntry))
        assert study.revision == 1
        assert (entry.tag, entry.subject) == ("dicom:instance:conflict", f"study {study.id}")
        assert entry.actor == "peer SCANNER"
    assert dataset_bytes(store.path_of(kept.digest)) == encoded(ds)
    assert dataset_bytes(store.path_of(conflict.other_digest)) == encoded(other)


def test_the_same_instance_in_another_transfer_syntax_is_other_bytes(
    reception: Reception, database: Database
):
    ds = ct_instance(Names.fresh())
    take(reception, ds)

    assert take(reception, ds, ImplicitVRLittleEndian) is Recorded.CONFLICT


@pytest.mark.parametrize("closed", [State.QUEUED, State.ANALYSING])
def test_a_late_instance_counts_whatever_the_study_does(
    reception: Reception, database: Database, closed: State
):
    names = Names.fresh()
    take(reception, ct_instance(names))
    with database.transaction() as db:
        study_id = studies.named(db, names.study_uid)[0].id
        lifecycle.advance(db, study_id, State.RECEIVING, State.QUEUED)
    if closed is State.ANALYSING:
        assert lifecycle.claim(database, study_id, owner="test", lease_s=30)

    take(reception, ct_instance(names))

    with database.snapshot() as db:
        study = db.get(Study, study_id)
        assert study.revision == 2
        assert study.state == (closed if closed is State.ANALYSING else State.RECEIVING)


@pytest.mark.parametrize("closed", [State.ANALYSING, State.READY, State.REJECTED])
def test_what_is_no_image_opens_no_study_whose_images_were_looked_at(
    reception: Reception, database: Database, closed: State
):
    names = Names.fresh()
    take(reception, ct_instance(names))
    with database.transaction() as db:
        study_id = studies.named(db, names.study_uid)[0].id
        for source, target in pairwise((State.RECEIVING, State.QUEUED, State.ANALYSING, closed)):
            if source is not target:
                lifecycle.advance(db, study_id, source, target)
    document = ct_instance(names, SOPClassUID=EncapsulatedPDFStorage, Modality="DOC")
    del document.PixelData, document.Rows

    assert take(reception, document) is Recorded.NEW
    with database.snapshot() as db:
        study = db.get_one(Study, study_id)
        assert (study.state, study.revision) == (closed, 1)
        assert len(studies.instances_of(db, study_id)) == 2

    cut = ct_instance(names)
    del cut.PixelData
    take(reception, cut)
    with database.snapshot() as db:
        study = db.get_one(Study, study_id)
        assert study.revision == 2
        assert study.state == (closed if closed is State.ANALYSING else State.RECEIVING)


def test_late_documents_are_passed_on_where_the_studys_images_are(
    reception: Reception, database: Database
):
    names = Names.fresh()
    take(reception, ct_instance(names))
    document = ct_instance(names, SOPClassUID=EncapsulatedPDFStorage, Modality="DOC")
    del document.PixelData, document.Rows
    with database.transaction() as db:
        study = studies.named(db, names.study_uid)[0]
        for source, target in pairwise(
            (State.RECEIVING, State.QUEUED, State.ANALYSING, State.READY)
        ):
            lifecycle.advance(db, study.id, source, target)
        db.add(
            Delivery(
                study_id=study.id,
                revision=1,
                destination="pacs",
                kind="dicom",
                what="images",
                state="SENT",
                queued_at=utc_now(),
            )
        )

    take(reception, document)

    with database.snapshot() as db:
        study = studies.named(db, names.study_uid)[0]
        assert (study.state, study.revision) == (State.RECEIVING, 2)


def test_a_command_that_names_another_instance_is_refused(
    reception: Reception, database: Database, store: Store
):
    ds = ct_instance(Names.fresh())

    with pytest.raises(DatasetMismatchError, match="SOPInstanceUID"):
        take(reception, ds, sop_instance_uid="1.2.3")
    with pytest.raises(DatasetMismatchError, match="SOPClassUID"):
        take(reception, ds, sop_class_uid="1.2.3")

    assert files(store) == []


def test_an_instance_without_a_uid_of_its_own_goes_by_the_commands(
    reception: Reception, database: Database
):
    names = Names.fresh()
    ds = ct_instance(names, SOPInstanceUID="")

    assert take(reception, ds, sop_instance_uid="1.2.3.4") is Recorded.NEW

    with database.snapshot() as db:
        (kept,) = studies.instances_of(db, studies.named(db, names.study_uid)[0].id)
    assert kept.sop_instance_uid == "1.2.3.4"


def test_what_does_not_parse_is_refused_and_leaves_nothing(
    reception: Reception, database: Database, store: Store
):
    ds = ct_instance(Names.fresh())

    with pytest.raises(UnreadableDatasetError):
        reception.take(b"\x08\x00\x16\x00UI\xff\xff1.2", command(ds))

    assert files(store) == []
    assert rows(database, Study) == 0


def compressed(*fragments: bytes) -> bytes:
    return encapsulate(list(fragments), has_bot=False)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_a_compressed_image_that_is_cut_short_is_refused_and_leaves_nothing(
    reception: Reception, database: Database, store: Store, kept: float
):
    ds = ct_instance(Names.fresh(), PixelData=compressed(bytes(40_000), bytes(50_000)))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    whole = encoded(ds)
    announced = command(ds, JPEG2000Lossless)
    cut = len(whole) - 90_000 + int(90_000 * kept)

    with pytest.raises(UnreadableDatasetError, match="send the original again"):
        reception.take(whole[: cut - cut % 2], announced)
    assert (files(store), rows(database, Study)) == ([], 0)

    assert reception.take(whole, announced) is Recorded.NEW


def test_more_fragments_than_anybody_makes_are_refused(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(part10, "FRAGMENTS_LIMIT", 5)

    for fragments in (3, 4):  # and what says where each frame begins, and the end
        ds = ct_instance(Names.fresh(), PixelData=compressed(*[b"\0\0"] * fragments))
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        if fragments == 3:
            announced = command(ds, JPEG2000Lossless)
            assert reception.take(encoded(ds), announced) is Recorded.NEW

    with pytest.raises(UnreadableDatasetError, match="more than 5 fragments"):
        reception.take(encoded(ds), command(ds, JPEG2000Lossless))


def test_what_is_no_fragment_among_fragments_is_refused(reception: Reception):
    ds = ct_instance(Names.fresh(), PixelData=compressed(bytes(100)))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    whole = encoded(ds).replace(b"\xfe\xff\xdd\xe0", b"\xfe\xff\xdd\xe1")

    with pytest.raises(UnreadableDatasetError, match="no sequence of fragments"):
        reception.take(whole, command(ds, JPEG2000Lossless))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("attributes", "taken"),
    [
        ({"PixelData": bytes(126)}, False),
        ({"PixelData": bytes(128)}, True),
        ({"PixelData": bytes(130)}, True),
        ({"PixelData": bytes(128), "NumberOfFrames": "2"}, False),
        ({"PixelData": bytes(128), "NumberOfFrames": "-1"}, True),
        ({"PixelData": bytes(254), "SamplesPerPixel": 3}, False),
        ({"PixelData": bytes(256), "SamplesPerPixel": 3}, True),  # may be YBR_FULL_422
    ],
)
def test_fewer_pixels_than_rows_and_columns_are_refused(
    reception: Reception,
    attributes: dict[str, Any],
    taken: bool,  # noqa: FBT001
    syntax: str,
):
    ds = ct_instance(Names.fresh(), **attributes)
    announced = command(ds, syntax)

    if taken:
        assert reception.take(encoded(ds, syntax), announced) is Recorded.NEW
        return
    with pytest.raises(UnreadableDatasetError, match="too short"):
        reception.take(encoded(ds, syntax), announced)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [True, False])
def test_what_follows_where_pixels_would_be_is_not_taken_for_them(
    reception: Reception, syntax: str, *, undefined: bool
):
    names = Names.fresh()
    signed = ct_instance(names, SOPClassUID=EncapsulatedPDFStorage)
    del signed.PixelData
    signed.DigitalSignaturesSequence = [Dataset()]
    signed.DigitalSignaturesSequence[0].MACIDNumber = 1
    signed["DigitalSignaturesSequence"].is_undefined_length = undefined
    signed.DigitalSignaturesSequence[0].is_undefined_length_sequence_item = undefined

    assert reception.take(encoded(signed, syntax), command(signed, syntax)) is Recorded.NEW


def test_an_odd_length_is_refused(reception: Reception, store: Store):
    ds = ct_instance(Names.fresh())

    with pytest.raises(UnreadableDatasetError, match="odd length"):
        reception.take(encoded(ds) + b"\0", command(ds))

    assert files(store) == []


def test_a_disk_below_its_watermark_refuses_and_recovers_by_itself(
    database: Database, store: Store
):
    class Filling(Store):
        free = 0

        def free_bytes(self) -> int:
            return self.free

    filling = Filling(store.root)
    reception = Reception(database, filling, min_free_bytes=1000)
    ds = ct_instance(Names.fresh())

    with pytest.raises(OutOfResourcesError, match="watermark"):
        take(reception, ds)
    assert (files(store), rows(database, Study)) == ([], 0)

    filling.free = 1000 + len(encoded(ds))
    assert take(reception, ds) is Recorded.NEW


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_writing_refuses_and_leaves_nothing(
    database: Database, store: Store, number: int
):
    class Full(Incoming):
        def commit(self, *, sync: bool = True) -> StoredObject:
            raise OSError(number, os.strerror(number))

    class FullStore(Store):
        def incoming(self) -> Incoming:
            return Full(self)

    reception = Reception(database, FullStore(store.root), min_free_bytes=0)

    with pytest.raises(OutOfResourcesError, match="full"):
        take(reception, ct_instance(Names.fresh()))

    assert files(store) == []
    assert rows(database, Study) == 0


def impatient(settings: Settings) -> Database:
    """A database that says at once that it is locked."""
    database = open_database(settings)

    @event.listens_for(database.engine, "connect")
    def hurry(connection: Any, _record: object) -> None:
        connection.execute(
            "PRAGMA busy_timeout = 50"
            if settings.database_url.startswith("sqlite")
            else "SET lock_timeout = 50"
        )

    return database


def test_a_busy_database_refuses_and_the_same_instance_is_taken_later(
    settings: Settings, database: Database, store: Store
):
    hurried = impatient(settings)
    reception = Reception(hurried, store, min_free_bytes=0)
    names = Names.fresh()
    take(reception, ct_instance(names))
    ds = ct_instance(names)

    with database.transaction() as db:
        db.execute(update(Study).values(description="held by another process"))
        with pytest.raises(OutOfResourcesError, match="database"):
            take(reception, ds)
    assert rows(database, Instance) == 1

    assert take(reception, ds) is Recorded.NEW
    assert len(files(store)) == 2
    hurried.dispose()


def test_a_database_that_is_gone_refuses(tmp_path: Path, store: Store):
    url = f"postgresql+psycopg://nobody@/none?host={tmp_path}"
    gone = open_database(settings_in(tmp_path, database={"url": url}))
    reception = Reception(gone, store, min_free_bytes=0)

    with pytest.raises(OutOfResourcesError, match="database"):
        take(reception, ct_instance(Names.fresh()))


def test_a_stopping_reception_refuses(reception: Reception):
    assert reception.stop(timeout_s=1)

    with pytest.raises(OutOfResourcesError, match="stopping"):
        take(reception, ct_instance(Names.fresh()))


def test_a_conflict_is_reported_whatever_the_sender_is_called(
    reception: Reception, database: Database
):
    ds = ct_instance(Names.fresh())
    take(reception, ds)
    ds.PatientWeight = 71

    assert take(reception, ds, source_ae="A\0B") is Recorded.CONFLICT

    with database.snapshot() as db:
        assert db.scalars(select(AuditEntry.actor)).all() == ["peer AB"]


HOSTILE = st.one_of(
    st.sampled_from(
        [
            "../../../../etc/passwd",
            "..\\..\\windows",
            "/etc/cron.d/x",
            "....//....//x",
            "1.2.3/../../x",
            "1.2.3\x00.dcm",
            "%2e%2e%2f",
            "con",
            "~/x",
            "$(touch x)",
            "'; DROP TABLE study; --",
            "896911bf-1143-4c8d-8f04-f3cd1a7f6204",
        ]
    ),
    st.text(st.characters(min_codepoint=1, max_codepoint=0x7F), min_size=1, max_size=64),
)


@pytest.mark.filterwarnings("ignore:Found unknown escape sequence")  # pydicom, of hostile names
@given(study=HOSTILE, series=HOSTILE, instance=HOSTILE, sender=HOSTILE, patient=HOSTILE)
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_received_text_is_ever_a_path(
    reception: Reception,
    store: Store,
    settings: Settings,
    study: str,
    series: str,
    instance: str,
    sender: str,
    patient: str,
):
    ds = ct_instance(
        Names(study, series), SOPInstanceUID=instance, PatientID=patient, AccessionNumber=sender
    )
    outside = outside_of(store, settings.data_dir)

    with suppress(DatasetMismatchError, UnreadableDatasetError):
        take(reception, ds, sop_instance_uid=plain_uid(instance), source_ae=sender)

    assert outside_of(store, settings.data_dir) == outside
    for path in files(store):
        assert len(path.stem) == 64
        assert set(path.stem) <= set("0123456789abcdef")


@pytest.mark.parametrize("uid", ["sop_instance_uid", "sop_class_uid"])
def test_a_command_that_names_no_instance_is_refused_and_nothing_kept(
    reception: Reception, store: Store, uid: str
):
    ds = ct_instance(Names.fresh(), SOPInstanceUID="", SOPClassUID="")

    with pytest.raises(DatasetMismatchError, match="names no"):
        take(reception, ds, **{"sop_class_uid": "1.2", "sop_instance_uid": "1.2.3", uid: ""})

    assert list(files(store)) == []


def outside_of(store: Store, data_dir: Path) -> set[str]:
    """The files around the store, but for the database's own."""
    return {
        str(path)
        for path in data_dir.parent.rglob("*")
        if store.root not in path.parents and not path.name.startswith("appliance.db")
    }


def test_a_class_that_nobody_knows_is_taken(reception: Reception, database: Database):
    ds = ct_instance(Names.fresh(), SOPClassUID="1.2.826.0.1.3680043.9.9999")

    assert take(reception, ds) is Recorded.NEW
    assert rows(database, InstanceConflict) == 0
    assert CTImageStorage != ds.SOPClassUID


class SlowDatabase:
    """A database that waits before each commit, so that others come to stand in line."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with self._database.transaction() as db:
            yield db
            self.transactions += 1
            time.sleep(0.2)


@pytest.mark.parametrize("durability", Durability)
def test_instances_that_come_at_once_are_committed_together(
    database: Database, store: Store, durability: Durability
):
    slow = SlowDatabase(database)
    reception = Reception(slow, store, min_free_bytes=0, durability=durability)
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(12)]

    with ThreadPoolExecutor(len(instances)) as pool:
        outcomes = list(pool.map(lambda ds: take(reception, ds), instances))

    assert outcomes == [Recorded.NEW] * 12
    assert slow.transactions < 6
    assert rows(database, Instance) == 12
    with database.snapshot() as db:
        assert db.scalars(select(Study.revision)).one() == 12
        assert db.scalars(select(Series.instance_count)).one() == 12


def test_one_bad_instance_in_a_line_harms_no_other(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
):
    slow = SlowDatabase(database)
    reception = Reception(slow, store, min_free_bytes=0)
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(8)]
    bad = str(instances[3].SOPInstanceUID)
    record = studies.record_instance

    def fail(db: Session, received: ReceivedInstance, routes: studies.Routes) -> Recorded:
        if received.sop_instance_uid == bad:
            raise ValueError("poison")
        return record(db, received, routes)

    monkeypatch.setattr(studies, "record_instance", fail)
    with ThreadPoolExecutor(len(instances)) as pool:
        futures = [pool.submit(take, reception, ds) for ds in instances]

    assert [type(f.exception()) for f in futures].count(ValueError) == 1
    assert rows(database, Instance) == 7


class FailingOnce:
    """A database whose first commit fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failed = False

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with self._database.transaction() as db:
            yield db
            if not self._failed:
                self._failed = True
                raise OperationalError("COMMIT", {}, OSError("no room"))


def test_a_failed_commit_leads_no_image_to_another_person(database: Database, store: Store):
    # Without a room for the rows of the first, SQLite gives their numbers to the second.
    reception = Reception(FailingOnce(database), store, min_free_bytes=0)
    names = Names.fresh()
    first = ct_instance(names, PatientID="P-1", PatientName="One^Anna")
    second = ct_instance(names, PatientID="P-2", PatientName="Two^Bert")
    with pytest.raises(OutOfResourcesError):
        take(reception, first)

    assert take(reception, second) is Recorded.NEW
    assert take(reception, first) is Recorded.NEW

    with database.snapshot() as db:
        held = {study.patient.name: study.revision for study in studies.named(db, names.study_uid)}
    assert held == {"One^Anna": 1, "Two^Bert": 1}


def test_everybody_who_waited_is_refused_by_an_error_of_his_own(database: Database, store: Store):
    class Gone(SlowDatabase):
        @contextmanager
        def transaction(self) -> Iterator[Session]:
            time.sleep(0.2)
            raise OperationalError("BEGIN", {}, OSError("gone"))
            yield

    reception = Reception(Gone(database), store, min_free_bytes=0)
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(6)]

    with ThreadPoolExecutor(len(instances)) as pool:
        futures = [pool.submit(take, reception, ds) for ds in instances]

    errors = [future.exception() for future in futures]
    assert {type(error) for error in errors} == {OutOfResourcesError}
    assert {type(error.__cause__) for error in errors if error} == {OperationalError}
    assert len({id(error) for error in errors}) == len(errors)


def test_two_lines_that_wait_for_each_other_are_taken_one_by_one(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
):
    both_began = threading.Barrier(2, timeout=2)
    record = studies.record_instance

    def meet(db: Session, received: ReceivedInstance, routes: studies.Routes) -> Recorded:
        recorded = record(db, received, routes)
        with suppress(threading.BrokenBarrierError):  # SQLite lets one in at a time
            both_began.wait()
        return recorded

    monkeypatch.setattr(studies, "record_instance", meet)
    names = [Names.fresh(), Names.fresh()]

    def line(order: list[Names]) -> list[_Waiting]:
        return [
            _Waiting(received(ct_instance(each, PatientID=each.study_uid[-9:]))) for each in order
        ]

    lines = [line(names), line(names[::-1])]
    receptions = [Reception(database, store, min_free_bytes=0) for _ in lines]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda reception, waiting: reception._record(waiting), receptions, lines))

    assert [waiting.outcome for waiting in (*lines[0], *lines[1])] == [Recorded.NEW] * 4
    assert rows(database, Instance) == 4


def received(ds: Dataset) -> ReceivedInstance:
    return ReceivedInstance(
        study_uid=str(ds.StudyInstanceUID),
        series_uid=str(ds.SeriesInstanceUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        digest=hashlib.sha256(str(ds.SOPInstanceUID).encode()).hexdigest(),
        size_bytes=1,
        source_ae="SCANNER",
        patient=studies.PatientAttributes(patient_id=str(ds.PatientID)),
    )


def test_the_watermark_holds_within_a_large_instance_too(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("appliance.reception.CHECKED_EVERY_BYTES", 1000)

    class Filling(Store):
        looks = 0

        def free_bytes(self) -> int:
            self.looks += 1
            return 3000 - self.looks * 1000

    filling = Filling(store.root)
    reception = Reception(database, filling, min_free_bytes=1000)
    ds = ct_instance(Names.fresh())

    def send() -> None:
        with reception.taking(command(ds)) as taking:
            for _ in range(20):
                taking.write(bytes(100))

    with pytest.raises(OutOfResourcesError, match="watermark"):
        send()

    assert filling.looks == 3
    assert files(store) == []


def test_a_header_longer_than_what_is_kept_in_memory_is_read_from_the_file(
    reception: Reception, database: Database
):
    names = Names.fresh()
    ds = ct_instance(names)
    ds.add_new(0x00091001, "OB", bytes(2 * BEGINNING_BYTES))

    assert take(reception, ds) is Recorded.NEW

    with database.snapshot() as db:
        assert studies.named(db, names.study_uid)[0].patient.name == "Test^Zoë"


def test_a_known_series_is_added_to_only_while_everything_is_as_it_was(
    reception: Reception, database: Database
):
    names = Names.fresh()
    take(reception, ct_instance(names))
    first = ct_instance(names)
    assert take(reception, first) is Recorded.NEW

    assert take(reception, first) is Recorded.DUPLICATE
    first.PatientWeight = 80
    assert take(reception, first) is Recorded.CONFLICT
    with database.transaction() as db:
        db.execute(update(Study).values(state=State.READY))
    assert take(reception, ct_instance(names)) is Recorded.NEW
    with database.snapshot() as db:
        assert db.scalars(select(Study.state)).one() == State.RECEIVING
        assert db.scalars(select(Study.revision)).one() == 3
    assert take(reception, ct_instance(names, PatientID="P-2", PatientName="Other^One")) is (
        Recorded.NEW
    )
    assert rows(database, Study) == 2
