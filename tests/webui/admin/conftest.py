from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts
from appliance.config import DestinationSettings, RuleSettings
from tests.support.pacs import free_port
from tests.webui.world import PASSWORD, World, sign_in

ADMINISTRATOR = "chief"


@pytest.fixture
def world(world: World) -> World:
    """An appliance with a node to call and a rule, and an administrator."""
    node = DestinationSettings(
        name="pacs", ae_title="PACS", host="127.0.0.1", port=free_port(), commitment=True
    )
    rule = RuleSettings(
        name="results", destinations=("pacs",), objects=("seg", "sr"), modality="CT"
    )
    with world.database.transaction() as db:
        accounts.add(
            db,
            ADMINISTRATOR,
            password=PASSWORD,
            role=accounts.Role.ADMINISTRATOR,
            actor="test",
        )
    settings = replace(
        world.settings,
        dicom=replace(world.settings.dicom, destinations=(node,)),
        routing=replace(world.settings.routing, rules=(rule,)),
    )
    return replace(world, settings=settings)


@pytest.fixture
def administrator(app: Flask) -> FlaskClient:
    client = app.test_client()
    assert sign_in(client, name=ADMINISTRATOR).status_code == 302
    return client


@pytest.fixture
def post(administrator: FlaskClient) -> Callable[..., Any]:
    """Send a form with the token of a page."""
    page = administrator.get("/admin/users").text
    token = page.split('name="csrf_token" value="')[1].split('"')[0]
    return lambda path, **form: administrator.post(path, data={"csrf_token": token, **form})
