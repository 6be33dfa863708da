import shutil
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.database import Database
from appliance.reception import Reception
from appliance.store import Store
from tests.support.databases import migrated, settings_in


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all the tables, to be copied."""
    settings = settings_in(tmp_path_factory.mktemp("sqlite"))
    with migrated(settings) as database:
        database.dispose()  # the last connection writes the log into the file
    return settings.data_dir / "appliance.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The core's rules hold on both databases, so its tests run on both."""
    if request.param == "sqlite":
        made = settings_in(tmp_path)
        made.prepare()
        shutil.copy(request.getfixturevalue("sqlite_template"), made.data_dir)
        return made
    server = request.getfixturevalue("postgresql")
    template = request.getfixturevalue("postgresql_template")
    return settings_in(tmp_path, database={"url": server.create(template=template)})


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.store_dir)


@pytest.fixture
def reception(database: Database, store: Store) -> Reception:
    return Reception(database, store, min_free_bytes=0)
