"""Databases for tests: a SQLite file, and a private PostgreSQL when its programs are installed.

PostgreSQL listens on a Unix socket in a folder of its own, never on the network, and is gone with
the test run. It refuses to run as root, so root starts it as the user `postgres`.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from appliance.config import Settings
from appliance.database import Database, open_database, upgrade

_numbers = itertools.count(1)


def settings_in(folder: Path, **tables: Any) -> Settings:
    """Settings of an appliance in `folder`, with a SQLite database."""
    return Settings.parse({"data_dir": str(folder / "data"), **tables})


@contextmanager
def migrated(settings: Settings) -> Iterator[Database]:
    """The database of these settings with all its tables, closed afterwards."""
    upgrade(settings)
    database = open_database(settings)
    try:
        yield database
    finally:
        database.dispose()


@dataclass(frozen=True)
class PostgreSQL:
    """A running private server."""

    socket_dir: Path
    user: str

    def url(self, name: str) -> str:
        """The address of one of its databases."""
        return f"postgresql+psycopg://{self.user}@/{name}?host={quote(str(self.socket_dir))}"

    def create(self, *, template: str = "template0") -> str:
        """The address of a new database, made as a copy of `template`."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(
            host=str(self.socket_dir), user=self.user, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return self.url(name)


@contextmanager
def private_postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL of our own; skips the test, saying so, where it is not installed."""
    programs = _programs()
    user = _user()
    if programs is None or user is None:
        pytest.skip("PostgreSQL is not installed")
    # A socket's path is short, so its folder is not below pytest's.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        shutil.chown(folder, user)
        data = folder / "data"
        initdb = ("-D", str(data), "--auth=trust", f"--username={user}", "--no-sync", "-E", "UTF8")
        _run([str(programs / "initdb"), *initdb], user, folder)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        control = [str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
        _run([*control, "-o", options, "start"], user, folder)
        try:
            yield PostgreSQL(folder, user)
        finally:
            _run([*control, "-m", "immediate", "stop"], user, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], user: str, folder: Path) -> None:
    other = user if os.geteuid() == 0 else None
    subprocess.run(
        command,
        check=True,
        user=other,
        group=pwd.getpwnam(user).pw_gid if other else None,
        extra_groups=[] if other else None,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _programs() -> Path | None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = installed[-1] if installed else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _user() -> str | None:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None
