import json
import socket
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from appliance import cli, demo, lifecycle, studies, supervisor
from appliance.config import Settings
from appliance.database import Database
from appliance.errors import ApplianceError
from appliance.lifecycle import State
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
        row = studies.worklist_row(db, studies.named(db, world.STUDY_UID)[0].id)
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

    assert demo._study_in(tmp_path) == demo.Source(tmp_path, files=3, study_uid="2.25.2")


def test_a_study_whose_uid_is_none_is_followed_without_a_word_about_it(tmp_path: Path):
    uid = "896911bf-1143-4c8d-8f04-f3cd1a7f6204"
    with disable_value_validation():
        write(tmp_path / "a.dcm", uid)

    assert demo._study_in(tmp_path) == demo.Source(tmp_path, files=1, study_uid=uid)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    (tmp_path / "README").write_text("no image")

    with pytest.raises(ApplianceError, match="holds no DICOM file"):
        demo.run(tmp_path / "demo", study=tmp_path, once=True, timeout_s=1)
    assert not (tmp_path / "demo").exists()


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


@dataclass
class Server:
    """An appliance that is up."""

    said: list[str] = field(default_factory=list)

    def wait(self) -> None:
        self.said.append("waited")


@pytest.mark.parametrize("once", [True, False])
def test_the_result_is_the_last_line_and_comes_before_the_wait(
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    once: bool,  # noqa: FBT001
):
    lifecycle.finish(database, world.claimed(database), world.result())
    report = supervisor.Report(1, True, "A@h:1", "http://h/", ())  # noqa: FBT003
    server = Server()
    monkeypatch.setattr(demo, "_serving", lambda _folder: nullcontext(server))
    monkeypatch.setattr(demo, "_prepare", lambda _folder: settings)
    monkeypatch.setattr(demo, "_await_ready", lambda *_: report)
    monkeypatch.setattr(demo, "_one_study", lambda *_: outcome(database))

    write(settings.data_dir / "ct.dcm", "2.25.1")

    status = demo.run(settings.data_dir, study=settings.data_dir, once=once, timeout_s=1)

    *_, before, last = capsys.readouterr().out.splitlines()
    assert status == 0
    assert json.loads(last.removeprefix("RESULT "))["state"] == "READY"
    assert ("Stopping." in before) == once
    assert server.said == ([] if once else ["waited"])


@pytest.mark.parametrize("state", [State.FAILED, State.REJECTED])
def test_a_study_without_a_result_is_tried_again(
    database: Database, settings: Settings, state: State
):
    world.in_state(database, state)

    demo._try_again(database, settings, outcome(database).row.study_id)

    assert world.state_of(database) is State.QUEUED


def test_a_result_is_not_made_anew(database: Database, settings: Settings):
    world.in_state(database, State.READY)

    demo._try_again(database, settings, outcome(database).row.study_id)

    assert world.state_of(database) is State.READY


@pytest.mark.parametrize(
    ("before", "after", "sent"),
    [
        ({}, {1: 133}, (1, True)),
        ({1: 133}, {1: 133}, (1, False)),
        ({1: 133}, {1: 133, 2: 133}, (2, True)),  # the same images, another patient's name
        ({1: 100, 2: 133}, {1: 120, 2: 133}, (1, True)),
    ],
)
def test_the_study_that_grew_is_the_one_that_was_sent(
    before: dict[int, int], after: dict[int, int], sent: tuple[int, bool]
):
    assert demo._sent_study(before, after) == sent


def test_nothing_says_which_of_several_unchanged_studies_was_sent():
    with pytest.raises(ApplianceError, match="several people"):
        demo._sent_study({1: 133, 2: 133}, {1: 133, 2: 133})


def test_the_study_to_send_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def run(_folder: Path, **options: object) -> int:
        asked.append(options["study"])
        return 0

    monkeypatch.setattr(demo, "run", run)

    done = CliRunner().invoke(cli.main, ["demo", "--study", str(tmp_path)])

    assert (done.exit_code, asked) == (0, [tmp_path])
