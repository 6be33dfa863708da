"""Browsers in which somebody is signed in, and whether the person is still there.

A session is a row, so that it ends at once and everywhere: at sign-out, with a new password, with
the account. The browser's cookie holds a random token, the row its digest: who reads the database
cannot take over a session.

A session whose person did nothing for a while is locked: it opens no page until the password was
given again. What a page asks for by itself is nothing that a person did (`touch` is not called for
it).
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from appliance.database import Database, utc_now
from appliance.tables import Account, WebSession

TOUCHED_EVERY: Final = timedelta(seconds=15)
"""A person who works writes no oftener than this."""


@dataclass(frozen=True)
class Limits:
    """How long a session lasts, and how long without its person."""

    lasts: timedelta
    idle: timedelta


@dataclass(frozen=True)
class Opened:
    """A session that has not ended; a locked one opens nothing but the way back."""

    id: int
    account: Account
    active_at: datetime
    names_hidden: bool
    locked: bool


def open_session(
    db: Session, account_id: int, limits: Limits, *, names_hidden: bool = False
) -> str:
    """The token of a new session; sessions that ended by themselves are forgotten."""
    now = utc_now()
    db.execute(delete(WebSession).where(WebSession.opened_at < now - limits.lasts))
    token = secrets.token_urlsafe(32)
    db.add(
        WebSession(
            token_digest=_digest(token),
            account_id=account_id,
            opened_at=now,
            active_at=now,
            names_hidden=names_hidden,
        )
    )
    return token


def find(db: Session, token: str, limits: Limits, *, now: datetime | None = None) -> Opened | None:
    """The session of a token, with its account; nothing once it ended."""
    moment = now or utc_now()
    found = db.execute(
        select(WebSession, Account)
        .join(Account, Account.id == WebSession.account_id)
        .where(WebSession.token_digest == _digest(token), Account.active.is_(True))
    ).one_or_none()
    if found is None or found[0].opened_at <= moment - limits.lasts:
        return None
    row, account = found
    locked = row.active_at <= moment - limits.idle
    return Opened(row.id, account, row.active_at, row.names_hidden, locked)


def touch(database: Database, opened: Opened) -> None:
    """Note that the person is there; what has been locked in the meantime stays so."""
    now = utc_now()
    if now - opened.active_at < TOUCHED_EVERY:
        return
    with database.transaction() as db:
        row = update(WebSession).where(
            WebSession.id == opened.id, WebSession.active_at == opened.active_at
        )
        db.execute(row.values(active_at=now))


def hide_names(db: Session, session_id: int, *, hidden: bool) -> None:
    """Replace the names of patients in this session, or show them again."""
    db.execute(update(WebSession).where(WebSession.id == session_id).values(names_hidden=hidden))


def count_failure(db: Session, session_id: int, *, most: int) -> None:
    """Count a wrong password at a locked session; one too many ends it."""
    row = WebSession.id == session_id
    db.execute(update(WebSession).where(row).values(failed_logins=WebSession.failed_logins + 1))
    db.execute(delete(WebSession).where(row, WebSession.failed_logins >= most))


def end(db: Session, token: str) -> None:
    """End a session, if there is one."""
    db.execute(delete(WebSession).where(WebSession.token_digest == _digest(token)))


def end_all(db: Session, account_id: int) -> int:
    """End every session of an account; returns how many."""
    ended = db.execute(
        delete(WebSession).where(WebSession.account_id == account_id).returning(WebSession.id)
    )
    return len(ended.all())


def _digest(token: str) -> str:
    # A random token needs no slow hash.
    return hashlib.sha256(token.encode()).hexdigest()
