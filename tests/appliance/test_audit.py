from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Executable, delete, select, text, update
from sqlalchemy.exc import DBAPIError

from appliance import audit
from appliance.database import Database
from appliance.tables import AuditEntry

TAG = "accounts:session:opened"


def record(database: Database, count: int = 3):
    for number in range(count):
        with database.transaction() as db:
            audit.record(db, actor="ann", tag=TAG, subject=f"study {number}", detail={"n": number})


def tamper(database: Database, statement: Executable):
    """Do what somebody with the database's own tools could: take the triggers away first."""
    with database.transaction() as db:
        if database.engine.dialect.name == "sqlite":
            db.execute(text("DROP TRIGGER audit_entry_no_update"))
            db.execute(text("DROP TRIGGER audit_entry_no_delete"))
        else:
            db.execute(text("ALTER TABLE audit_entry DISABLE TRIGGER ALL"))
        db.execute(statement)


def verify(database: Database):
    with database.snapshot() as db:
        return audit.verify(db)


def test_a_whole_chain_verifies(database: Database):
    record(database)

    assert verify(database) is None


def test_an_empty_audit_is_whole(database: Database):
    assert verify(database) is None


@pytest.mark.parametrize(
    "values", [{"actor": "bob"}, {"detail": {"n": 7}}, {"tag": "a:b:c"}, {"hash": "0" * 64}]
)
def test_a_changed_entry_is_found(database: Database, values: dict[str, Any]):
    record(database)

    tamper(database, update(AuditEntry).where(AuditEntry.id == 2).values(values))

    assert verify(database) == 2


def test_a_removed_entry_is_found(database: Database):
    record(database)

    tamper(database, delete(AuditEntry).where(AuditEntry.id == 2))

    assert verify(database) == 3


@pytest.mark.parametrize(
    "statement",
    [update(AuditEntry).values(actor="bob"), delete(AuditEntry)],
    ids=["change", "removal"],
)
def test_the_database_refuses(database: Database, statement: Executable):
    record(database)

    with pytest.raises(DBAPIError, match="append-only"), database.transaction() as db:
        db.execute(statement)


def test_writers_at_once_make_one_chain(database: Database):
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: record(database), range(6)))

    with database.snapshot() as db:
        assert len(db.scalars(select(AuditEntry)).all()) == 18
    assert verify(database) is None


def test_what_is_rolled_back_was_never_done(database: Database):
    def undone() -> None:
        with database.transaction() as db:
            audit.record(db, actor="ann", tag=TAG, subject="study 1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        undone()

    record(database, 1)
    assert verify(database) is None


@pytest.mark.parametrize("tag", ["", "one", "a:b", "a:b:c:d", "A:b:c", "a: b:c"])
def test_a_tag_names_source_subject_and_action(database: Database, tag: str):
    with pytest.raises(ValueError, match="source:subject:action"), database.transaction() as db:
        audit.record(db, actor="ann", tag=tag, subject="study 1")
