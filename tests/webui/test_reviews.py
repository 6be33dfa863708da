from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, audit, reviews
from appliance.accounts import Role
from appliance.reviews import Reason
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui.reviews import REASON_WORDS


@pytest.fixture
def analysis_id(world: World, chest: tuple[CTVolume, Analysis]) -> int:
    volume, found = chest
    return world.finish(world.receive("1.1"), volume, found)


def address(analysis_id: int) -> str:
    return f"/api/analyses/{analysis_id}/review"


def judgement(found: Analysis, **changes: Any) -> dict[str, Any]:
    said = {
        "seen": 0,
        "positive": True,
        "lesions": {str(lesion.id): True for lesion in found.lesions},
        "reason": None,
        "reason_text": "",
        "comment": "",
    }
    return said | changes


def post(client: FlaskClient, analysis_id: int, said: object) -> Any:
    token = client.get(address(analysis_id)).json["csrf_token"]
    return client.post(address(analysis_id), json=said, headers={"X-CSRFToken": token})


def signed_in(app: Flask, world: World, name: str, role: Role) -> FlaskClient:
    with world.database.transaction() as db:
        accounts.add(db, name, password=PASSWORD, role=role, actor="test")
    client = app.test_client()
    assert sign_in(client, name=name).status_code == 302
    return client


def kept(world: World, analysis_id: int) -> list[tuple[int, str]]:
    with world.database.snapshot() as db:
        return [(each.version, each.reviewer) for each in reviews.history(db, analysis_id)]


def test_every_reason_has_its_words():
    assert set(REASON_WORDS) == set(Reason)


def test_a_result_that_nobody_confirmed_says_so(client: FlaskClient, analysis_id: int):
    said = client.get(address(analysis_id)).json

    assert (said["version"], said["history"], said["problem"]) == (0, [], None)
    assert said["may_confirm"]


def test_a_confirmation_is_kept_and_shown(
    client: FlaskClient, world: World, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    lesions = {"1": False} | {str(lesion.id): True for lesion in chest[1].lesions[1:]}
    answer = post(client, analysis_id, judgement(chest[1], lesions=lesions, comment="Seen."))

    assert answer.status_code == 201
    (version,) = client.get(address(analysis_id)).json["history"]
    assert answer.json["history"] == [version]
    assert (version["reviewer"], version["positive"], version["rejected"]) == (NAME, True, [1])
    assert (version["comment"], version["reason"]) == ("Seen.", None)
    row = client.get("/api/worklist").json["rows"][0]
    assert (row["review"]["by"], row["review"]["overridden"]) == (NAME, False)
    assert (row["lesion_count"], row["review"]["lesion_count"]) == (len(lesions), len(lesions) - 1)
    assert not row["waits_for_review"]
    with world.database.snapshot() as db:
        assert audit.verify(db) is None
        review = reviews.current_review(db, analysis_id)
    assert review is not None
    assert review.organisation == "not named"


def test_the_worklist_says_what_waits_for_review(client: FlaskClient, analysis_id: int):
    row = client.get("/api/worklist").json["rows"][0]

    assert row["waits_for_review"]
    assert row["review"] is None


def test_the_second_of_two_people_is_told_who_was_first(
    client: FlaskClient,
    app: Flask,
    world: World,
    analysis_id: int,
    chest: tuple[CTVolume, Analysis],
):
    other = signed_in(app, world, "bob", Role.RADIOLOGIST)
    assert post(other, analysis_id, judgement(chest[1])).status_code == 201

    answer = post(client, analysis_id, judgement(chest[1], comment="Mine."))

    assert answer.status_code == 409
    assert answer.json["error"].startswith("bob confirmed this result on ")
    assert kept(world, analysis_id) == [(1, "bob")]
    assert post(client, analysis_id, judgement(chest[1], seen=1)).status_code == 201
    assert kept(world, analysis_id) == [(1, "bob"), (2, NAME)]


@pytest.mark.parametrize("role", [Role.VIEWER, Role.ADMINISTRATOR])
def test_who_only_looks_cannot_confirm(
    app: Flask, world: World, analysis_id: int, chest: tuple[CTVolume, Analysis], role: Role
):
    guest = signed_in(app, world, "guest", role)

    assert not guest.get(address(analysis_id)).json["may_confirm"]
    answer = post(guest, analysis_id, judgement(chest[1]))

    assert answer.status_code == 403
    assert answer.json == {"error": "Only a radiologist confirms results."}
    assert kept(world, analysis_id) == []


def test_late_images_make_it_refuse_and_say_why(
    client: FlaskClient, world: World, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    world.receive("1.1", instance="2")

    answer = post(client, analysis_id, judgement(chest[1]))

    assert answer.status_code == 409
    assert "a new analysis is on its way" in answer.json["error"]
    assert client.get(address(analysis_id)).json["problem"] == answer.json["error"]


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        "text",
        {"seen": "0"},
        {"positive": None},
        {"lesions": {"1": "yes"}},
        {"lesions": {"one": True}},
        {"reason": "because"},
        {"comment": None},
    ],
)
def test_what_is_no_judgement_is_refused(
    client: FlaskClient,
    world: World,
    analysis_id: int,
    chest: tuple[CTVolume, Analysis],
    said: Any,
):
    body = judgement(chest[1], **said) if isinstance(said, dict) and said else said

    answer = post(client, analysis_id, body)

    assert answer.status_code == 400
    assert "could be understood" in answer.json["error"]
    assert kept(world, analysis_id) == []


def test_an_incomplete_judgement_is_refused_in_words(
    client: FlaskClient, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    answer = post(client, analysis_id, judgement(chest[1], positive=False))

    assert answer.status_code == 400
    assert "choose a reason" in answer.json["error"]


def test_a_request_without_the_form_token_is_refused(
    client: FlaskClient, world: World, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    answer = client.post(address(analysis_id), json=judgement(chest[1]))

    assert answer.status_code == 400
    assert kept(world, analysis_id) == []


def test_there_is_no_review_of_a_result_that_does_not_exist(
    client: FlaskClient, analysis_id: int, chest: tuple[CTVolume, Analysis]
):
    token = client.get(address(analysis_id)).json["csrf_token"]
    headers = {"X-CSRFToken": token}

    assert client.get(address(4711)).status_code == 404
    answer = client.post(address(4711), json=judgement(chest[1]), headers=headers)
    assert answer.status_code == 404
