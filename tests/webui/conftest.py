from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from playwright.sync_api import Browser

from appliance import accounts
from appliance.accounts import Role
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.support.phantom import small_chest
from tests.webui.browser import chromium, serving
from tests.webui.world import PASSWORD, World, sign_in, truth


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An appliance with its tables and one person, to be copied."""
    folder = tmp_path_factory.mktemp("web") / "data"
    World.at(folder).database.dispose()
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path) -> Iterator[World]:
    made = World.copied(template, tmp_path / "data")
    yield made
    made.database.dispose()


@pytest.fixture
def app(world: World) -> Flask:
    return world.app()


@pytest.fixture
def stranger(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    signed_in = app.test_client()
    assert sign_in(signed_in).status_code == 302
    return signed_in


@pytest.fixture(scope="session")
def chest() -> tuple[CTVolume, Analysis]:
    """A small synthetic chest and its perfect analysis."""
    phantom = small_chest()
    return phantom.volume, truth(phantom)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium as a hospital's desktop has it: without a GPU."""
    with chromium("--disable-3d-apis") as started:
        yield started


@pytest.fixture
def study_id(world: World, chest: tuple[CTVolume, Analysis]) -> int:
    """A study that waits for review, and two more people."""
    with world.database.transaction() as db:
        accounts.add(db, "bob", password=PASSWORD, role=Role.RADIOLOGIST, actor="test")
        accounts.add(db, "guest", password=PASSWORD, role=Role.VIEWER, actor="test")
    study_id = world.receive("1.1")
    world.finish(study_id, *chest)
    return study_id


@pytest.fixture
def address(world: World, study_id: int) -> Iterator[str]:
    with serving(world.app()) as served:
        yield served
