"""Sessions of browsers: how long they last, and what ends them at once."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from appliance import accounts, sessions
from appliance.accounts import Role
from appliance.database import Database, utc_now
from appliance.sessions import Limits
from appliance.tables import WebSession

PASSWORD = "a long enough one"
LIMITS = Limits(lasts=timedelta(hours=12), idle=timedelta(minutes=15))


@pytest.fixture
def token(database: Database) -> str:
    """The session of Ann, whose account is the first."""
    with database.transaction() as db:
        ann = accounts.add(db, "ann", password=PASSWORD, role=Role.RADIOLOGIST, actor="test")
        return sessions.open_session(db, ann, LIMITS)


def find(database: Database, token: str, *, later: timedelta = timedelta()):
    with database.snapshot() as db:
        return sessions.find(db, token, LIMITS, now=utc_now() + later)


def test_a_token_opens_its_session_and_is_not_in_the_database(database: Database, token: str):
    opened = find(database, token)

    assert opened is not None
    assert (opened.account.name, opened.locked, opened.names_hidden) == ("ann", False, False)
    assert find(database, token + "x") is None
    assert find(database, "") is None
    with database.snapshot() as db:
        assert token not in db.scalars(select(WebSession)).one().token_digest


def test_a_session_without_its_person_is_locked_and_in_the_end_over(database: Database, token: str):
    assert not find(database, token, later=timedelta(minutes=14)).locked
    assert find(database, token, later=timedelta(minutes=15)).locked
    assert find(database, token, later=timedelta(hours=12)) is None


def test_a_sign_of_life_is_written_now_and_then(database: Database, token: str):
    at_once = find(database, token)
    sessions.touch(database, at_once)
    assert find(database, token).active_at == at_once.active_at

    with database.transaction() as db:
        db.scalars(select(WebSession)).one().active_at -= timedelta(minutes=14)
    before = find(database, token)
    sessions.touch(database, before)

    assert find(database, token).active_at > before.active_at


@pytest.mark.parametrize("what", ["sign out", "everywhere", "password", "disabled"])
def test_a_session_ends_at_once(database: Database, token: str, what: str):
    with database.transaction() as db:
        match what:
            case "sign out":
                sessions.end(db, token)
            case "everywhere":
                assert sessions.end_all(db, 1) == 1
            case "password":
                accounts.set_password(db, "ann", password="another long one", actor="test")
            case "disabled":
                accounts.disable(db, "ann", actor="test")

    assert find(database, token) is None


def test_names_are_hidden_in_one_session_alone(database: Database, token: str):
    with database.transaction() as db:
        other = sessions.open_session(db, 1, LIMITS)
        sessions.hide_names(db, sessions.find(db, token, LIMITS).id, hidden=True)

    assert find(database, token).names_hidden
    assert not find(database, other).names_hidden


def test_sessions_that_are_over_are_forgotten(database: Database, token: str):
    with database.transaction() as db:
        db.scalars(select(WebSession)).one().opened_at -= timedelta(hours=13)
        sessions.open_session(db, 1, LIMITS)

    with database.snapshot() as db:
        assert len(db.scalars(select(WebSession)).all()) == 1
