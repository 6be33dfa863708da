"""Queries and retrieves of ours, answered by Orthanc, by dcmqrscp and by peers that misbehave."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from appliance import collection, maintenance, retrievals, studies
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.reception import Reception
from appliance.store import Store
from dicom_node import query
from dicom_node.errors import AssociationError, NotOfferedError, QueryError
from dicom_node.identifiers import identifier_of
from dicom_node.proposal import storage_proposal
from dicom_node.query import Service, StudyKeys
from dicom_node.scp import Listener
from dicom_node.scu import Destination
from tests.appliance.world import Bell
from tests.support import archives
from tests.support.figures import FIGURE
from tests.support.instances import (
    REAL_STUDY,
    Names,
    ct_instance,
    dataset_bytes,
    encoded,
    needs_real_data,
)
from tests.support.pacs import HOST, free_port

PENDING, SUCCESS, CANCEL = 0xFF00, 0x0000, 0xFE00


def kept(database: Database, store: Store, study_uid: str) -> dict[str, bytes]:
    with database.snapshot() as db:
        return {
            instance.sop_instance_uid: dataset_bytes(store.path_of(instance.digest))
            for study in studies.named(db, study_uid)
            for instance in studies.instances_of(db, study.id)
        }


@contextmanager
def peer(handlers: dict[Any, Callable[..., Any]], **storage: Any) -> Iterator[Destination]:
    """A PACS of pynetdicom with these handlers."""
    ae = AE("PEER")
    for model in (
        Verification,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
    ):
        ae.add_supported_context(model)
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    server = ae.start_server((HOST, 0), block=False, evt_handlers=list(handlers.items()))
    port = server.server_address[1]
    try:
        yield Destination(host=HOST, port=port, called_ae="PEER", calling_ae="CHESTCT")
    finally:
        server.shutdown()


def study(**values: str) -> Dataset:
    return identifier_of({"StudyInstanceUID": "1.2.3", **values})


def answering(*responses: tuple[Any, Dataset | None]) -> dict[Any, Callable[..., Any]]:
    return {evt.EVT_C_FIND: lambda _event: iter(responses)}


def find(destination: Destination, at_most: int = 100, **keys: str) -> query.Studies:
    return query.find_studies(destination, StudyKeys(**keys), at_most=at_most)


def test_a_study_comes_from_orthanc_by_get_with_all_its_bytes(
    listener: Listener,
    settings: Settings,
    database: Database,
    store: Store,
    reception: Reception,
    tmp_path: Path,
):
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(5)]
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        pacs.keep(instances, tmp_path, ExplicitVRLittleEndian)
        (answer,) = find(pacs.destination, patient_id="P-1").answers
        counted: list[query.Counts] = []
        got = query.retrieve(pacs.destination, answer.study_uid, reception, report=counted.append)

    assert (answer.patient_name, answer.modalities) == ("Test^Zoë", "CT")
    assert answer.instance_count == 5
    assert (got.service, got.problem, got.counts.completed) == (Service.GET, "", 5)
    assert max(counts.completed for counts in counted) == 5
    assert kept(database, store, names.study_uid) == {
        ds.SOPInstanceUID: encoded(ds) for ds in instances
    }
    later = utc_now() + timedelta(hours=1)
    maintenance.close_quiet_studies(database, Bell(), settings, now=later)
    with database.snapshot() as db:
        assert State(studies.named(db, names.study_uid)[0].state) is State.QUEUED
        assert studies.named(db, names.study_uid)[0].source_ae == "ORTHANC"


def test_a_study_comes_from_orthanc_by_move_through_the_listener(
    listener: Listener, database: Database, store: Store, tmp_path: Path
):
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(3)]
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        pacs.keep(instances, tmp_path, ExplicitVRLittleEndian)
        got = query.move(pacs.destination, names.study_uid)

    assert (got.service, got.problem) == (Service.MOVE, "")
    assert kept(database, store, names.study_uid) == {
        ds.SOPInstanceUID: encoded(ds) for ds in instances
    }


def values(path: Path) -> dict[int, object]:
    ds = pydicom.dcmread(path)
    found = {element.tag: element.value for element in ds if element.tag.element != 0}
    return {**found, 0x00020010: ds.file_meta.TransferSyntaxUID}


@needs_real_data
@pytest.mark.parametrize("service", [Service.GET, Service.MOVE])
def test_a_real_study_comes_as_orthanc_was_given_it(
    listener: Listener,
    database: Database,
    store: Store,
    reception: Reception,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    service: Service,
):
    given = collection.collect(REAL_STUDY, scratch=tmp_path).instances
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        for instance in given:
            pacs.post("/instances", instance.path.read_bytes())
        (answer,) = find(pacs.destination, modality="CT").answers
        began = time.monotonic()
        if service is Service.GET:
            got = query.get(pacs.destination, answer.study_uid, reception)
        else:
            got = query.move(pacs.destination, answer.study_uid)
        seconds = time.monotonic() - began

    assert got.problem == ""
    assert answer.instance_count == len(given)
    with database.snapshot() as db:
        (study,) = studies.named(db, answer.study_uid)
        here = studies.instances_of(db, study.id)
    # Orthanc's DCMTK writes lengths anew and calls encapsulated pixel data OB.
    stored = {each.sop_instance_uid: values(store.path_of(each.digest)) for each in here}
    assert stored == {each.sop_instance_uid: values(each.path) for each in given}
    record_property(FIGURE, f"{len(given)} real slices from Orthanc by {service}: {seconds:.1f} s")


def test_a_compressed_study_comes_as_it_is(
    listener: Listener, database: Database, store: Store, reception: Reception, tmp_path: Path
):
    names = Names.fresh()
    ds = ct_instance(names)
    del ds.PixelData
    ds.PixelData = (
        b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xd9"
    )
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        pacs.keep([ds], tmp_path, JPEGLosslessSV1)
        got = query.get(pacs.destination, names.study_uid, reception)

    assert got.problem == ""
    with database.snapshot() as db:
        (instance,) = studies.instances_of(db, studies.named(db, names.study_uid)[0].id)
    assert instance.transfer_syntax_uid == JPEGLosslessSV1


def test_dcmqrscp_is_asked_and_gives(
    listener: Listener, database: Database, store: Store, reception: Reception, tmp_path: Path
):
    names = Names.fresh()
    instances = [ct_instance(names, PatientName="Test^Zoe") for _ in range(3)]
    with archives.qrscp(tmp_path, instances, box_port=listener.port) as pacs:
        query.echo(pacs)
        (answer,) = find(pacs, patient_id="P-1", study_date="20260101-").answers
        series = query.find_series(pacs, answer.study_uid, at_most=10)
        got = query.get(pacs, answer.study_uid, reception)
        moved = query.move(pacs, answer.study_uid)

    assert answer.study_uid == names.study_uid
    assert [each.modality for each in series] == ["CT"]
    assert (got.problem, moved.problem) == ("", "")
    assert (got.counts.completed, moved.counts.completed) == (3, 3)
    assert kept(database, store, names.study_uid).keys() == {ds.SOPInstanceUID for ds in instances}


def test_a_pacs_that_does_not_know_us_says_so(tmp_path: Path):
    names = Names.fresh()
    with archives.qrscp(tmp_path, [ct_instance(names)], box_port=1) as pacs:
        stranger = Destination(
            host=HOST, port=pacs.port, called_ae=pacs.called_ae, calling_ae="NOBODY"
        )
        got = query.move(stranger, names.study_uid)

    assert "0xA801 Move destination unknown" in got.problem
    assert "our AE title entered" in got.problem
    assert not got.retriable


def test_what_is_refused_here_is_named_and_may_come_later(
    listener: Listener, reception: Reception, database: Database, tmp_path: Path
):
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(3)]
    reception._min_free_bytes = 1 << 60
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        pacs.keep(instances, tmp_path, ExplicitVRLittleEndian)
        got = query.get(pacs.destination, names.study_uid, reception)

    assert got.problem
    assert got.retriable
    assert got.counts.completed == 0
    with database.snapshot() as db:
        assert retrievals.held(db, names.study_uid) == 0


def test_without_get_it_is_a_move(
    reception: Reception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked = []

    def move(event: evt.Event) -> Iterator[Any]:
        asked.append(event.request.MoveDestination)
        yield HOST, 1
        yield 0

    with peer({evt.EVT_C_MOVE: move}) as pacs:
        monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
        monkeypatch.setattr(
            query, "StudyRootQueryRetrieveInformationModelGet", "1.2.840.10008.5.1.4.1.2.9.9"
        )
        got = query.retrieve(pacs, "1.2.3", reception)

    assert got.service is Service.MOVE
    assert asked == ["CHESTCT"]


def test_what_no_context_was_proposed_for_comes_by_move(
    listener: Listener, database: Database, reception: Reception, tmp_path: Path
):
    names = Names.fresh()
    ct, private = ct_instance(names), ct_instance(names, SOPClassUID="1.2.840.113619.4.26")
    with archives.orthanc(tmp_path, box_port=listener.port) as pacs:
        pacs.keep([ct, private], tmp_path, ExplicitVRLittleEndian)
        alone = query.get(pacs.destination, names.study_uid, reception)
        got = query.retrieve(pacs.destination, names.study_uid, reception)

    assert alone.counts.failed == 1
    assert (got.service, got.problem) == (Service.MOVE, "")
    with database.snapshot() as db:
        assert retrievals.held(db, names.study_uid) == 2


def test_a_peer_without_the_role_offers_no_get(
    reception: Reception, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    ae = AE("PEER")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server((HOST, 0), block=False)
    try:
        to = Destination(
            host=HOST, port=server.server_address[1], called_ae="PEER", calling_ae="CHESTCT"
        )
        with pytest.raises(NotOfferedError, match="offers no C-GET"):
            query.get(to, "1.2.3", reception)
    finally:
        server.shutdown()


def test_enough_answers_cancel_the_rest():
    cancelled = threading.Event()

    def endless(event: evt.Event) -> Iterator[Any]:
        for number in range(5000):
            if event.is_cancelled:
                cancelled.set()
                yield CANCEL, None
                return
            yield PENDING, study(StudyInstanceUID=f"1.2.{number}")
            time.sleep(0.001)

    with peer({evt.EVT_C_FIND: endless}) as pacs:
        found = find(pacs, at_most=7, patient_id="P")

    assert len(found.answers) == 7
    assert found.cut_off
    assert cancelled.wait(5)


def test_an_interrupt_cancels_a_silent_retrieve():
    stop = threading.Event()

    def handled(event: evt.Event) -> Iterator[Any]:
        yield 3
        stop.set()
        deadline = time.monotonic() + 10
        while not event.is_cancelled:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield CANCEL, None

    with peer({evt.EVT_C_GET: handled}) as pacs:
        got = query.get(pacs, "1.2.3", None, stop=stop)

    assert got.problem == "C-GET: cancelled"


@pytest.mark.parametrize(
    ("status", "said", "retriable"),
    [
        (0xA700, "0xA700 Refused: Out of resources", True),
        (0xA900, "0xA900 Identifier does not match SOP class", False),
        (0xC123, "0xC123 Unable to process", True),
        (0x0122, "0x0122 Refused: SOP Class Not Supported", False),
    ],
)
def test_a_failed_query_is_told_by_name(status: int, said: str, *, retriable: bool):
    with peer(answering((status, None))) as pacs, pytest.raises(QueryError) as raised:
        find(pacs, patient_id="P")

    assert said.lower() in str(raised.value).lower()
    assert raised.value.retriable is retriable


@pytest.mark.parametrize("event", [evt.EVT_C_FIND, evt.EVT_C_MOVE, evt.EVT_C_GET])
def test_a_peer_that_goes_away_in_the_middle_may_be_asked_again(event: Any, reception: Reception):
    def gone(happened: evt.Event) -> Iterator[Any]:
        if event is evt.EVT_C_FIND:
            yield PENDING, study()
        happened.assoc.abort()
        yield PENDING, study()

    with peer({event: gone}) as pacs:
        if event is evt.EVT_C_FIND:
            with pytest.raises(QueryError, match="lost after 1 answers") as raised:
                find(pacs, patient_id="P")
            assert raised.value.retriable
            return
        ask = query.move if event is evt.EVT_C_MOVE else query.get
        got = ask(pacs, "1.2.3", *([reception] if ask is query.get else []))

    assert "the association was lost" in got.problem
    assert got.retriable


def test_hostile_answers_stay_data():
    hostile = [
        study(StudyInstanceUID="*"),
        study(StudyInstanceUID="1.2\\3.4"),
        study(StudyInstanceUID=""),
        study(StudyInstanceUID="../../etc/passwd", PatientName="<script>\x1b[2J", StudyDate="then"),
        study(StudyInstanceUID="1.5", NumberOfStudyRelatedInstances="-7"),
        study(StudyInstanceUID="1.6", ModalitiesInStudy="MR"),
        study(StudyInstanceUID="1.7", PatientID="somebody else"),
    ]
    with peer(answering(*((PENDING, each) for each in hostile))) as pacs:
        found = find(pacs, patient_id="P", modality="CT")

    assert [answer.study_uid for answer in found.answers] == ["../../etc/passwd", "1.5"]
    assert found.answers[0].study_date == "then"
    assert found.answers[1].instance_count == 0


def test_a_peer_that_ignores_what_it_is_asked_is_not_believed():
    others = [
        study(StudyInstanceUID="1.1", StudyDate="20260102", StudyDescription="CT THORAX nativ"),
        study(StudyInstanceUID="1.2", StudyDate="20251231", StudyDescription="CT Thorax"),
        study(StudyInstanceUID="1.3", StudyDate="20260104", StudyDescription="CT Thorax"),
        study(StudyInstanceUID="1.4", StudyDate="20260102", StudyDescription="Kopf"),
        study(StudyInstanceUID="1.5", StudyDate="", StudyDescription=""),
    ]
    with peer(answering(*((PENDING, each) for each in others))) as pacs:
        found = find(pacs, study_date="20260101-20260103", description="*thora?*")

    assert [answer.study_uid for answer in found.answers] == ["1.1", "1.5"]


@pytest.mark.parametrize(
    ("asked", "given", "fits"),
    [
        ("20260101", "20260101", True),
        ("20260101", "20260102", False),
        ("20260101-", "20991231", True),
        ("-20260101", "20260102", False),
        ("20260101-20260103", "2026.01.09", True),  # not ours to judge
    ],
)
def test_dates_are_held_against_the_range(asked: str, given: str, *, fits: bool):
    answers = answering((PENDING, study(StudyInstanceUID="1.1", StudyDate=given)))
    with peer(answers) as pacs:
        assert bool(find(pacs, study_date=asked).answers) is fits


def test_a_get_that_is_taken_and_refused_is_a_move(reception: Reception):
    def refuse(_event: evt.Event) -> Iterator[Any]:
        yield 1
        yield 0xA701, None

    def move(_event: evt.Event) -> Iterator[Any]:
        yield HOST, 1
        yield 0

    with peer({evt.EVT_C_GET: refuse, evt.EVT_C_MOVE: move}) as pacs:
        got = query.retrieve(pacs, "1.2.3", reception)

    assert (got.service, got.problem) == (Service.MOVE, "")


def test_the_storage_proposal_leaves_room_for_the_model():
    contexts, roles = storage_proposal()

    assert len(contexts) + 1 <= 128
    assert {role.sop_class_uid for role in roles} == {cx.abstract_syntax for cx in contexts}


def test_names_are_decoded_by_their_character_set():
    latin = Dataset()
    latin.SpecificCharacterSet = "ISO_IR 100"
    latin.StudyInstanceUID = "1.1"
    latin.PatientName = "Müller^Zoë"
    japanese = Dataset()
    japanese.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    japanese.StudyInstanceUID = "1.2"
    japanese.PatientName = "Yamada^Tarou=山田^太郎"
    with peer(answering((PENDING, latin), (PENDING, japanese))) as pacs:
        found = find(pacs, study_date="20260101")

    assert [answer.patient_name for answer in found.answers] == [
        "Müller^Zoë",
        "Yamada^Tarou=山田^太郎",
    ]


def test_failed_instances_are_told_by_uid():
    failed = identifier_of({"FailedSOPInstanceUIDList": "1.1\\1.2"})

    def get(event: evt.Event) -> Iterator[Any]:
        yield 2
        yield 0xB000, failed

    with peer({evt.EVT_C_GET: get}) as pacs:
        got = query.get(pacs, "1.2.3", None)

    assert got.failed_uids == ("1.1", "1.2")
    assert got.counts.failed == 2
    assert got.retriable


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_there_may_be_there_later():  # pynetdicom leaves its socket open
    nowhere = Destination(host=HOST, port=free_port(), called_ae="PACS", calling_ae="CHESTCT")

    with pytest.raises(AssociationError) as raised:
        query.echo(nowhere)

    assert raised.value.retriable


def test_a_rejection_for_good_is_no_use_trying_again(listener: Listener):
    wrong = Destination(host=HOST, port=listener.port, called_ae="OTHER", calling_ae="CHESTCT")

    told = []
    # pynetdicom takes one in a hundred for an abort: the connection is closed right behind it.
    while len(told) < 5 and all(error.retriable for error in told):
        with pytest.raises(AssociationError) as raised:
            query.echo(wrong)
        told.append(raised.value)

    assert not told[-1].retriable


def test_our_own_provider_is_asked(listener: Listener, reception: Reception):
    us = Destination(host=HOST, port=listener.port, called_ae="CHESTCT", calling_ae="CHESTCT")
    query.echo(us)

    assert find(us, patient_id="nobody").answers == ()
    assert query.get(us, "1.2.3", reception).problem == ""


def test_identifiers_are_not_formatted_for_a_log():
    with peer(answering()) as pacs:
        find(pacs, patient_id="P")

    assert not _config.LOG_RESPONSE_IDENTIFIERS
