from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts
from appliance.accounts import Role
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import PASSWORD, World, sign_in

KEY = "0123456789abcdef" * 2
ANGLE = {
    "kind": "angle",
    "plane": "coronal",
    "points": [[1, 2, 3], [4.5, 2, 3], [1, 2, 8]],
    "text": "<b>rib</b>",
    "values": {"angle_deg": 54.5},
}


@pytest.fixture
def address(world: World, chest: tuple[CTVolume, Analysis]) -> str:
    volume, found = chest
    analysis_id = world.finish(world.receive("1.1"), volume, found)
    return f"/api/analyses/{analysis_id}/measurements"


def put(client: FlaskClient, address: str, said: object, key: str = KEY) -> Any:
    token = client.get(address).json["csrf_token"]
    return client.put(f"{address}/{key}", json=said, headers={"X-CSRFToken": token})


def test_what_was_drawn_is_there_again_for_its_person_alone(
    app: Flask, world: World, client: FlaskClient, address: str
):
    assert put(client, address, ANGLE).status_code == 204

    with world.database.transaction() as db:
        accounts.add(db, "other", password=PASSWORD, role=Role.VIEWER, actor="test")
    other = app.test_client()
    sign_in(other, name="other")
    assert client.get(address).json["measurements"] == [{"key": KEY, **ANGLE}]
    assert other.get(address).json["measurements"] == []


def test_it_is_deleted_and_deleting_again_is_no_fault(client: FlaskClient, address: str):
    put(client, address, ANGLE)
    headers = {"X-CSRFToken": client.get(address).json["csrf_token"]}

    answers = [client.delete(f"{address}/{KEY}", headers=headers).status_code for _ in range(2)]

    assert answers == [204, 204]
    assert client.get(address).json["measurements"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "volume"},
        {"points": [[1, 2], [4, 5, 6], [7, 8, 9]]},
        {"points": [["1", 2, 3], [4, 5, 6], [7, 8, 9]]},
        {"points": None},
        {"values": {"angle_deg": True}},
        {"values": {"angle_deg": "54"}},
        {"text": 7},
    ],
)
def test_what_is_no_measurement_is_refused_with_a_sentence(
    client: FlaskClient, address: str, wrong: dict[str, object]
):
    answer = put(client, address, {**ANGLE, **wrong})

    assert answer.status_code == 400
    assert "draw it again" in answer.json["error"]
    assert client.get(address).json["measurements"] == []


def test_without_the_form_token_nothing_is_kept(client: FlaskClient, address: str):
    assert client.put(f"{address}/{KEY}", json=ANGLE).status_code == 400
    assert client.get(address).json["measurements"] == []


def test_a_result_that_is_not_there_has_none(client: FlaskClient, address: str):
    assert client.get("/api/analyses/999/measurements").status_code == 404
    assert put(client, address, ANGLE).status_code == 204
    headers = {"X-CSRFToken": client.get(address).json["csrf_token"]}
    other = f"/api/analyses/999/measurements/{KEY}"
    assert client.put(other, json=ANGLE, headers=headers).status_code == 404
