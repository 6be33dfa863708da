"""The doctor's quick checks, which the administrators' overview shows as well."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from appliance import doctor, lifecycle, maintenance, queue, vital_signs
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.supervisor import Report
from appliance.tables import Study
from tests.appliance import world


def findings(settings: Settings) -> dict[str, doctor.Finding]:
    return {found.subject: found for found in doctor.examine(settings, quickly=True)}


def test_a_failed_study_and_a_long_queue_are_told(settings: Settings, database: Database):
    assert all(findings(settings)[subject].well for subject in ("failed studies", "queue"))
    lifecycle.fail(database, world.claimed(database), reason="broken", transient=False)
    waiting = world.queued(database, study_uid="2.25.2")
    with database.transaction() as db:
        since = utc_now() - timedelta(minutes=90)
        db.execute(update(Study).where(Study.id == waiting).values(state_since=since))

    found = findings(settings)

    assert found["failed studies"].text == "1 failed"
    assert not found["failed studies"].well
    assert found["queue"].text == "1 waiting, the oldest for 90 minutes"
    assert not found["queue"].well


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(1, ready=True, dicom_address="", viewer_url="", children=())
    monkeypatch.setattr("appliance.supervisor.read_report", lambda _settings: report)


@pytest.mark.usefixtures("running")
def test_silent_processes_are_told(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    for name in queue.QUEUES:
        maintenance.heard_file(settings, name).touch()
    vital_signs.leave(settings, 1)
    subjects = ("worker gpu", "worker dicom", "listener")
    assert all(findings(settings)[subject].well for subject in subjects)

    monkeypatch.setattr(doctor, "SILENT_S", -1.0)

    assert not any(findings(settings)[subject].well for subject in subjects)
    world.claimed(database)
    assert "worker gpu" not in findings(settings), "it is busy"


def test_an_appliance_that_does_not_run_is_not_silent(settings: Settings, database: Database):
    vital_signs.leave(settings, 1)

    assert "listener" not in findings(settings)


def test_a_sign_of_life_is_left_and_read(settings: Settings, database: Database):
    assert vital_signs.last(settings) is None
    vital_signs.leave(settings, 3)

    sign = vital_signs.last(settings)

    assert sign is not None
    assert sign.connections == 3
