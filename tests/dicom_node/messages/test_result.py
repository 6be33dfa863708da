"""What is gathered of a study, and `appliance dicom notify`."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked
from sqlalchemy import select

from appliance import accounts, lifecycle, logs, reviews, studies
from appliance.accounts import Role
from appliance.config import SETTINGS_VARIABLE, Settings
from appliance.database import Database
from appliance.errors import ApplianceError
from appliance.lifecycle import State
from appliance.reviews import Judgement
from appliance.studies import PatientAttributes, StudyAttributes
from appliance.tables import AuditEntry
from dicom_node.cli import dicom
from dicom_node.messages.result import Status, date_of, named, read_result
from pipelines.phantom import Phantom
from tests.appliance import world
from tests.dicom_node.messages.made import KINDS, RESULT
from tests.dicom_node.messages.test_hl7 import acknowledging, receiving
from tests.support.phantom import small_chest
from tests.support.results import analysis_of_chest

PATIENT = PatientAttributes(patient_id="P-1", issuer="H", name="Bell^Zoë", birth_date="19700102")
STUDY = StudyAttributes(accession_number="A-1", referring_physician="Grey^M")


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return small_chest()


def ready(database: Database, settings: Settings, chest: Phantom) -> int:
    """The id of a study with the true result of the synthetic chest."""
    world.receive(database, world.instance(patient=PATIENT, study=STUDY))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    folder = settings.analyses_dir / "1" / "a"
    analysis_of_chest(chest.volume, chest).save(folder, chest.volume)
    where = str(folder.relative_to(settings.data_dir))
    lifecycle.finish(database, world.reclaimed(database), world.result(where))
    return 1


def confirm(database: Database, *, seen: int = 0, rejected: Collection[int] = ()) -> None:
    """A radiologist confirms the study's result, but for some lesions."""
    with database.transaction() as db:
        number = accounts.add(
            db, "grey", password="correct horse battery", role=Role.RADIOLOGIST, actor="a"
        )
        account, analysis = accounts.find(db, number), studies.current_analysis(db, 1)
        assert account is not None
        assert analysis is not None
        numbers = range(1, analysis.lesion_count + 1)
        lesions = {lesion: lesion not in rejected for lesion in numbers}
        judgement = Judgement(positive=True, lesions=lesions)
        reviews.confirm(
            db, analysis.id, judgement, seen=seen, account=account, organisation="Clinic"
        )


def test_a_ready_study_is_told_with_all_that_is_known(
    database: Database, settings: Settings, chest: Phantom
):
    settings = replace(settings, messages=replace(settings.messages, viewer_url="https://box/"))
    study_id = ready(database, settings, chest)

    result = read_result(database, settings, study_id)
    confirm(database)
    confirmed = read_result(database, settings, study_id)

    assert (result.patient, result.study) == (PATIENT, STUDY)
    assert result.finding is not None
    assert (result.finding.probability, result.finding.positive) == (0.8125, True)
    assert result.finding.burden is not None
    assert (result.status, confirmed.status) == (Status.PRELIMINARY, Status.FINAL)
    assert result.viewer_url == "https://box/studies/1"
    assert result.name == confirmed.name


def test_rejected_lesions_do_not_count(database: Database, settings: Settings, chest: Phantom):
    study_id = ready(database, settings, chest)
    machine = read_result(database, settings, study_id).finding
    confirm(database, rejected=[1])

    told = read_result(database, settings, study_id).finding

    assert machine is not None
    assert told is not None
    assert told.lesion_count == machine.lesion_count - 1
    assert told.lesion_volume_ml < machine.lesion_volume_ml
    assert told.burden is not None
    assert machine.burden is not None
    assert told.burden.both.share < machine.burden.both.share
    assert told.probability == machine.probability


def test_a_refused_study_is_told_with_the_reason(database: Database, settings: Settings):
    world.in_state(database, State.REJECTED)

    result = read_result(database, settings, 1)

    assert (result.status, result.refusal) == (Status.NONE, "not a chest")


@pytest.mark.parametrize("state", [State.QUEUED, State.ANALYSING, State.FAILED])
def test_of_no_other_study_is_there_anything_to_tell(
    database: Database, settings: Settings, state: State
):
    world.in_state(database, state)

    with pytest.raises(ApplianceError, match=f"study 1 is {state}"):
        read_result(database, settings, 1)
    with pytest.raises(ApplianceError, match="no study 2"):
        read_result(database, settings, 2)


def test_an_overridden_result_says_so():
    assert KINDS["confirmed"].conclusion.endswith("positive, confirmed by Dr Grey.")
    assert KINDS["overridden"].conclusion.endswith("negative, changed by Dr Grey.")
    assert RESULT.conclusion == "COVID-19-like appearance: positive."


def test_dates_and_names_as_they_come():
    assert str(date_of("2026.03.05")) == "2026-03-05"
    assert date_of("20260231") is date_of("soon") is None
    assert named("=鈴^蔵") == [("I", ("鈴", "蔵", "", "", ""))]
    assert named("^^=") == []


@pytest.fixture
def invoke(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], Invoked]:
    """Run `appliance dicom notify 1 NAME` with a receiver at a port."""

    def run(port: int, name: str) -> Invoked:
        file: Path = settings.data_dir.parent / "settings.toml"
        file.write_text(
            f'data_dir = "data"\n[[messages.hl7]]\nname = "ris"\nhost = "127.0.0.1"\nport = {port}'
        )
        monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
        monkeypatch.setattr(logs, "configure", lambda _process: None)
        return CliRunner().invoke(dicom, ["notify", "1", name])

    return run


def test_a_result_is_sent_by_hand(database: Database, invoke: Callable[[int, str], Invoked]):
    world.in_state(database, State.REJECTED)

    with receiving(acknowledging("AA")) as receiver:
        sent = invoke(receiver.port, "ris")
        other = invoke(receiver.port, "rsi")

    assert sent.output == "ris was told of study 1: No result: not a chest\n"
    assert b"No result: not a chest" in receiver.received[0]
    assert "did you mean ris?" in str(other.exception)
    with database.snapshot() as db:
        (entry,) = db.scalars(select(AuditEntry))
    assert (entry.tag, entry.subject) == ("messages:result:told", "study 1")
