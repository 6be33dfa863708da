from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from appliance import (
    accounts,
    audit,
    deliveries,
    lifecycle,
    pulse,
    retention,
    reviews,
    studies,
)
from appliance.accounts import Role
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.errors import ReviewConflictError, ReviewError, ReviewForbiddenError
from appliance.lifecycle import State
from appliance.reviews import Judgement, Reason
from appliance.tables import REASONS, Account, AuditEntry, Review
from tests.appliance import world

AGREED = Judgement(positive=True, lesions={1: True, 2: False}, comment="Second one is a vessel.")
OVERRIDDEN = Judgement(
    positive=False, lesions={1: False, 2: False}, reason=Reason.OTHER, reason_text="An old scar."
)


@pytest.fixture
def people(database: Database) -> dict[str, int]:
    """The row id of each account: two radiologists, and one named for each other role."""
    roles = {role.value: role for role in Role if role is not Role.RADIOLOGIST}
    roles |= {"ann": Role.RADIOLOGIST, "bob": Role.RADIOLOGIST}
    made = {
        # No password: its slow hash is of no use here.
        name: Account(name=name, password_hash="", role=role, active=True, created_at=utc_now())
        for name, role in roles.items()
    }
    with database.transaction() as db:
        db.add_all(made.values())
        db.flush()
        return {name: account.id for name, account in made.items()}


@pytest.fixture
def analysis_id(database: Database, people: dict[str, int]) -> int:
    """A result that calls the case positive, with two lesions."""
    return analysed(database)


def analysed(database: Database, study_uid: str = world.STUDY_UID) -> int:
    claim = world.claimed(database, study_uid=study_uid)
    lifecycle.finish(database, claim, world.result())
    with database.snapshot() as db:
        analysis = studies.current_analysis(db, claim.study_id)
    assert analysis is not None
    return analysis.id


def confirm(
    database: Database,
    analysis_id: int,
    judgement: Judgement = AGREED,
    *,
    name: str = "ann",
    seen: int = 0,
) -> Review:
    with database.transaction() as db:
        account = accounts.named(db, name)
        assert account is not None
        return reviews.confirm(
            db, analysis_id, judgement, seen=seen, account=account, organisation="Clinic"
        )


def current(database: Database, analysis_id: int) -> Review | None:
    with database.snapshot() as db:
        return reviews.current_review(db, analysis_id)


def row(database: Database, study_id: int = 1) -> studies.WorklistRow:
    with database.snapshot() as db:
        found = studies.worklist_row(db, study_id)
    assert found is not None
    return found


def test_the_table_of_reasons_is_the_tables():
    assert tuple(Reason) == REASONS


def test_nothing_is_confirmed_until_somebody_does(database: Database, analysis_id: int):
    assert current(database, analysis_id) is None
    assert row(database).waits_for_review


def test_what_was_confirmed_is_kept_with_who_and_when(
    database: Database, analysis_id: int, people: dict[str, int]
):
    made = confirm(database, analysis_id)

    kept = current(database, analysis_id)
    assert kept is not None
    assert kept.id == made.id
    assert (kept.version, kept.positive, kept.overridden) == (1, True, False)
    assert (kept.account_id, kept.reviewer, kept.organisation) == (people["ann"], "ann", "Clinic")
    assert (kept.rejected, kept.comment) == ([2], "Second one is a vessel.")
    assert kept.at.tzinfo is not None


def test_the_worklist_says_who_confirmed_and_what(database: Database, analysis_id: int):
    confirm(database, analysis_id)
    agreed = row(database)
    confirm(database, analysis_id, OVERRIDDEN, name="bob", seen=1)
    amended = row(database)

    assert (agreed.reviewed_by, agreed.overridden, agreed.confirmed_positive) == (
        "ann",
        False,
        True,
    )
    assert (amended.reviewed_by, amended.overridden, amended.confirmed_positive) == (
        "bob",
        True,
        False,
    )
    assert not amended.waits_for_review


def test_an_amendment_is_a_new_version_and_the_old_one_stays(database: Database, analysis_id: int):
    confirm(database, analysis_id)
    confirm(database, analysis_id, OVERRIDDEN, name="bob", seen=1)

    with database.snapshot() as db:
        versions = reviews.history(db, analysis_id)
    assert [(each.version, each.reviewer, each.overridden) for each in versions] == [
        (1, "ann", False),
        (2, "bob", True),
    ]
    last = current(database, analysis_id)
    assert last is not None
    assert (last.version, last.reason_text) == (2, "An old scar.")


def test_whoever_did_not_see_the_last_version_is_told_whose_it_is(
    database: Database, analysis_id: int
):
    first = confirm(database, analysis_id)

    with pytest.raises(ReviewConflictError) as refused:
        confirm(database, analysis_id, OVERRIDDEN, name="bob", seen=0)

    assert f"ann confirmed this result on {first.at:%Y-%m-%d %H:%M} UTC" in str(refused.value)
    with pytest.raises(ReviewConflictError, match="Nobody has confirmed"):
        confirm(database, analysed(database, "2.25.2"), seen=1)


def test_of_people_who_confirm_at_once_one_wins_and_the_others_learn_of_it(
    database: Database, analysis_id: int
):
    def attempt(name: str) -> str:
        try:
            confirm(database, analysis_id, name=name)
        except ReviewConflictError as error:
            return str(error).split()[0]
        return "won"

    for seen in range(3):
        with ThreadPoolExecutor(6) as threads:
            outcomes = list(threads.map(attempt, ["ann", "bob"] * 3))
        winner = current(database, analysis_id)
        assert winner is not None
        assert outcomes.count("won") == (1 if seen == 0 else 0)
        assert set(outcomes) - {"won"} == {winner.reviewer}
        assert winner.version == 1


def test_the_database_itself_refuses_a_second_review_of_a_version(
    database: Database, analysis_id: int
):
    made = confirm(database, analysis_id)
    values = {c.name: getattr(made, c.name) for c in Review.__table__.columns if c.name != "id"}

    with pytest.raises(IntegrityError), database.transaction() as db:
        db.execute(insert(Review).values(values))


def test_the_database_itself_refuses_to_change_a_review(database: Database, analysis_id: int):
    confirm(database, analysis_id)

    with pytest.raises(DBAPIError, match="never changed"), database.transaction() as db:
        db.execute(update(Review).values(comment="Changed."))


def test_a_result_is_not_confirmed_while_late_images_are_analysed(
    database: Database, analysis_id: int
):
    world.receive(database, world.instance(2))

    with pytest.raises(ReviewConflictError, match="a new analysis is on its way"):
        confirm(database, analysis_id)

    assert current(database, analysis_id) is None


def test_a_result_is_not_confirmed_when_a_newer_one_replaced_it(
    database: Database, analysis_id: int
):
    confirm(database, analysis_id)
    world.receive(database, world.instance(2))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.finish(database, world.reclaimed(database), world.result("analyses/1/b"))

    with pytest.raises(ReviewConflictError, match="A newer result replaced this one"):
        confirm(database, analysis_id, seen=1)

    kept = current(database, analysis_id)
    assert kept is not None
    assert kept.version == 1
    assert row(database).waits_for_review


def test_a_result_whose_replacement_failed_is_not_confirmed(database: Database, analysis_id: int):
    world.receive(database, world.instance(2))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.fail(database, world.reclaimed(database), reason="broken", transient=False)

    with pytest.raises(ReviewConflictError, match="ask an administrator"):
        confirm(database, analysis_id)


def test_a_late_image_waits_for_a_confirmation_under_way(database: Database, analysis_id: int):
    with ThreadPoolExecutor(1) as threads, database.transaction() as db:
        account = accounts.named(db, "ann")
        assert account is not None
        reviews.confirm(db, analysis_id, AGREED, seen=0, account=account, organisation="Clinic")
        late = threads.submit(world.receive, database, world.instance(2))
        with pytest.raises(TimeoutError):
            late.result(timeout=0.3)
        db.commit()
        late.result(timeout=30)

    assert world.state_of(database) is State.RECEIVING
    assert current(database, analysis_id) is not None


@pytest.mark.parametrize("role", Role)
def test_only_radiologists_confirm(database: Database, analysis_id: int, role: Role):
    name = "ann" if role is Role.RADIOLOGIST else role.value

    if role in reviews.MAY_CONFIRM:
        confirm(database, analysis_id, name=name)
    else:
        with pytest.raises(ReviewForbiddenError):
            confirm(database, analysis_id, name=name)
    confirmed = current(database, analysis_id) is not None
    assert confirmed == (role in {Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST})


def test_a_disabled_account_confirms_nothing(database: Database, analysis_id: int):
    with database.transaction() as db:
        accounts.disable(db, "ann", actor="test")

    with pytest.raises(ReviewForbiddenError):
        confirm(database, analysis_id)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lesions": {1: True}}, "left are 2"),
        ({"lesions": {}}, "left are 1, 2"),
        ({"lesions": {1: True, 2: True, 3: True}}, "no lesion 3"),
        ({"lesions": {0: True, 1: True, 2: True}}, "no lesion 0"),
        ({"positive": False}, "choose a reason"),
        ({"reason": Reason.ARTEFACT}, "decided otherwise"),
        ({"reason_text": "because"}, "need the reason"),
        ({"positive": False, "reason": Reason.OTHER, "reason_text": " "}, "in words"),
        ({"comment": "x" * (reviews.TEXT_LIMIT + 1)}, "shorten"),
    ],
)
def test_a_judgement_that_is_incomplete_or_contradicts_itself_is_refused(
    database: Database, analysis_id: int, changes: dict[str, Any], told: str
):
    with pytest.raises(ReviewError, match=told):
        confirm(database, analysis_id, replace(AGREED, **changes))

    assert current(database, analysis_id) is None


def test_a_text_that_postgresql_cannot_hold_loses_only_that(database: Database, analysis_id: int):
    confirm(database, analysis_id, replace(AGREED, comment="a\x00b\ud800"))

    kept = current(database, analysis_id)
    assert kept is not None
    assert kept.comment == "ab?"


def test_a_result_that_does_not_exist_is_refused(database: Database, people: dict[str, int]):
    with pytest.raises(ReviewError, match="no such result"):
        confirm(database, 4711)


def test_each_confirmation_is_in_the_audit_without_its_words(database: Database, analysis_id: int):
    confirm(database, analysis_id)
    confirm(database, analysis_id, OVERRIDDEN, name="bob", seen=1)

    with database.snapshot() as db:
        ours = select(AuditEntry).where(AuditEntry.tag.startswith("reviews:"))
        entries = db.scalars(ours.order_by(AuditEntry.id)).all()
        assert audit.verify(db) is None
    facts = {
        "analysis": analysis_id,
        "version": 1,
        "positive": True,
        "overridden": False,
        "added": 0,
        "corrected": 0,
    }
    assert [(e.actor, e.tag, e.subject, e.detail) for e in entries] == [
        ("ann", "reviews:analysis:confirmed", "study 1", facts),
        (
            "bob",
            "reviews:analysis:amended",
            "study 1",
            {**facts, "version": 2, "positive": False, "overridden": True},
        ),
    ]


def test_a_refused_confirmation_leaves_no_entry(database: Database, analysis_id: int):
    with pytest.raises(ReviewError):
        confirm(database, analysis_id, replace(AGREED, lesions={}))

    with database.snapshot() as db:
        ours = select(AuditEntry).where(AuditEntry.tag.startswith("reviews:"))
        assert db.scalars(ours).all() == []


def test_a_confirmation_is_an_occasion_to_deliver(database: Database, analysis_id: int):
    confirm(database, analysis_id)
    confirm(database, analysis_id, seen=1)

    with database.transaction() as db:
        told = [deliveries.take(db, each) for each in deliveries.open_occasions(db)]

    moments = [(moment, subject.review) for moment, subject in filter(None, told)]
    assert moments == [("analysed", 0), ("confirmed", 1), ("confirmed", 2)]


def test_a_review_goes_with_its_study(database: Database, settings: Settings, analysis_id: int):
    confirm(database, analysis_id)

    assert retention.remove(database, settings, 1, actor="a")

    with database.snapshot() as db:
        assert reviews.history(db, analysis_id) == []


def test_an_open_page_learns_of_a_confirmation(database: Database, analysis_id: int):
    def marker() -> str:
        with database.snapshot() as db:
            return pulse.marker(db)

    before = marker()
    confirm(database, analysis_id)

    assert marker() != before
