from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import update

from appliance import accounts, audit, lifecycle, priority, retrievals, reviews, studies, worklist
from appliance.database import Database
from appliance.lifecycle import State
from appliance.priority import Priority
from appliance.reviews import Judgement
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from appliance.tables import Study
from appliance.worklist import Mine, Order, Outcome, Rank, Stage, View
from tests.appliance import world

TODAY = date(2026, 11, 23)
RECENT = "20261120"


def view(**wanted: Any) -> View:
    return View(**{"account_id": 1, "account": "ann", "today": TODAY, **wanted})


def lines(database: Database, **wanted: Any) -> list[worklist.Line]:
    with database.snapshot() as db:
        found = worklist.page(db, view(**wanted), limit=50)
        assert worklist.count(db, view(**wanted)) == len(found)
        return found


def ids(database: Database, **wanted: Any) -> list[int]:
    return [line.row.study_id for line in lines(database, **wanted)]


def receive(database: Database, number: int, **changes: Any) -> int:
    """The id of a study that was just received, as `name`, `patient_id`, `date` and so on say."""
    uid = changes.get("uid", f"2.25.{number}")
    received = world.instance(
        study_uid=uid,
        source_ae=changes.get("source", "CT1"),
        patient=PatientAttributes(
            patient_id=changes.get("patient_id", f"P{number}"), name=changes.get("name", "")
        ),
        study=StudyAttributes(
            study_date=changes.get("date", RECENT), accession_number=changes.get("accession", "")
        ),
        series=SeriesAttributes(
            station_name=changes.get("station", ""),
            manufacturer=changes.get("maker", ""),
            model=changes.get("model", ""),
        ),
    )
    world.receive(database, received)
    with database.snapshot() as db:
        return studies.named(db, uid)[-1].id


def ready(database: Database, number: int, probability: float = 0.1, **changes: Any) -> int:
    """The id of a study with a result; from 0.5 it is suspicious."""
    study_id = receive(database, number, **changes)
    lifecycle.move(database, None, study_id, State.RECEIVING, State.QUEUED)
    lesions = changes.get("lesions", 0)
    found = world.result(probability=probability, positive=probability >= 0.5, lesion_count=lesions)
    lifecycle.finish(database, world.reclaimed(database, study_id), found)
    return study_id


def confirm(database: Database, study_id: int, *, name: str = "ann") -> None:
    with database.transaction() as db:
        account = accounts.named(db, name)
        if account is None:
            accounts.add(
                db, name, password="longer than needed 1", role=accounts.Role.RADIOLOGIST, actor="t"
            )
            account = accounts.named(db, name)
        analysis = studies.current_analysis(db, study_id)
        assert analysis is not None
        assert account is not None
        judgement = Judgement(
            positive=bool(analysis.positive),
            lesions=dict.fromkeys(range(1, analysis.lesion_count + 1), True),
        )
        reviews.confirm(db, analysis.id, judgement, seen=0, account=account, organisation="Test")


def prior(database: Database, study_uid: str) -> None:
    """Ask for a study as a prior of another one."""
    with database.transaction() as db:
        assert retrievals.ask(
            db,
            destination="pacs",
            aim=retrievals.Aim.STUDY,
            study_uid=study_uid,
            why=retrievals.Why.PRIOR,
            expected=9,
        )


def test_a_scanners_wrong_clock_buries_nothing_suspicious(database: Database):
    wrong, before = (
        ready(database, 1, 0.9, date="20000101"),
        ready(database, 2, 0.9, date="20000101"),
    )
    with database.transaction() as db:
        since = datetime(2026, 9, 1, tzinfo=UTC)
        db.execute(update(Study).where(Study.id == before).values(first_received_at=since))

    assert [(line.row.study_id, line.rank) for line in lines(database)] == [
        (wrong, Rank.SUSPICIOUS),
        (before, Rank.OLD),
    ]


def test_what_is_urgent_and_suspicious_comes_first_and_says_why(database: Database):
    confirmed = ready(database, 1, 0.99)
    confirm(database, confirmed)
    prior(database, "2.25.2")
    old = ready(database, 2, 0.95, date="2026.10.20")
    below = ready(database, 3, 0.2)
    likely, likelier = ready(database, 4, 0.6), ready(database, 5, 0.9)
    urgent, arriving = ready(database, 6, 0.1), receive(database, 7)
    with database.transaction() as db:
        priority.mark(db, urgent, Priority.URGENT, actor="ann", who="ann")

    found = [(line.row.study_id, line.rank) for line in lines(database)]

    assert found == [
        (urgent, Rank.URGENT),
        (likelier, Rank.SUSPICIOUS),
        (likely, Rank.SUSPICIOUS),
        (arriving, Rank.OPEN),
        (below, Rank.OPEN),
        (old, Rank.OLD),
        (confirmed, Rank.CONFIRMED),
    ]
    assert ids(database, reverse=True) == [study_id for study_id, _ in reversed(found)]


def test_what_is_confirmed_goes_by_arrival_however_suspicious_it_was(database: Database):
    first, second = ready(database, 1, 0.99), ready(database, 2, 0.6)
    for study_id in (first, second):
        confirm(database, study_id)

    assert ids(database) == [second, first]


def test_a_page_is_a_part_of_the_order(database: Database):
    for number in range(5):
        receive(database, number)

    with database.snapshot() as db:
        page = worklist.page(db, view(), limit=2, offset=2)

    assert [line.row.study_id for line in page] == ids(database)[2:4]


def test_the_other_orders(database: Database):
    first = ready(database, 1, 0.2, name="Zoe", date="20261101")
    second = ready(database, 2, 0.9, name="adam", date="20261103")
    third = receive(database, 3, name="Moll^X", date="20261102")

    assert ids(database, order=Order.ARRIVAL) == [third, second, first]
    assert ids(database, order=Order.DATE) == [second, third, first]
    assert ids(database, order=Order.PATIENT) == [second, third, first]
    assert ids(database, order=Order.PATIENT, reverse=True) == [first, third, second]
    assert ids(database, order=Order.RESULT) == [second, first, third]


def test_a_study_is_at_one_stage_and_counted_there(database: Database):
    receiving, unread, confirmed = receive(database, 1), ready(database, 2), ready(database, 3)
    confirm(database, confirmed)
    queued = world.queued(database, study_uid="2.25.4")
    running, failed, refused = (
        world.claimed(database, study_uid=f"2.25.{number}") for number in (5, 6, 7)
    )
    lifecycle.fail(database, failed, reason="broken", transient=False)
    lifecycle.reject(database, refused, reason="no chest")

    assert set(ids(database, stage=Stage.WAITING)) == {receiving, queued}
    assert ids(database, stage=Stage.RUNNING) == [running.study_id]
    assert ids(database, stage=Stage.REVIEW) == [unread]
    assert ids(database, stage=Stage.CONFIRMED) == [confirmed]
    assert ids(database, stage=Stage.FAILED) == [failed.study_id]
    assert ids(database, stage=Stage.REFUSED) == [refused.study_id]
    with database.snapshot() as db:
        assert worklist.counts(db) == {stage: len(ids(database, stage=stage)) for stage in Stage}


def test_filters_by_where_a_study_comes_from(database: Database):
    scanner = {"maker": "Alpha", "model": "One", "station": "CT-A"}
    one = receive(database, 1, source="CT1", **scanner)
    other = receive(database, 2, source="CT2", maker="Alpha", model="Two", station="CT-B")

    assert ids(database, source="CT2") == [other]
    assert ids(database, station="CT-A") == [one]
    assert ids(database, device=("Alpha", "Two")) == [other]
    assert ids(database, device=("Beta", "Two")) == []
    with database.snapshot() as db:
        offered = worklist.choices(db)
    assert list(offered.sources) == ["CT1", "CT2"]
    assert list(offered.stations) == ["CT-A", "CT-B"]
    assert list(offered.devices) == [("Alpha", "One"), ("Alpha", "Two")]


def test_filters_by_result(database: Database):
    clear, suspicious = ready(database, 1, 0.1), ready(database, 2, 0.9, lesions=2)
    receive(database, 3)

    assert ids(database, outcome=Outcome.SUSPICIOUS) == [suspicious]
    assert ids(database, outcome=Outcome.BELOW) == [clear]
    assert ids(database, outcome=Outcome.LESIONS) == [suspicious]


def test_a_period_goes_by_the_study_date_else_by_the_day_of_arrival(database: Database):
    before = receive(database, 1, date="20261031")
    first, last = receive(database, 2, date="20261101"), receive(database, 3, date="2026.11.30")
    undated = receive(database, 4, date="")
    arrived = datetime(2026, 11, 15, 12, tzinfo=UTC)
    with database.transaction() as db:
        db.execute(update(Study).where(Study.id == undated).values(first_received_at=arrived))
    november = {"first": date(2026, 11, 1), "last": date(2026, 11, 30)}

    assert set(ids(database, **november)) == {first, last, undated}
    assert set(ids(database, last=date(2026, 11, 14))) == {before, first}


def test_mine_is_what_i_confirmed_or_opened(database: Database):
    mine, hers, neither = ready(database, 1), ready(database, 2), ready(database, 3)
    confirm(database, mine, name="ann")
    confirm(database, hers, name="eve")
    with database.transaction() as db:
        ann = accounts.named(db, "ann")
        for actor, study_id in (("ann", neither), ("eve", hers)):
            audit.record(db, actor=actor, tag=studies.VIEWED, subject=f"study {study_id}")
    assert ann is not None

    assert ids(database, mine=Mine.CONFIRMED, account_id=ann.id) == [mine]
    assert ids(database, mine=Mine.OPENED) == [neither]


@pytest.mark.parametrize(
    ("name", "search"),
    [
        ("MUELLER^ANNA", "MUELLER^ANNA"),
        ("MUELLER^ANNA", "anna mueller"),
        ("MUELLER^ANNA", "muell*"),
        ("Müller^Änne", "muller anne"),
        ("Müller^Änne", "MÜLLER, ÄNNE"),
        ("Weiß^Jo", "weiss"),
        ("Weiss^Jo", "Weiß"),
        ("Иванов^Пётр", "ИВАНОВ"),
        ("ИВАНОВ^ПЁТР", "петр"),
        ("Wang^XiaoDong=王^小東", "王小東"),
        ("Wang^XiaoDong=王^小東", "小東 wang"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "やまだ"),
        ("O'Neill^Mary-Jane", "oneill maryjane"),
        ("O'Neill^Mary-Jane", "o'neill mary-jane"),
    ],
)
def test_a_name_is_found_however_it_is_typed(database: Database, name: str, search: str):
    found = receive(database, 1, name=name)
    receive(database, 2, name="Somebody^Else")

    assert ids(database, search=search) == [found]


def test_numbers_are_found_by_a_part_and_uids_whole(database: Database):
    found = receive(database, 1, patient_id="AB-0815", accession="X.77", uid="1.2.840.5")
    receive(database, 2, patient_id="CD-1", accession="Y_8", uid="1.2.840.51")

    assert ids(database, search="ab-08") == [found]
    assert ids(database, search="x.77") == [found]
    assert ids(database, search="1.2.840.5") == [found]
    assert ids(database, search="ab-0815 x.77") == [found]
    assert ids(database, search="ab-0815 y_8") == []


@pytest.mark.parametrize("search", ["%", "_", "'; DROP TABLE study", "\\", "--", "[a-z]", "(", "."])
def test_what_is_typed_is_text_and_no_pattern(database: Database, search: str):
    receive(database, 1, name="Somebody^Else", patient_id="17")

    assert ids(database, search=search) == []


def test_the_next_to_review_follows_the_order_and_begins_anew_behind_the_last(database: Database):
    low, high = ready(database, 1, 0.6), ready(database, 2, 0.9)
    middle, running = ready(database, 3, 0.7), world.claimed(database, study_uid="2.25.4")

    def after(study_id: int, **wanted: Any) -> int | None:
        with database.snapshot() as db:
            return worklist.next_to_review(db, view(**wanted), after=study_id)

    assert [after(0), after(high), after(middle), after(low)] == [high, middle, low, high]
    assert after(middle, order=Order.ARRIVAL) == high
    confirm(database, middle)
    assert after(middle) == low
    assert after(high) == low
    assert after(running.study_id, stage=Stage.REVIEW) == high
    confirm(database, low)
    assert after(high) is None


def test_other_studies_of_a_patient_are_counted_and_listed(database: Database):
    person = {"patient_id": "P9", "name": "Doe^Jane"}
    first = ready(database, 1, date="20240101", **person)
    second = ready(database, 2, date="20250101", **person)
    now = receive(database, 3, date=RECENT, patient_id="P9", name="DOE^JANE")
    receive(database, 4, patient_id="P9", name="Roe^Richard")

    counted = {line.row.study_id: (line.earlier, line.later) for line in lines(database)}
    with database.snapshot() as db:
        listed = worklist.others_of_patient(db, now)

    assert (counted[first], counted[second], counted[now]) == ((0, 2), (1, 1), (2, 0))
    assert [row.study_id for row in listed] == [second, first]


def test_studies_without_a_patient_number_are_nobodys_others(database: Database):
    for number in (1, 2):
        receive(database, number, patient_id="", name="Anonymous")

    assert [(line.earlier, line.later) for line in lines(database)] == [(0, 0), (0, 0)]


def test_newer_ones_are_counted(database: Database):
    first = receive(database, 1)
    receive(database, 2, source="CT2")
    receive(database, 3)

    with database.snapshot() as db:
        assert worklist.count(db, view(), newer_than=first) == 2
        assert worklist.count(db, view(source="CT2"), newer_than=first) == 1
        assert worklist.newest(db) == first + 2
