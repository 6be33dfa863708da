"""The box as a query/retrieve SCP: asked what other PACSs are asked, and by DCMTK's tools."""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from appliance.config import DestinationSettings, Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.reception import Command, Reception
from appliance.store import Store
from appliance.studies import Recorded
from appliance.tables import AuditEntry, Patient, Study
from dicom_node.identifiers import identifier_of, texts
from dicom_node.query_scp import Provider
from dicom_node.scp import Listener
from dicom_node.scu import LOSSES
from tests.support import archives
from tests.support.instances import Names, ct_instance, dataset_bytes, encoded
from tests.support.pacs import HOST, association, dcmtk, free_port

FIND = StudyRootQueryRetrieveInformationModelFind
PATIENT_FIND = PatientRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
PENDING = (0xFF00, 0xFF01)

STUDIES: dict[str, dict[str, Any]] = {
    "1.2.1": {
        "PatientName": "Smith^John", "PatientID": "100%", "StudyDate": "20260101",
        "StudyTime": "080000", "AccessionNumber": "A_1", "StudyDescription": "CT Thorax",
    },
    "1.2.2": {
        "PatientName": "Smith^Jane", "PatientID": "1001", "StudyDate": "20260115",
        "StudyTime": "093000", "AccessionNumber": "AB1", "StudyDescription": "CT Thorax nativ",
    },
    "1.2.3": {
        "PatientName": "Smithers^Ann", "PatientID": "100_", "StudyDate": "20260131",
        "StudyTime": "235959", "AccessionNumber": "A.1", "StudyDescription": "ct thorax",
    },
    "1.2.4": {
        "PatientName": "Jones^Bob", "PatientID": "X.1", "StudyDate": "20251224",
        "StudyTime": "120000", "AccessionNumber": "", "StudyDescription": "MR Brain",
        "Modality": "MR",
    },
    "1.2.5": {
        "PatientName": "O'Neil^Pat", "PatientID": "X(1)", "StudyDate": "20260201",
        "StudyTime": "000000", "AccessionNumber": "[A]", "StudyDescription": "100% + more",
    },
}  # fmt: skip

QUERIES: list[dict[str, str]] = [
    {},
    {"PatientID": "1001"},
    {"PatientID": "100%"},
    {"PatientID": "100_"},
    {"PatientID": "100*"},
    {"PatientID": "100?"},
    {"PatientID": "X.1"},
    {"PatientID": "X?1*"},
    {"PatientID": "X(1)"},
    {"PatientID": "nobody"},
    {"PatientID": "*"},
    {"PatientID": "' OR 1=1 --"},
    {"PatientName": "Smith^John"},
    {"PatientName": "Smith*"},
    {"PatientName": "Smith^J???"},
    {"PatientName": "*ann*"},
    {"PatientName": "O'Neil*"},
    {"AccessionNumber": "A_1"},
    {"AccessionNumber": "A?1"},
    {"AccessionNumber": "A.1"},
    {"AccessionNumber": "[A]"},
    {"StudyDate": "20260115"},
    {"StudyDate": "20260101-20260131"},
    {"StudyDate": "-20260101"},
    {"StudyDate": "20260131-"},
    {"StudyTime": "093000"},
    {"StudyTime": "080000-120000"},
    {"StudyTime": "-080000"},
    {"StudyDescription": "CT*"},
    {"StudyDescription": "CT Thorax"},
    {"StudyDescription": "100% + more"},
    {"StudyInstanceUID": "1.2.1"},
    {"StudyInstanceUID": "1.2.1\\1.2.3\\1.2.9"},
    {"ModalitiesInStudy": "MR"},
    {"PatientName": "Smith*", "StudyDate": "20260110-"},
]

# What others answer otherwise.
DIFFERENCES: dict[str, dict[str, set[str]]] = {
    # Its index of Patient IDs has blanks for "%" and "_", and cuts those off that end one.
    "orthanc": {"PatientID=100?": {"1.2.1", "1.2.3"}},
    "qrscp": {
        # It does not match by the modalities at all, nor names without regard to case.
        "ModalitiesInStudy=MR": set(STUDIES) - {"1.2.4"},
        "PatientName=*ann*": {"1.2.3"},
    },
}


def instances_of_all() -> list[Dataset]:
    return [
        ct_instance(
            Names(uid, f"{uid}.1"), SOPInstanceUID=f"{uid}.1.1", PatientBirthDate="", **values
        )
        for uid, values in STUDIES.items()
    ]


def take(reception: Reception, *instances: Dataset, syntax: str = ExplicitVRLittleEndian):
    taken = []
    for ds in instances:
        command = Command(
            sop_class_uid=ds.SOPClassUID,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid=syntax,
            source_ae="CT1",
        )
        taken.append(reception.take(encoded(ds, syntax), command))
    return taken


@contextmanager
def asking(port: int, model: str = FIND, called: str = "CHESTCT") -> Iterator[Association]:
    contexts = [(model, ImplicitVRLittleEndian)]
    with association(port, contexts, called=called, calling="CHESTCT") as assoc:
        yield assoc


def find(
    assoc: Association, level: str = "STUDY", model: str = FIND, **keys: str
) -> tuple[list[dict[str, str]], Dataset]:
    answers = []
    identifier = identifier_of({"QueryRetrieveLevel": level, **keys})
    for status, answer in assoc.send_c_find(identifier, model):
        if status.get("Status") in PENDING:
            answers.append(texts(answer))
    return answers, status


def study_uids(assoc: Association, **keys: str) -> set[str]:
    answers, status = find(assoc, **{"StudyInstanceUID": "", **keys})
    assert status.Status == 0x0000, status
    return {answer["StudyInstanceUID"] for answer in answers}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str]]]:
    """The other PACSs with the same instances: port and AE title."""
    with ExitStack() as running:
        folder = tmp_path_factory.mktemp("orthanc")
        orthanc = running.enter_context(archives.orthanc(folder, box_port=1))
        orthanc.keep(instances_of_all(), folder, ExplicitVRLittleEndian)
        folder = tmp_path_factory.mktemp("qrscp")
        qrscp = running.enter_context(archives.qrscp(folder, instances_of_all(), box_port=1))
        yield {
            "orthanc": (orthanc.dicom_port, archives.ORTHANC_AE),
            "qrscp": (qrscp.port, archives.QRSCP_AE),
        }


@pytest.mark.parametrize("other", ["orthanc", "qrscp"])
def test_the_same_queries_have_the_same_answers_elsewhere(
    listener: Listener, reception: Reception, others: dict[str, tuple[int, str]], other: str
):
    take(reception, *instances_of_all())
    port, ae_title = others[other]
    differing = {}

    with asking(listener.port) as us, asking(port, called=ae_title) as them:
        for keys in QUERIES:
            ours, theirs = study_uids(us, **keys), study_uids(them, **keys)
            if ours != theirs:
                differing[" ".join(f"{k}={v}" for k, v in keys.items())] = ours ^ theirs

    assert differing == DIFFERENCES[other]


def test_levels_are_answered_with_what_is_held(listener: Listener, reception: Reception):
    names = Names("1.2.9", "1.2.9.1")
    take(reception, *(ct_instance(names, BodyPartExamined="CHEST") for _ in range(3)))

    with asking(listener.port) as assoc:
        ((study,), done) = find(
            assoc,
            StudyInstanceUID="",
            PatientName="",
            NumberOfStudyRelatedSeries="",
            NumberOfStudyRelatedInstances="",
            ModalitiesInStudy="",
            InstanceAvailability="",
        )
        ((series,), _) = find(
            assoc,
            "SERIES",
            StudyInstanceUID="1.2.9",
            SeriesInstanceUID="",
            BodyPartExamined="",
            SeriesNumber="3",
            NumberOfSeriesRelatedInstances="",
        )
        images, _ = find(
            assoc,
            "IMAGE",
            StudyInstanceUID="1.2.9",
            SeriesInstanceUID="1.2.9.1",
            SOPInstanceUID="",
            SOPClassUID="",
        )

    assert done.Status == 0x0000
    assert study["PatientName"] == "Test^Zoë"
    assert study["SpecificCharacterSet"] == "ISO_IR 192"
    assert study["RetrieveAETitle"] == "CHESTCT"
    assert study["InstanceAvailability"] == "ONLINE"
    assert (study["NumberOfStudyRelatedSeries"], study["NumberOfStudyRelatedInstances"]) == (
        "1",
        "3",
    )
    assert (series["BodyPartExamined"], series["NumberOfSeriesRelatedInstances"]) == ("CHEST", "3")
    assert {image["SOPClassUID"] for image in images} == {CTImageStorage}
    assert len({image["SOPInstanceUID"] for image in images}) == 3


def test_the_patient_root_starts_with_the_patient(listener: Listener, reception: Reception):
    take(reception, *instances_of_all())

    with asking(listener.port, PATIENT_FIND) as assoc:
        patients, _ = find(
            assoc, "PATIENT", PATIENT_FIND, PatientID="", PatientName="Smith*",
            NumberOfPatientRelatedStudies="",
        )  # fmt: skip
        studies, _ = find(assoc, "STUDY", PATIENT_FIND, PatientID="1001", StudyInstanceUID="")
        _, refused = find(assoc, "STUDY", PATIENT_FIND, PatientID="", StudyInstanceUID="")

    assert {patient["PatientID"] for patient in patients} == {"100%", "1001", "100_"}
    assert {patient["NumberOfPatientRelatedStudies"] for patient in patients} == {"1"}
    assert [study["StudyInstanceUID"] for study in studies] == ["1.2.2"]
    assert (refused.Status, refused.ErrorComment) == (
        0xA900,
        "PatientID must be one value without wildcards",
    )


@pytest.mark.parametrize(
    ("stored", "asked", "matches"),
    [
        ("Müller^Zoë", "MÜLLER^*", True),
        ("Müller^Zoë", "müller^zoë", True),
        ("Müller^Zoë", "Müller^Zoë^^^", True),
        ("Müller^Zoë", "Muller^Zoë", False),
        ("Yamada^Tarou=山田^太郎", "山田*", True),
        ("Yamada^Tarou=山田^太郎", "yamada^tarou", True),
        ("Yamada^Tarou=山田^太郎", "山", False),
        ("A.B^C", "A?B^C", True),
        ("AxB^C", "A.B^C", False),
        ("😀^x", "?^x", True),
    ],
)
def test_names_are_matched_without_case_by_any_group(
    listener: Listener, reception: Reception, stored: str, asked: str, *, matches: bool
):
    take(
        reception,
        ct_instance(Names.fresh(), SpecificCharacterSet="ISO_IR 192", PatientName=stored),
    )

    with asking(listener.port) as assoc:
        assert bool(study_uids(assoc, PatientName=asked)) is matches


@pytest.mark.parametrize(
    ("stored", "asked", "matches"),
    [
        ("030405.25", "030405", True),
        ("0304", "030000-0305", True),
        ("03", "0300-", True),
        ("030459", "-0304", True),
        ("030500", "-0304", False),
        ("03:04:05", "0304", True),
        ("", "-2359", False),
    ],
)
def test_times_are_matched_as_long_as_they_last(
    listener: Listener, reception: Reception, stored: str, asked: str, *, matches: bool
):
    take(reception, ct_instance(Names.fresh(), StudyTime=stored))

    with asking(listener.port) as assoc:
        assert bool(study_uids(assoc, StudyTime=asked)) is matches


@pytest.mark.parametrize(
    ("level", "keys", "comment"),
    [
        ("STUDY", {"StudyDate": "yesterday"}, "StudyDate must be YYYYMMDD or a range of them."),
        ("STUDY", {"StudyTime": "-"}, "StudyTime must be HHMMSS or a range of them."),
        ("SERIES", {}, "StudyInstanceUID must be one value without wildcards"),
        ("SERIES", {"StudyInstanceUID": "*"}, "StudyInstanceUID must be one value"),
        ("PATIENT", {}, "QueryRetrieveLevel must be STUDY, SERIES, IMAGE"),
        ("", {}, "QueryRetrieveLevel must be STUDY, SERIES, IMAGE"),
    ],
)
def test_an_identifier_that_is_none_is_refused_with_the_reason(
    listener: Listener, level: str, keys: dict[str, str], comment: str
):
    with asking(listener.port) as assoc:
        answers, status = find(assoc, level, **keys)

    assert answers == []
    assert status.Status == 0xA900
    assert status.ErrorComment.startswith(comment)


def test_keys_that_are_not_held_are_answered_empty(listener: Listener, reception: Reception):
    take(reception, ct_instance(Names.fresh(), StudyID="7"))

    with asking(listener.port) as assoc:
        identifier = identifier_of(
            {"QueryRetrieveLevel": "STUDY", "StudyID": "8", "ReferencedStudySequence": ""}
        )
        status, answer = next(iter(assoc.send_c_find(identifier, FIND)))

    assert status.Status == 0xFF01
    assert texts(answer)["StudyID"] == ""
    assert answer.ReferencedStudySequence == []


def test_illegal_values_are_answered_as_they_came(listener: Listener, reception: Reception):
    names = Names.fresh()
    take(
        reception,
        ct_instance(names, StudyDate="yesterday", SpecificCharacterSet="ISO_IR 192"),
    )

    with asking(listener.port) as assoc:
        ((answer,), _) = find(assoc, StudyDate="", StudyInstanceUID="")

    assert answer["StudyDate"] == "yesterday"


def test_more_answers_than_the_limit_are_told(
    listen: Callable[..., Listener], reception: Reception
):
    take(reception, *instances_of_all())
    listener = listen(max_answers=3)

    with asking(listener.port) as assoc:
        answers, status = find(assoc, StudyInstanceUID="")

    assert len(answers) == 3
    assert (status.Status, status.ErrorComment) == (
        0xA700,
        "more than 3 answers: narrow the query",
    )


@pytest.fixture
def many(database: Database) -> int:
    """A thousand studies of one person."""
    now = utc_now()
    with database.transaction() as db:
        db.execute(insert(Patient).values(id=1, patient_id="P"))
        row = {
            "patient_key": 1,
            "state": State.READY,
            "state_since": now,
            "first_received_at": now,
            "last_received_at": now,
            "description": "x" * 500,
        }
        db.execute(insert(Study), [{**row, "study_uid": f"1.2.{n}"} for n in range(1000)])
    return 1000


def test_a_thousand_studies_are_answered_and_a_cancel_is_honoured(listener: Listener, many: int):
    with asking(listener.port) as assoc:
        answers, status = find(assoc, StudyInstanceUID="")
        assert (len(answers), status.Status) == (many, 0x0000)
        identifier = identifier_of({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": ""})
        statuses = []
        for status, _answer in assoc.send_c_find(identifier, FIND):
            if not statuses:
                assoc.send_c_cancel(1, query_model=FIND)
            statuses.append(status.Status)

    assert statuses[-1] == 0xFE00
    assert len(statuses) <= many


def test_the_answers_are_never_all_in_memory(
    settings: Settings, database: Database, store: Store, many: int
):
    identifier = {"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "", "StudyDescription": ""}

    def peak_bytes(studies: int) -> int:
        event = SimpleNamespace(
            identifier=identifier_of({**identifier, "StudyInstanceUID": chosen(studies)}),
            context=SimpleNamespace(abstract_syntax=FIND, transfer_syntax=ImplicitVRLittleEndian),
            is_cancelled=False,
        )
        provider = Provider(database, store, settings.dicom)
        tracemalloc.start()
        assert sum(answer is not None for _, answer in provider.find(event)) == studies
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    def chosen(studies: int) -> str:
        return "" if studies == many else "\\".join(f"1.2.{n}" for n in range(studies))

    peak_bytes(200)  # what is loaded once
    assert peak_bytes(many) < 1.5 * peak_bytes(200)


def test_two_persons_under_one_uid_are_never_mixed(
    listener: Listener, reception: Reception, tmp_path: Path
):
    names = Names.fresh()
    one = ct_instance(names, PatientID="1", PatientName="One^A")
    two = ct_instance(
        Names(names.study_uid, Names.fresh().series_uid), PatientID="2", PatientName="Two^B"
    )
    take(reception, one, two)

    with asking(listener.port) as assoc:
        studies, _ = find(assoc, StudyInstanceUID=names.study_uid, PatientID="")
        _, mixed = find(assoc, "SERIES", StudyInstanceUID=names.study_uid, SeriesInstanceUID="")
        series, _ = find(
            assoc, "SERIES", StudyInstanceUID=names.study_uid, SeriesInstanceUID="", PatientID="2"
        )
        images, _ = find(
            assoc,
            "IMAGE",
            StudyInstanceUID=names.study_uid,
            SeriesInstanceUID=names.series_uid,
            SOPInstanceUID="",
        )
    mixed_get = getscu(listener, tmp_path, f"StudyInstanceUID={names.study_uid}")

    assert {study["PatientID"] for study in studies} == {"1", "2"}
    assert mixed.Status == 0xC000
    assert "several persons" in mixed.ErrorComment
    assert [each["SeriesInstanceUID"] for each in series] == [two.SeriesInstanceUID]
    # A series is one person's, whoever else came under the study's UID.
    assert [each["SOPInstanceUID"] for each in images] == [one.SOPInstanceUID]
    assert mixed_get == {}
    assert set(
        getscu(listener, tmp_path, f"StudyInstanceUID={names.study_uid}", "PatientID=2")
    ) == {two.SOPInstanceUID}


def test_a_conflict_is_never_answered(listener: Listener, reception: Reception, tmp_path: Path):
    names = Names.fresh()
    kept = ct_instance(names)
    other = ct_instance(names, SOPInstanceUID=kept.SOPInstanceUID, StudyDescription="other")
    assert take(reception, kept, other) == [Recorded.NEW, Recorded.CONFLICT]

    got = getscu(listener, tmp_path, f"StudyInstanceUID={names.study_uid}")

    assert got == {kept.SOPInstanceUID: encoded(kept)}


def getscu(listener: Listener, folder: Path, *keys: str) -> dict[str, bytes]:
    """What DCMTK's getscu gets, as it was stored."""
    out = folder / f"got{len(list(folder.iterdir()))}"
    out.mkdir()
    options = [option for key in ("QueryRetrieveLevel=STUDY", *keys) for option in ("-k", key)]
    dcmtk("getscu", "-S", "-aec", "CHESTCT", "+B", "-od", out, *options, HOST, str(listener.port))
    return {
        pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: dataset_bytes(path)
        for path in out.iterdir()
    }


def test_getscu_gets_every_byte(listener: Listener, reception: Reception, tmp_path: Path):
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(4)]
    take(reception, *instances)

    assert getscu(listener, tmp_path, f"StudyInstanceUID={names.study_uid}") == {
        ds.SOPInstanceUID: encoded(ds) for ds in instances
    }


@contextmanager
def receiving(answer: Callable[[evt.Event], int] = lambda _event: 0x0000) -> Iterator[Any]:
    """A C-MOVE destination: its settings, and the C-STORE requests that it got."""
    ae = AE("VIEWER")
    for context in AllStoragePresentationContexts[:100]:
        ae.add_supported_context(context.abstract_syntax)
    ae.add_supported_context(CTImageStorage)
    requests: list[evt.Event] = []

    def store(event: evt.Event) -> int:
        requests.append(event)
        return answer(event)

    server = ae.start_server((HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    port = server.server_address[1]
    try:
        yield (
            DestinationSettings(name="viewer", ae_title="VIEWER", host=HOST, port=port),
            requests,
        )
    finally:
        server.shutdown()


def move(port: int, to: str = "VIEWER", **keys: str) -> tuple[list[Dataset], Dataset | None]:
    """Every status, and the last identifier."""
    identifier = identifier_of({"QueryRetrieveLevel": "STUDY", **keys})
    with asking(port, MOVE) as assoc:
        responses = list(assoc.send_c_move(identifier, to, MOVE, msg_id=77))
    return [status for status, _ in responses], responses[-1][1]


def counts(status: Dataset) -> tuple[int, int, int]:
    return (
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )


def test_a_move_sends_to_a_configured_destination_and_says_for_whom(
    listen: Callable[..., Listener], reception: Reception, database: Database
):
    names = Names.fresh()
    instances = [ct_instance(names) for _ in range(3)]
    take(reception, *instances)

    with receiving() as (viewer, requests):
        statuses, _ = move(listen(destinations=(viewer,)).port, StudyInstanceUID=names.study_uid)

    assert [status.Status for status in statuses] == [0xFF00, 0xFF00, 0x0000]
    assert [status.get("NumberOfRemainingSuboperations") for status in statuses] == [2, 1, None]
    assert counts(statuses[-1]) == (3, 0, 0)
    assert {
        event.request.AffectedSOPInstanceUID: event.encoded_dataset(include_meta=False)
        for event in requests
    } == {ds.SOPInstanceUID: encoded(ds) for ds in instances}
    assert {
        (
            event.request.MoveOriginatorApplicationEntityTitle,
            event.request.MoveOriginatorMessageID,
        )
        for event in requests
    } == {("CHESTCT", 77)}
    with database.snapshot() as db:
        assert audited(db) == [("peer CHESTCT", {"instances": 3, "destination": "viewer"})]


def audited(db: Session) -> list[tuple[str, Any]]:
    rows = db.scalars(select(AuditEntry).where(AuditEntry.tag == "dicom:study:retrieved"))
    return [(row.actor, row.detail) for row in rows]


def test_movescu_is_understood(listen: Callable[..., Listener], reception: Reception):
    names = Names.fresh()
    take(reception, ct_instance(names))

    with receiving() as (viewer, requests):
        port = listen(destinations=(viewer,)).port
        keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={names.study_uid}")
        result = dcmtk("movescu", "-S", "-aec", "CHESTCT", "-aem", "VIEWER", *keys, HOST, str(port))

    assert result.returncode == 0, result.stderr
    assert len(requests) == 1


def test_a_move_to_nobody_we_know_is_refused(listener: Listener):
    statuses, _ = move(listener.port, to="STRANGER", StudyInstanceUID="1.2.3")

    assert [status.Status for status in statuses] == [0xA801]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_destination_that_is_away_fails_every_instance(
    listen: Callable[..., Listener], reception: Reception
):
    names = Names.fresh()
    ds = ct_instance(names)
    take(reception, ds)
    away = DestinationSettings(name="viewer", ae_title="VIEWER", host=HOST, port=free_port())

    statuses, identifier = move(listen(destinations=(away,)).port, StudyInstanceUID=names.study_uid)

    assert statuses[-1].Status == 0xA702
    assert counts(statuses[-1]) == (0, 1, 0)
    assert identifier.FailedSOPInstanceUIDList == ds.SOPInstanceUID


def test_what_the_destination_refuses_is_named(
    listen: Callable[..., Listener], reception: Reception
):
    names = Names.fresh()
    good, bad, odd = (ct_instance(names) for _ in range(3))
    take(reception, good, bad, odd)
    answers = {bad.SOPInstanceUID: 0xA700, odd.SOPInstanceUID: 0xB000}

    with receiving(lambda event: answers.get(event.request.AffectedSOPInstanceUID, 0x0000)) as (
        viewer,
        _,
    ):
        statuses, identifier = move(
            listen(destinations=(viewer,)).port, StudyInstanceUID=names.study_uid
        )

    assert statuses[-1].Status == 0xB000
    assert counts(statuses[-1]) == (1, 1, 1)
    assert identifier.FailedSOPInstanceUIDList == bad.SOPInstanceUID


@pytest.mark.parametrize(("culprits", "counted"), [({3}, (4, 1, 0)), ({3, 4, 5}, (2, 3, 0))])
def test_a_move_goes_on_after_an_instance_that_the_destination_breaks_off_for(
    listen: Callable[..., Listener],
    reception: Reception,
    culprits: set[int],
    counted: tuple[int, int, int],
):
    names = Names.fresh()
    take(reception, *(ct_instance(names) for _ in range(5)))

    def answer(event: evt.Event) -> int:
        if len(requests) in culprits:
            event.assoc.abort()
        return 0x0000

    with receiving(answer) as (viewer, requests):
        statuses, identifier = move(
            listen(destinations=(viewer,)).port, StudyInstanceUID=names.study_uid
        )

    assert statuses[-1].Status == 0xB000
    assert counts(statuses[-1]) == counted
    assert "the association was lost" in statuses[-1].ErrorComment
    failed = identifier["FailedSOPInstanceUIDList"]
    assert len(culprits) == failed.VM


def test_a_move_to_a_destination_that_always_breaks_off_ends_soon(
    listen: Callable[..., Listener], reception: Reception
):
    names = Names.fresh()
    take(reception, *(ct_instance(names) for _ in range(9)))

    def answer(event: evt.Event) -> int:
        event.assoc.abort()
        return 0x0000

    with receiving(answer) as (viewer, requests):
        statuses, _ = move(listen(destinations=(viewer,)).port, StudyInstanceUID=names.study_uid)

    assert statuses[-1].Status == 0xA702
    assert counts(statuses[-1]) == (0, 9, 0)
    assert len(requests) == LOSSES


def test_a_cancelled_move_says_what_remains(listen: Callable[..., Listener], reception: Reception):
    names = Names.fresh()
    take(reception, *(ct_instance(names) for _ in range(30)))
    identifier = identifier_of({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": names.study_uid})

    with receiving() as (viewer, requests):
        port = listen(destinations=(viewer,)).port
        with asking(port, MOVE) as assoc:
            for status, _ in assoc.send_c_move(identifier, "VIEWER", MOVE, msg_id=5):
                if status.get("NumberOfCompletedSuboperations") == 1:
                    assoc.send_c_cancel(5, query_model=MOVE)

    assert status.Status == 0xFE00
    assert status.NumberOfRemainingSuboperations == 30 - len(requests)
    assert 0 < len(requests) < 30


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"StudyInstanceUID": ""},
        {"StudyInstanceUID": "*"},
        {"StudyInstanceUID": "*\\1.2"},
        {"PatientID": "P-1"},
    ],
)
def test_nobody_retrieves_everything(
    listen: Callable[..., Listener], reception: Reception, keys: dict[str, str]
):
    take(reception, ct_instance(Names.fresh()))

    with receiving() as (viewer, requests):
        statuses, _ = move(listen(destinations=(viewer,)).port, **keys)

    assert [status.Status for status in statuses] == [0xA900]
    assert requests == []


def get(
    listener: Listener, syntax: str, *, role: bool = True, **keys: str
) -> tuple[list[Dataset], Dataset | None, dict[str, bytes]]:
    """The statuses, the last identifier and what came in one transfer syntax."""
    got: dict[str, bytes] = {}

    def store(event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        got[uid] = event.encoded_dataset(include_meta=False)
        return 0x0000

    ae = AE("VIEWER")
    assoc = ae.associate(
        HOST,
        listener.port,
        [build_context(GET), build_context(CTImageStorage, syntax)],
        ae_title="CHESTCT",
        ext_neg=[build_role(CTImageStorage, scp_role=True)] if role else [],
        evt_handlers=[(evt.EVT_C_STORE, store)],
    )
    identifier = identifier_of({"QueryRetrieveLevel": "STUDY", **keys})
    responses = list(assoc.send_c_get(identifier, GET))
    assoc.release()
    return [status for status, _ in responses], responses[-1][1], got


def test_nothing_is_transcoded_for_a_get(listener: Listener, reception: Reception):
    names = Names.fresh()
    explicit, implicit = ct_instance(names), ct_instance(names)
    take(reception, explicit)
    take(reception, implicit, syntax=ImplicitVRLittleEndian)

    statuses, identifier, got = get(
        listener, ImplicitVRLittleEndian, StudyInstanceUID=names.study_uid
    )

    assert got == {implicit.SOPInstanceUID: encoded(implicit, ImplicitVRLittleEndian)}
    assert statuses[-1].Status == 0xB000
    assert counts(statuses[-1]) == (1, 1, 0)
    assert identifier.FailedSOPInstanceUIDList == explicit.SOPInstanceUID


def test_without_the_role_nothing_is_sent(listener: Listener, reception: Reception):
    names = Names.fresh()
    take(reception, ct_instance(names))

    statuses, _, got = get(
        listener, ExplicitVRLittleEndian, role=False, StudyInstanceUID=names.study_uid
    )

    assert got == {}
    assert statuses[-1].Status == 0xA702


def test_a_get_of_the_patient_root_and_of_one_image(
    listener: Listener, reception: Reception, tmp_path: Path
):
    names = Names.fresh()
    one, two = ct_instance(names), ct_instance(names)
    take(reception, one, two)
    model = PatientRootQueryRetrieveInformationModelGet
    assert model != PatientRootQueryRetrieveInformationModelMove

    statuses, _, got = get(
        listener,
        ExplicitVRLittleEndian,
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=names.study_uid,
        SeriesInstanceUID=names.series_uid,
        SOPInstanceUID=two.SOPInstanceUID,
    )

    assert set(got) == {two.SOPInstanceUID}
    assert statuses[-1].Status == 0x0000
    out = tmp_path / "out"
    out.mkdir()
    keys = ("-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=P-1")
    result = dcmtk("getscu", "-P", "-aec", "CHESTCT", "-od", out, *keys, HOST, str(listener.port))
    assert result.returncode == 0, result.stderr
    assert len(list(out.iterdir())) == 2


def test_findscu_is_answered(listener: Listener, reception: Reception):
    take(reception, ct_instance(Names("1.2.3", "1.2.3.1")))
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "-k", "PatientName=T*")

    result = dcmtk("findscu", "-S", "-aec", "CHESTCT", *keys, HOST, str(listener.port))

    assert result.returncode == 0, result.stderr
    assert "1.2.3" in result.stdout + result.stderr


def test_a_lost_file_is_a_failed_suboperation(listener: Listener, reception: Reception):
    names = Names.fresh()
    ds = ct_instance(names)
    take(reception, ds)
    (file,) = reception.store.objects_dir.rglob("*.dcm")
    file.unlink()

    statuses, identifier, _ = get(
        listener, ExplicitVRLittleEndian, StudyInstanceUID=names.study_uid
    )

    assert statuses[-1].Status == 0xA702
    assert identifier.FailedSOPInstanceUIDList == ds.SOPInstanceUID


@pytest.mark.parametrize("model", [FIND, GET, MOVE])
def test_a_requestor_that_goes_away_stops_nothing_else(
    listen: Callable[..., Listener], reception: Reception, many: int, model: str
):
    names = Names.fresh()
    take(reception, *(ct_instance(names, StudyDate="20250101") for _ in range(50)))
    with receiving() as (viewer, requests):
        listener = listen(destinations=(viewer,))
        with asking(listener.port, model) as assoc:
            identifier = identifier_of(
                {
                    "QueryRetrieveLevel": "STUDY",
                    "StudyInstanceUID": "" if model == FIND else names.study_uid,
                }
            )
            match model:
                case _ if model == FIND:
                    responses = assoc.send_c_find(identifier, FIND)
                case _ if model == GET:
                    responses = assoc.send_c_get(identifier, GET)
                case _:
                    responses = assoc.send_c_move(identifier, "VIEWER", MOVE)
            next(responses)
            assoc.abort()

        deadline = time.monotonic() + 20
        while listener._server.active_associations:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with asking(listener.port) as assoc:
            assert study_uids(assoc, StudyDate="20250101") == {names.study_uid}
    assert len(requests) < 50
