"""Fetch from PACS: what people ask, what they see, and who may."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from appliance import accounts, remote_queries, retrievals
from appliance.config import DestinationSettings
from appliance.remote_queries import RemoteStudy
from appliance.retrievals import Aim, Why
from appliance.tables import AuditEntry, RemoteQuery
from tests.webui.world import PASSWORD, World, sign_in
from webui import fetching

NODES = (
    DestinationSettings(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, query=True),
    DestinationSettings(name="viewer", ae_title="VIEWER", host="127.0.0.1", port=2),
)
STUDY = RemoteStudy(
    study_uid="1.2.3",
    patient_id="P-7",
    patient_name="<b>Muster^Anna",
    study_date="20260115",
    modalities="CT\\SR",
    instance_count=3,
)


@pytest.fixture
def world(world: World) -> World:
    dicom = replace(world.settings.dicom, destinations=NODES)
    return replace(world, settings=replace(world.settings, dicom=dicom))


def token(client: FlaskClient) -> str:
    return client.get("/fetch").text.split('name="csrf_token" value="')[1].split('"')[0]


@pytest.fixture
def post(client: FlaskClient) -> Callable[..., Any]:
    return lambda path, **form: client.post(path, data={"csrf_token": token(client), **form})


def search(post: Callable[..., Any], **form: str) -> Any:
    return post("/fetch/queries", **{"destination": "pacs", "patient_id": "P-7", **form})


def lists(client: FlaskClient, query: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/api/fetch", query_string={"query": query}).get_json()
    return found


def answer(world: World, *studies: RemoteStudy, cut_off: bool = False) -> None:
    question = remote_queries.claim_next(world.database)
    assert question is not None
    remote_queries.answer(world.database, question, studies, cut_off=cut_off)


def audited(world: World) -> list[tuple[str, str, str]]:
    with world.database.snapshot() as db:
        rows = db.scalars(select(AuditEntry).where(AuditEntry.tag.like("web:%")))
        return [(row.actor, row.tag, row.subject) for row in rows]


def test_only_nodes_that_are_there_to_be_asked_are_offered(client: FlaskClient):
    page = client.get("/fetch").text

    assert "<option>pacs</option>" in page
    assert "<option>viewer</option>" not in page


def test_a_search_waits_and_then_shows_what_the_node_answered(
    world: World, client: FlaskClient, post: Callable[..., Any]
):
    answered = search(post, study_date="2026-01-15")

    assert answered.headers["Location"] == "/fetch?query=1"
    assert lists(client, 1)["query"]["state"] == "WAITING"
    with world.database.snapshot() as db:
        keys = db.scalars(select(RemoteQuery)).one().keys
    assert keys == {"patient_id": "P-7", "accession_number": "", "study_date": "20260115"}

    answer(world, STUDY, cut_off=True)

    query = lists(client, 1)["query"]
    (study,) = query["studies"]
    assert (query["state"], query["cut_off"]) == ("DONE", True)
    assert study["patient"] == "<b>Muster, Anna"
    assert (study["modalities"], study["images"]) == ("CT SR", 3)
    assert study["fetch_url"] == "/fetch/queries/1/studies/0"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"destination": "viewer"}, fetching.UNKNOWN_NODE),
        ({"destination": "10.0.0.1"}, fetching.UNKNOWN_NODE),
        ({"patient_id": ""}, fetching.NO_KEY),
        ({"patient_id": " *?* "}, fetching.NO_KEY),
        ({"patient_id": "1" * 65}, fetching.BAD_KEY),
        ({"patient_id": "1\\2"}, fetching.BAD_KEY),
        ({"study_date": "yesterday"}, fetching.BAD_DATE),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    world: World, post: Callable[..., Any], form: dict[str, str], said: str
):
    answered = search(post, **form)

    assert answered.status_code == 400
    assert said in answered.text
    assert remote_queries.claim_next(world.database) is None


def test_a_study_is_fetched_once_and_its_way_is_shown(
    world: World, client: FlaskClient, post: Callable[..., Any]
):
    search(post)
    answer(world, STUDY)

    assert post("/fetch/queries/1/studies/0").status_code == 302
    again = post("/fetch/queries/1/studies/0")
    missing = post("/fetch/queries/1/studies/1")

    assert (again.status_code, missing.status_code) == (400, 400)
    assert fetching.NOTHING_TO_FETCH in again.text
    assert fetching.NOT_LISTED in missing.text
    (row,) = lists(client)["retrievals"]
    assert (row["destination"], row["study_uid"], row["why"]) == ("pacs", "1.2.3", "by hand")
    assert (row["state_word"], row["images"], row["expected"]) == ("Waiting", 0, 3)
    order = retrievals.claim_next(world.database, lease_s=60)
    assert order is not None
    world.receive("1.2.3")
    (row,) = lists(client)["retrievals"]
    assert (row["state"], row["images"]) == ("RUNNING", 1)
    assert row["patients"] == [{"name": "Phantom, Chest", "url": "/studies/1"}]
    assert audited(world) == [
        ("reader", "web:node:asked", "query 1"),
        ("reader", "web:retrieval:asked", "retrieval 1"),
    ]


def test_a_retrieval_is_given_up_and_tried_again(
    world: World, client: FlaskClient, post: Callable[..., Any]
):
    with world.database.transaction() as db:
        retrievals.ask(
            db, destination="pacs", aim=Aim.STUDY, study_uid="1.2", why=Why.STANDING_QUERY
        )

    assert post("/fetch/retrievals/1/give-up").status_code == 302
    (row,) = lists(client)["retrievals"]
    assert (row["state_word"], row["problem"]) == ("Given up", "given up by reader")
    assert row["give_up_url"] is None
    late = post("/fetch/retrievals/1/give-up")
    assert late.status_code == 400
    assert fetching.TOO_LATE in late.text

    assert post(row["retry_url"]).status_code == 302
    (row,) = lists(client)["retrievals"]
    assert row["state"] == "WAITING"
    assert [tag for _, tag, _ in audited(world)] == [
        "web:retrieval:given_up",
        "web:retrieval:retried",
    ]


def test_answers_are_for_who_asked(world: World, post: Callable[..., Any]):
    search(post)
    answer(world, STUDY)
    other = signed_in(world, "other", accounts.Role.ADMINISTRATOR)

    assert lists(other, 1)["query"] == {"state": "FAILED", "problem": fetching.EXPIRED}
    form = {"csrf_token": token(other)}
    assert other.post("/fetch/queries/1/studies/0", data=form).status_code == 400


def signed_in(world: World, name: str, role: accounts.Role) -> FlaskClient:
    with world.database.transaction() as db:
        accounts.add(db, name, password=PASSWORD, role=role, actor="test")
    client = world.app().test_client()
    sign_in(client, name=name)
    return client


def test_viewers_and_strangers_fetch_nothing(world: World, stranger: FlaskClient):
    viewer = signed_in(world, "viewer", accounts.Role.VIEWER)

    for path in ("/fetch", "/api/fetch"):
        assert viewer.get(path).status_code == 403
    assert "/fetch" not in viewer.get("/").text
    assert stranger.get("/fetch").status_code == 302
    assert stranger.get("/api/fetch").status_code == 401


def test_a_form_without_its_token_is_refused(world: World, client: FlaskClient):
    form = {"destination": "pacs", "patient_id": "P-7"}

    for path in ("/fetch/queries", "/fetch/queries/1/studies/0", "/fetch/retrievals/1/retry"):
        assert client.post(path, data=form).status_code == 400
    assert remote_queries.claim_next(world.database) is None
