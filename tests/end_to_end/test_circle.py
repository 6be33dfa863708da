"""A study from the PACS, analysed, its results back in the PACS, committed, and fetched from it."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import _config

from appliance import collection, maintenance, queue, studies
from appliance.config import Settings, to_toml
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.reception import Reception
from appliance.store import Store
from appliance.tables import DeliveredObject, Delivery, Study
from dicom_node import delivery, dispatch
from dicom_node.scp import listening
from pipelines import tasks
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Analysis
from tests.support import archives, ct_series
from tests.support.archives import ORTHANC_AE, Orthanc
from tests.support.instances import REAL_STUDY, as_file, dataset_bytes, needs_real_data
from tests.support.line import Cut, Judge, Verdict, line
from tests.support.pacs import HOST, Pacs, dcmtk, free_port, pacs, store
from tests.support.served import Served, served
from tests.support.tiny_models import write_models
from tests.support.validators import dcmqi_segments, on_grid

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLICES = 24
P002 = "896911bf-1143-4c8d-8f04-f3cd1a7f6204"
CLASSES = {
    SegmentationStorage, Comprehensive3DSRStorage, SecondaryCaptureImageStorage,
    EncapsulatedPDFStorage,
}  # fmt: skip

# The first object that comes is let go of; Orthanc answers Success all the same.
FORGETFUL = """
local came = 0
function ReceivedInstanceFilter(dicom, origin, info)
  came = came + 1
  return came > 1
end
"""


class Bell:
    def send(self, name: str, study_id: int) -> bool:
        return True


def tables(port: int) -> dict[str, object]:
    """The settings of a box that sends every result to one PACS."""
    return {
        "dicom": {
            "port": free_port(),
            "min_free_bytes": 0,
            "destinations": [
                {
                    "name": "pacs",
                    "ae_title": ORTHANC_AE,
                    "host": HOST,
                    "port": port,
                    "commitment": True,
                }
            ],
        },
        "routing": {
            "rules": [
                {"name": "r", "destinations": ["pacs"], "objects": ["seg", "sr", "sc", "pdf"]}
            ]
        },
    }


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """The box's settings, with tiny networks."""
    path = tmp_path / "settings.toml"
    document = {
        "data_dir": str(tmp_path / "data"),
        "receive": {"quiet_s": 0},
        "analysis": {"weights_dir": str(write_models(tmp_path / "weights")), "engine": "torch"},
        **tables(free_port()),
    }
    path.write_text(to_toml(document))
    return path


@pytest.fixture
def settings(settings_file: Path) -> Settings:
    return Settings.load(settings_file)


@pytest.fixture
def box(settings: Settings, database: Database) -> Iterator[None]:
    """The box's listener."""
    reception = Reception(database, Store(settings.store_dir), min_free_bytes=0)
    with listening(settings.dicom, reception):
        yield


@dataclass(frozen=True)
class Archive:
    """The PACS that the box sends to, what was sent to it, and a workstation beside it."""

    orthanc: Orthanc
    came: list[str]
    workstation: Pacs

    def fetched(self, study_uid: str) -> dict[str, bytes]:
        """What the workstation gets of a study by C-MOVE."""
        moved = dcmtk(
            "movescu", "-S", "-aet", "WS", "-aec", ORTHANC_AE, "-aem", "WS",
            "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}",
            HOST, str(self.orthanc.dicom_port),
        )  # fmt: skip
        assert moved.returncode == 0, moved.stderr
        return self.workstation.received


@contextmanager
def archive(
    folder: Path, settings: Settings, *, judge: Judge = lambda *_: None, **options: object
) -> Iterator[Archive]:
    """An Orthanc where the box expects its PACS, with a line between them that may misbehave."""
    (node,) = settings.dicom.destinations
    with pacs("WS") as workstation:
        modalities = {
            "box": ["CHESTCT", HOST, settings.dicom.port],
            "ws": ["WS", HOST, workstation.port],
        }
        with (
            archives.orthanc(folder, DicomModalities=modalities, **options) as orthanc,
            line(node.port, to=orthanc.dicom_port, judge=judge) as came,
        ):
            yield Archive(orthanc, came, workstation)


def analyse(settings: Settings, database: Database) -> None:
    """What the workers do with the study that came."""
    queue.make_app(settings)
    (study_id,) = maintenance.close_quiet_studies(database, Bell(), settings)
    tasks.analyse_study(study_id)
    with database.snapshot() as db:
        study = db.get_one(Study, study_id)
    assert study.state == "READY", study.state_reason


def deliver(settings: Settings, database: Database) -> str:
    """What the worker for deliveries does at a ring, as if all that waits for its time were due."""
    dispatch.consider(settings, database)
    with database.transaction() as db:
        for row in db.query(Delivery).filter_by(state="WAITING"):
            row.next_try_at = utc_now() - timedelta(seconds=1)
    delivery.deliver_waiting(settings, database)
    return state(database)


def state(database: Database) -> str:
    """The state of the only delivery; none is there before the rules were asked."""
    with database.snapshot() as db:
        row = db.query(Delivery).one_or_none()
    return "none" if row is None else row.state


def until_committed(database: Database, state: Callable[[], str], *, timeout_s: float = 60) -> None:
    """Wait for the PACS to report on an association of its own."""
    deadline = time.monotonic() + timeout_s
    while (now := state()) != "COMMITTED":
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    assert set(object_states(database).values()) == {"COMMITTED"}


def delivered(database: Database) -> dict[str, str]:
    """SOP Instance and class UIDs of what was delivered, in the order in which it went out."""
    with database.snapshot() as db:
        rows = db.query(DeliveredObject).order_by(DeliveredObject.id)
        return {row.sop_instance_uid: row.sop_class_uid for row in rows}


def object_states(database: Database) -> dict[str, str]:
    with database.snapshot() as db:
        return {row.sop_instance_uid: row.state for row in db.query(DeliveredObject)}


def built(settings: Settings) -> list[bytes]:
    """The data sets of the objects that wait to be sent."""
    return sorted(dataset_bytes(path) for path in settings.deliveries_dir.rglob("*.dcm"))


def test_a_study_of_the_pacs_comes_back_with_its_results(
    settings: Settings, database: Database, box: None, tmp_path: Path
):
    study = ct_series.slices(SLICES)
    with archive(tmp_path, settings) as peer:
        orthanc = peer.orthanc
        orthanc.keep(study[:-1], tmp_path, ExplicitVRLittleEndian)
        given = ct_series.write(study[-1:], tmp_path / "last")[0]
        parent = orthanc.post("/instances", given.read_bytes())["ParentStudy"]
        orthanc.post("/modalities/box/store", str(parent).encode())
        analyse(settings, database)

        until_committed(database, lambda: deliver(settings, database))

        assert set(delivered(database).values()) == CLASSES
        assert sorted(peer.came) == sorted(delivered(database))
        received = peer.fetched(study[0].StudyInstanceUID)
        assert set(received) == {ds.SOPInstanceUID for ds in study} | set(delivered(database))

        # The PACS sends its whole study to the box once more: no new result, no new round.
        orthanc.post("/modalities/box/store", str(parent).encode())
        assert maintenance.close_quiet_studies(database, Bell(), settings) == []
        assert deliver(settings, database) == "COMMITTED"
    assert list(settings.deliveries_dir.iterdir()) == []


@pytest.fixture
def analysed(settings: Settings, database: Database, box: None) -> str:
    """The UID of a study that a scanner sent, and whose results the PACS has yet to get."""
    study = ct_series.slices(SLICES)
    store(settings.dicom.port, *study, transfer_syntax_uid=ExplicitVRLittleEndian)
    analyse(settings, database)
    return str(study[0].StudyInstanceUID)


def test_results_wait_for_a_pacs_that_is_down_and_stay_what_they_were(
    settings: Settings, database: Database, analysed: str, tmp_path: Path
):
    assert deliver(settings, database) == "WAITING"
    kept = built(settings)
    assert len(kept) >= len(CLASSES)

    with archive(tmp_path, settings) as peer:
        until_committed(database, lambda: deliver(settings, database))
        received = peer.fetched(analysed)

    assert sorted(received.values()) == kept


def test_what_the_pacs_refuses_is_sent_again_or_waits_for_an_administrator(
    settings: Settings, settings_file: Path, database: Database, analysed: str, tmp_path: Path
):
    answers = {Comprehensive3DSRStorage: [0xA700, 0xA700], EncapsulatedPDFStorage: [0xC000]}

    def judge(sop_class: str, _uid: str) -> Verdict:
        left = answers.get(UID(sop_class))
        return left.pop(0) if left else None

    console = Served(settings, settings_file, database).command
    with archive(tmp_path, settings, judge=judge) as peer:
        assert deliver(settings, database) == "WAITING"  # the report: out of resources
        assert deliver(settings, database) == "WAITING"
        assert deliver(settings, database) == "FAILED"  # the report is there, the document is not
        uids = {sop_class: uid for uid, sop_class in delivered(database).items()}
        report, document = uids[Comprehensive3DSRStorage], uids[EncapsulatedPDFStorage]
        taken = dict.fromkeys(delivered(database), "SENT")
        assert object_states(database) == taken | {document: "REFUSED"}
        kept = built(settings)

        told = console("dicom", "deliveries", "--failed").stdout
        assert deliver(settings, database) == "FAILED"  # it waits for a person
        retried = console("dicom", "retry", "1")
        until_committed(database, lambda: deliver(settings, database))
        received = peer.fetched(analysed)

    assert "1  FAILED  study 1" in told
    (refused,) = (line for line in told.splitlines() if line.startswith("    REFUSED"))
    assert f"{document}: 0xC000" in refused
    assert retried.returncode == 0, retried.stderr
    assert Counter(peer.came) == Counter([*delivered(database), report, report, document])
    assert sorted(received.values()) == kept


@pytest.mark.parametrize("cut", Cut)
def test_an_association_cut_at_the_third_object_is_gone_on_with(
    settings: Settings, database: Database, analysed: str, tmp_path: Path, cut: Cut
):
    verdicts: Iterator[Verdict] = chain((None, None, cut), repeat(None))
    with archive(tmp_path, settings, judge=lambda *_: next(verdicts)) as peer:
        assert deliver(settings, database) == "WAITING"
        third = list(delivered(database))[2]
        assert Counter(object_states(database).values())["SENT"] == 3  # all but the third
        kept = built(settings)
        until_committed(database, lambda: deliver(settings, database))
        received = peer.fetched(analysed)

    # The third goes out once more, in the same bytes: nobody here knows whether it was taken.
    assert Counter(peer.came) == Counter([*delivered(database), third])
    assert sorted(received.values()) == kept


def test_what_the_pacs_takes_and_does_not_keep_is_sent_again_alone(
    settings: Settings, database: Database, analysed: str, tmp_path: Path
):
    script = tmp_path / "forgetful.lua"
    script.write_text(FORGETFUL)
    with archive(tmp_path, settings, LuaScripts=[str(script)]) as peer:
        deliver(settings, database)
        first, *_ = delivered(database)
        kept = built(settings)
        until_committed(database, lambda: deliver(settings, database))
        received = peer.fetched(analysed)

    assert Counter(peer.came) == Counter([*delivered(database), first])
    assert sorted(received.values()) == kept


@needs_real_data
@pytest.mark.timeout(900)
def test_a_real_study_goes_the_whole_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """P002, whose files have no SOP Instance UID of their own, by the box's own workers."""
    # Our own listener sets it for the whole process; this workstation takes no compressed images.
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    (tmp_path / "given").mkdir()
    given = collection.collect(REAL_STUDY, scratch=tmp_path / "given").instances
    with (
        served(tmp_path, **tables(free_port())) as running,
        archive(tmp_path, running.settings) as peer,
    ):
        for instance in given:
            parent = peer.orthanc.post("/instances", instance.path.read_bytes())["ParentStudy"]
        sent = peer.orthanc.post("/modalities/box/store", str(parent).encode())
        assert (sent["InstancesCount"], sent["FailedInstancesCount"]) == (len(given), 0)
        row = running.ended(P002)
        assert row.state == State.READY, row.state_reason
        until_committed(running.database, lambda: state(running.database), timeout_s=120)
        results = delivered(running.database)
        received = peer.fetched(P002)
        with running.database.snapshot() as db:
            analysis = studies.current_analysis(db, row.study_id)
        assert analysis is not None
        found = Analysis.load(running.settings.data_dir / analysis.folder)

    assert set(results.values()) == CLASSES
    assert sorted(peer.came) == sorted(results)
    assert set(received) == {each.sop_instance_uid for each in given} | set(results)
    for instance in given[::12]:
        assert dcmread(instance.path).pixel_array.tobytes() in received[instance.sop_instance_uid]
    (uid,) = (uid for uid, sop_class in results.items() if sop_class == SegmentationStorage)
    with disable_value_validation():
        segmentation = dcmread(BytesIO(received[uid]), force=True)
        path = as_file(segmentation, tmp_path / "seg.dcm")
    read = dcmqi_segments(path, tmp_path / "read")
    masks = [found.lung_mask == RIGHT_LUNG, found.lung_mask == LEFT_LUNG]
    masks += [found.lesion_labels == lesion.id for lesion in found.lesions]
    assert sorted(read) == list(range(1, len(masks) + 1))
    assert found.lesions
    for number, mask in enumerate(masks, start=1):
        np.testing.assert_array_equal(on_grid(read[number][1], found.affine, found.shape), mask)
