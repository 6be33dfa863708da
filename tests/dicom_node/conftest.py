"""A listener in this process, on a free port, with a database and a store of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Settings
from appliance.database import Database
from appliance.reception import Reception
from appliance.store import Store
from dicom_node.scp import Listener, listening
from tests.support.databases import settings_in
from tests.support.pacs import free_port

DICOM = {"min_free_bytes": 0, "network_timeout_s": 5}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path, dicom={"port": free_port(), **DICOM})


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings.store_dir)


@pytest.fixture
def reception(database: Database, store: Store) -> Reception:
    return Reception(database, store, min_free_bytes=0)


@pytest.fixture
def listen(settings: Settings, reception: Reception) -> Iterator[Callable[..., Listener]]:
    """Start a listener whose [dicom] settings differ from the fixture's in what is given."""
    with ExitStack() as running:

        def start(**changes: Any) -> Listener:
            changed = replace(settings.dicom, **changes)
            return running.enter_context(listening(changed, reception))

        yield start


@pytest.fixture
def listener(listen: Callable[..., Listener]) -> Listener:
    return listen()
