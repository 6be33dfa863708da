"""Quality over time: what is recorded, and when it warns."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance import (
    accounts,
    lifecycle,
    marks,
    quality_report,
    quality_watch,
    retention,
    reviews,
    studies,
)
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.quality_report import Report
from appliance.reviews import Judgement, Mark, Reason
from appliance.store import Store
from appliance.studies import SeriesAttributes
from appliance.tables import Account, Analysis, QualityRecord
from tests.appliance import world
from tests.support.instances import Names, as_file, ct_instance

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)  # a Wednesday
RECENT = NOW - timedelta(days=7)
EARLIER = NOW - timedelta(days=60)
NO_LIMITS = Path("/nonexistent")

_numbers = iter(range(1, 100_000))


def case(at: datetime = RECENT, **changes: Any) -> QualityRecord:
    values: dict[str, Any] = {
        "analysis_id": next(_numbers),
        "at": at,
        "source_ae": "CT1",
        "manufacturer": "Maker",
        "model": "One",
        "kernel": "B60",
        "slice_spacing_mm": 2.0,
        "lung_hu": None,
        "noise_hu": None,
        "burden": None,
        "probability": 0.5,
        "positive": False,
        "lesion_count": 2,
        "review": 1,
        "overridden": False,
        "reason": None,
        "rejected_count": 0,
    }
    return QualityRecord(**{**values, **changes})


def report(database: Database, *records: QualityRecord, weights: Path = NO_LIMITS) -> Report:
    with database.transaction() as db:
        db.add_all(records)
    with database.snapshot() as db:
        return quality_report.make(db, weights, now=NOW)


def spread(values: list[float], at: datetime, name: str) -> list[QualityRecord]:
    return [case(at, **{name: value}) for value in values]


def test_nothing_is_no_reason_to_warn(database: Database):
    made = report(database)

    assert made.warnings == ()
    assert len(made.weeks) == quality_report.WEEKS
    assert made.weeks[-1].name == "2026-11-23"


def test_weeks_begin_on_mondays(database: Database):
    sunday = datetime(2026, 11, 22, 23, 59, tzinfo=UTC)

    made = report(database, case(sunday), case(sunday + timedelta(minutes=1)))

    assert [week.cases for week in made.weeks[-3:]] == [0, 1, 1]


def test_it_warns_when_people_agree_less(database: Database):
    earlier = [case(EARLIER, overridden=n < 5) for n in range(100)]
    recent = [case(overridden=n < 15, reason="artefact" if n < 15 else None) for n in range(30)]

    made = report(database, *earlier, *recent)

    (warning,) = made.warnings
    assert warning.startswith("People agree with the box less than before: in 50 % (15 of 30)")
    assert made.reasons == (("artefact", 15),)


def test_a_few_disagreements_are_chance(database: Database):
    earlier = [case(EARLIER, overridden=n < 5) for n in range(100)]
    recent = [case(overridden=n < 4) for n in range(30)]

    assert report(database, *earlier, *recent).warnings == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source_ae": "CT2"}, "studies sent by CT2,"),
        ({"model": "Two"}, "studies from the scanner Maker Two,"),
    ],
)
def test_it_warns_of_the_site_or_scanner_that_is_unlike_the_others(
    database: Database, changes: dict[str, str], said: str
):
    others = [case(overridden=n < 3) for n in range(60)]
    bad = [case(overridden=n < 14, **changes) for n in range(25)]

    made = report(database, *others, *bad)

    assert [said in warning for warning in made.warnings] == [True]
    assert [group.cases for group in made.sites] in ([60, 25], [85])


def test_it_warns_when_more_is_positive(database: Database):
    earlier = [case(EARLIER, positive=n < 10) for n in range(100)]
    recent = [case(positive=n < 20) for n in range(30)]

    (warning,) = report(database, *earlier, *recent).warnings

    assert warning.startswith("More results are positive than before: 67 % (20 of 30), 10 %")


def test_it_warns_when_what_comes_in_drifts(database: Database):
    earlier = spread([-800.0 + n % 21 - 10 for n in range(105)], EARLIER, "lung_hu")
    recent = spread([-780.0 + n % 21 - 10 for n in range(42)], RECENT, "lung_hu")

    (warning,) = report(database, *earlier, *recent).warnings

    assert "mean density of the lungs is higher than before: -780.0 HU" in warning


def test_it_warns_of_a_new_scanner(database: Database):
    earlier = [case(EARLIER) for _ in range(25)]
    recent = [case(model="Two") for _ in range(20)]

    (warning,) = report(database, *earlier, *recent).warnings

    assert warning.startswith("Maker Two is a new scanner, with 20 studies")


def test_it_warns_of_slices_unlike_those_of_the_models(database: Database, tmp_path: Path):
    said = {"slice_spacing_mm": {"low": 2.0, "high": 2.5, "source": "five volumes"}}
    (tmp_path / quality_report.REFERENCE_FILE).write_text(json.dumps(said), encoding="utf-8")

    thin = report(database, *(case(slice_spacing_mm=1.0) for _ in range(20)), weights=tmp_path)

    (warning,) = thin.warnings
    assert "100 % (20 of 20) of the studies have a distance of slices outside of 2 to 2.5 mm" in (
        warning
    )


def test_the_shipped_reference_can_be_read():
    weights = Path(__file__).parents[2] / "weights"

    assert set(quality_report.read_reference(weights)) == {"slice_spacing_mm"}


RESULT = {
    "schema": 1,
    "series_uid": f"{world.STUDY_UID}.1",
    "spacing": [1.5, 0.7, 0.7],
    "quality": {"noise_hu": 12.5},
    "burden": {"both": {"lesion_ml": 10.0, "share": 0.01}},
}


@pytest.fixture
def analysis_id(settings: Settings, database: Database, tmp_path: Path) -> int:
    """The number of an analysis of a stored image, with its folder."""
    image = as_file(ct_instance(Names.fresh(), ConvolutionKernel="B60f"), tmp_path / "image.dcm")
    with Store(settings.store_dir).incoming() as incoming:
        incoming.write(image.read_bytes())
        digest = incoming.commit().digest
    series = SeriesAttributes(modality="CT", manufacturer="Maker", model="One")
    world.receive(database, world.instance(digest=digest, series=series))
    with database.snapshot() as db:
        study_id = studies.named(db, world.STUDY_UID)[0].id
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    folder = settings.analyses_dir / str(study_id) / "a"
    folder.mkdir(parents=True)
    (folder / quality_watch.RESULT_FILE).write_text(json.dumps(RESULT), encoding="utf-8")
    result = world.result(folder=str(folder.relative_to(settings.data_dir)), lung_hu=-790.0)
    lifecycle.finish(database, world.reclaimed(database, study_id), result)
    with database.snapshot() as db:
        analysis = studies.current_analysis(db, study_id)
    assert analysis is not None
    return analysis.id


def recorded(database: Database) -> QualityRecord:
    with database.snapshot() as db:
        return db.scalars(select(QualityRecord)).one()


def test_an_analysis_is_recorded_once_from_its_rows_and_its_folder(
    settings: Settings, database: Database, analysis_id: int
):
    assert quality_watch.record(database, settings) == 1
    assert quality_watch.record(database, settings) == 0

    row = recorded(database)
    assert (row.analysis_id, row.source_ae) == (analysis_id, "CT1")
    assert (row.manufacturer, row.model, row.kernel) == ("Maker", "One", "B60f")
    assert (row.slice_spacing_mm, row.lung_hu, row.noise_hu, row.burden) == (1.5, -790, 12.5, 0.01)
    assert (row.positive, row.lesion_count, row.review, row.overridden) == (True, 2, 0, None)


def test_a_result_without_its_folder_is_recorded_as_far_as_it_is_known(
    settings: Settings, database: Database
):
    lifecycle.finish(database, world.claimed(database), world.result(folder="analyses/1/gone"))

    assert quality_watch.record(database, settings) == 1

    row = recorded(database)
    assert (row.slice_spacing_mm, row.burden, row.kernel, row.positive) == (None, None, "", True)


@pytest.mark.parametrize(
    "said",
    [
        "[]",
        "{}",
        json.dumps(RESULT | {"spacing": []}),
        json.dumps(RESULT | {"spacing": ["wide"]}),
        json.dumps(RESULT | {"quality": {}}),
        json.dumps(RESULT | {"burden": {"both": None}}),
    ],
)
def test_an_odd_result_is_recorded_with_blanks(
    settings: Settings, database: Database, analysis_id: int, said: str
):
    with database.snapshot() as db:
        folder = db.get_one(Analysis, analysis_id).folder
    (settings.data_dir / folder / quality_watch.RESULT_FILE).write_text(said, encoding="utf-8")

    assert quality_watch.record(database, settings) == 1

    row = recorded(database)
    assert (row.slice_spacing_mm, row.noise_hu, row.burden) == (None, None, None)
    assert (row.positive, row.lesion_count) == (True, 2)


def test_a_header_that_pydicom_does_not_know_what_to_do_with_stops_nothing(
    settings: Settings, database: Database, analysis_id: int, monkeypatch: pytest.MonkeyPatch
):
    def unheard_of(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(quality_watch, "dcmread", unheard_of)

    assert quality_watch.record(database, settings) == 1

    row = recorded(database)
    assert (row.kernel, row.manufacturer, row.noise_hu) == ("", "Maker", 12.5)


def confirm(database: Database, analysis_id: int, *, positive: bool, seen: int = 0) -> None:
    with database.transaction() as db:
        account = accounts.named(db, "ann")
        if account is None:
            account = Account(
                name="ann", password_hash="", role="radiologist", active=True, created_at=NOW
            )
            db.add(account)
            db.flush()
        judgement = Judgement(
            positive=positive,
            lesions={1: True, 2: False},
            reason=None if positive else Reason.ARTEFACT,
        )
        reviews.confirm(db, analysis_id, judgement, seen=seen, account=account, organisation="here")


def test_what_people_say_is_noted_and_what_they_amend(
    settings: Settings, database: Database, analysis_id: int
):
    quality_watch.record(database, settings)
    confirm(database, analysis_id, positive=True)
    quality_watch.record(database, settings)
    row = recorded(database)
    assert (row.review, row.overridden, row.reason, row.rejected_count) == (1, False, None, 1)

    confirm(database, analysis_id, positive=False, seen=1)
    quality_watch.record(database, settings)

    row = recorded(database)
    assert (row.review, row.overridden, row.reason) == (2, True, "artefact")


def test_added_and_corrected_lesions_are_noted(
    settings: Settings, database: Database, analysis_id: int
):
    confirm(database, analysis_id, positive=True)
    with database.transaction() as db:
        account = accounts.named(db, "ann")
        assert account is not None
        for digest in ("anew", "missed", "small"):
            marks.keep(
                db,
                analysis_id=analysis_id,
                account_id=account.id,
                digest=digest,
                box=(0, 0, 0, 1, 1, 1),
                bits=b"\x01",
                measures={},
            )
        db.flush()
        judgement = Judgement(
            positive=True,
            lesions={1: True, 2: True},
            marks={2: Mark("anew"), 3: Mark("missed"), 4: Mark("small")},
        )
        reviews.confirm(db, analysis_id, judgement, seen=1, account=account, organisation="here")

    quality_watch.record(database, settings)

    row = recorded(database)
    assert (row.rejected_count, row.added_count, row.corrected_count) == (0, 2, 1)
    with database.snapshot() as db:
        made = quality_report.make(db, NO_LIMITS, now=utc_now())
    (week,) = (week for week in made.weeks if week.cases)
    assert (week.lesions_rejected.count, week.lesions_rejected.of) == (0, 2)
    assert (week.lesions_corrected.count, week.lesions_corrected.of) == (1, 2)
    assert (week.lesions_missed.count, week.lesions_missed.of) == (2, 4)


def test_a_study_that_was_analysed_again_counts_once(
    settings: Settings, database: Database, analysis_id: int
):
    quality_watch.record(database, settings)
    world.receive(database, world.instance(2))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.finish(database, world.reclaimed(database), world.result("analyses/1/b"))

    quality_watch.record(database, settings)

    row = recorded(database)
    assert row.analysis_id != analysis_id
    assert quality_watch.record(database, settings) == 0


def test_a_record_outlives_its_study_and_names_nobody(
    settings: Settings, database: Database, analysis_id: int
):
    quality_watch.record(database, settings)

    assert retention.remove(database, settings, 1, actor="test")

    row = recorded(database)
    assert row.analysis_id == analysis_id
    assert world.STUDY_UID not in str(vars(row))
    assert quality_watch.record(database, settings) == 0


def test_what_a_person_uploaded_came_by_the_web_and_names_nobody(
    settings: Settings, database: Database
):
    world.receive(database, world.instance(source_ae="web ann"))
    with database.snapshot() as db:
        study_id = studies.named(db, world.STUDY_UID)[0].id
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    lifecycle.finish(database, world.reclaimed(database, study_id), world.result(folder="gone"))

    quality_watch.record(database, settings)

    assert recorded(database).source_ae == "web"
