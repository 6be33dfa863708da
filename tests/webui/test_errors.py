import json

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient


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

    monkeypatch.setattr("appliance.studies.worklist", fail)

    with structlog.testing.capture_logs() as logs:
        answer = client.get("/api/worklist")

    assert answer.status_code == 500
    assert "Phantom" not in answer.get_data(as_text=True)
    assert [entry["event"] for entry in logs] == ["request_failed"]
    assert "RuntimeError" in logs[0]["error"]
    assert "Phantom" not in json.dumps(logs)


@pytest.mark.parametrize("page", ["0", "-5", "x", "99999999999999999999999", ""])
def test_a_senseless_page_number_is_harmless(client: FlaskClient, page: str):
    answer = client.get("/api/worklist", query_string={"page": page})

    assert answer.status_code == 200
    assert answer.get_json()["page"] == 1
