"""Fixtures for every part: an appliance's settings in a temporary folder, and its database."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from appliance.config import Settings
from appliance.database import Database, upgrade
from tests.support.databases import PostgreSQL, migrated, private_postgresql, settings_in
from tests.support.figures import FIGURE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures that tests recorded: `record_property(FIGURE, "what: how much")`."""
    for report in terminalreporter.getreports("passed"):
        for name, told in report.user_properties:
            if name == FIGURE and report.when == "call":
                terminalreporter.write_line(told)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An appliance in a temporary folder, on SQLite."""
    return settings_in(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """That appliance's database, with all its tables."""
    with migrated(settings) as database:
        yield database


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A private PostgreSQL for the whole run."""
    with private_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with all the tables, to be copied."""
    url = postgresql.create()
    upgrade(settings_in(tmp_path_factory.mktemp("pg"), database={"url": url}))
    return make_url(url).database or ""
