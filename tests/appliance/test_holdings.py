from dataclasses import replace

import pytest

from appliance import holdings, studies
from appliance.database import Database
from appliance.errors import QueryError, SharedUIDError
from appliance.holdings import UNIQUE, Level
from appliance.studies import (
    PatientAttributes,
    ReceivedInstance,
    SeriesAttributes,
    StudyAttributes,
)

RECEIVED = ReceivedInstance(
    study_uid="1.1",
    series_uid="1.1.1",
    sop_instance_uid="1.1.1.1",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    digest="1" * 64,
    size_bytes=1,
    source_ae="CT1",
    patient=PatientAttributes(patient_id="a-1", name="Müller^Änne", birth_date="19700101"),
    study=StudyAttributes(study_date="20260301", study_time="120000", description="50% dose_x"),
    series=SeriesAttributes(modality="CT", series_number="1"),
)


def receive(database: Database, *instances: ReceivedInstance) -> None:
    for instance in instances:
        with database.transaction() as db:
            studies.record_instance(db, instance)


def found(database: Database, level: Level = Level.STUDY, **keys: str) -> list[str]:
    """The UIDs of the answers."""
    with database.snapshot() as db:
        page = holdings.search(db, level, keys, limit=100)
    return [str(answer.values[UNIQUE[level]]) for answer in page.answers]


@pytest.mark.parametrize(
    ("key", "value", "matches"),
    [
        ("PatientID", "a-1", True),
        ("PatientID", "A-1", False),
        ("PatientID", "a*", True),
        ("PatientID", "A*", False),
        ("PatientID", "a?1", True),
        ("PatientID", "a_1", False),
        ("StudyDescription", "50%*", True),
        ("StudyDescription", "*e_x", True),
        ("StudyDescription", "5_*", False),
        ("StudyDescription", "%", False),
        ("StudyDescription", "50\\% dose_x", False),
        ("StudyDescription", "[5]*", False),
        ("PatientName", "müller^änne", True),
        ("PatientName", "MÜLLER^*", True),
        ("PatientName", "m?ller*", True),
        ("PatientName", "m_ller*", False),
        ("PatientName", "Müller", False),
        ("PatientName", "Müller^Änne^^^", True),
        ("StudyDate", "20260301", True),
        ("StudyDate", "20260301-20260301", True),
        ("StudyDate", "-20260228", False),
        ("StudyDate", "20260302-", False),
        ("StudyTime", "12", True),
        ("StudyTime", "1159-1200", True),
        ("StudyTime", "120000.000001-", False),
        ("PatientBirthDate", "19700101", True),
        ("ModalitiesInStudy", "CT", True),
        ("ModalitiesInStudy", "M?", False),
        ("StudyInstanceUID", "1.2\\1.1", True),
        ("StudyInstanceUID", "1.*", False),
    ],
)
def test_a_key_matches_or_not(database: Database, key: str, value: str, matches: object):
    receive(database, RECEIVED)

    assert found(database, **{key: value}) == (["1.1"] if matches else [])


def test_a_name_matches_by_its_alphabetic_group(database: Database):
    patient = PatientAttributes(patient_id="2", name="Yamada^Tarou=山田^太郎=やまだ^たろう")
    receive(database, replace(RECEIVED, patient=patient))

    assert found(database, PatientName="yamada^tarou") == ["1.1"]
    assert found(database, PatientName="*=山田*") == ["1.1"]
    assert found(database, PatientName="yamada") == []


def test_dates_with_dots_and_times_with_colons_are_compared(database: Database):
    old = StudyAttributes(study_date="2026.03.01", study_time="12:30:00")
    receive(database, replace(RECEIVED, study=old))

    assert found(database, StudyDate="20260228-20260302", StudyTime="1230") == ["1.1"]


def test_what_has_no_date_is_in_no_range(database: Database):
    receive(database, replace(RECEIVED, study=StudyAttributes()))

    assert found(database, StudyDate="-20991231") == []
    assert found(database, StudyDate="") == ["1.1"]


def test_modalities_and_counts_are_of_the_whole_study(database: Database):
    report = SeriesAttributes(modality="SR")
    receive(
        database,
        RECEIVED,
        replace(RECEIVED, sop_instance_uid="1.1.1.2", digest="2" * 64),
        replace(RECEIVED, series_uid="1.1.2", sop_instance_uid="1", digest="3" * 64, series=report),
    )

    with database.snapshot() as db:
        page = holdings.search(db, Level.SERIES, {"Modality": "SR"}, limit=10)

    (answer,) = page.answers
    assert answer.values["ModalitiesInStudy"] == ("CT", "SR")
    assert answer.values["NumberOfStudyRelatedSeries"] == 2
    assert answer.values["NumberOfStudyRelatedInstances"] == 3
    assert answer.values["NumberOfSeriesRelatedInstances"] == 1
    assert found(database, ModalitiesInStudy="SR") == ["1.1"]


def test_a_conflict_is_in_no_answer(database: Database):
    receive(database, RECEIVED, replace(RECEIVED, digest="2" * 64))

    assert found(database, Level.IMAGE) == ["1.1.1.1"]
    with database.snapshot() as db:
        held = holdings.find(db, "1.1")
    assert held is not None
    assert [instance.digest for instance in held.instances] == ["1" * 64]


@pytest.mark.parametrize(
    "key",
    ["PatientAge", "Modality", "NumberOfStudyRelatedSeries", "Nonsense"],
)
def test_what_cannot_be_matched_is_refused(database: Database, key: str):
    with pytest.raises(QueryError, match=key):
        found(database, **{key: "1"})


@pytest.mark.parametrize("uid", ["1\0", "\n"])
def test_control_characters_reach_no_database(database: Database, uid: str):
    with pytest.raises(QueryError), database.snapshot() as db:
        holdings.find(db, uid)
    with pytest.raises(QueryError):
        found(database, PatientName=uid)


def test_pages_follow_one_another(database: Database):
    receive(
        database,
        *(
            replace(RECEIVED, sop_instance_uid=f"9.{number}", digest=f"{number:064x}")
            for number in range(25)
        ),
    )
    seen: list[object] = []
    more = True
    while more:
        with database.snapshot() as db:
            page = holdings.search(db, Level.IMAGE, {}, limit=10, offset=len(seen))
        seen += [answer.values["SOPInstanceUID"] for answer in page.answers]
        more = page.more

    assert seen == [f"9.{number}" for number in range(25)]


def test_people_under_one_uid_are_never_mixed(database: Database):
    other = PatientAttributes(patient_id="b-2", name="Other^Person")
    receive(
        database,
        RECEIVED,
        replace(RECEIVED, series_uid="1.1.2", sop_instance_uid="2", digest="2" * 64, patient=other),
    )

    assert found(database) == ["1.1", "1.1"]
    assert found(database, PatientID="b-2") == ["1.1"]
    with database.snapshot() as db:
        for ask in (holdings.find, holdings.owner):
            with pytest.raises(SharedUIDError, match="several people"):
                ask(db, "1.1")
        assert holdings.owner(db, "1.1", "1.1.2") == 2
        assert holdings.owner(db, "1.1", "1.9") is None
        held = holdings.find(db, "1.1", "1.1.2", "2")
        assert holdings.find(db, "1.1", "1.1.1", "2") is None
    assert held is not None
    assert held.study_id == 2
    assert [instance.digest for instance in held.instances] == ["2" * 64]
