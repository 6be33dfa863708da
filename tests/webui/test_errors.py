import json

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.exc import OperationalError

from appliance.database import Database
from webui.headers import HEADERS


def test_an_unknown_address_is_a_page_for_people_and_json_for_scripts(client: FlaskClient):
    page = client.get("/nothing")
    answer = client.get("/api/nothing")

    assert page.status_code == answer.status_code == 404
    assert page.mimetype == "text/html"
    assert answer.get_json() == {"error": "There is nothing at this address."}


def test_a_failure_is_logged_without_the_text_of_the_error(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Phantom^Chest was born in 1970")

    monkeypatch.setattr("appliance.worklist.page", fail)

    with structlog.testing.capture_logs() as logs:
        answer = client.get("/api/worklist")

    assert answer.status_code == 500
    assert "Phantom" not in answer.get_data(as_text=True)
    assert [entry["event"] for entry in logs] == ["request_failed"]
    assert "RuntimeError" in logs[0]["error"]
    assert "Phantom" not in json.dumps(logs)


@pytest.mark.parametrize("address", ["/", "/studies/1", "/nothing", "/sign-in"])
def test_a_page_says_that_something_failed_while_the_database_is_down(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, address: str
):
    def fail(*_: object) -> None:
        raise OperationalError("SELECT 1", None, Exception("no connection"))

    monkeypatch.setattr(Database, "snapshot", fail)
    monkeypatch.setattr(Database, "transaction", fail)

    answer = client.get(address)
    page = answer.get_data(as_text=True)

    assert answer.status_code == 500
    assert answer.mimetype == "text/html"
    assert "Something failed. Try again" in page
    assert "Sign out" not in page
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


@pytest.mark.parametrize("page", ["0", "-5", "x", "99999999999999999999999", ""])
def test_a_senseless_page_number_is_harmless(client: FlaskClient, page: str):
    answer = client.get("/api/worklist", query_string={"page": page})

    assert answer.status_code == 200
    assert answer.get_json()["page"] == 1
