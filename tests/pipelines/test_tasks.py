"""The worker's task on a real database and store, with tiny networks and a coarse chest."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import select

from appliance import lifecycle, studies
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.queue import Application, make_app
from appliance.store import Store
from appliance.studies import ReceivedInstance
from appliance.tables import Analysis, StepResult, Study
from pipelines import tasks
from pipelines.analysis import Models
from pipelines.engines.choice import EngineChoice
from pipelines.errors import WeightsError
from pipelines.findings import Analysis as Found
from pipelines.weights import shipped_weights
from tests.support import ct_series
from tests.support.databases import migrated, settings_in
from tests.support.tiny_models import write_models, write_opinion_models


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    models = write_models(tmp_path / "weights")
    return settings_in(tmp_path, analysis={"weights_dir": str(models), "engine": "torch"})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with migrated(settings) as database:
        yield database


@pytest.fixture
def app(settings: Settings, database: Database) -> Application:
    settings.prepare()
    return make_app(settings)


def receive(settings: Settings, database: Database, series: list[Dataset], folder: Path) -> int:
    """Put a series into the store as the listener does, and queue its study."""
    store = Store(settings.store_dir)
    paths = ct_series.write(series, folder)
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        with store.incoming() as writer:
            writer.write(path.read_bytes())
            stored = writer.commit()
        received = ReceivedInstance(
            study_uid=ds.StudyInstanceUID,
            series_uid=ds.SeriesInstanceUID,
            sop_instance_uid=ds.SOPInstanceUID,
            sop_class_uid=ds.SOPClassUID,
            transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
            digest=stored.digest,
            size_bytes=stored.size_bytes,
            source_ae="TEST",
        )
        with database.transaction() as db:
            studies.record_instance(db, received)
    with database.snapshot() as db:
        study_id = db.scalars(select(Study.id)).one()
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    return study_id


def study_of(database: Database, study_id: int) -> Study:
    with database.snapshot() as db:
        return db.scalars(select(Study).where(Study.id == study_id)).one()


def test_a_queued_study_becomes_ready_with_its_result_and_steps(app, settings, database, tmp_path):
    study_id = receive(settings, database, ct_series.slices(24), tmp_path / "sent")

    tasks.analyse_study(study_id)

    study = study_of(database, study_id)
    assert study.state == State.READY, study.state_reason
    with database.snapshot() as db:
        row = db.scalars(select(Analysis)).one()
        steps = db.scalars(select(StepResult).order_by(StepResult.position)).all()
        assert row.current
        assert [step.step for step in steps] == list(tasks.STEPS)
        assert {model["purpose"] for model in row.models} == {"lungs", "lesions", "screening"}
        assert all(len(model["digest"]) == 64 for model in row.models)
        found = Found.load(settings.data_dir / row.folder)
    assert found.probability == row.probability
    assert row.lung_hu is not None
    assert -950 < row.lung_hu < -600
    assert len(found.lesions) == row.lesion_count
    viewer = settings.data_dir / row.folder / "viewer" / "viewer.json"
    assert json.loads(viewer.read_text())["slabs"]


def test_what_is_asked_for_besides_are_steps_of_their_own(settings, database, tmp_path):
    write_opinion_models(tmp_path / "weights")
    chosen = replace(settings.analysis, second_opinion=True, heat_map=True)
    asked = replace(settings, analysis=chosen)
    asked.prepare()
    make_app(asked)
    study_id = receive(asked, database, ct_series.slices(24), tmp_path / "sent")

    tasks.analyse_study(study_id)

    study = study_of(database, study_id)
    assert study.state == State.READY, study.state_reason
    with database.snapshot() as db:
        steps = db.scalars(select(StepResult).order_by(StepResult.position)).all()
        row = db.scalars(select(Analysis)).one()
    assert [step.step for step in steps] == [
        "reading", "lungs", "lesions", "screening", "second opinion", "heat map", "saving",
    ]  # fmt: skip
    viewer = settings.data_dir / row.folder / "viewer" / "viewer.json"
    assert len(json.loads(viewer.read_text())["heat_maps"]) == 2


def test_the_next_series_is_read_when_the_best_shows_no_lungs(app, settings, database, tmp_path):
    shutil.copytree(shipped_weights() / "lungs", tmp_path / "weights" / "lungs", dirs_exist_ok=True)
    chest = ct_series.slices(40)
    blank = ct_series.renamed(ct_series.slices(20), SeriesNumber=0)
    for ds in blank:
        ds.PixelData = np.full((ds.Rows, ds.Columns), 1024, "<u2").tobytes()
    study_id = receive(settings, database, [*blank, *chest], tmp_path / "sent")

    tasks.analyse_study(study_id)

    study = study_of(database, study_id)
    assert study.state == State.READY, study.state_reason
    with database.snapshot() as db:
        outcomes = {series.series_uid: series.outcome for series in studies.series_of(db, study_id)}
        steps = studies.progress(db, study_id).steps
    assert outcomes == {
        blank[0].SeriesInstanceUID: "refused",
        chest[0].SeriesInstanceUID: "analysed",
    }
    assert [step.step for step in steps] == list(tasks.STEPS)
    assert steps[0].summary["slices"] == 40


def test_a_message_that_comes_twice_does_nothing_the_second_time(app, settings, database, tmp_path):
    study_id = receive(settings, database, ct_series.slices(24), tmp_path / "sent")

    tasks.analyse_study(study_id)
    tasks.analyse_study(study_id)

    with database.snapshot() as db:
        assert len(db.scalars(select(Analysis)).all()) == 1


def test_a_study_without_a_usable_series_is_rejected_with_the_reason(
    app, settings, database, tmp_path
):
    study_id = receive(settings, database, ct_series.slices(5), tmp_path / "sent")

    tasks.analyse_study(study_id)

    study = study_of(database, study_id)
    assert study.state == State.REJECTED
    with database.snapshot() as db:
        (series,) = studies.series_of(db, study_id)
        assert series.outcome == "refused"
        assert series.outcome_reason in study.state_reason


def test_a_study_waits_while_the_weights_are_damaged(app, settings, database, tmp_path):
    study_id = receive(settings, database, ct_series.slices(24), tmp_path / "sent")
    path = tmp_path / "weights" / "lungs" / "weights.safetensors"
    whole = path.read_bytes()

    path.write_bytes(b"x")
    tasks.analyse_study(study_id)
    assert study_of(database, study_id).state == State.QUEUED
    assert study_of(database, study_id).attempts == 0

    path.write_bytes(whole)
    tasks.analyse_study(study_id)
    assert study_of(database, study_id).state == State.READY


def test_a_trouble_that_may_pass_is_tried_again_and_then_quarantined(
    app, settings, database, tmp_path, monkeypatch
):
    study_id = receive(settings, database, ct_series.slices(24), tmp_path / "sent")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tasks.presentation, "write_viewer", full)

    states = []
    for _ in range(settings.lifecycle.max_attempts):
        with pytest.raises(SystemExit):  # of this process nobody knows what still works
            tasks.analyse_study(study_id)
        states.append(study_of(database, study_id).state)

    assert states == [State.QUEUED, State.QUEUED, State.FAILED]
    assert "quarantined after 3 tries" in study_of(database, study_id).state_reason
    assert list((settings.analyses_dir / str(study_id)).iterdir()) == []


def test_a_worker_that_was_taken_for_dead_leaves_nothing_behind(
    app, settings, database, tmp_path, monkeypatch
):
    study_id = receive(settings, database, ct_series.slices(24), tmp_path / "sent")
    write = tasks.presentation.write_viewer

    def slow(*arguments: object) -> None:
        write(*arguments)
        lifecycle.expire(database, now=utc_now() + timedelta(hours=1))

    monkeypatch.setattr(tasks.presentation, "write_viewer", slow)

    tasks.analyse_study(study_id)

    assert study_of(database, study_id).state == State.QUEUED
    with database.snapshot() as db:
        assert db.scalars(select(Analysis)).all() == []
    assert list((settings.analyses_dir / str(study_id)).iterdir()) == []


def test_the_shipped_file_of_a_wrong_purpose_is_refused(tmp_path):
    models = write_models(tmp_path)
    shutil.rmtree(models / "lungs")
    shutil.copytree(models / "lesions", models / "lungs")

    with pytest.raises(WeightsError, match="a model for 'lesions', not 'lungs'"):
        Models.open(models, EngineChoice.TORCH)
