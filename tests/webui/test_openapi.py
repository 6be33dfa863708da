"""The description of the JSON API is of the routes that there are, and of what they answer."""

from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from appliance import remote_queries
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import NAME, World
from webui.openapi import DESCRIBED, api_routes

ANGLE = {
    "kind": "angle",
    "plane": "coronal",
    "points": [[1, 2, 3], [4.5, 2, 3], [1, 2, 8]],
    "text": "rib",
    "values": {"angle_deg": 54.5},
}
JUDGEMENT = {
    "seen": 0,
    "positive": True,
    "reason": None,
    "reason_text": "",
    "comment": "",
    "marks": {},
    "signs": {"1": ["crazy paving"]},
}


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    answered = client.get("/api/openapi.json")
    assert answered.status_code == 200
    return dict(answered.get_json())


def test_each_route_is_described_and_no_other(app: Flask):
    routes = {f"{rule.endpoint} {method}" for rule, method in api_routes(app)}

    assert set(DESCRIBED) == routes


def test_paths_and_parameters_are_those_of_the_routes(document: dict[str, Any]):
    review = document["paths"]["/api/analyses/{analysis_id}/review"]

    assert set(review) == {"get", "post"}
    assert review["get"]["parameters"] == [
        {
            "name": "analysis_id",
            "in": "path",
            "required": True,
            "schema": {"type": "integer", "minimum": 0},
        }
    ]
    operations = [each for path in document["paths"].values() for each in path.values()]
    assert all(each["summary"] for each in operations)
    assert len({each["operationId"] for each in operations}) == len(operations)


def test_every_schema_is_one(document: dict[str, Any]):
    for path in document["paths"].values():
        for operation in path.values():
            contents = [answer.get("content", {}) for answer in operation["responses"].values()]
            contents.append(operation.get("requestBody", {}).get("content", {}))
            for content in contents:
                for media in content.values():
                    Draft202012Validator.check_schema(media["schema"])


def sealed(schema: Any) -> Any:
    """The same schema, but nothing may be in an object that it does not name."""
    if isinstance(schema, list):
        return [sealed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: sealed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **inner} if "properties" in schema else inner


def test_answers_are_as_described(
    world: World,
    client: FlaskClient,
    document: dict[str, Any],
    chest: tuple[CTVolume, Analysis],
):
    study_id = world.receive("1.2.3")
    analysis_id = world.finish(study_id, *chest)
    world.receive("1.2.4")
    world.reject(world.receive("1.2.5"), "no chest", {"1.2.5.series": "too few images"})
    token = {"X-CSRFToken": client.get("/api/session").get_json()["csrf_token"]}
    names = {"study_id": study_id, "analysis_id": analysis_id}

    def ask(method: str, template: str, said: object = None, **more: str) -> Any:
        """The answer of an address, once question and answer are as described."""
        operation = document["paths"][template][method]
        if said is not None:
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            Draft202012Validator(sealed(body)).validate(said)
        path = template.format(**names | more)
        answered = client.open(path, method=method, json=said, headers=token)
        described = operation["responses"].get(str(answered.status_code), {})
        assert answered.status_code < 300, (path, answered.text)
        if answered.data:
            schema = described["content"]["application/json"]["schema"]
            Draft202012Validator(sealed(schema)).validate(answered.get_json())
        else:
            assert described == {"description": "Done."}, path
        return answered.get_json(silent=True)

    measurement = "/api/analyses/{analysis_id}/measurements/{key}"
    ask("put", measurement, ANGLE, key="0" * 32)
    ask("put", "/api/preferences/{key}", {"keys": {"fill": "f"}}, key="viewer")
    free = (chest[1].lung_mask > 0) & (chest[1].lesion_labels == 0)
    nz, ny, nx = free.shape
    kept = client.post(
        f"/api/analyses/{analysis_id}/marks?box=0,0,0,{nx},{ny},{nz}",
        data=np.packbits(free, bitorder="little").tobytes(),
        content_type="application/octet-stream",
        headers=token,
    )
    said = document["paths"]["/api/analyses/{analysis_id}/marks"]["post"]["responses"]["201"]
    schema = said["content"]["application/json"]["schema"]
    Draft202012Validator(sealed(schema)).validate(kept.get_json())
    outlined = {"90": {"digest": kept.get_json()["digest"], "grown": True}}
    lesions = {str(lesion.id): True for lesion in chest[1].lesions}
    judgement = JUDGEMENT | {"lesions": lesions, "marks": outlined}
    ask("post", "/api/analyses/{analysis_id}/review", judgement)
    begun = {"revision": 0, "judged": {"marks": outlined}}
    ask("put", "/api/analyses/{analysis_id}/draft", begun)
    upload = ask("post", "/api/uploads", {"files": [{"name": "IM1", "size": 0, "modified": 1}]})
    person = {"patient_name": "", "patient_id": "", "study_date": ""}
    ask("post", "/api/uploads/{name}/take", person, name=upload["name"])

    # Everything that may be looked at, now that there is something to see.
    looked = [
        path
        for path, operations in document["paths"].items()
        if "get" in operations
        and "application/json" in operations["get"]["responses"]["200"].get("content", {})
    ]
    assert len(looked) >= 15
    for template in looked:
        ask("get", template, key="viewer", name=upload["name"])

    ask("delete", measurement, key="0" * 32)
    ask("delete", "/api/analyses/{analysis_id}/draft")
    ask("delete", "/api/uploads/{name}", name=upload["name"])
    ask("post", "/api/session/active")


def test_what_another_node_answered_is_as_described(
    world: World, client: FlaskClient, document: dict[str, Any]
):
    with world.database.transaction() as db:
        query_id = remote_queries.ask(db, destination="pacs", keys={}, asked_by=NAME)
    question = remote_queries.claim_next(world.database)
    assert question is not None
    study = remote_queries.RemoteStudy(study_uid="1.2.3")
    remote_queries.answer(world.database, question, [study], cut_off=False)

    answered = client.get(f"/api/fetch?query={query_id}").get_json()

    assert len(answered["query"]["studies"]) == 1
    described = document["paths"]["/api/fetch"]["get"]["responses"]["200"]
    schema = described["content"]["application/json"]["schema"]
    Draft202012Validator(sealed(schema)).validate(answered)


def test_who_must_sign_in_and_send_the_form_token_is_told(document: dict[str, Any]):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            headers = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
            assert ("X-CSRFToken" in headers) == (method != "get"), path
            assert ("403" in operation["responses"]) == ("security" not in operation), path
    (state, unlock) = document["paths"]["/api/session"].values()
    assert state["security"] == unlock["security"] == []
    append = document["paths"]["/api/uploads/{name}/files/{number}"]["patch"]
    assert "Upload-Offset" in {each["name"] for each in append["parameters"]}


def test_refusals_are_as_described(client: FlaskClient, document: dict[str, Any]):
    schema = document["components"]["schemas"]["Refusal"]
    for path in ("/api/worklist?state=nowhere", "/api/studies/99", "/api/preferences/other"):
        answered = client.get(path)

        assert answered.status_code >= 400
        Draft202012Validator(sealed(schema)).validate(answered.get_json())


def test_strangers_get_no_description(stranger: FlaskClient):
    assert stranger.get("/api/openapi.json").status_code == 401
