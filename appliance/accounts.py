"""People who may sign in: roles, passwords by Argon2, and a lock after too many wrong ones."""

import secrets
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from appliance import audit
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError
from appliance.tables import Account

MIN_PASSWORD_LENGTH: Final = 10
MAX_PASSWORD_LENGTH: Final = 1024  # hashing takes time in proportion
NAME_LIMIT: Final = 64
MAX_FAILED_LOGINS: Final = 5
LOCK_MINUTES: Final = 15

_hasher = PasswordHasher()


class Role(StrEnum):
    """What a person may do."""

    RADIOLOGIST = "radiologist"
    ADMINISTRATOR = "administrator"
    VIEWER = "viewer"


def add(db: Session, name: str, *, password: str, role: Role, actor: str) -> int:
    """The id of a new account.

    Raises:
        ApplianceError: the name is taken, or name or password is not acceptable.
    """
    _check_name(name)
    if named(db, name) is not None:
        raise ApplianceError(f"there is a user {name} already; choose another name")
    account = Account(
        name=name, password_hash=_hash(password), role=role, active=True, created_at=utc_now()
    )
    db.add(account)
    db.flush()
    subject = f"account {account.id}"
    audit.record(
        db, actor=actor, tag="accounts:account:added", subject=subject, detail={"role": role}
    )
    return account.id


def find(db: Session, account_id: int) -> Account | None:
    """The account with this id, active or not."""
    return db.get(Account, account_id)


def named(db: Session, name: str) -> Account | None:
    """The account with this name, active or not."""
    return db.scalar(select(Account).where(Account.name == name))


def everyone(db: Session) -> list[Account]:
    """All accounts by name."""
    return list(db.scalars(select(Account).order_by(Account.name)))


def set_password(db: Session, name: str, *, password: str, actor: str) -> None:
    """Give an account a new password and lift its lock. Raises ApplianceError."""
    account = _existing(db, name)
    account.password_hash = _hash(password)
    account.failed_logins, account.locked_until = 0, None
    subject = f"account {account.id}"
    audit.record(db, actor=actor, tag="accounts:password:changed", subject=subject)


def disable(db: Session, name: str, *, actor: str) -> None:
    """Shut an account out; it stays, because the audit names it. Raises ApplianceError."""
    account = _existing(db, name)
    account.active = False
    audit.record(db, actor=actor, tag="accounts:account:disabled", subject=f"account {account.id}")


def authenticate(
    database: Database, *, name: str, password: str, now: datetime | None = None
) -> Account | None:
    """The account, or nothing: a wrong name, password, a lock and a disabled account look alike.

    The slow hash is computed outside of any transaction, so that nobody waits for it.
    """
    moment = now or utc_now()
    with database.snapshot() as db:
        account = named(db, name) if len(name) <= NAME_LIMIT else None
    # An unknown name costs the same time as a known one.
    right = _verify(account.password_hash if account else _nobody(), password)
    if account is None:
        return None
    open_now = account.locked_until is None or account.locked_until <= moment
    if right and open_now and account.active:
        _note_success(database, account, password)
        return account
    # A locked account counts no further tries: an attacker could keep it locked for ever.
    if not right and open_now:
        _note_failure(database, account.id, moment)
    return None


def new_password() -> str:
    """A random password that a person can type: 80 bits in groups of four letters and digits."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike
    return "-".join("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(4))


def _note_success(database: Database, account: Account, password: str) -> None:
    values: dict[str, object] = {"failed_logins": 0, "locked_until": None}
    if _hasher.check_needs_rehash(account.password_hash):
        values["password_hash"] = _hasher.hash(password)
    with database.transaction() as db:
        db.execute(update(Account).where(Account.id == account.id).values(values))
        subject = f"account {account.id}"
        audit.record(db, actor=account.name, tag="accounts:session:opened", subject=subject)


def _note_failure(database: Database, account_id: int, moment: datetime) -> None:
    with database.transaction() as db:
        counted = (
            update(Account)
            .where(Account.id == account_id)
            .values(failed_logins=Account.failed_logins + 1)
            .returning(Account.failed_logins)
        )
        failed = db.execute(counted).scalar_one()
        locked = failed >= MAX_FAILED_LOGINS
        if locked:
            until = moment + timedelta(minutes=LOCK_MINUTES)
            lock = update(Account).where(Account.id == account_id)
            db.execute(lock.values(failed_logins=0, locked_until=until))
        audit.record(
            db,
            actor="anonymous",
            tag="accounts:account:locked" if locked else "accounts:session:refused",
            subject=f"account {account_id}",
        )


def _existing(db: Session, name: str) -> Account:
    account = named(db, name)
    if account is None:
        raise ApplianceError(f"there is no user {name}; `appliance user list` shows all")
    return account


def _check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_LIMIT or not name.isprintable() or name != name.strip():
        raise ApplianceError(f"a user's name has 1 to {NAME_LIMIT} printable characters")


def _hash(password: str) -> str:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise ApplianceError(f"a password has at least {MIN_PASSWORD_LENGTH} characters")
    return _hasher.hash(password)


def _verify(password_hash: str, password: str) -> bool:
    if len(password) > MAX_PASSWORD_LENGTH:
        return False
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


@cache
def _nobody() -> str:
    """A hash that no password fits."""
    return _hasher.hash(secrets.token_hex(32))
