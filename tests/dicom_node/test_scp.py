"""The listener as peers meet it: real associations on the loopback."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom.sop_class import CompositeInstanceRetrieveWithoutBulkDataGet, CTImageStorage

from appliance import collection, studies
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.database import Database
from appliance.lifecycle import State, advance
from appliance.reception import Reception
from appliance.store import Incoming, Store
from dicom_node import scu
from dicom_node.errors import DicomNodeError
from dicom_node.scp import Listener, stop
from tests.support.figures import FIGURE
from tests.support.instances import (
    REAL_STUDY,
    SIXTEEN_SYNTAXES,
    Names,
    as_file,
    ct_instance,
    dataset_bytes,
    encoded,
    needs_real_data,
)
from tests.support.pacs import HOST, association, await_port, echo, free_port
from tests.support.pacs import store as send_over

EXPLICIT = ExplicitVRLittleEndian
SENDERS = 8
ECHO_S = 1.0


def kept(database: Database, store: Store, study_uid: str) -> dict[str, bytes]:
    """The data sets in the store by SOP Instance UID, as the database knows them."""
    with database.snapshot() as db:
        instances = [
            instance
            for study in studies.named(db, study_uid)
            for instance in studies.instances_of(db, study.id)
        ]
    return {
        instance.sop_instance_uid: dataset_bytes(store.path_of(instance.digest))
        for instance in instances
    }


def to(listener: Listener) -> scu.Destination:
    return scu.Destination(host=HOST, port=listener.port, called_ae="CHESTCT", calling_ae="SCANNER")


def test_an_echo_is_answered(listener: Listener):
    assert echo(listener.port)


@pytest.mark.parametrize(
    "transfer_syntax_uid", [EXPLICIT, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_an_instance_is_stored_as_it_was_sent(
    listener: Listener, database: Database, store: Store, transfer_syntax_uid: str
):
    names = Names.fresh()
    ds = ct_instance(names)

    assert send_over(listener.port, ds, transfer_syntax_uid=transfer_syntax_uid) == [0x0000]

    assert kept(database, store, names.study_uid) == {
        ds.SOPInstanceUID: encoded(ds, transfer_syntax_uid)
    }


@pytest.mark.parametrize(
    "sop_class_uid",
    ["1.2.826.0.1.3680043.9.9999", "1.2.840.10008.5.1.4.1.1.999", "1.2.840.113619.4.26"],
)
def test_private_and_unknown_storage_classes_are_taken(listener: Listener, sop_class_uid: str):
    ds = ct_instance(Names.fresh(), SOPClassUID=sop_class_uid)

    assert send_over(listener.port, ds, transfer_syntax_uid=EXPLICIT) == [0x0000]


def test_a_service_that_is_not_ours_is_not_accepted(listener: Listener):
    find = str(CompositeInstanceRetrieveWithoutBulkDataGet)
    with association(listener.port, [(CTImageStorage, EXPLICIT), (find, EXPLICIT)]) as assoc:
        assert [cx.abstract_syntax for cx in assoc.accepted_contexts] == [CTImageStorage]


def test_a_refusal_says_why(listener: Listener):
    with association(listener.port, [(CTImageStorage, EXPLICIT)]) as assoc:
        ds = ct_instance(Names.fresh(), StudyInstanceUID="")
        ds.file_meta = ds.__class__()
        ds.file_meta.TransferSyntaxUID = EXPLICIT
        response = assoc.send_c_store(ds)
        assert (response.Status, response.ErrorComment) == (
            0xA900,
            "StudyInstanceUID is missing",
        )
        assert assoc.is_established


def test_a_fault_of_our_own_is_never_success(
    listen: Callable[..., Listener], reception: Reception, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reception, "_database", None)
    listener = listen()

    statuses = send_over(listener.port, ct_instance(Names.fresh()), transfer_syntax_uid=EXPLICIT)

    assert statuses == [0x0110]


@needs_real_data
def test_sixteen_transfer_syntaxes_are_stored_byte_for_byte(
    listener: Listener, database: Database, store: Store, tmp_path: Path
):
    originals = sorted(SIXTEEN_SYNTAXES.iterdir())
    assert len(originals) == 16
    by_digest = {}
    for path in originals:
        # One UID in sixteen files: each is sent to its own study, by a copy that names another.
        collected = collection.collect(path, scratch=tmp_path)
        (sent,) = scu.send(collected.instances, to(listener))
        assert sent.problem == ""
        by_digest[dataset_bytes(path)] = path.name

    stored = {dataset_bytes(file) for file in store.objects_dir.rglob("*.dcm")}
    assert stored == set(by_digest)


def test_four_associations_in_shuffled_order_make_one_study(
    listener: Listener, database: Database, store: Store, tmp_path: Path
):
    names = Names.fresh()
    slices = [ct_instance(names, InstanceNumber=number) for number in range(60)]
    for number, ds in enumerate(slices):
        as_file(ds, tmp_path / f"{number}.dcm")
    instances = list(collection.collect(tmp_path, scratch=tmp_path).instances)
    random.Random(7).shuffle(instances)

    sent = scu.send(instances, to(listener), associations=4)

    assert [result.problem for result in sent] == [""] * 60
    assert kept(database, store, names.study_uid) == {
        ds.SOPInstanceUID: encoded(ds) for ds in slices
    }
    with database.snapshot() as db:
        assert studies.named(db, names.study_uid)[0].revision == 60


@needs_real_data
def test_the_real_study_whose_uids_are_none_is_one_study(
    listener: Listener, database: Database, tmp_path: Path
):
    collected = collection.collect(REAL_STUDY, scratch=tmp_path)

    sent = scu.send(collected.instances, to(listener), associations=4)
    again = scu.send(collected.instances[:10], to(listener))

    assert {result.problem for result in [*sent, *again]} == {""}
    with database.snapshot() as db:
        study = studies.named(db, "896911bf-1143-4c8d-8f04-f3cd1a7f6204")[0]
        assert study.revision == 133
        assert studies.conflicts_of(db, study.id) == []


def test_an_abort_in_the_middle_loses_nothing_that_was_answered(
    listener: Listener, database: Database, store: Store
):
    names = Names.fresh()
    slices = [ct_instance(names) for _ in range(5)]
    with association(listener.port, [(CTImageStorage, EXPLICIT)]) as assoc:
        for ds in slices[:3]:
            ds.file_meta = ds.__class__()
            ds.file_meta.TransferSyntaxUID = EXPLICIT
            assert assoc.send_c_store(ds).Status == 0x0000
        assoc.abort()

    assert len(kept(database, store, names.study_uid)) == 3

    assert send_over(listener.port, *slices, transfer_syntax_uid=EXPLICIT) == [0x0000] * 5
    assert kept(database, store, names.study_uid) == {
        ds.SOPInstanceUID: encoded(ds) for ds in slices
    }


def test_an_echo_is_answered_while_others_store(
    listener: Listener, record_property: Callable[[str, object], None]
):
    names = Names.fresh()
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            send_over(
                listener.port,
                *[ct_instance(names) for _ in range(20)],
                transfer_syntax_uid=EXPLICIT,
            )

    with ThreadPoolExecutor(SENDERS) as senders:
        loads = [senders.submit(load) for _ in range(SENDERS)]
        took_s = []
        for _ in range(20):
            began = time.monotonic()
            assert echo(listener.port)
            took_s.append(time.monotonic() - began)
        stop.set()
        for sending in loads:
            sending.result()

    p95_s = sorted(took_s)[18]
    record_property(FIGURE, f"C-ECHO while {SENDERS} associations store: p95 {p95_s:.2f} s")
    assert p95_s < ECHO_S


def test_a_late_instance_reopens_a_study_that_waits(listener: Listener, database: Database):
    names = Names.fresh()
    send_over(listener.port, ct_instance(names), transfer_syntax_uid=EXPLICIT)
    with database.transaction() as db:
        study_id = studies.named(db, names.study_uid)[0].id
        advance(db, study_id, State.RECEIVING, State.QUEUED)

    send_over(listener.port, ct_instance(names), transfer_syntax_uid=EXPLICIT)

    with database.snapshot() as db:
        study = studies.named(db, names.study_uid)[0]
        assert (study.state, study.revision) == (State.RECEIVING, 2)


def test_a_taken_port_is_named(settings: Settings, reception: Reception, listener: Listener):
    with pytest.raises(DicomNodeError, match=f"{listener.port}.*in use"):
        Listener(replace(settings.dicom, port=listener.port), reception)


def test_a_stop_finishes_the_store_under_way_and_ends_every_association(
    settings: Settings, database: Database, store: Store, reception: Reception
):
    entered, leave = threading.Event(), threading.Event()

    class Slow(Store):
        def incoming(self) -> Incoming:
            entered.set()
            leave.wait(10)
            return super().incoming()

    reception._store = Slow(store.root)
    listener = Listener(settings.dicom, reception)
    listener.start()
    names = Names.fresh()
    with ThreadPoolExecutor(2) as pool, association(listener.port) as idle:
        storing = pool.submit(
            send_over, listener.port, ct_instance(names), transfer_syntax_uid=EXPLICIT
        )
        assert entered.wait(10)
        stopping = pool.submit(stop, [listener], reception)
        time.sleep(0.2)
        leave.set()
        stopping.result(15)

        # A pynetdicom peer whose wish to release meets our abort waits for its own timer, 30 s.
        assert storing.result(45) == [0x0000]
        time.sleep(0.2)
        assert not idle.is_established
    assert len(kept(database, store, names.study_uid)) == 1


# The listener as a process of its own


class Process:
    """`appliance listen`."""

    def __init__(self, settings_file: Path, port: int) -> None:
        self._environment = {**os.environ, SETTINGS_VARIABLE: str(settings_file)}
        self.port = port

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "listen"],
            env=self._environment,
            stderr=subprocess.DEVNULL,
        )
        await_port(self.port)

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(15)


@pytest.fixture
def process(settings: Settings, tmp_path: Path):
    port = free_port()
    file = tmp_path / "settings.toml"
    file.write_text(
        to_toml({"data_dir": str(settings.data_dir), "dicom": {"port": port, "min_free_bytes": 0}})
    )
    process = Process(file, port)
    try:
        process.start()
        yield process
    finally:
        process.end(signal.SIGKILL)


def test_what_was_answered_survives_kill_9_in_the_middle_of_a_transfer(
    process: "Process", database: Database, store: Store
):
    names = Names.fresh()
    answered = {}
    chance = random.Random(11)
    for _ in range(2):
        killer = threading.Timer(chance.uniform(0.0, 0.05), process.end, [signal.SIGKILL])
        with association(process.port, [(CTImageStorage, EXPLICIT)]) as assoc:
            for number in range(2000):
                if number == 5:
                    killer.start()
                ds = ct_instance(names, PixelData=os.urandom(100_000))
                ds.file_meta = ds.__class__()
                ds.file_meta.TransferSyntaxUID = EXPLICIT
                if assoc.send_c_store(ds).get("Status") != 0x0000:
                    break
                answered[ds.SOPInstanceUID] = encoded(ds)
            else:
                pytest.fail("the listener was not killed")
        killer.join()
        process.start()

    stored = kept(database, store, names.study_uid)
    assert len(answered) >= 10
    assert {uid: stored.get(uid) for uid in answered} == answered
    assert echo(process.port)


def test_sigterm_ends_the_process_in_order(process: "Process"):
    with association(process.port):
        assert process.end(signal.SIGTERM) == 0


def test_uids_of_the_command_are_not_required_to_be_legal(listener: Listener, database: Database):
    names = Names("not a uid at all", generate_uid())
    ds = ct_instance(names, SOPInstanceUID="896911bf-1143-4c8d-8f04-f3cd1a7f6204")

    assert send_over(listener.port, ds, transfer_syntax_uid=EXPLICIT) == [0x0000]
