"""One query, one answer, whichever database."""

import time
from pathlib import Path
from typing import Any

import pytest

from appliance import holdings
from appliance.config import Settings
from appliance.database import Database
from appliance.errors import QueryError
from appliance.holdings import Level
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from appliance.tables import Study
from tests.appliance import world
from tests.support.databases import migrated, settings_in

STUDIES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("1.1", {"patient_id": "100%", "name": "Smith^John"}, {"description": "CT Thorax"}, "CT"),
    ("1.2", {"patient_id": "1001", "name": "SMITH^Jane"}, {"description": "ct thorax"}, "CT"),
    ("1.3", {"patient_id": "100_", "name": "Müller^Zoë"}, {"description": "a\nb"}, "MR"),
    ("1.4", {"patient_id": "a\\b", "name": "Yamada=山田^太郎"}, {"description": "(?i)x"}, "CT"),
    ("1.5", {"patient_id": "x.y", "name": "O'Neil"}, {"description": "😀 [a]{2}$"}, "SR"),
]
QUERIES: list[tuple[dict[str, str], set[str]]] = [
    ({}, {"1.1", "1.2", "1.3", "1.4", "1.5"}),
    ({"PatientID": "100%"}, {"1.1"}),
    ({"PatientID": "100?"}, {"1.1", "1.2", "1.3"}),
    ({"PatientID": "100_*"}, {"1.3"}),
    ({"PatientID": "x?y"}, {"1.5"}),
    ({"PatientID": "x.*"}, {"1.5"}),
    ({"PatientID": "?.*"}, {"1.5"}),
    ({"PatientName": "smith*"}, {"1.1", "1.2"}),
    ({"PatientName": "山田*"}, {"1.4"}),
    ({"PatientName": "O'Neil"}, {"1.5"}),
    ({"PatientName": "m?ller^*"}, {"1.3"}),
    ({"StudyDescription": "CT*"}, {"1.1"}),
    ({"StudyDescription": "a?b"}, {"1.3"}),
    ({"StudyDescription": "(?i)*"}, {"1.4"}),
    ({"StudyDescription": "? [a]{2}$"}, {"1.5"}),
    ({"StudyDescription": "'; DROP TABLE study; --*"}, set()),
    ({"StudyDescription": "*T*h*o*r*x"}, {"1.1"}),
    ({"StudyDescription": "C*T*T*"}, {"1.1"}),
    ({"StudyDescription": "*CT"}, set()),
    ({"PatientName": "*i*h^j*"}, {"1.1", "1.2"}),
    ({"ModalitiesInStudy": "MR\\SR"}, {"1.3", "1.5"}),
    ({"StudyInstanceUID": "1.1\\1.5\\1.9"}, {"1.1", "1.5"}),
    ({"StudyInstanceUID": "1.*"}, set()),
    ({"StudyInstanceUID": "\\"}, set()),
    ({"StudyInstanceUID": "*"}, {"1.1", "1.2", "1.3", "1.4", "1.5"}),
    ({"PatientID": "\\"}, set()),
    ({"PatientID": "1001\\x.y"}, {"1.2", "1.5"}),
    ({"PatientID": " 1001 "}, {"1.2"}),
    ({"PatientName": "\\"}, set()),
    ({"PatientName": "山田\u3000*"}, set()),
    ({"PatientName": "SMITH^john^^^="}, {"1.1"}),
    ({"StudyDate": "2026.01.01"}, {"1.1", "1.2", "1.3", "1.4", "1.5"}),
    ({"StudyDate": "*"}, {"1.1", "1.2", "1.3", "1.4", "1.5"}),
]


TIMES = {
    "0930": True,
    "09": True,
    "093000-": True,
    "-0929": False,
    "0930-0931": True,
    "-09": True,
    "093000.00-": True,
    "09:30:00": True,
    "093000.000001-": False,
    "0930-093000.0": True,
    "-0930": True,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        return settings_in(tmp_path)
    template = request.getfixturevalue("postgresql_template")
    url = request.getfixturevalue("postgresql").create(template=template)
    return settings_in(tmp_path, database={"url": url})


def test_every_database_answers_alike(settings: Settings):
    with migrated(settings) as database:
        for uid, patient, study, modality in STUDIES:
            received = world.instance(
                study_uid=uid,
                patient=PatientAttributes(**patient),
                study=StudyAttributes(study_time="0930", study_date="20260101", **study),
                series=SeriesAttributes(modality=modality),
            )
            world.receive(database, received)
        found = {str(keys): answered(database, keys) for keys, _ in QUERIES}
        times = {asked: len(answered(database, {"StudyTime": asked})) for asked in TIMES}

    assert found == {str(keys): expected for keys, expected in QUERIES}
    assert times == {asked: 5 if matches else 0 for asked, matches in TIMES.items()}


def test_no_pattern_takes_for_ever(settings: Settings):
    hostile = "*a" * 200 + "*b"
    with migrated(settings) as database:
        long = {"description": "a" * 1000}
        patient = PatientAttributes(patient_id="P", name="a=" * 500)
        for number in range(20):
            received = world.instance(
                study_uid=f"1.{number}", patient=patient, study=StudyAttributes(**long)
            )
            world.receive(database, received)
        began = time.monotonic()
        for keyword in ("StudyDescription", "PatientName"):
            assert answered(database, {keyword: hostile}) == set()
            assert len(answered(database, {keyword: "*a" * 200 + "*"})) == 20

    assert time.monotonic() - began < 20


def answered(database: Database, keys: dict[str, str]) -> set[str]:
    with database.snapshot() as db:
        holdings.require_one_person(db, Level.STUDY, keys)
        page = holdings.search(db, Level.STUDY, keys, limit=100)
        at_the_bottom = holdings.statement(Level.IMAGE, keys, [Study.study_uid])
        found = {str(answer.values["StudyInstanceUID"]) for answer in page.answers}
        assert set(db.scalars(at_the_bottom)) == found
    return found


@pytest.mark.parametrize(
    ("keyword", "value", "said"),
    [
        ("StudyInstanceUID", "\\".join(["1.2"] * 10_001), "more than 10000 UIDs"),
        ("StudyDescription", "x" * 4097, "more than 4096 characters"),
        ("PatientName", "a\0b", "control characters"),
        ("StudyDate", "20260101-20260102-20260103", "must be YYYYMMDD"),
        ("StudyDate", "٢٠٢٦٠١٠١", "must be YYYYMMDD"),
        ("StudyTime", "9", "must be HHMMSS"),
        ("NumberOfStudyRelatedSeries", "1", "cannot be matched"),
        ("Modality", "CT", "below the level"),
    ],
)
def test_what_cannot_be_matched_is_refused_by_name(
    database: Database, keyword: str, value: str, said: str
):
    with pytest.raises(QueryError, match=f"{keyword}.*{said}"):
        answered(database, {keyword: value})
