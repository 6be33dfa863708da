import unicodedata
from collections.abc import Callable
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


@pytest.mark.parametrize(
    "password",
    [
        "fourteen chars",
        "passwordpassword",
        "aaaaaaaaaaaaaaaaaaaa",
        "1234567890123456",
        "qwertyuiopasdfghjkl",
        "annannannannannann",
        "radiologyhospital",
    ],
)
def test_a_password_that_is_guessed_early_is_refused(database: Database, password: str):
    with pytest.raises(ApplianceError, match="words"), database.transaction() as db:
        accounts.add(db, "ann", password=password, role=Role.VIEWER, actor="test")


@pytest.mark.parametrize(
    "password",
    ["four quiet words here", "x" * 3 + "Ünïcödé läuft gut", "日本語のパスワードはとても長いです"],
)
def test_any_characters_do_and_none_is_asked_for(database: Database, password: str):
    with database.transaction() as db:
        accounts.add(db, "ann", password=password, role=Role.VIEWER, actor="test")

    assert sign_in(database, unicodedata.normalize("NFD", password)) is not None


def test_a_person_chooses_another_password_by_the_old_one(database: Database, ann: int):
    for old, new in (("wrong", "another long one"), (PASSWORD, PASSWORD), (PASSWORD, "short")):
        with pytest.raises(ApplianceError):
            accounts.change_password(database, "ann", old=old, new=new)
    assert sign_in(database) is not None

    accounts.change_password(database, "ann", old=PASSWORD, new="another long one")

    assert sign_in(database) is None
    assert sign_in(database, "another long one") is not None


def test_the_last_administrator_stays(database: Database, ann: int):
    def change(what: Callable[..., None], *given: Role) -> None:
        with database.transaction() as db:
            what(db, "boss", *given, actor="test")

    with database.transaction() as db:
        accounts.add(db, "boss", password=PASSWORD, role=Role.ADMINISTRATOR, actor="test")
    with pytest.raises(ApplianceError, match="last administrator"):
        change(accounts.disable)
    with pytest.raises(ApplianceError, match="last administrator"):
        change(accounts.set_role, Role.VIEWER)

    with database.transaction() as db:
        accounts.set_role(db, "ann", Role.ADMINISTRATOR, actor="test")
    change(accounts.disable)

    with database.snapshot() as db:
        assert not accounts.named(db, "boss").active


def test_a_person_of_the_identity_provider_has_no_password_here(database: Database):
    person = {"external_id": "https://login.example 42", "name": "ann"}
    accounts.sign_in_external(database, **person, role=Role.VIEWER)

    assert sign_in(database, accounts.NO_PASSWORD) is None
    with pytest.raises(ApplianceError, match="identity provider"), database.transaction() as db:
        accounts.set_password(db, "ann", password=PASSWORD, actor="test")
    assert (
        accounts.sign_in_external(database, **person, role=Role.RADIOLOGIST).role == "radiologist"
    )


def test_made_passwords_differ_and_are_long_enough():
    made = {accounts.new_password() for _ in range(100)}

    assert len(made) == 100
    assert all(len(password) >= accounts.MIN_PASSWORD_LENGTH for password in made)


def test_the_last_administrator_stays_one(database: Database):
    with database.transaction() as db:
        for name in ("chief", "deputy"):
            accounts.add(db, name, password=PASSWORD, role=Role.ADMINISTRATOR, actor="test")
    with database.transaction() as db:
        accounts.disable(db, "deputy", actor="test")

    for change in (
        lambda db: accounts.disable(db, "chief", actor="test"),
        lambda db: accounts.set_role(db, "chief", Role.VIEWER, actor="test"),
    ):
        with (
            pytest.raises(ApplianceError, match="chief is the last administrator"),
            database.transaction() as db,
        ):
            change(db)

    with database.transaction() as db:
        accounts.enable(db, "deputy", actor="test")
        accounts.set_role(db, "chief", Role.VIEWER, actor="test")
        chief = accounts.named(db, "chief")
    assert chief is not None
    assert chief.role == Role.VIEWER
