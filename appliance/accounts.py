"""People who may sign in: roles, passwords by Argon2, and a lock after too many wrong ones.

Passwords follow NIST SP 800-63B-4, section 3.1.1: at least 15 characters and room for sentences, no
rules of composition, no expiry, nothing that is guessed early; compared and hashed in Unicode's
form NFKC. One that an administrator gave is good for one sign-in: to choose another.

People of an identity provider (`sign_in_external`) have an account like everybody, with the role
that the provider gives them at each sign-in, and no password.
"""

import secrets
import unicodedata
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from zxcvbn import zxcvbn

from appliance import audit, sessions
from appliance.database import Database, utc_now
from appliance.errors import ApplianceError
from appliance.tables import Account

MIN_PASSWORD_LENGTH: Final = 15
MAX_PASSWORD_LENGTH: Final = 1024  # hashing takes time in proportion
JUDGED_CHARACTERS: Final = 72
"""Of a password: more takes zxcvbn long, and its first guesses are shorter."""
MIN_GUESSES: Final = 10**8
"""What zxcvbn calls unguessable on line; with `MAX_FAILED_LOGINS` in `LOCK_MINUTES` it is."""
OUR_WORDS: Final = ("chest", "ct", "covid", "appliance", "hospital", "radiology", "radiologist")
NO_PASSWORD: Final = "!"  # noqa: S105
"""In place of a hash: no password fits."""
NAME_LIMIT: Final = 64
MAX_FAILED_LOGINS: Final = 5
LOCK_MINUTES: Final = 15

OPENED: Final = "accounts:session:opened"

_hasher = PasswordHasher()


class Role(StrEnum):
    """What a person is; `webui.permissions` says what each may do."""

    RADIOLOGIST = "radiologist"
    SENIOR_RADIOLOGIST = "senior radiologist"
    ANNOTATOR = "annotator"
    INSPECTOR = "inspector"
    ADMINISTRATOR = "administrator"
    VIEWER = "viewer"


def add(
    db: Session, name: str, *, password: str, role: Role, actor: str, temporary: bool = False
) -> int:
    """The id of a new account; with a `temporary` password that must be changed first.

    Raises:
        ApplianceError: the name is taken, or name or password is not acceptable.
    """
    _check_name(name)
    if named(db, name) is not None:
        raise ApplianceError(f"there is a user {name} already; choose another name")
    account = _added(db, name, password_hash=_hash(name, password), role=role, actor=actor)
    account.temporary = temporary
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


def set_password(
    db: Session, name: str, *, password: str, actor: str, temporary: bool = False
) -> None:
    """Give an account a new password, lift its lock and end its sessions.

    Raises:
        ApplianceError: there is no such account, it has no password, or this one will not do.
    """
    account = _existing(db, name)
    if account.external_id is not None:
        raise ApplianceError(f"{name} signs in at the identity provider and has no password here")
    account.password_hash = _hash(name, password)
    account.failed_logins, account.locked_until = 0, None
    account.temporary = temporary
    sessions.end_all(db, account.id)
    _note(db, account, "accounts:password:changed", actor=actor)


def change_password(database: Database, name: str, *, old: str, new: str) -> None:
    """Let a person choose a password; every session of theirs ends, this one, too.

    Raises:
        ApplianceError: the old one is wrong, or the new one will not do.
    """
    if old == new:
        raise ApplianceError("That is the old password: choose another one.")
    if authenticate(database, name=name, password=old) is None:
        raise ApplianceError("The old password is wrong, or the account is locked for a while.")
    with database.transaction() as db:
        set_password(db, name, password=new, actor=name)


def disable(db: Session, name: str, *, actor: str) -> None:
    """Shut an account out; it stays, because the audit names it. Raises ApplianceError."""
    account = _existing(db, name)
    _keep_an_administrator(db, account)
    account.active = False
    sessions.end_all(db, account.id)
    _note(db, account, "accounts:account:disabled", actor=actor)


def enable(db: Session, name: str, *, actor: str) -> None:
    """Let a disabled account in again. Raises ApplianceError."""
    account = _existing(db, name)
    account.active = True
    _note(db, account, "accounts:account:enabled", actor=actor)


def unlock(db: Session, name: str, *, actor: str) -> None:
    """Lift the lock that wrong passwords brought. Raises ApplianceError."""
    account = _existing(db, name)
    account.failed_logins, account.locked_until = 0, None
    _note(db, account, "accounts:account:unlocked", actor=actor)


def set_role(db: Session, name: str, role: Role, *, actor: str) -> None:
    """Give an account another role, at once. Raises ApplianceError."""
    account = _existing(db, name)
    if account.external_id is not None:
        raise ApplianceError(
            f"the role of {name} comes from the identity provider: change it there"
        )
    if role is not Role.ADMINISTRATOR:
        _keep_an_administrator(db, account)
    _change_role(db, account, role, actor=actor)


def authenticate(
    database: Database,
    *,
    name: str,
    password: str,
    source: str = "",
    own_session: int | None = None,
    now: datetime | None = None,
) -> Account | None:
    """The account, or nothing: a wrong name, password, a lock and a disabled account look alike.

    The slow hash is computed outside of any transaction, so that nobody waits for it. Right or
    wrong, it is in the audit, with the network address it came from if `source` names it.

    `own_session` is the session of this account in the browser that asks, if it has one. Nobody who
    tries names elsewhere shuts out a person at work, for each session has a count of its own.
    """
    moment = now or utc_now()
    with database.snapshot() as db:
        account = named(db, name) if len(name) <= NAME_LIMIT else None
    # An unknown name costs the same time as a known one, and so does one without a password.
    known = account is not None and account.password_hash != NO_PASSWORD
    right = _verify(account.password_hash if account and known else _nobody(), password)
    open_now = account is not None and (
        own_session is not None or account.locked_until is None or account.locked_until <= moment
    )
    if account is not None and right and open_now and account.active:
        _note_success(database, account, password, source)
        return account
    # A locked account counts no further tries: an attacker could keep it locked for ever.
    counts = account is not None and not right and open_now
    _note_failure(database, account, moment, source, counts=counts, own_session=own_session)
    return None


def sign_in_external(
    database: Database, *, external_id: str, name: str, role: Role, source: str = ""
) -> Account:
    """The account of a person for whom the identity provider vouches, made at the first time.

    Raises:
        ApplianceError: somebody else has that name here, or the account is disabled.
    """
    with database.transaction() as db:
        account = db.scalar(select(Account).where(Account.external_id == external_id))
        if account is None:
            _check_name(name)
            if named(db, name) is not None:
                raise ApplianceError(
                    f"There is another user {name} here. Ask an administrator: one of the two"
                    " needs another name."
                )
            account = _added(db, name, password_hash=NO_PASSWORD, role=role, actor=name)
            account.external_id = external_id
        if not account.active:
            raise ApplianceError("Your account here is disabled. Ask an administrator.")
        if account.role != role:
            _change_role(db, account, role, actor="identity provider")
        _note(db, account, OPENED, actor=account.name, **_from(source))
    return account


def new_password() -> str:
    """A random password that a person can type: 80 bits in groups of four letters and digits."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike
    return "-".join("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(4))


def _added(db: Session, name: str, *, password_hash: str, role: Role, actor: str) -> Account:
    account = Account(
        name=name, password_hash=password_hash, role=role, active=True, created_at=utc_now()
    )
    db.add(account)
    db.flush()
    _note(db, account, "accounts:account:added", actor=actor, role=role)
    return account


def _change_role(db: Session, account: Account, role: Role, *, actor: str) -> None:
    before, account.role = account.role, role
    _note(db, account, "accounts:role:changed", actor=actor, before=before, role=role)


def _keep_an_administrator(db: Session, account: Account) -> None:
    """Refuse what would leave nobody to administer the appliance in the browser."""
    others = select(func.count()).where(
        Account.role == Role.ADMINISTRATOR, Account.active.is_(True), Account.id != account.id
    )
    if account.role == Role.ADMINISTRATOR and account.active and not db.scalar(others):
        raise ApplianceError(
            f"{account.name} is the last administrator: make somebody else one first"
        )


def _note(db: Session, account: Account, tag: str, *, actor: str, **detail: str) -> None:
    audit.record(db, actor=actor, tag=tag, subject=f"account {account.id}", detail=detail)


def _note_success(database: Database, account: Account, password: str, source: str) -> None:
    values: dict[str, object] = {"failed_logins": 0, "locked_until": None}
    if _hasher.check_needs_rehash(account.password_hash):
        values["password_hash"] = _hasher.hash(_normal(password))
    with database.transaction() as db:
        db.execute(update(Account).where(Account.id == account.id).values(values))
        _note(db, account, OPENED, actor=account.name, **_from(source))


def _note_failure(
    database: Database,
    account: Account | None,
    moment: datetime,
    source: str,
    *,
    counts: bool,
    own_session: int | None,
) -> None:
    with database.transaction() as db:
        locked = False
        if own_session is not None:
            sessions.count_failure(db, own_session, most=MAX_FAILED_LOGINS)
        elif account is not None and counts:
            locked = _count_failure(db, account.id, moment)
        audit.record(
            db,
            actor="anonymous",
            tag="accounts:account:locked" if locked else "accounts:session:refused",
            # Not the name that was typed: by mistake it may be a password.
            subject="no account" if account is None else f"account {account.id}",
            detail=_from(source),
        )


def _count_failure(db: Session, account_id: int, moment: datetime) -> bool:
    """Count a wrong password; whether it was one too many."""
    row = update(Account).where(Account.id == account_id)
    counted = row.values(failed_logins=Account.failed_logins + 1)
    failed = db.execute(counted.returning(Account.failed_logins)).scalar_one()
    if failed < MAX_FAILED_LOGINS:
        return False
    until = moment + timedelta(minutes=LOCK_MINUTES)
    db.execute(row.values(failed_logins=0, locked_until=until))
    return True


def _from(source: str) -> dict[str, str]:
    return {"from": source} if source else {}


def _existing(db: Session, name: str) -> Account:
    account = named(db, name)
    if account is None:
        raise ApplianceError(f"there is no user {name}; `appliance user list` shows all")
    return account


def _check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_LIMIT or not name.isprintable() or name != name.strip():
        raise ApplianceError(f"a user's name has 1 to {NAME_LIMIT} printable characters")


def _hash(name: str, password: str) -> str:
    normal = _normal(password)
    if not MIN_PASSWORD_LENGTH <= len(normal) <= MAX_PASSWORD_LENGTH:
        raise ApplianceError(
            f"A password has at least {MIN_PASSWORD_LENGTH} characters: take a few words."
        )
    judged = zxcvbn(normal[:JUDGED_CHARACTERS], user_inputs=[*OUR_WORDS, name])
    if judged["guesses"] < MIN_GUESSES:
        raise ApplianceError(
            "This password would be guessed early: take a few words that do not belong together."
        )
    return _hasher.hash(normal)


def _normal(password: str) -> str:
    """One password, however the keyboard composes its letters."""
    return unicodedata.normalize("NFKC", password)


def _verify(password_hash: str, password: str) -> bool:
    if len(password) > MAX_PASSWORD_LENGTH:
        return False
    try:
        return _hasher.verify(password_hash, _normal(password))
    except VerificationError:
        return False


@cache
def _nobody() -> str:
    """A hash that no password fits."""
    return _hasher.hash(secrets.token_hex(32))
