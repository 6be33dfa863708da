import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from appliance import accounts, studies
from appliance.accounts import Role
from appliance.config import Settings
from appliance.database import (
    Base,
    Database,
    create_engine,
    migration_config,
    pending,
    require_tables,
    upgrade,
    utc_now,
)
from appliance.errors import ConfigError, TransientError
from appliance.tables import Analysis, Patient, QualityRecord, Retrieval, Review, Study
from tests.appliance import world
from tests.support.databases import settings_in

WRITER = """
import sys
from appliance.config import Settings
from appliance.database import open_database
from tests.appliance import world
settings = Settings.parse({"data_dir": sys.argv[1], "database": {"url": sys.argv[2]}})
database = open_database(settings)
for number in range(40):
    uid = f"{sys.argv[3]}.{number}"
    world.receive(database, world.instance(sop_instance_uid=uid))
"""


def test_the_migrations_make_the_tables_of_the_code(database: Database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        difference = compare_metadata(context, Base.metadata)

    assert difference == []


@pytest.mark.parametrize("wrong", [{"why": "for fun"}, {"aim": "money"}, {"state": "LOST"}])
def test_a_table_that_was_made_anew_kept_its_checks(database: Database, wrong: dict[str, str]):
    row = {
        "destination": "pacs",
        "aim": "study",
        "study_uid": "1.2",
        "why": "by hand",
        "expected": 0,
        "state": "WAITING",
        "attempts": 0,
        "next_try_at": utc_now(),
        "created_at": utc_now(),
    }
    with database.transaction() as db:
        db.execute(insert(Retrieval).values(row))

    with pytest.raises(IntegrityError), database.transaction() as db:
        db.execute(insert(Retrieval).values({**row, "study_uid": "1.3", **wrong}))


def test_an_upgrade_may_run_again(settings: Settings, database: Database):
    world.receive(database, world.instance())

    upgrade(settings)

    assert not pending(settings)
    with database.snapshot() as db:
        assert studies.count(db) == 1


def test_a_study_from_before_the_priorities_is_routine(settings: Settings, database: Database):
    world.receive(database, world.instance())
    with database.engine.connect() as connection:
        command.downgrade(migration_config(connection), "0002")
        connection.commit()

    upgrade(settings)

    with database.snapshot() as db:
        study = studies.named(db, world.STUDY_UID)[0]
        assert (study.priority, study.priority_reason) == ("ROUTINE", None)
        assert studies.series_of(db, study.id)[0].station_name == ""


def test_accounts_keep_what_refers_to_them_when_roles_are_added_and_taken_back(
    settings: Settings, database: Database
):
    world.receive(database, world.instance())
    with database.transaction() as db:
        for name, role in (("ann", Role.RADIOLOGIST), ("bob", Role.ANNOTATOR)):
            accounts.add(db, name, password="a long enough one", role=role, actor="test")
        db.add(Analysis(study_id=1, revision=1, current=True, folder="x", created_at=utc_now()))
        db.flush()
        row = {"analysis_id": 1, "version": 1, "account_id": 1, "reviewer": "ann", "at": utc_now()}
        db.add(Review(**row, organisation="", positive=True))
    with database.engine.connect() as connection:
        command.downgrade(migration_config(connection), "0008")
        connection.commit()
        columns = "name, password_hash, role, active, created_at, failed_logins"
        values = "'carl', 'x', 'viewer', true, '2026-01-01 00:00:00', 0"
        connection.execute(text(f"INSERT INTO account ({columns}) VALUES ({values})"))
        connection.commit()

    upgrade(settings)

    with database.transaction() as db:
        assert [(one.name, one.role, one.active) for one in accounts.everyone(db)] == [
            ("ann", "radiologist", True),
            ("bob", "viewer", False),
            ("carl", "viewer", True),
        ]
        assert db.scalars(select(Review)).one().account_id == 1
        accounts.set_role(db, "bob", Role.INSPECTOR, actor="test")
    with pytest.raises(IntegrityError), database.transaction() as db:
        db.execute(text("UPDATE account SET role = 'boss' WHERE name = 'bob'"))


@pytest.mark.parametrize(
    "judged", [{"marks": [{"number": 1, "digest": "x", "grown": False}]}, {"signs": {"1": ["x"]}}]
)
def test_no_step_back_takes_what_a_person_confirmed(
    settings: Settings, database: Database, judged: dict[str, Any]
):
    world.receive(database, world.instance())
    with database.transaction() as db:
        accounts.add(db, "ann", password="a long enough one", role=Role.RADIOLOGIST, actor="test")
        db.add(Analysis(study_id=1, revision=1, current=True, folder="x", created_at=utc_now()))
        db.flush()
        row = {"analysis_id": 1, "version": 1, "account_id": 1, "reviewer": "ann", "at": utc_now()}
        db.add(Review(**row, **judged, organisation="", positive=True))

    with (
        database.engine.connect() as connection,
        pytest.raises(RuntimeError, match="stay with this release"),
    ):
        command.downgrade(migration_config(connection), "0013")

    upgrade(settings)  # newer steps may have been taken back before this one refused
    with database.snapshot() as db:
        assert db.scalars(select(QualityRecord)).all() == []
        review = db.scalars(select(Review)).one()
    assert judged.items() <= {"marks": review.marks, "signs": review.signs}.items()


def test_a_new_database_lacks_tables(tmp_path: Path):
    settings = settings_in(tmp_path)
    settings.prepare()

    assert pending(settings)


def test_a_failed_transaction_leaves_nothing(database: Database):
    def undone() -> None:
        with database.transaction() as db:
            studies.record_instance(db, world.instance())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        undone()

    with database.snapshot() as db:
        assert db.scalar(select(func.count()).select_from(Patient)) == 0


def test_a_snapshot_refuses_to_write(database: Database):
    with pytest.raises(DBAPIError), database.snapshot() as db:
        db.execute(insert(Patient))


def test_a_connection_that_was_read_only_writes_again(database: Database):
    for _ in range(3):
        with database.snapshot() as db:
            studies.count(db)
        world.receive(database, world.instance())


def test_a_snapshot_sees_one_moment(database: Database):
    with database.snapshot() as db:
        before = studies.count(db)
        world.receive(database, world.instance())
        assert studies.count(db) == before


def test_times_come_back_in_utc(database: Database):
    east = timezone(timedelta(hours=5))
    noon = datetime(2026, 3, 1, 12, tzinfo=east)
    world.receive(database, world.instance())

    with database.transaction() as db:
        study = studies.named(db, world.STUDY_UID)[0]
        study.first_received_at = noon

    with database.snapshot() as db:
        found = studies.named(db, world.STUDY_UID)[0]
    assert found.first_received_at == noon
    assert found.first_received_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(database: Database):
    world.receive(database, world.instance())

    with pytest.raises(StatementError), database.transaction() as db:
        studies.named(db, world.STUDY_UID)[0].first_received_at = datetime(2026, 3, 1)  # noqa: DTZ001


def test_errors_do_not_print_what_was_to_be_written(database: Database):
    with pytest.raises(DBAPIError) as raised, database.transaction() as db:
        db.execute(text("SELECT * FROM nowhere WHERE name = :name"), {"name": "Ann^Secret"})

    assert "Secret" not in str(raised.value)


def test_four_writing_processes_never_meet_a_locked_database(
    settings: Settings, database: Database
):
    def write(number: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(settings.data_dir), settings.database_url]
        return subprocess.run([*command, str(number)], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(write, range(4)))

    assert [each.stderr for each in done] == [""] * 4
    with database.snapshot() as db:
        assert db.scalar(select(Study.revision)) == 160


def test_sqlite_is_durable_and_lets_readers_read(tmp_path: Path):
    settings = settings_in(tmp_path)
    settings.prepare()
    engine = create_engine(settings)

    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()

    full = 2
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "is no database address"),
        ("mysql://host/name", "names mysql"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_an_address_of_no_use_is_refused(tmp_path: Path, url: str, said: str):
    with pytest.raises(ConfigError, match=said):
        create_engine(Settings.parse({"data_dir": str(tmp_path), "database": {"url": url}}))


def test_a_database_that_does_not_answer_may_do_so_later(tmp_path: Path):
    nowhere = f"postgresql+psycopg://nobody@/nothing?host={tmp_path}"
    settings = settings_in(tmp_path, database={"url": nowhere})

    with pytest.raises(TransientError, match="does not answer"):
        upgrade(settings)


def test_two_that_upgrade_at_once_take_turns(request: pytest.FixtureRequest, tmp_path: Path):
    url = request.getfixturevalue("postgresql").create()
    settings = settings_in(tmp_path, database={"url": url})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: upgrade(settings), range(4)))

    require_tables(settings)


def test_tables_that_are_there_are_enough(settings: Settings, database: Database):
    require_tables(settings)


def test_a_database_that_was_never_made_is_not_made_by_asking(tmp_path: Path):
    settings = settings_in(tmp_path)

    with pytest.raises(ConfigError, match="never started"):
        require_tables(settings)

    assert not settings.data_dir.exists()
