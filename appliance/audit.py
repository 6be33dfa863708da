"""Who did what, append-only: each entry carries the hash of the one before.

The hash covers the time, the actor, the tag, the subject, the detail and the previous hash, so that
a changed or removed entry breaks the chain at that place. The database refuses UPDATE and DELETE by
trigger. What the chain alone cannot show is a cut-off end: compare the last hash with one that was
written down elsewhere.

Tags read `source:subject:action`, as `accounts:session:opened`. No entry holds a patient's name.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Select, func, or_, select, text
from sqlalchemy.orm import Session

from appliance.database import storable, utc_now
from appliance.tables import AuditEntry

GENESIS: Final = "0" * 64
TAG_PATTERN: Final = re.compile(r"[a-z][a-z_-]*(:[a-z][a-z_-]*){2}")
CHAIN_LOCK: Final = 0x61756469  # "audi": the advisory lock that orders writers on PostgreSQL


@dataclass(frozen=True, kw_only=True)
class Search:
    """Which entries are looked for; what is not given does not count.

    Attributes:
        actor: Who did it.
        subject: What it was done to, such as ``study 17``.
        tags: One of these, where ``%`` stands for anything.
        since: Not before this moment.
        until: Before this moment.
    """

    actor: str = ""
    subject: str = ""
    tags: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class End:
    """Where the chain ends."""

    entries: int
    id: int
    hash: str


def record(
    db: Session, *, actor: str, tag: str, subject: str, detail: Mapping[str, Any] | None = None
) -> AuditEntry:
    """Append one entry in the caller's transaction: what is rolled back was never done."""
    if not TAG_PATTERN.fullmatch(tag):
        raise ValueError("an audit tag reads source:subject:action")
    _order_writers(db)
    last = db.scalar(select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1))
    entry = AuditEntry(
        at=utc_now(),
        actor=storable(actor),
        tag=tag,
        subject=storable(subject),
        detail=dict(detail or {}),
        previous_hash=last or GENESIS,
    )
    entry.hash = _hash_of(entry)
    db.add(entry)
    db.flush()
    return entry


def verify(db: Session) -> int | None:
    """The id of the first entry whose chain is broken, or nothing when all is whole."""
    previous = GENESIS
    entries = select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=1000)
    with db.scalars(entries) as found:
        for entry in found:
            if entry.previous_hash != previous or entry.hash != _hash_of(entry):
                return entry.id
            previous = entry.hash
    return None


def end(db: Session) -> End:
    """The number of entries, and the last one's id and hash."""
    count = db.scalar(select(func.count()).select_from(AuditEntry)) or 0
    last = db.execute(
        select(AuditEntry.id, AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
    ).one_or_none()
    return End(count, *(last or (0, GENESIS)))


def page(
    db: Session, search: Search, *, limit: int, before: int | None = None
) -> Sequence[AuditEntry]:
    """The newest entries that match, or the next older ones than the id `before`."""
    found = _matching(search).order_by(AuditEntry.id.desc()).limit(limit)
    if before is not None:
        found = found.where(AuditEntry.id < before)
    return db.scalars(found).all()


def export(db: Session, search: Search) -> Iterator[dict[str, Any]]:
    """Every entry that matches, oldest first, with all that its hash covers."""
    found = _matching(search).order_by(AuditEntry.id).execution_options(yield_per=1000)
    for entry in db.scalars(found):
        yield {
            "id": entry.id,
            "at": _moment(entry.at),
            "actor": entry.actor,
            "tag": entry.tag,
            "subject": entry.subject,
            "detail": entry.detail,
            "previous_hash": entry.previous_hash,
            "hash": entry.hash,
        }


def _matching(search: Search) -> Select[AuditEntry]:
    found = select(AuditEntry)
    if search.actor:
        found = found.where(AuditEntry.actor == search.actor)
    if search.subject:
        found = found.where(AuditEntry.subject == search.subject)
    if search.tags:
        found = found.where(or_(*(AuditEntry.tag.like(tag) for tag in search.tags)))
    if search.since is not None:
        found = found.where(AuditEntry.at >= search.since)
    if search.until is not None:
        found = found.where(AuditEntry.at < search.until)
    return found


def _order_writers(db: Session) -> None:
    """Let one transaction at a time append, so that no two entries follow the same one.

    SQLite has one writer anyway.
    """
    if db.get_bind().dialect.name == "postgresql":
        db.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CHAIN_LOCK})


def _hash_of(entry: AuditEntry) -> str:
    content = [
        _moment(entry.at),
        entry.actor,
        entry.tag,
        entry.subject,
        entry.detail,
        entry.previous_hash,
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")
