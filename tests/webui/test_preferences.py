from typing import Any

import pytest
from flask.testing import FlaskClient

from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import World

ADDRESS = "/api/preferences/viewer"


def put(client: FlaskClient, value: object) -> Any:
    token = client.get(ADDRESS).json["csrf_token"]
    return client.put(ADDRESS, json=value, headers={"X-CSRFToken": token})


def test_what_was_put_comes_back_and_is_in_the_viewers_page(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    world.finish(study_id, volume, found)
    assert client.get(ADDRESS).json["value"] is None

    assert put(client, {"keys": {"fill": "'\"><script>"}}).status_code == 204

    assert client.get(ADDRESS).json["value"] == {"keys": {"fill": "'\"><script>"}}
    page = client.get(f"/studies/{study_id}").get_data(as_text=True)
    assert "\\u003cscript" in page
    assert "'\"><script>" not in page


@pytest.mark.parametrize("value", [None, 7, [1], "x"])
def test_only_an_object_is_kept(client: FlaskClient, value: object):
    assert put(client, value).status_code == 400


def test_too_much_is_refused_with_a_sentence(client: FlaskClient):
    answer = put(client, {"windows": ["x" * 20_000]})

    assert answer.status_code == 413
    assert "remove some" in answer.json["error"]


def test_there_are_no_other_documents(client: FlaskClient):
    assert client.get("/api/preferences/secrets").status_code == 404
