"""The connection to the database: SQLite for one small site, PostgreSQL otherwise.

Times are UTC, everywhere. One `transaction()` per unit of work; what only asks uses `snapshot()`.

SQLite runs in WAL mode so that readers never wait for the writer, with `synchronous = FULL` so that
a commit survives a power cut, and each writing transaction starts with `BEGIN IMMEDIATE`: a
transaction that begins by reading and then writes fails at once with "database is locked", whatever
the busy timeout (https://www.sqlite.org/lang_transaction.html).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import sqlalchemy
from sqlalchemy import (
    ClauseElement,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    event,
    func,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator

from appliance import matching
from appliance.config import Settings
from appliance.errors import ConfigError, TransientError

BUSY_TIMEOUT_MS: Final = 30_000
READ_ONLY: Final = "appliance_read_only"
UPGRADE_LOCK: Final = (
    0x43484553  # any number that is ours: PostgreSQL's advisory locks are named so
)


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC; refuses one without a time zone instead of guessing."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        # SQLite has no zones: what was stored is UTC.
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Base(DeclarativeBase):
    """The parent of every table; constraints are named by rule so that migrations find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UTCDateTime}  # noqa: RUF012 - SQLAlchemy reads it as is


class Database:
    """Transactions on one engine; safe to share between threads, not across a fork."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reader = engine.execution_options(**{READ_ONLY: True})

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One unit of work: committed when the block ends, rolled back when it raises."""
        with Session(self.engine, expire_on_commit=False) as db, db.begin():
            yield db

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A consistent view that refuses to write and that no writer has to wait for."""
        with Session(self._reader, expire_on_commit=False, autoflush=False) as db:
            yield db

    def dispose(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


class PlainStatement:
    """A statement for reception, where SQLAlchemy's work costs more than the database's.

    Written as any other, compiled once for each dialect, and executed as text.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, **values: Any) -> int:
        """Execute it with a value for every parameter; returns how many rows it changed."""
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled.of(self._statement, dialect)
        return connection.exec_driver_sql(compiled.text, compiled.parameters(values)).rowcount


@dataclass(frozen=True)
class _Compiled:
    """A statement as a driver takes it; `order` is None where it takes parameters by name."""

    text: str
    order: tuple[str, ...] | None
    constants: Mapping[str, Any]
    processors: Mapping[str, Callable[[Any], Any]]

    @classmethod
    def of(cls, statement: ClauseElement, dialect: Dialect) -> Self:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        processors = {
            name: processor
            for name, parameter in compiled.binds.items()
            if (processor := parameter.type.dialect_impl(dialect).bind_processor(dialect))
        }
        order = tuple(compiled.positiontup) if compiled.positiontup is not None else None
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return cls(compiled.string, order, constants, processors)

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """Return them in the driver's way."""
        given = {**self.constants, **values}
        for name, processor in self.processors.items():
            given[name] = processor(given[name])
        return given if self.order is None else tuple(given[name] for name in self.order)


def utc_now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


def storable(value: str) -> str:
    """Return `value` without what PostgreSQL or UTF-8 refuses: NULs and lone surrogates."""
    return str(value).replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def create_engine(settings: Settings) -> Engine:
    """The engine for `settings.database_url`; opens no connection yet."""
    try:
        url = make_url(settings.database_url)
    except ArgumentError as error:
        raise ConfigError(
            "[database] url is no database address; write sqlite:////path/to/file.db"
            " or postgresql+psycopg://user:password@host/name"
        ) from error
    match url.get_backend_name():
        case "sqlite":
            return _sqlite_engine(url)
        case "postgresql":
            return _postgresql_engine(url)
        case other:
            raise ConfigError(f"[database] url names {other}; use sqlite or postgresql+psycopg")


def open_database(settings: Settings) -> Database:
    """The database of these settings, its folder made if it is the SQLite file in `data_dir`."""
    settings.prepare()
    return Database(create_engine(settings))


def upgrade(settings: Settings) -> None:
    """Bring the database to this release's tables; does nothing when it already has them.

    Raises:
        TransientError: the database does not answer.
    """
    from alembic import command  # noqa: PLC0415 - a quarter second that only this function needs

    settings.prepare()
    engine = create_engine(settings)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                # Two that start at once take turns; the lock ends with the connection. SQLite's
                # transaction begins with the lock on its file.
                connection.execute(select(func.pg_advisory_lock(UPGRADE_LOCK)))
            command.upgrade(migration_config(connection), "head")
            connection.commit()
    except OperationalError as error:
        raise TransientError(f"the database does not answer: {error.orig}") from error
    finally:
        engine.dispose()


def require_tables(settings: Settings) -> None:
    """Make sure that the database is there and of this release, and change nothing.

    Raises:
        ConfigError: it was never made, or its tables are of another release.
        TransientError: it does not answer.
    """
    if not exists(settings):
        raise ConfigError(
            f"there is no database in {settings.data_dir} yet: the appliance was never started"
            " there; start it with `appliance serve`, or run `appliance database upgrade`"
        )
    try:
        behind = pending(settings)
    except OperationalError as error:
        raise TransientError(f"the database does not answer: {error.orig}") from error
    if behind:
        raise ConfigError(
            "the database has not the tables of this release: run `appliance database upgrade`"
        )


def exists(settings: Settings) -> bool:
    """Whether the SQLite file is there; a server's database is taken to be."""
    url = make_url(settings.database_url)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()


def pending(settings: Settings) -> bool:
    """Whether the database lacks tables of this release."""
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415 - see upgrade()
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    engine = create_engine(settings)
    try:
        with engine.connect() as connection:
            newest = ScriptDirectory.from_config(migration_config(connection)).get_heads()
            return set(MigrationContext.configure(connection).get_current_heads()) != set(newest)
    finally:
        engine.dispose()


def migration_config(connection: Connection) -> Any:
    """Alembic's configuration for the migrations shipped beside this module."""
    from alembic.config import Config  # noqa: PLC0415 - see upgrade()

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _sqlite_engine(url: sqlalchemy.URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise ConfigError("[database] url: several processes share the database, so name a file")
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
        pool_size=8,
        max_overflow=64,
        hide_parameters=True,  # they hold names of patients, and errors are logged
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # Leaves BEGIN to us; sqlite3 would begin late and deferred.
        connection.isolation_level = None
        # SQLite's own knows no letter beyond ASCII, and names have them.
        connection.create_function("lower", 1, _lower, deterministic=True)
        connection.create_function("folded", 1, matching.folded, deterministic=True)
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = bool(connection.get_execution_options().get(READ_ONLY))
        if connection.info.get(READ_ONLY) is not read_only:  # it forgets every prepared statement
            connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
            connection.info[READ_ONLY] = read_only
        connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")

    return engine


def _lower(text: str | None) -> str | None:
    return None if text is None else text.lower()


def _postgresql_engine(url: sqlalchemy.URL) -> Engine:
    engine = sqlalchemy.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        hide_parameters=True,
        pool_size=8,
        max_overflow=64,
        connect_args={"connect_timeout": 10, "options": "-c timezone=UTC"},
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(READ_ONLY):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    return engine
