import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, priority
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from appliance.worklist import today_here
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.world import DIGESTS, NAME, PASSWORD, World, sign_in
from webui import worklist

Rows = Callable[..., dict[str, Any]]


@pytest.fixture
def rows(client: FlaskClient):
    def fetch(page: int = 1, **asked: Any) -> dict[str, Any]:
        return client.get("/api/worklist", query_string={"page": page, **asked}).get_json()

    return fetch


def test_the_page_is_a_shell_that_names_where_its_rows_come_from(client: FlaskClient):
    page = client.get("/").get_data(as_text=True)

    assert 'data-rows="/api/worklist"' in page
    assert 'data-live="/api/live"' in page


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


TODAY = today_here()


def dated(days_ago: int, **changes: str) -> StudyAttributes:
    return StudyAttributes(study_date=f"{TODAY - timedelta(days=days_ago):%Y%m%d}", **changes)


def found_by(rows: Rows, **asked: Any) -> set[int]:
    answer = rows(**asked)
    assert answer["total"] == len(answer["rows"])
    return {row["study_id"] for row in answer["rows"]}


def test_the_address_filters_and_searches(
    world: World, rows: Rows, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    scanner = SeriesAttributes(station_name="CT-A", manufacturer="Alpha", model="One")
    ready = world.receive("1.1", study=dated(0, accession_number="A1"), series=scanner)
    world.finish(ready, volume, found)
    jane = PatientAttributes(patient_id="17", name="DOE^JANE")
    other = world.receive("1.2", study=dated(8), patient=jane, source_ae="CT2")

    assert found_by(rows) == {ready, other}
    assert found_by(rows, state="review") == {ready}
    assert found_by(rows, state="waiting") == {other}
    assert found_by(rows, period="today") == {ready}
    assert found_by(rows, period="7") == {ready}
    assert found_by(rows, period="30") == {ready, other}
    week_ago = (TODAY - timedelta(days=7)).isoformat()
    assert found_by(rows, period="dates", to=week_ago) == {other}
    assert found_by(rows, period="dates", **{"from": week_ago}) == {ready}
    assert found_by(rows, source="CT2") == {other}
    assert found_by(rows, station="CT-A") == {ready}
    assert found_by(rows, device="Alpha\\One") == {ready}
    assert found_by(rows, result="suspicious") == {ready}
    assert found_by(rows, q="jane doe") == {other}
    assert found_by(rows, q="a1") == {ready}
    assert found_by(rows, q="1.2") == {other}
    assert [row["study_id"] for row in rows(order="-arrival")["rows"]] == [ready, other]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"state": "lost"}, "state is one of waiting, running, review"),
        ({"period": "yesterday"}, "period is one of today, 7, 30, dates"),
        ({"period": "dates", "from": "5.3.2026"}, "write from as 2026-03-05"),
        ({"result": "bad"}, "result is one of suspicious"),
        ({"mine": "all"}, "mine is one of confirmed, opened"),
        ({"order": "--date"}, "order is one of suspicion"),
        ({"q": "x" * 201}, "q is too long"),
        ({"source": "a\x00"}, "source is too long"),
    ],
)
def test_an_address_of_no_use_is_refused_with_what_there_is(
    client: FlaskClient, asked: dict[str, str], said: str
):
    answer = client.get("/api/worklist", query_string=asked)

    assert answer.status_code == 400
    assert said in answer.get_json()["error"]


def test_rows_say_why_they_stand_where_they_do(world: World, rows: Rows):
    urgent, other = (world.receive(uid, study=dated(1)) for uid in ("1.1", "1.2"))
    with world.database.transaction() as db:
        priority.mark(db, urgent, priority.Priority.URGENT, actor="ann", who="ann")

    assert [(row["study_id"], row["rank"]) for row in rows()["rows"]] == [
        (urgent, "urgent"),
        (other, "open"),
    ]


def test_what_came_since_is_counted(world: World, rows: Rows):
    world.receive("1.1")
    before = rows()
    world.receive("1.2")
    world.receive("1.3", source_ae="CT2")

    assert before["arrived"] == 0
    assert rows(since=before["newest"])["arrived"] == 2
    assert rows(since=before["newest"], source="CT2")["arrived"] == 1
    assert rows(since=0)["arrived"] == 3


def keep(client: FlaskClient, address: str) -> int:
    headers = {"X-CSRFToken": form_token(client)}
    return client.post("/api/worklist/view", data={"address": address}, headers=headers).status_code


def test_a_person_keeps_a_view_of_their_own(app: Flask, world: World, client: FlaskClient):
    kept = keep(client, "order=date&state=review&q=DOE&period=dates&from=2026-01-01&page=3")
    with world.database.transaction() as db:
        accounts.add(db, "vera", password=PASSWORD, role=accounts.Role.VIEWER, actor="test")
    other = app.test_client()
    sign_in(other, name="vera")

    assert kept == 204
    assert client.get("/").location == "/?state=review&order=date"
    assert client.get("/?order=suspicion").status_code == 200
    assert other.get("/").status_code == 200

    assert keep(client, "") == 204
    assert client.get("/").status_code == 200


def test_a_view_of_no_use_is_not_kept(client: FlaskClient):
    assert keep(client, "state=lost") == 400
    assert client.get("/").status_code == 200


def test_the_next_to_review_is_that_of_the_address_else_of_the_persons_view(
    world: World, client: FlaskClient, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    first, second, third = (world.receive(uid) for uid in ("1.1", "1.2", "1.3"))
    for study_id in (first, second, third):
        world.finish(study_id, volume, found)
    keep(client, "order=-arrival")

    def after(study_id: int, **asked: str) -> Any:
        return client.get(
            "/api/worklist/next", query_string={"after": study_id, **asked}
        ).get_json()["study_id"]

    assert after(first) == second
    assert after(second) == third
    assert after(second, order="arrival") == first
    assert client.get("/api/worklist/next?after=2").get_json()["url"] == f"/studies/{third}"
    assert after(first, q="nobody") is None


def test_other_studies_of_a_patient_are_listed_with_their_results(
    world: World, client: FlaskClient, rows: Rows, chest: tuple[CTVolume, Analysis]
):
    volume, found = chest
    prior = world.receive("1.1", study=dated(400, description="Thorax low dose"))
    world.finish(prior, volume, found)
    now = world.receive("1.2", study=dated(0))
    row = next(row for row in rows()["rows"] if row["study_id"] == now)

    (listed,) = client.get(row["others_url"]).get_json()["studies"]

    assert (row["earlier"], row["later"]) == (1, 0)
    assert listed["url"] == f"/studies/{prior}"
    assert listed["description"] == "Thorax low dose"
    assert listed["lesion_count"] == len(found.lesions)
    assert listed["lesion_volume_ml"] > 0


def test_filters_offer_what_there_is(world: World, client: FlaskClient):
    scanner = SeriesAttributes(station_name="CT-A", manufacturer="Alpha", model="One")
    world.receive("1.1", series=scanner, source_ae="CT7")

    assert client.get("/api/worklist/choices").get_json() == {
        "source": [{"value": "CT7", "text": "CT7"}],
        "station": [{"value": "CT-A", "text": "CT-A"}],
        "device": [{"value": "Alpha\\One", "text": "Alpha One"}],
    }


def test_an_administrator_has_a_failed_study_analysed_anew(app: Flask, world: World, rows: Rows):
    study_id = world.receive("1.1")
    world.fail(world.claim(study_id), "The disk is full.")
    with world.database.transaction() as db:
        accounts.add(db, "root", password=PASSWORD, role=accounts.Role.ADMINISTRATOR, actor="t")
    admin = app.test_client()
    sign_in(admin, name="root")
    headers = {"X-CSRFToken": form_token(admin)}
    (row,) = admin.get("/api/worklist").get_json()["rows"]
    (for_reader,) = rows()["rows"]

    told = admin.post(row["retry_url"], headers=headers)
    again = admin.post(row["retry_url"], headers=headers)
    unknown = admin.post("/api/studies/99/retry", headers=headers)

    assert for_reader["reason"] == "The disk is full."
    assert for_reader["retry_url"] is None
    assert (told.status_code, again.status_code, unknown.status_code) == (204, 409, 404)
    assert [each["state"] for each in rows()["rows"]] == ["QUEUED"]


def test_only_an_administrator_starts_a_study_again(client: FlaskClient, world: World):
    study_id = world.receive("1.1")
    world.fail(world.claim(study_id), "The disk is full.")

    refused = client.post(
        f"/api/studies/{study_id}/retry", headers={"X-CSRFToken": form_token(client)}
    )

    assert refused.status_code == 403


def form_token(client: FlaskClient) -> str:
    page = client.get("/?order=suspicion").get_data(as_text=True)
    found = re.search(r'data-token="([^"]+)"', page)
    assert found is not None
    return found.group(1)
