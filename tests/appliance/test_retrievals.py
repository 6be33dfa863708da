"""What is asked of other nodes: once, again when there is more, later when it failed."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from appliance import retrievals
from appliance.database import Database, utc_now
from appliance.lifecycle import State
from appliance.retrievals import Aim, Order, RetrievalState, Why
from appliance.studies import PatientAttributes, StudyAttributes
from appliance.tables import DeliveredObject, Delivery, Study
from tests.appliance import world

SOON = timedelta(days=1)


def ask(database: Database, **changes: Any) -> bool:
    values: dict[str, Any] = {
        "destination": "pacs",
        "aim": Aim.STUDY,
        "study_uid": "1.2.3",
        "why": Why.STANDING_QUERY,
        "expected": 5,
    }
    with database.transaction() as db:
        return retrievals.ask(db, **{**values, **changes})


def claim(database: Database, *, after: timedelta = timedelta(0)) -> Order | None:
    return retrievals.claim_next(database, lease_s=60, now=utc_now() + after)


def claimed(database: Database, *, after: timedelta = timedelta(0)) -> Order:
    order = claim(database, after=after)
    assert order is not None
    return order


def put_off(database: Database, order: Order, **changes: Any) -> RetrievalState | None:
    values = {"retriable": True, "max_attempts": 3, "retry_s": 60.0}
    return retrievals.put_off(database, order, "away", **{**values, **changes})


def test_a_study_is_asked_for_once(database: Database):
    assert ask(database)
    assert not ask(database)
    assert not ask(database, destination="other")

    retrievals.finish(database, claimed(database))

    assert not ask(database)
    assert claim(database) is None


def test_a_study_that_grew_there_is_asked_for_again(database: Database):
    ask(database)
    retrievals.finish(database, claimed(database))

    assert ask(database, expected=6)
    assert claimed(database).attempt == 1


def test_what_is_here_or_coming_is_not_asked_for(database: Database):
    study_id = world.queued(database, study_uid="1.2.3")

    assert not ask(database, expected=1)
    assert not ask(database, expected=0)
    assert ask(database, expected=2)
    world.receive(database, world.instance(2, study_uid="1.2.3"))
    assert world.state_of(database, study_id) is State.RECEIVING
    assert not ask(database, expected=3)


def test_one_is_carried_out_at_a_time(database: Database):
    ask(database)
    ask(database, study_uid="1.2.4")

    first = claimed(database)
    assert claim(database) is None
    retrievals.finish(database, first)

    assert claimed(database).study_uid == "1.2.4"


def test_a_dead_workers_retrieval_is_taken_over_and_its_answer_comes_too_late(database: Database):
    ask(database)
    first = claimed(database)

    second = claimed(database, after=timedelta(seconds=61))

    assert second.attempt == 2
    assert not retrievals.finish(database, first)
    assert not retrievals.renew(database, first, lease_s=60)
    assert put_off(database, first) is None
    assert retrievals.renew(database, second, lease_s=60)


def test_a_failure_is_tried_again_ever_later(database: Database):
    ask(database)

    assert put_off(database, claimed(database)) is RetrievalState.WAITING
    assert claim(database, after=timedelta(seconds=55)) is None
    second = claimed(database, after=timedelta(seconds=65))
    assert put_off(database, second) is RetrievalState.WAITING
    assert claim(database, after=timedelta(seconds=115)) is None
    third = claimed(database, after=timedelta(seconds=125))
    assert put_off(database, third) is RetrievalState.FAILED
    assert claim(database, after=SOON) is None

    with database.snapshot() as db:
        (row,) = retrievals.unfinished(db)
    assert (row.state, row.last_problem) == ("FAILED", "away")
    assert ask(database, destination="other")


def test_what_is_refused_for_good_is_not_tried_again(database: Database):
    ask(database)

    assert put_off(database, claimed(database), retriable=False) is RetrievalState.FAILED
    assert not ask(database)


def test_priors_bring_no_priors(database: Database):
    person = PatientAttributes(patient_id="P")
    world.receive(database, world.instance(study_uid="1.2.3", patient=person))
    world.receive(database, world.instance(study_uid="1.2.4"))
    ask(database, study_uid="1.2.5", why=Why.PRIOR)
    world.receive(database, world.instance(study_uid="1.2.5", patient=person))

    def fresh(since: timedelta) -> list[str]:
        with database.snapshot() as db:
            found = retrievals.fresh(db, destination="pacs", since=utc_now() - since)
        return [study.study_uid for study in found]

    assert fresh(SOON) == ["1.2.3"]
    assert fresh(-SOON) == []
    ask(database, aim=Aim.PRIORS, why=Why.NEW_STUDY, expected=1)
    assert fresh(SOON) == []


def retried(database: Database) -> bool:
    with database.transaction() as db:
        return retrievals.retry(db, 1)


@pytest.mark.parametrize(
    ("then", "prior"),
    [
        (lambda _: None, True),
        (lambda database: ask(database, why=Why.PRIOR, expected=9), True),
        (lambda database: ask(database, why=Why.STANDING_QUERY), False),
        (lambda database: ask(database, destination="other", why=Why.BY_HAND), False),
        (retried, False),
        (lambda database: put_off(database, claimed(database), retriable=False), False),
    ],
    ids=["alone", "again", "standing query", "a person", "retried", "failed"],
)
def test_a_study_is_a_mere_prior_while_nothing_else_wanted_it(
    database: Database, then: Callable[[Database], object], *, prior: bool
):
    ask(database, why=Why.PRIOR)
    then(database)
    old = StudyAttributes(study_date="20200101")
    world.receive(database, world.instance(study_uid="1.2.3", study=old))

    with database.snapshot() as db:
        (study,) = db.scalars(select(Study))
        assert retrievals.came_as_prior(db, study) is prior


def test_what_was_fetched_by_hand_stays_no_prior(database: Database):
    ask(database, why=Why.BY_HAND)
    retrievals.finish(database, claimed(database))
    old = StudyAttributes(study_date="20200101")
    world.receive(database, world.instance(study_uid="1.2.3", study=old))
    ask(database, why=Why.PRIOR, expected=9)

    with database.snapshot() as db:
        (study,) = db.scalars(select(Study))
        assert not retrievals.came_as_prior(db, study)


def test_what_kills_its_worker_lets_the_others_go_first(database: Database):
    ask(database)
    first = claimed(database)
    ask(database, study_uid="1.2.4")

    second = claimed(database, after=timedelta(seconds=61))

    assert (first.study_uid, second.study_uid) == ("1.2.3", "1.2.4")


def test_priors_are_sought_again_for_a_second_person_under_the_uid(database: Database):
    def people() -> list[int]:
        with database.snapshot() as db:
            found = retrievals.fresh(db, destination="pacs", since=utc_now() - SOON)
        return [study.people for study in found]

    for number in ("1", "2"):
        person = PatientAttributes(patient_id=number, name=f"Name{number}")
        series = f"1.2.3.{number}"
        world.receive(
            database,
            world.instance(int(number), study_uid="1.2.3", series_uid=series, patient=person),
        )
        assert people() == [int(number)]
        ask(database, aim=Aim.PRIORS, why=Why.NEW_STUDY, expected=int(number))
        assert people() == []
        retrievals.finish(database, claimed(database))


def test_a_person_may_ask_again_for_what_failed(database: Database):
    ask(database)
    put_off(database, claimed(database), retriable=False)

    assert not ask(database)
    assert ask(database, why=Why.BY_HAND)
    assert not ask(database, why=Why.BY_HAND)


def test_a_person_gives_up_and_retries(database: Database):
    ask(database)
    order = claimed(database)
    with database.transaction() as db:
        assert not retrievals.retry(db, order.id)
        assert retrievals.give_up(db, order.id, by="reader")
        assert not retrievals.give_up(db, order.id, by="reader")

    assert not retrievals.renew(database, order, lease_s=60)
    with database.transaction() as db:
        (row,) = retrievals.recent(db, limit=9)
        assert (row.state, row.last_problem) == ("FAILED", "given up by reader")
        assert retrievals.retry(db, order.id)
    again = claimed(database)
    assert again.attempt == order.attempt
    assert not retrievals.finish(database, order)
    assert retrievals.finish(database, again)


def test_a_problem_holds_no_nul(database: Database):
    ask(database)

    retrievals.put_off(
        database, claimed(database), "a\0b", retriable=True, max_attempts=3, retry_s=1
    )

    with database.snapshot() as db:
        assert retrievals.unfinished(db)[0].last_problem == "ab"


def results_sent(database: Database) -> None:
    """A study with one image, of which a PACS took two results and refused one."""
    study_id = world.queued(database, study_uid="1.2.3")
    with database.transaction() as db:
        delivery = Delivery(
            study_id=study_id,
            revision=1,
            destination="pacs",
            kind="dicom",
            what="seg,sr",
            state="SENT",
            queued_at=utc_now(),
        )
        db.add(delivery)
        db.flush()
        for number, state in enumerate(("SENT", "COMMITTED", "REFUSED")):
            db.add(
                DeliveredObject(
                    delivery_id=delivery.id,
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
                    sop_instance_uid=f"2.25.{number}",
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    file="results/x.dcm",
                    state=state,
                )
            )


def test_what_we_sent_there_ourselves_is_not_fetched(database: Database):
    results_sent(database)

    assert not ask(database, expected=3, why=Why.PRIOR)
    assert ask(database, expected=3, destination="other")
    assert ask(database, expected=4, why=Why.PRIOR)


def test_a_person_may_fetch_what_lacks_whatever_was_sent_there(database: Database):
    results_sent(database)

    assert not ask(database, expected=3)
    assert not ask(database, expected=1, why=Why.BY_HAND)
    assert ask(database, expected=3, why=Why.BY_HAND)
