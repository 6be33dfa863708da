"""What is delivered: once, by one worker for each destination, later when it failed."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from appliance import audit, commitment_transactions, deliveries, doctor, lifecycle, status, studies
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.deliveries import (
    Content,
    DeliveryState,
    Kind,
    Moment,
    ObjectFile,
    ObjectState,
    Order,
    Subject,
)
from appliance.errors import ApplianceError
from appliance.lifecycle import State
from appliance.tables import AuditEntry, Delivery
from tests.appliance import world

RESULTS = (Content.SEG, Content.SR, Content.SC, Content.PDF)


def ready(database: Database, study_uid: str = world.STUDY_UID) -> Subject:
    """A study whose analysis just ended, its occasion considered."""
    claim = world.claimed(database, study_uid=study_uid)
    lifecycle.finish(database, claim, world.result(f"analyses/{claim.study_id}/a"))
    return taken(database)[1]


def taken(database: Database) -> tuple[Moment, Subject]:
    """What the newest open occasion tells of."""
    with database.transaction() as db:
        found = deliveries.take(db, deliveries.open_occasions(db)[-1])
    assert found is not None
    return found


def queue(
    database: Database,
    subject: Subject,
    contents: Collection[Content] = RESULTS,
    destination: str = "pacs",
) -> int | None:
    with database.transaction() as db:
        return deliveries.queue(
            db, subject, destination=destination, kind=Kind.DICOM, contents=contents
        )


def claim(
    database: Database, destination: str = "pacs", *, after: timedelta = timedelta(0)
) -> Order | None:
    return deliveries.claim_next(database, destination, lease_s=60, now=utc_now() + after)


def claimed(database: Database, destination: str = "pacs", **when: timedelta) -> Order:
    order = claim(database, destination, **when)
    assert order is not None
    return order


def put_off(database: Database, order: Order, **changes: Any) -> DeliveryState | None:
    values = {"retry_s": 60.0, "max_age_s": 7 * 86400.0}
    return deliveries.put_off(database, order, "away", **{**values, **changes})


def with_objects(database: Database, order: Order, count: int = 2) -> list[int]:
    files = [
        ObjectFile(
            sop_class_uid="1.2",
            sop_instance_uid=f"1.2.{order.id}.{number}",
            transfer_syntax_uid="1.2.1",
            file=f"deliveries/{number}",
        )
        for number in range(count)
    ]
    assert deliveries.note_objects(database, order, files)
    with database.snapshot() as db:
        return [each.id for each in deliveries.objects_of(db, order.id)]


def row(database: Database, delivery_id: int = 1) -> Delivery:
    with database.snapshot() as db:
        return db.get_one(Delivery, delivery_id)


@pytest.mark.parametrize("state", [State.READY, State.REJECTED])
def test_an_end_is_an_occasion_that_is_considered_once(database: Database, state: State):
    world.in_state(database, state)

    moment, subject = taken(database)

    assert moment is Moment.ANALYSED
    assert (subject.analysis_id is None) is (state is State.REJECTED)
    with database.transaction() as db:
        assert deliveries.is_current(db, subject)
        assert deliveries.latest(db, 1) == subject
        assert deliveries.open_occasions(db) == []
        assert deliveries.take(db, 1) is None


@pytest.mark.parametrize("state", [State.RECEIVING, State.QUEUED, State.ANALYSING, State.FAILED])
def test_what_is_no_end_is_no_occasion(database: Database, state: State):
    world.in_state(database, state)

    with database.snapshot() as db:
        assert deliveries.open_occasions(db) == []
        assert deliveries.latest(db, 1) is None


def test_an_analysis_that_was_out_of_date_when_it_ended_is_no_occasion(database: Database):
    claim_ = world.claimed(database)
    world.receive(database, world.instance(2))
    lifecycle.finish(database, claim_, world.result())

    with database.snapshot() as db:
        assert deliveries.open_occasions(db) == []


def test_the_same_is_queued_once_and_a_confirmation_adds_what_it_changes(database: Database):
    subject = ready(database)
    confirmed = Subject(
        study_id=subject.study_id,
        revision=subject.revision,
        analysis_id=subject.analysis_id,
        review=1,
    )
    with database.transaction() as db:
        deliveries.note_confirmed(db, confirmed)

    assert queue(database, subject, [Content.SEG, Content.SR]) == 1
    assert queue(database, subject, [Content.SR]) is None
    assert queue(database, subject, RESULTS) == 2
    assert queue(database, subject, RESULTS, "archive") == 3
    assert taken(database) == (Moment.CONFIRMED, confirmed)
    assert queue(database, confirmed, RESULTS) == 4
    assert queue(database, confirmed, RESULTS) is None

    assert [row(database, number).what for number in (1, 2, 4)] == ["seg,sr", "sc,pdf", "sr,sc,pdf"]
    with database.snapshot() as db:
        assert deliveries.latest(db, 1) == confirmed


def test_two_that_queue_at_once_queue_once(database: Database):
    subject = ready(database)

    with ThreadPoolExecutor(4) as pool:
        queued = list(pool.map(lambda _: queue(database, subject), range(8)))

    assert [each for each in queued if each] == [1]


def test_a_destination_is_sent_to_by_one_worker_and_others_meanwhile(database: Database):
    first, second = ready(database), ready(database, "2.25.2")
    for subject in (first, second):
        queue(database, subject)
    queue(database, first, destination="archive")

    with ThreadPoolExecutor(6) as pool:
        orders = list(pool.map(lambda _: claim(database), range(6)))

    assert len([order for order in orders if order]) == 1
    assert deliveries.due_destinations(database) == ["archive"]
    assert claimed(database, "archive").destination == "archive"
    assert deliveries.due_destinations(database) == []


def test_a_dead_workers_delivery_is_taken_over_and_what_it_says_comes_too_late(
    database: Database,
):
    queue(database, ready(database))
    first = claimed(database)
    (one, _) = with_objects(database, first)

    second = claimed(database, after=timedelta(seconds=61))

    assert (first.state, second.state) == (DeliveryState.SENDING, DeliveryState.SENDING)
    late = {"problem": None, "lease_s": 60}
    assert not deliveries.note_answer(database, first, one, ObjectState.SENT, **late)
    assert not deliveries.sent(database, first, commitment=False)
    assert put_off(database, first) is None
    assert not deliveries.renew(database, first, lease_s=60)
    assert deliveries.renew(database, second, lease_s=60)
    with database.snapshot() as db:
        assert {each.state for each in deliveries.objects_of(db, 1)} == {ObjectState.WAITING}


def test_a_failure_is_tried_again_ever_later_until_it_is_too_old(database: Database):
    queue(database, ready(database))

    delays = []
    for _ in range(9):
        order = claimed(database, after=timedelta(days=1))
        assert put_off(database, order) is DeliveryState.WAITING
        next_try_at = row(database).next_try_at
        assert next_try_at is not None
        delays.append(round((next_try_at - utc_now()).total_seconds() / 60))
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    order = claimed(database, after=timedelta(days=1))
    assert put_off(database, order, max_age_s=0.0) is DeliveryState.FAILED
    assert claim(database, after=timedelta(days=30)) is None


def test_a_retry_sends_what_is_left(database: Database):
    queue(database, ready(database))
    order = claimed(database)
    one, two = with_objects(database, order)
    for number, state in ((one, ObjectState.SENT), (two, ObjectState.REFUSED)):
        deliveries.note_answer(database, order, number, state, problem="x", lease_s=60)
    deliveries.fail(database, order, "0xA900")

    with database.transaction() as db:
        deliveries.retry(db, 1, actor="ann")

    again = claimed(database)
    assert again.failures == 0
    with database.snapshot() as db:
        states = [each.state for each in deliveries.objects_of(db, 1)]
    assert states == [ObjectState.SENT, ObjectState.WAITING]


def test_what_waits_for_its_next_try_can_be_woken(database: Database):
    queue(database, ready(database))
    queued_at = row(database).queued_at
    put_off(database, claimed(database))
    assert claim(database) is None

    with database.transaction() as db:
        deliveries.retry(db, 1, actor="ann")

    assert claimed(database).failures == 0
    assert row(database).queued_at == queued_at


def test_what_is_dropped_while_it_is_sent_stops_and_frees_its_destination(database: Database):
    queue(database, ready(database))
    queue(database, ready(database, "2.25.2"))
    order = claimed(database)

    with database.transaction() as db:
        deliveries.drop(db, order.id, actor="ann")

    assert not deliveries.sent(database, order, commitment=False)
    assert row(database).state == DeliveryState.DROPPED
    assert claimed(database).id == 2


def test_people_change_what_can_be_changed_and_the_audit_says_who(database: Database):
    subject = ready(database)
    queue(database, subject)
    with database.transaction() as db, pytest.raises(ApplianceError, match="no delivery 9"):
        deliveries.retry(db, 9, actor="ann")
    order = claimed(database)
    with database.transaction() as db, pytest.raises(ApplianceError, match="1 is SENDING"):
        deliveries.retry(db, 1, actor="ann")
    deliveries.give_back(database, order)
    wanted = {"destination": "pacs", "kind": Kind.DICOM, "contents": RESULTS, "actor": "ann"}
    with database.transaction() as db, pytest.raises(ApplianceError, match="is under way"):
        deliveries.request(db, subject, **wanted)
    deliveries.fail(database, claimed(database), "0xA900")
    with database.transaction() as db:
        deliveries.retry(db, 1, actor="ann")
        deliveries.drop(db, 1, actor="ann")
        assert deliveries.request(db, subject, **wanted) == 2
    with database.transaction() as db, pytest.raises(ApplianceError, match="1 is DROPPED"):
        deliveries.drop(db, 1, actor="ann")

    assert row(database, 2).repetition == 1
    with database.snapshot() as db:
        tags = [(entry.tag, entry.subject, entry.actor) for entry in db.query(AuditEntry)]
        assert audit.verify(db) is None
    actions = [("retried", 1), ("dropped", 1), ("requested", 2)]
    assert tags == [
        (f"deliveries:delivery:{action}", f"delivery {number}", "ann") for action, number in actions
    ]


def test_a_newer_result_makes_the_older_one_not_current(database: Database):
    old = ready(database)
    world.receive(database, world.instance(2))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.finish(database, world.reclaimed(database), world.result("analyses/1/b"))

    with database.snapshot() as db:
        assert not deliveries.is_current(db, old)
        newest = deliveries.latest(db, 1)
    assert newest is not None
    assert newest.analysis_id == 2


def test_a_rejection_makes_the_result_before_it_not_current(database: Database):
    old = ready(database)
    world.receive(database, world.instance(2))
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    lifecycle.reject(database, world.reclaimed(database), reason="not a chest")
    rejected = taken(database)[1]

    with database.snapshot() as db:
        assert not deliveries.is_current(db, old)
        assert deliveries.is_current(db, rejected)
        assert deliveries.latest(db, 1) == rejected


def test_a_result_makes_the_rejection_before_it_not_current(database: Database):
    world.in_state(database, State.REJECTED)
    rejected = taken(database)[1]
    lifecycle.requeue(database, 1, actor="ann")
    with database.snapshot() as db:
        assert deliveries.is_current(db, rejected)  # until there is another end
    lifecycle.finish(database, world.reclaimed(database), world.result())

    with database.snapshot() as db:
        assert not deliveries.is_current(db, rejected)


def test_what_a_peer_says_is_kept_without_what_the_database_refuses(database: Database):
    queue(database, ready(database))
    order = claimed(database)
    (one, _) = with_objects(database, order)

    assert deliveries.note_answer(
        database, order, one, ObjectState.WAITING, problem="0xA700: no\0 room", lease_s=60
    )
    assert deliveries.fail(database, order, "no\0 \udc80") is DeliveryState.FAILED

    assert row(database).last_problem == "no ?"


def test_counts_and_what_is_late(database: Database):
    queue(database, ready(database))
    queue(database, ready(database, "2.25.2"), destination="archive")
    deliveries.fail(database, claimed(database), "0xA900")

    with database.snapshot() as db:
        assert deliveries.counts(db) == {DeliveryState.FAILED: 1, DeliveryState.WAITING: 1}
        assert deliveries.late(db, since=utc_now()) == 1
        assert deliveries.late(db, since=utc_now() - timedelta(hours=1)) == 0
        assert [each.id for each in deliveries.unfinished(db)] == [1, 2]
        assert [each.id for each in deliveries.unfinished(db, limit=1)] == [1]
        assert deliveries.count_unfinished(db) == 2
        assert [each.id for each in deliveries.unfinished(db, failed_only=True)] == [1]
        assert deliveries.unfinished_results(db) == {(1, 0), (2, 0)}


def test_everything_is_listed_with_its_objects_by_one_query(database: Database):
    for number in range(3):
        queue(database, ready(database, f"2.25.{number}"), destination=f"pacs{number}")
        with_objects(database, claimed(database, f"pacs{number}"), count=number)
    asked: list[str] = []
    listen = event.listens_for(database.engine, "before_cursor_execute")
    listen(lambda _connection, _cursor, statement, *_more: asked.append(statement))

    with database.snapshot() as db:
        found = [
            (each.id, [one.sop_instance_uid for one in objects])
            for each, objects in deliveries.listed(db)
        ]
        of_one = [each.id for each, _ in deliveries.listed(db, study_id=row(database, 2).study_id)]

    assert found == [(1, []), (2, ["1.2.2.0"]), (3, ["1.2.3.0", "1.2.3.1"])]
    assert of_one == [2]
    assert len([one for one in asked if "delivered_object" in one]) == 2


def sent_to_be_committed(database: Database) -> Order:
    """The order to ask for the commitment to two objects, which were sent."""
    queue(database, ready(database))
    order = claimed(database)
    for number in with_objects(database, order):
        deliveries.note_answer(database, order, number, ObjectState.SENT, problem=None, lease_s=60)
    assert deliveries.sent(database, order, commitment=True)
    asking = claimed(database)
    assert asking.state is DeliveryState.SENT
    return asking


def report(database: Database, transaction_uid: str, kept: str = "", lost: str = "") -> bool:
    return commitment_transactions.report(
        database,
        transaction_uid,
        committed=[f"1.2.1.{number}" for number in kept],
        failed={f"1.2.1.{number}": "0x0112" for number in lost},
        retry_s=60,
    )


def test_a_full_report_commits_and_an_unknown_one_is_told(database: Database):
    asking = sent_to_be_committed(database)
    uid = commitment_transactions.begin(database, asking)
    commitment_transactions.await_report(database, asking, wait_s=3600)
    assert row(database).state == DeliveryState.SENT
    assert claim(database, after=timedelta(minutes=59)) is None

    assert not report(database, "1.2.3", kept="01")
    assert report(database, uid, kept="01")

    assert (row(database).state, row(database).next_try_at) == (DeliveryState.COMMITTED, None)
    assert report(database, uid, lost="01")  # it comes twice, and has changed its mind
    assert row(database).state == DeliveryState.COMMITTED


def test_a_report_that_is_faster_than_its_request_is_not_lost(database: Database):
    asking = sent_to_be_committed(database)
    uid = commitment_transactions.begin(database, asking)

    assert report(database, uid, kept="01")
    commitment_transactions.await_report(database, asking, wait_s=3600)

    assert (row(database).state, row(database).lease_until) == (DeliveryState.COMMITTED, None)
    assert row(database).next_try_at is None


def test_what_is_not_kept_is_sent_again_and_the_rest_is_not(database: Database):
    asking = sent_to_be_committed(database)
    uid = commitment_transactions.begin(database, asking)
    commitment_transactions.await_report(database, asking, wait_s=3600)

    asked_at = utc_now()
    assert report(database, uid, kept="0", lost="1")

    assert row(database).state == DeliveryState.WAITING
    with database.snapshot() as db:
        objects = deliveries.objects_of(db, 1)
    assert [each.state for each in objects] == [ObjectState.COMMITTED, ObjectState.WAITING]
    assert objects[1].problem == "taken, but not kept: 0x0112"
    assert all(each.answered_at and each.answered_at >= asked_at for each in objects)
    assert claim(database, after=timedelta(seconds=30)) is None
    assert claimed(database, after=timedelta(seconds=61)).state is DeliveryState.SENDING


def test_no_report_in_time_is_asked_for_again_and_the_first_still_counts(database: Database):
    asking = sent_to_be_committed(database)
    first = commitment_transactions.begin(database, asking)
    commitment_transactions.await_report(database, asking, wait_s=10)

    again = claimed(database, after=timedelta(seconds=11))
    assert commitment_transactions.begin(database, again) != first
    assert commitment_transactions.asked(database, again) == 2

    assert report(database, first, kept="01")
    assert row(database).state == DeliveryState.COMMITTED


def test_a_report_that_comes_after_the_delivery_was_given_up_still_counts(database: Database):
    asking = sent_to_be_committed(database)
    uid = commitment_transactions.begin(database, asking)
    deliveries.fail(database, asking, "asked 1 times")

    assert report(database, uid, kept="0")
    assert row(database).state == DeliveryState.FAILED
    assert report(database, uid, kept="1")

    assert row(database).state == DeliveryState.COMMITTED
    assert row(database).last_problem is None


def test_what_is_said_to_be_kept_and_lost_is_lost(database: Database):
    asking = sent_to_be_committed(database)
    uid = commitment_transactions.begin(database, asking)

    assert report(database, uid, kept="01", lost="1")

    assert row(database).state == DeliveryState.WAITING


def test_a_result_of_ours_that_comes_back_opens_nothing(database: Database):
    queue(database, ready(database))
    with_objects(database, claimed(database))
    returned = world.instance(sop_instance_uid="1.2.1.0", series_uid="1.2.9")

    assert world.receive(database, returned, returned) == [
        studies.Recorded.NEW,
        studies.Recorded.DUPLICATE,
    ]
    assert world.state_of(database) is State.READY

    world.receive(database, world.instance(2))
    assert world.state_of(database) is State.RECEIVING


def test_status_and_doctor_tell_of_what_was_given_up_and_is_late(
    database: Database, settings: Settings
):
    assert all(finding.well for finding in doctor.check_exchanges(settings))
    queue(database, ready(database))
    queue(database, ready(database, "2.25.2"), destination="archive")
    deliveries.fail(database, claimed(database), "0xA900")
    with database.transaction() as db:
        db.get_one(Delivery, 2).queued_at = utc_now() - timedelta(hours=2)

    found = {finding.subject: finding for finding in doctor.check_exchanges(settings)}

    assert found["deliveries"].text == "1 given up, 1 queued for more than an hour"
    assert not found["deliveries"].well
    assert found["retrievals"].well
    assert "Deliveries:  WAITING 1  FAILED 1" in status.work(database)
