import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, priority
from appliance.studies import PatientAttributes, SeriesAttributes
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import DIGESTS, NAME, PASSWORD, World, sign_in
from webui import worklist

Rows = Callable[..., dict[str, Any]]


@pytest.fixture
def rows(client: FlaskClient):
    def fetch(page: int = 1) -> dict[str, Any]:
        return client.get("/api/worklist", query_string={"page": page}).get_json()

    return fetch


def test_the_page_is_a_shell_that_names_where_its_rows_come_from(client: FlaskClient):
    page = client.get("/?page=3").get_data(as_text=True)

    assert 'data-rows="/api/worklist"' in page
    assert 'data-live="/api/live"' in page
    assert 'data-page="3"' in page


def test_suspicious_studies_come_first_and_then_the_newest(
    world: World, rows: Rows, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    older, suspicious, newer = (world.receive(uid) for uid in ("1.1", "1.2", "1.3"))
    world.finish(suspicious, volume, found)

    assert [row["study_id"] for row in rows()["rows"]] == [suspicious, newer, older]


def test_a_finished_study_shows_its_result(
    world: World, rows: Rows, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    world.finish(world.receive("1.1"), volume, found)

    (row,) = rows()["rows"]

    assert (row["state"], row["state_word"]) == ("READY", "Ready")
    assert (row["probability"], row["positive"]) == (found.probability, True)
    assert row["lesion_count"] == len(found.lesions)
    assert row["patient"] == "Phantom, Chest"


def test_a_refused_study_shows_its_reason_and_the_reason_of_each_series(world: World, rows: Rows):
    localiser = SeriesAttributes(modality="CT", description="Topogram", series_number="1")
    study_id = world.receive("1.1", series=localiser)
    reason = "Series 1 (Topogram) is a localiser."
    world.reject(study_id, "No series can be analysed.", {"1.1.series": reason})

    (row,) = rows()["rows"]

    assert (row["state"], row["reason"]) == ("REJECTED", "No series can be analysed.")
    assert row["refused_series"] == [{"series": "CT 1 Topogram", "images": 1, "reason": reason}]


def test_other_bytes_under_a_known_uid_are_flagged(world: World, rows: Rows):
    world.receive("1.1")
    world.receive("1.1", digest=DIGESTS["other"])

    assert [row["conflicts"] for row in rows()["rows"]] == [1]


def test_two_people_under_one_study_uid_are_two_flagged_lines(
    world: World, rows: Rows, client: FlaskClient
):
    world.receive("1.1")
    world.receive("1.1", instance="2", patient=PatientAttributes(patient_id="8", name="Other^Ann"))

    found = rows()["rows"]
    lines = [(row["patient"], row["shares_uid"]) for row in found]
    pages = [client.get(f"/studies/{row['study_id']}").text for row in found]

    assert sorted(lines) == [("Other, Ann", True), ("Phantom, Chest", True)]
    assert all("also under another patient" in page for page in pages)


def test_a_result_older_than_the_images_is_marked(
    world: World, rows: Rows, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    study_id = world.receive("1.1")
    world.finish(study_id, volume, found)

    world.receive("1.1", instance="2")

    (row,) = rows()["rows"]
    assert (row["state"], row["has_result"], row["stale"]) == ("RECEIVING", True, True)


def test_rows_come_by_the_page(world: World, rows: Rows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worklist, "PAGE_ROWS", 2)
    for number in range(5):
        world.receive(f"1.{number}")

    pages = [rows(page) for page in (1, 2, 3, 4)]

    assert [len(page["rows"]) for page in pages] == [2, 2, 1, 1]
    assert [page["page"] for page in pages] == [1, 2, 3, 3]
    assert pages[0]["pages"] == 3
    assert pages[0]["total"] == 5


def test_a_radiologist_makes_a_waiting_study_urgent(client: FlaskClient, world: World, rows: Rows):
    study_id = world.receive("1.2.3")
    token = form_token(client)
    (before,) = rows()["rows"]
    assert before["priority_url"] == f"/api/studies/{study_id}/priority"

    told = client.post(
        before["priority_url"], data={"urgent": "true"}, headers={"X-CSRFToken": token}
    )

    (after,) = rows()["rows"]
    assert told.status_code == 204
    assert (before["urgent"], after["urgent"]) == (False, True)
    assert after["priority_reason"] == f"by {NAME}"


@pytest.mark.parametrize(
    ("path", "urgent", "token", "status"),
    [
        ("/api/studies/1/priority", "true", False, 400),
        ("/api/studies/1/priority", "soon", True, 400),
        ("/api/studies/9/priority", "true", True, 404),
    ],
)
def test_what_is_no_such_wish_changes_nothing(
    client: FlaskClient, world: World, path: str, urgent: str, *, token: bool, status: int
):
    world.receive("1.2.3")
    headers = {"X-CSRFToken": form_token(client)} if token else {}

    assert client.post(path, data={"urgent": urgent}, headers=headers).status_code == status


def test_a_viewer_sees_what_is_urgent_and_cannot_change_it(
    app: Flask, world: World, stranger: FlaskClient
):
    study_id = world.receive("1.2.3")
    with world.database.transaction() as db:
        priority.mark(db, study_id, priority.Priority.URGENT, actor="ann", who="ann")
        accounts.add(db, "vera", password=PASSWORD, role=accounts.Role.VIEWER, actor="test")
    sign_in(stranger, name="vera")

    (row,) = stranger.get("/api/worklist").get_json()["rows"]
    refused = stranger.post(
        f"/api/studies/{study_id}/priority",
        data={"urgent": "false"},
        headers={"X-CSRFToken": form_token(stranger)},
    )

    assert (row["urgent"], row["priority_reason"], row["priority_url"]) == (True, "by ann", None)
    assert refused.status_code == 403


def form_token(client: FlaskClient) -> str:
    found = re.search(r'data-token="([^"]+)"', client.get("/").get_data(as_text=True))
    assert found is not None
    return found.group(1)
