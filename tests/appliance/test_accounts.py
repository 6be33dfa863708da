from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from appliance import accounts, audit
from appliance.accounts import LOCK_MINUTES, MAX_FAILED_LOGINS, Role
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError
from appliance.tables import ROLES, AuditEntry

PASSWORD = "a long enough one"


@pytest.fixture
def ann(database: Database):
    with database.transaction() as db:
        return accounts.add(db, "ann", password=PASSWORD, role=Role.RADIOLOGIST, actor="test")


def sign_in(
    database: Database, password: str = PASSWORD, *, name: str = "ann", now: datetime | None = None
):
    return accounts.authenticate(database, name=name, password=password, now=now)


def tags(database: Database):
    with database.snapshot() as db:
        assert audit.verify(db) is None
        return list(db.scalars(select(AuditEntry.tag).order_by(AuditEntry.id)))


def test_the_roles_are_those_of_the_table():
    assert tuple(Role) == ROLES


def test_the_right_password_signs_in(database: Database, ann: int):
    account = sign_in(database)

    assert (account.id, account.name, account.role) == (ann, "ann", Role.RADIOLOGIST)
    assert tags(database) == ["accounts:account:added", "accounts:session:opened"]


def test_a_password_is_kept_as_a_hash_alone(database: Database, ann: int):
    with database.snapshot() as db:
        account = accounts.find(db, ann)

    assert account.password_hash.startswith("$argon2id$")
    assert PASSWORD not in account.password_hash


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "wrong"), ("bob", PASSWORD), ("ann", "x" * 10_000), ("", "")]
)
def test_a_wrong_name_or_password_does_not(database: Database, ann: int, name: str, password: str):
    assert sign_in(database, password, name=name) is None


def test_too_many_wrong_passwords_lock_the_account_for_a_while(database: Database, ann: int):
    now = utc_now()
    for _ in range(MAX_FAILED_LOGINS):
        sign_in(database, "wrong", now=now)

    assert sign_in(database, now=now) is None
    assert sign_in(database, now=now + timedelta(minutes=LOCK_MINUTES)) is not None
    assert tags(database).count("accounts:account:locked") == 1


def test_a_success_in_between_starts_the_count_again(database: Database, ann: int):
    for _ in range(3):
        for _ in range(MAX_FAILED_LOGINS - 1):
            sign_in(database, "wrong")
        assert sign_in(database) is not None


def test_nobody_can_keep_an_account_locked_by_trying_on(database: Database, ann: int):
    now = utc_now()
    for second in range(3 * MAX_FAILED_LOGINS):
        sign_in(database, "wrong", now=now + timedelta(seconds=second))

    end = timedelta(minutes=LOCK_MINUTES, seconds=MAX_FAILED_LOGINS)
    assert sign_in(database, now=now + end) is not None


def test_a_disabled_account_is_shut_out(database: Database, ann: int):
    with database.transaction() as db:
        accounts.disable(db, "ann", actor="test")

    assert sign_in(database) is None


def test_a_new_password_replaces_the_old_and_lifts_the_lock(database: Database, ann: int):
    for _ in range(MAX_FAILED_LOGINS):
        sign_in(database, "wrong")

    with database.transaction() as db:
        accounts.set_password(db, "ann", password="another long one", actor="test")

    assert sign_in(database) is None
    assert sign_in(database, "another long one") is not None


@pytest.mark.parametrize(
    ("name", "password"),
    [("ann", PASSWORD), ("", PASSWORD), (" bob", PASSWORD), ("b\nob", PASSWORD), ("bob", "short")],
)
def test_an_account_that_would_not_do_is_refused(
    database: Database, ann: int, name: str, password: str
):
    with pytest.raises(ApplianceError), database.transaction() as db:
        accounts.add(db, name, password=password, role=Role.VIEWER, actor="test")


def test_made_passwords_differ_and_are_long_enough():
    made = {accounts.new_password() for _ in range(100)}

    assert len(made) == 100
    assert all(len(password) >= accounts.MIN_PASSWORD_LENGTH for password in made)
