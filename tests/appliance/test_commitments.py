"""What peers want to know that we keep: noted once, answered once, by what is really there."""

from datetime import timedelta

import pytest

from appliance import commitments
from appliance.commitments import Failure, Reference, Request, RequestState
from appliance.database import Database, utc_now
from appliance.tables import CommitmentRequest

SOON = timedelta(days=1)
ASKED = (Reference("1.2", "1.2.3"), Reference("1.2", "1.2.4"))


def note(database: Database, *, transaction_uid: str = "2.25.1") -> int:
    with database.transaction() as db:
        return commitments.note(
            db,
            peer="SCANNER",
            transaction_uid=transaction_uid,
            instances=ASKED,
            not_before=utc_now(),
        )


def claimed(database: Database, *, after: timedelta = timedelta(0)) -> Request:
    request = commitments.claim_next(database, lease_s=60, now=utc_now() + after)
    assert request is not None
    return request


def state(database: Database) -> str:
    with database.snapshot() as db:
        (row,) = db.query(CommitmentRequest)
        return str(row.state)


def test_one_claims_and_the_next_has_nothing(database: Database):
    number = note(database)

    request = claimed(database)

    assert request == Request(number, "SCANNER", "2.25.1", ASKED, 1)
    assert commitments.claim_next(database, lease_s=60) is None
    assert commitments.claim(database, number, lease_s=60) is None
    assert commitments.finish(database, request)
    assert commitments.claim_next(database, lease_s=60, now=utc_now() + SOON) is None


def test_who_died_is_followed_and_has_lost_the_right(database: Database):
    note(database)
    dead = claimed(database)

    follower = claimed(database, after=timedelta(seconds=61))

    assert follower.attempt == 2
    assert not commitments.finish(database, dead)
    assert commitments.finish(database, follower)


def test_the_same_transaction_asked_again_is_answered_again(database: Database):
    number = note(database)
    commitments.finish(database, claimed(database))
    with database.snapshot() as db:
        assert db.get_one(CommitmentRequest, number).instances == []

    assert note(database) == number
    again = claimed(database)
    assert (again.attempt, again.instances) == (1, ASKED)


def test_tries_come_ever_later_and_end(database: Database):
    note(database)
    moment = utc_now()
    for _ in range(commitments.MAX_ATTEMPTS - 1):
        request = commitments.claim_next(database, lease_s=60, now=moment)
        assert request is not None
        assert commitments.put_off(database, request, "away") is RequestState.WAITING
        assert commitments.claim_next(database, lease_s=60) is None
        moment += timedelta(seconds=commitments.LONGEST_DELAY_S + 1)
    last = commitments.claim_next(database, lease_s=60, now=moment)
    assert last is not None

    assert commitments.put_off(database, last, "away") is RequestState.FAILED
    assert state(database) == "FAILED"


def test_what_is_handed_over_is_due_at_once(database: Database):
    number = note(database)
    request = claimed(database)

    commitments.hand_over(database, number)

    assert not commitments.finish(database, request)
    assert claimed(database).id == number


@pytest.mark.parametrize("end", ["answered", "given up"])
def test_what_has_ended_is_not_handed_over(database: Database, end: str):
    number = note(database)
    request = claimed(database)
    if end == "answered":
        commitments.finish(database, request)
    else:
        commitments.put_off(database, request, "nobody", retriable=False)

    commitments.hand_over(database, number)

    assert commitments.claim_next(database, lease_s=60, now=utc_now() + SOON) is None


def test_the_reasons_are_those_of_the_standard():
    assert [reason.value for reason in Failure] == [0x0110, 0x0112, 0x0119]
