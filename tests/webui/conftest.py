from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import World, sign_in, small_truth


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World.at(tmp_path / "data")
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
    return small_truth()
