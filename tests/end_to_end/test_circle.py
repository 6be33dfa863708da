"""A study from the PACS, analysed, its results back in the PACS, committed, and fetched from it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from appliance import maintenance, queue
from appliance.config import Settings
from appliance.database import Database
from appliance.reception import Reception
from appliance.store import Store
from appliance.tables import DeliveredObject, Delivery, Study
from dicom_node import delivery, dispatch
from dicom_node.scp import listening
from pipelines import tasks
from tests.support import archives, ct_series
from tests.support.archives import ORTHANC_AE
from tests.support.databases import settings_in
from tests.support.instances import dataset_bytes
from tests.support.pacs import HOST, dcmtk, free_port, pacs, store
from tests.support.tiny_models import write_models

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLICES = 24
CLASSES = {
    SegmentationStorage, Comprehensive3DSRStorage, SecondaryCaptureImageStorage,
    EncapsulatedPDFStorage,
}  # fmt: skip


class Bell:
    def send(self, name: str, study_id: int) -> bool:
        return True


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A box with tiny networks that sends every result to one PACS."""
    return settings_in(
        tmp_path,
        receive={"quiet_s": 0},
        dicom={
            "port": free_port(),
            "min_free_bytes": 0,
            "destinations": [
                {
                    "name": "pacs",
                    "ae_title": ORTHANC_AE,
                    "host": HOST,
                    "port": free_port(),
                    "commitment": True,
                }
            ],
        },
        routing={
            "rules": [
                {"name": "r", "destinations": ["pacs"], "objects": ["seg", "sr", "sc", "pdf"]}
            ]
        },
        delivery={"retry_s": 1},
        analysis={"weights_dir": str(write_models(tmp_path / "weights")), "engine": "torch"},
    )


@pytest.fixture
def box(settings: Settings, database: Database) -> Iterator[None]:
    """The box's listener."""
    reception = Reception(database, Store(settings.store_dir), min_free_bytes=0)
    with listening(settings.dicom, reception):
        yield


def analyse(settings: Settings, database: Database) -> None:
    """What the workers do with the study that came."""
    queue.make_app(settings)
    (study_id,) = maintenance.close_quiet_studies(database, Bell(), settings)
    tasks.analyse_study(study_id)
    with database.snapshot() as db:
        study = db.get_one(Study, study_id)
    assert study.state == "READY", study.state_reason


def deliver(settings: Settings, database: Database) -> str:
    """What the worker for deliveries does at a ring; the state of the only delivery."""
    dispatch.consider(settings, database)
    delivery.deliver_waiting(settings, database)
    with database.snapshot() as db:
        return str(db.query(Delivery).one().state)


def until_committed(settings: Settings, database: Database) -> None:
    deadline = time.monotonic() + 60
    while (state := deliver(settings, database)) != "COMMITTED":
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def delivered(database: Database) -> dict[str, str]:
    """SOP Instance and class UIDs of what was delivered."""
    with database.snapshot() as db:
        return {row.sop_instance_uid: row.sop_class_uid for row in db.query(DeliveredObject)}


def fetched(study: list[Dataset], port: int, received: dict[str, bytes]) -> dict[str, bytes]:
    """What a workstation gets of the study by C-MOVE."""
    moved = dcmtk(
        "movescu", "-S", "-aet", "WS", "-aec", ORTHANC_AE, "-aem", "WS",
        "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study[0].StudyInstanceUID}",
        HOST, str(port),
    )  # fmt: skip
    assert moved.returncode == 0, moved.stderr
    return received


def test_a_study_of_the_pacs_comes_back_with_its_results(
    settings: Settings, database: Database, box: None, tmp_path: Path
):
    study = ct_series.slices(SLICES)
    (node,) = settings.dicom.destinations
    with (
        pacs("WS") as workstation,
        archives.orthanc(
            tmp_path,
            dicom_port=node.port,
            DicomModalities={
                "box": ["CHESTCT", HOST, settings.dicom.port],
                "ws": ["WS", HOST, workstation.port],
            },
        ) as orthanc,
    ):
        orthanc.keep(study[:-1], tmp_path, ExplicitVRLittleEndian)
        given = ct_series.write(study[-1:], tmp_path / "last")[0]
        parent = orthanc.post("/instances", given.read_bytes())["ParentStudy"]
        orthanc.post("/modalities/box/store", str(parent).encode())
        analyse(settings, database)

        until_committed(settings, database)

        assert set(delivered(database).values()) == CLASSES
        received = fetched(study, node.port, workstation.received)
        assert set(received) == {ds.SOPInstanceUID for ds in study} | set(delivered(database))

        # The PACS sends its whole study to the box once more: no new result, no new round.
        orthanc.post("/modalities/box/store", str(parent).encode())
        assert maintenance.close_quiet_studies(database, Bell(), settings) == []
        assert deliver(settings, database) == "COMMITTED"
    assert list(settings.deliveries_dir.iterdir()) == []


def test_results_wait_for_a_pacs_that_is_down_and_stay_what_they_were(
    settings: Settings, database: Database, box: None, tmp_path: Path
):
    study = ct_series.slices(SLICES)
    store(settings.dicom.port, *study, transfer_syntax_uid=ExplicitVRLittleEndian)
    analyse(settings, database)
    (node,) = settings.dicom.destinations
    assert deliver(settings, database) == "WAITING"
    kept = {path.name: dataset_bytes(path) for path in settings.deliveries_dir.rglob("*.dcm")}

    with (
        pacs("WS") as workstation,
        archives.orthanc(
            tmp_path,
            dicom_port=node.port,
            DicomModalities={
                "box": ["CHESTCT", HOST, settings.dicom.port],
                "ws": ["WS", HOST, workstation.port],
            },
        ),
    ):
        until_committed(settings, database)
        received = fetched(study, node.port, workstation.received)

    assert sorted(received.values()) == sorted(kept.values())
