import json
import socket
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from appliance import demo, lifecycle, studies
from appliance.config import Settings
from appliance.database import Database
from appliance.errors import ApplianceError
from tests.appliance import world
from tests.support.databases import settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def write(path: Path, study_uid: str) -> None:
    ds = Dataset()
    ds.StudyInstanceUID = study_uid
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = "2.25.9"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)


def outcome(database: Database) -> demo.Outcome:
    with database.snapshot() as db:
        row = studies.worklist_row(db, world.STUDY_UID)
    assert row is not None
    return demo.Outcome(row, {"send": 1.5}, "http://127.0.0.1:8080/studies/1")


def test_the_result_line_holds_what_scripts_read(database: Database):
    lifecycle.finish(database, world.claimed(database), world.result())

    found = outcome(database)

    assert found.ready
    assert json.loads(json.dumps(found.as_json())) == {
        "study_uid": world.STUDY_UID,
        "state": "READY",
        "probability": 0.9,
        "positive": True,
        "lesions": 2,
        "lesion_volume_ml": 12.5,
        "seconds": {"send": 1.5},
        "viewer_url": "http://127.0.0.1:8080/studies/1",
    }


def test_the_result_of_a_failed_study_says_why(database: Database):
    lifecycle.reject(database, world.claimed(database), reason="no chest")

    found = outcome(database)

    assert not found.ready
    assert found.as_json()["reason"] == "no chest"


def test_the_study_of_a_folder_is_the_one_with_most_files(tmp_path: Path):
    for number, uid in enumerate(("2.25.1", "2.25.2", "2.25.2")):
        write(tmp_path / f"{number}.dcm", uid)
    (tmp_path / "README").write_text("no image")

    assert demo._study_in(tmp_path) == ("2.25.2", 3)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "README").write_text("no image")

    with pytest.raises(ApplianceError, match="holds no DICOM file"):
        demo._study_in(tmp_path)


def test_another_port_is_taken_when_the_usual_one_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used = taken.getsockname()[1]

        assert demo._port(used) != used


def test_the_demos_settings_stay_in_its_folder(tmp_path: Path):
    settings = demo._prepare(tmp_path / "demo")

    assert settings.data_dir == tmp_path / "demo"
    assert settings.broker_url is None
    assert settings == Settings.load(tmp_path / "demo" / "settings.toml")
