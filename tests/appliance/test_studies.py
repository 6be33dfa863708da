from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import create_engine, select

from appliance import lifecycle, pulse, studies
from appliance.database import Database
from appliance.errors import ApplianceError, LostRaceError
from appliance.lifecycle import Claim, State
from appliance.studies import Conflict, PatientAttributes, Recorded, SeriesOutcome
from appliance.tables import CONFLICTS, AuditEntry
from tests.appliance import world


def row_of(database: Database, uid: str = world.STUDY_UID):
    with database.snapshot() as db:
        (study,) = studies.named(db, uid)
        return studies.worklist_row(db, study.id)


def test_a_first_instance_opens_a_study(database: Database):
    recorded = world.receive(database, world.instance())

    row = row_of(database)
    assert recorded == [Recorded.NEW]
    assert (row.state, row.instance_count, row.source_ae) == (State.RECEIVING, 1, "CT1")


def test_the_same_bytes_again_are_kept_once(database: Database):
    recorded = world.receive(database, *[world.instance()] * 10)

    assert recorded == [Recorded.NEW, *[Recorded.DUPLICATE] * 9]
    assert row_of(database).instance_count == 1


def test_other_bytes_under_the_same_uid_are_kept_aside_and_reported(database: Database):
    recorded = world.receive(
        database, world.instance(), *[world.instance(content="b")] * 2, world.instance(content="c")
    )

    row = row_of(database)
    with database.snapshot() as db:
        files = studies.instances_of(db, row.study_id)
    assert recorded == [Recorded.NEW, *[Recorded.CONFLICT] * 3]
    assert [file.digest for file in files] == ["a" * 64]
    assert (row.instance_count, row.conflict_count) == (1, 2)


@pytest.mark.parametrize("state", sorted(set(State) - {State.RECEIVING, State.ANALYSING}))
def test_a_late_instance_reopens_a_study(database: Database, state: State):
    world.in_state(database, state)

    world.receive(database, world.instance(2, content="b"))

    row = row_of(database)
    assert (row.state, row.state_reason) == (State.RECEIVING, "late instance")


@pytest.mark.parametrize("state", [State.RECEIVING, State.ANALYSING])
def test_an_instance_of_an_open_study_only_counts(database: Database, state: State):
    world.in_state(database, state)

    world.receive(database, world.instance(2, content="b"))

    row = row_of(database)
    assert (row.state, row.instance_count) == (state, 2)


@pytest.mark.parametrize("state", list(State))
def test_a_late_duplicate_changes_nothing_but_when_a_study_was_last_heard_of(
    database: Database, state: State
):
    world.in_state(database, state)
    before = row_of(database)

    world.receive(database, world.instance())

    after = row_of(database)
    assert (after.state, after.instance_count) == (before.state, before.instance_count)
    assert (after.last_received_at > before.last_received_at) == (state is State.RECEIVING)


def test_a_result_made_before_a_late_instance_is_shown_as_stale(database: Database):
    world.in_state(database, State.READY)

    world.receive(database, world.instance(2, content="b"))

    assert row_of(database).stale


def test_many_associations_at_once_lose_nothing(database: Database):
    received = [world.instance(number, digest=f"{number:064x}") for number in range(60)]

    with ThreadPoolExecutor(6) as threads:
        recorded = list(threads.map(lambda one: world.receive(database, one), received))

    row = row_of(database)
    assert recorded == [[Recorded.NEW]] * 60
    assert row.instance_count == 60
    with database.snapshot() as db:
        assert len(studies.instances_of(db, row.study_id)) == 60
        assert [series.instance_count for series in studies.series_of(db, row.study_id)] == [60]


def test_two_people_with_one_number_stay_two(database: Database):
    for uid, name in (("2.25.7", "Ann^A"), ("2.25.8", "Bea^B")):
        patient = PatientAttributes(patient_id="7", name=name)
        world.receive(database, world.instance(study_uid=uid, patient=patient))

    assert row_of(database, "2.25.7").patient_name == "Ann^A"
    assert row_of(database, "2.25.8").patient_name == "Bea^B"


ANN = PatientAttributes(patient_id="7", name="Müller^Ann", birth_date="19700101", sex="F")


def conflicts_of(database: Database, uid: str = world.STUDY_UID) -> list[str]:
    with database.snapshot() as db:
        study = studies.named(db, uid)[0]
        return [conflict.reason for conflict in studies.conflicts_of(db, study.id)]


@pytest.mark.parametrize(
    "changes",
    [
        {"patient_id": "8"},
        {"name": "Baker^Bea"},
        {"birth_date": "19800101"},
        {"patient_id": "8", "name": "Baker^Bea", "birth_date": "19800101", "sex": "M"},
    ],
)
def test_another_patients_image_under_the_same_study_uid_is_a_study_of_its_own(
    database: Database, changes: dict[str, str]
):
    other = replace(ANN, **changes)
    recorded = world.receive(
        database,
        world.instance(patient=ANN),
        world.instance(2, content="b", patient=other),
        world.instance(3, content="c", patient=ANN),
        world.instance(4, content="d", patient=other),
    )

    with database.snapshot() as db:
        ids = [study.id for study in studies.named(db, world.STUDY_UID)]
        rows = [studies.worklist_row(db, study_id) for study_id in ids]
        digests = [[f.digest[0] for f in studies.instances_of(db, number)] for number in ids]
    assert recorded == [Recorded.NEW] * 4
    assert [row.patient_name for row in rows] == [ANN.name, other.name]
    assert digests == [["a", "c"], ["b", "d"]]
    assert all(row.shares_uid for row in rows)


def test_many_people_under_one_study_uid_at_once_stay_apart(database: Database):
    received = [
        world.instance(
            number,
            digest=f"{number:064x}",
            patient=PatientAttributes(patient_id=str(number % 4)),
        )
        for number in range(24)
    ]

    with ThreadPoolExecutor(6) as threads:
        recorded = list(threads.map(lambda one: world.receive(database, one), received))

    with database.snapshot() as db:
        counts = {
            study.patient.patient_id: study.revision for study in studies.named(db, world.STUDY_UID)
        }
    assert recorded == [[Recorded.NEW]] * 24
    assert counts == dict.fromkeys("0123", 6)


def test_a_study_sent_again_under_the_corrected_patient_is_a_study(database: Database):
    corrected = replace(ANN, patient_id="8", name="Baker^Bea")
    sent = [world.instance(number, content="ab"[number], patient=ANN) for number in (0, 1)]
    again = [world.instance(number, content="cd"[number], patient=corrected) for number in (0, 1)]

    recorded = world.receive(database, *sent, *again, *again)

    with database.snapshot() as db:
        first, second = studies.named(db, world.STUDY_UID)
    assert recorded == [*[Recorded.NEW] * 4, *[Recorded.DUPLICATE] * 2]
    assert (first.patient.name, first.revision) == (ANN.name, 2)
    assert (second.patient.name, second.revision) == ("Baker^Bea", 2)
    assert conflicts_of(database) == []


def test_a_name_alone_is_not_the_person_known_by_a_number_alone(database: Database):
    world.receive(
        database,
        world.instance(patient=PatientAttributes(patient_id="7")),
        world.instance(2, content="b", patient=PatientAttributes(name="Anonymized")),
    )

    with database.snapshot() as db:
        people = [study.patient for study in studies.named(db, world.STUDY_UID)]
    assert [(one.patient_id, one.name) for one in people] == [("7", ""), ("", "Anonymized")]


def test_of_several_people_the_one_who_is_named_is_meant(database: Database):
    recorded = world.receive(
        database,
        world.instance(patient=PatientAttributes(patient_id="7")),
        world.instance(2, content="b", patient=PatientAttributes(patient_id="8", name="Bea")),
        world.instance(3, content="c", patient=PatientAttributes(name="Bea")),
    )

    with database.snapshot() as db:
        first, second = studies.named(db, world.STUDY_UID)
    assert recorded == [Recorded.NEW] * 3
    assert (first.patient.name, first.revision) == ("", 1)
    assert (second.patient.name, second.revision) == ("Bea", 2)


def test_one_image_brought_by_several_associations_at_once_is_kept_once(database: Database):
    received = [
        world.instance(1, patient=PatientAttributes(patient_id=str(number % 2)))
        for number in range(12)
    ]

    with ThreadPoolExecutor(6) as threads:
        recorded = list(threads.map(lambda one: world.receive(database, one), received))

    assert sorted(recorded) == [*[[Recorded.DUPLICATE]] * 11, [Recorded.NEW]]


@pytest.mark.parametrize(
    "changes",
    [
        {"patient_id": " 7 "},
        {"name": "MULLER^ANN^^"},
        {"name": "müller ann"},
        {"name": "Müller^Ann=漢字"},
        {"sex": "O"},
        {"patient_id": "", "name": "", "birth_date": "", "sex": ""},
    ],
)
def test_another_spelling_or_a_blank_is_the_same_patient(
    database: Database, changes: dict[str, str]
):
    same = replace(ANN, **changes)

    recorded = world.receive(
        database, world.instance(patient=ANN), world.instance(2, content="b", patient=same)
    )

    assert recorded == [Recorded.NEW, Recorded.NEW]
    assert row_of(database).patient_name == "Müller^Ann"


def test_the_first_name_a_study_without_one_is_given_is_its_patients(database: Database):
    bea = PatientAttributes(patient_id="8", name="Baker^Bea")
    recorded = world.receive(
        database,
        world.instance(patient=PatientAttributes(sex="F")),
        world.instance(2, content="b", patient=ANN),
        world.instance(3, content="c", patient=bea),
    )

    with database.snapshot() as db:
        first, second = (study.patient for study in studies.named(db, world.STUDY_UID))
    assert recorded == [Recorded.NEW] * 3
    assert (first.name, first.patient_id, first.sex) == ("Müller^Ann", "7", "F")
    assert (second.name, second.patient_id) == ("Baker^Bea", "8")


BEA = PatientAttributes(patient_id="8", name="Baker^Bea")


def people_after(database: Database, *patients: PatientAttributes) -> list[tuple[str, str, int]]:
    """Name, number and images of each study after one image of each of `patients`."""
    images = [
        world.instance(
            number, digest=f"{number:064x}", patient=patient, series_uid=f"2.25.9.{number}"
        )
        for number, patient in enumerate(patients)
    ]
    assert world.receive(database, *images) == [Recorded.NEW] * len(images)
    with database.snapshot() as db:
        found = studies.named(db, world.STUDY_UID)
        return [(one.patient.name, one.patient.patient_id, one.revision) for one in found]


@pytest.mark.parametrize("blank", ["", " ", "^^^^", "^=^", "-", "."])
def test_a_name_without_a_letter_names_nobody(database: Database, blank: str):
    bea, ann = (PatientAttributes(name=person.name) for person in (BEA, ANN))

    found = people_after(database, PatientAttributes(name=blank), bea, ann)

    assert found == [(BEA.name, "", 2), (ANN.name, "", 1)]


def test_a_name_in_ideographs_alone_is_somebodys(database: Database):
    found = people_after(database, PatientAttributes(name="=王^小东"), ANN)

    assert found == [("=王^小东", "", 1), (ANN.name, "7", 1)]


def test_each_group_of_a_name_is_compared_with_its_like(database: Database):
    names = ("Wang^Xiaodong=王^小东", "=王^小东", "Wang^Xiaodong", "Wang^Xiaodong=王^晓东")

    found = people_after(database, *(PatientAttributes(name=name) for name in names))

    assert found == [(names[0], "", 3), (names[3], "", 1)]


def test_an_image_of_nobody_joins_none_of_several_people(database: Database):
    cat = PatientAttributes(patient_id="9", name="Cole^Cat")
    nobody = PatientAttributes(sex="F")

    found = people_after(database, ANN, BEA, nobody, nobody, cat)

    assert found == [(ANN.name, "7", 1), (BEA.name, "8", 1), ("", "", 2), (cat.name, "9", 1)]


def test_a_number_of_two_issuers_is_neither_ones(database: Database):
    numbers = [PatientAttributes(patient_id="7", issuer=issuer) for issuer in ("X", "Y", "", "Z")]

    assert people_after(database, *numbers, *numbers) == [("", "7", 2)] * 4


def test_a_series_is_not_cut_in_two_when_another_person_comes(database: Database):
    nobody = PatientAttributes()
    chest = [
        world.instance(number, digest=f"{number:064x}", patient=nobody, series_uid="2.25.9.1")
        for number in range(2, 6)
    ]
    other = world.instance(9, content="b", patient=BEA, series_uid="2.25.9.2")

    world.receive(database, world.instance(patient=ANN), *chest[:2], other, *chest[2:])

    with database.snapshot() as db:
        people = [(one.patient.name, one.revision) for one in studies.named(db, world.STUDY_UID)]
    assert people == [(ANN.name, 5), (BEA.name, 1)]


def test_an_issuer_is_never_joined_to_another_images_number(database: Database):
    people_after(
        database,
        PatientAttributes(issuer="X", name=ANN.name),
        PatientAttributes(patient_id="7", name=ANN.name),
        PatientAttributes(issuer="Y", name=ANN.name),
    )

    with database.snapshot() as db:
        (study,) = studies.named(db, world.STUDY_UID)
    assert (study.patient.patient_id, study.patient.issuer) == ("7", "")


def test_an_image_that_is_kept_aside_names_nobody_and_completing_is_audited(database: Database):
    nobody = PatientAttributes()
    uid = world.instance().sop_instance_uid
    world.receive(database, world.instance(patient=nobody))

    conflict = world.instance(content="b", sop_instance_uid=uid, patient=ANN)
    assert world.receive(database, conflict) == [Recorded.CONFLICT]
    assert row_of(database).patient_name == ""
    assert audit_tags(database) == []

    assert world.receive(database, world.instance(2, patient=ANN)) == [Recorded.NEW]
    assert row_of(database).patient_name == ANN.name
    assert audit_tags(database) == ["reception:patient:completed"]


def audit_tags(database: Database) -> list[str]:
    with database.snapshot() as db:
        return list(db.scalars(select(AuditEntry.tag)))


def test_a_uid_that_is_in_another_series_already_is_a_conflict(database: Database):
    uid = world.instance().sop_instance_uid

    recorded = world.receive(
        database,
        world.instance(),
        world.instance(content="b", sop_instance_uid=uid, series_uid="2.25.1.2"),
    )

    assert recorded == [Recorded.NEW, Recorded.CONFLICT]
    assert conflicts_of(database) == [Conflict.PLACE]


def test_a_study_sent_again_under_a_corrected_uid_is_a_study(database: Database):
    uid = world.instance().sop_instance_uid

    recorded = world.receive(
        database,
        world.instance(),
        world.instance(content="b", sop_instance_uid=uid, study_uid="2.25.2"),
    )

    assert recorded == [Recorded.NEW, Recorded.NEW]
    assert row_of(database, "2.25.2").instance_count == 1


def test_conflicts_are_those_of_the_table():
    assert tuple(Conflict) == CONFLICTS


def test_text_that_no_database_holds_is_cleaned(database: Database):
    patient = PatientAttributes(name="A\x00nn\ud800", patient_id="1\x00")

    world.receive(database, world.instance(study_uid="2.25.9\x00", patient=patient))

    row = row_of(database, "2.25.9")
    assert (row.patient_name, row.patient_id) == ("Ann?", "1")


@pytest.mark.parametrize("uid", ["", "\x00", "9" * 257])
def test_an_instance_without_a_usable_uid_is_refused(database: Database, uid: str):
    with pytest.raises(ApplianceError):
        world.receive(database, world.instance(study_uid=uid))


@pytest.mark.parametrize(
    "uid", ["5f5a7e8c-3c39-4d6a-9b7e-0a1b2c3d4e5f", "../../etc/passwd", "a'; DROP TABLE study"]
)
def test_a_uid_is_data_however_malformed(database: Database, uid: str):
    world.receive(database, world.instance(study_uid=uid))

    assert row_of(database, uid).study_uid == uid


def test_steps_are_published_as_they_come_and_replaced_at_the_next_claim(database: Database):
    claim = world.claimed(database)
    studies.start_step(database, claim, step="lungs", done=0, total=3)
    studies.record_step(
        database, claim, step="lungs", position=0, total=3, seconds=1.5, summary={"ml": 4000}
    )

    with database.snapshot() as db:
        progress = studies.progress(db, claim.study_id)
    lifecycle.release(database, owner="test")
    world.reclaimed(database)
    with database.snapshot() as db:
        again = studies.progress(db, claim.study_id)

    assert (progress.step, progress.step_done, progress.step_total) == ("lungs", 1, 3)
    assert [(step.step, step.seconds, step.summary) for step in progress.steps] == [
        ("lungs", 1.5, {"ml": 4000})
    ]
    assert again.steps == ()


def test_a_step_that_is_done_again_replaces_what_it_told(database: Database):
    claim = world.claimed(database)
    for seconds in (1.0, 2.0):
        studies.record_step(database, claim, step="reading", position=0, total=3, seconds=seconds)

    with database.snapshot() as db:
        assert [step.seconds for step in studies.progress(db, claim.study_id).steps] == [2.0]


def test_who_lost_a_study_publishes_nothing_more(database: Database):
    claim = world.claimed(database)
    stranger = Claim(claim.study_id, claim.revision, claim.attempt, "stranger")

    with pytest.raises(LostRaceError):
        studies.record_step(database, stranger, step="lungs", position=0, total=3, seconds=1.0)


def test_series_keep_what_the_analysis_did_with_them(database: Database):
    study_id = world.in_state(database, State.RECEIVING)
    outcome = SeriesOutcome(f"{world.STUDY_UID}.1", "refused", "series 1 is a localiser")

    with database.transaction() as db:
        studies.record_series_outcomes(db, study_id, [outcome])

    with database.snapshot() as db:
        (series,) = studies.series_of(db, study_id)
    assert (series.outcome, series.outcome_reason) == ("refused", "series 1 is a localiser")


def marker_of(database: Database) -> str:
    with database.snapshot() as db:
        return pulse.marker(db)


def test_a_move_that_commits_after_a_later_one_is_seen(request: pytest.FixtureRequest):
    postgresql = request.getfixturevalue("postgresql")
    url = postgresql.create(template=request.getfixturevalue("postgresql_template"))
    engine = Database(create_engine(url))
    try:
        slow, fast = (world.queued(engine, study_uid=uid) for uid in ("2.25.1", "2.25.2"))
        with engine.transaction() as db:
            lifecycle.advance(db, slow, State.QUEUED, State.RECEIVING)
            db.flush()
            lifecycle.move(engine, None, fast, State.QUEUED, State.RECEIVING)
            before = marker_of(engine)

        assert marker_of(engine) != before
    finally:
        engine.dispose()
