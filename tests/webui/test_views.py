import html
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts
from appliance.tables import AuditEntry
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.browser import Reader, chromium, needs_chromium, serving
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui import views

OTHER = "another reader"


@pytest.fixture
def shown(world: World, chest: tuple[CTVolume, Analysis]) -> tuple[int, int]:
    """A study with a result: its row id and the result's."""
    volume, found = chest
    study_id = world.receive("1.1")
    return study_id, world.finish(study_id, volume, found)


def looks(world: World) -> list[tuple[str, str, dict[str, int]]]:
    """Who looked at what, as the audit says."""
    with world.database.snapshot() as db:
        entries = db.query(AuditEntry).filter_by(tag="web:study:viewed").order_by(AuditEntry.id)
        return [(entry.actor, entry.subject, entry.detail) for entry in entries]


def manifest_of(page: str) -> str:
    """The address of the manifest that a viewer page names."""
    found = re.search(r'data-manifest="([^"]+)"', page)
    assert found is not None
    return html.unescape(found[1])


def test_a_viewer_page_and_its_manifest_are_one_look(
    world: World, client: FlaskClient, shown: tuple[int, int]
):
    page = client.get(f"/studies/{shown[0]}").get_data(as_text=True)
    for _ in range(2):
        assert client.get(manifest_of(page)).status_code == 200

    assert looks(world) == [(NAME, f"study {shown[0]}", {"analysis": shown[1]})]


def test_a_superseded_result_is_a_look_at_that_result(
    world: World, client: FlaskClient, shown: tuple[int, int]
):
    client.get(f"/studies/{shown[0]}/analyses/{shown[1]}")

    assert looks(world) == [(NAME, f"study {shown[0]}", {"analysis": shown[1]})]


@pytest.mark.parametrize("view", ["", "?view=", "?view=made.up.pass"])
def test_a_manifest_without_its_page_is_a_look_of_its_own(
    world: World, client: FlaskClient, shown: tuple[int, int], view: str
):
    client.get(f"/api/analyses/{shown[1]}/manifest{view}")

    assert looks(world) == [(NAME, f"study {shown[0]}", {"analysis": shown[1]})]


def test_the_pass_of_a_page_is_good_for_a_short_while(
    world: World, client: FlaskClient, shown: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    page = client.get(f"/studies/{shown[0]}").get_data(as_text=True)
    monkeypatch.setattr(views, "PASS_S", -1)

    client.get(manifest_of(page))

    assert len(looks(world)) == 2


def test_the_pass_of_a_page_is_good_for_its_reader_and_result_alone(
    world: World,
    app: Flask,
    client: FlaskClient,
    shown: tuple[int, int],
    chest: tuple[CTVolume, Analysis],
):
    with world.database.transaction() as db:
        role = accounts.Role.RADIOLOGIST
        accounts.add(db, OTHER, password=PASSWORD, role=role, actor="test")
    second_study = world.receive("1.2")
    second = world.finish(second_study, *chest)
    other = app.test_client()
    assert sign_in(other, name=OTHER).status_code == 302
    address = manifest_of(client.get(f"/studies/{shown[0]}").get_data(as_text=True))

    other.get(address)
    client.get(address.replace(f"/{shown[1]}/", f"/{second}/"))

    assert looks(world)[1:] == [
        (OTHER, f"study {shown[0]}", {"analysis": shown[1]}),
        (NAME, f"study {second_study}", {"analysis": second}),
    ]


def test_a_study_without_a_result_is_looked_at_too(world: World, client: FlaskClient):
    study_id = world.receive("1.1")

    client.get(f"/studies/{study_id}")
    client.get(f"/api/studies/{study_id}")

    assert looks(world) == [(NAME, f"study {study_id}", {})]


def test_what_is_not_there_was_not_looked_at(world: World, client: FlaskClient):
    for address in ("/studies/999", "/api/analyses/999/manifest"):
        client.get(address)

    assert looks(world) == []


@needs_chromium
def test_a_browser_that_opens_the_viewer_makes_one_entry(world: World, shown: tuple[int, int]):
    with serving(world.app()) as address, chromium() as browser:
        reader = Reader.signed_in(browser, address)
        reader.open_study(shown[0])
        assert reader.troubles == []
        reader.page.close()

    assert len(looks(world)) == 1
