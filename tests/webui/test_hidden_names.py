"""Names hidden for a demonstration: no address leads to them, in no form."""

from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import IntegerConverter

from appliance import accounts, remote_queries
from appliance.accounts import Role
from appliance.remote_queries import RemoteStudy
from appliance.studies import PatientAttributes, StudyAttributes
from pipelines.findings import Analysis
from pipelines.volume import CTVolume
from tests.webui.test_fetching import NODES
from tests.webui.world import NAME, World, sign_in
from webui.permissions import NAMES_HIDDEN

SECRETS = ("Zaphod", "Beeblebrox", "XQ-4711", "ACC-4242", "1952-03-1", "19520311", "1.2.777")


@pytest.fixture
def world(world: World) -> World:
    dicom = replace(world.settings.dicom, destinations=NODES)
    return replace(world, settings=replace(world.settings, dicom=dicom))


@pytest.fixture
def filled(world: World, chest: tuple[CTVolume, Analysis]) -> World:
    """One person in every place that names one: with a result, refused, and at another node."""
    patient = PatientAttributes(
        patient_id="XQ-4711", name="Beeblebrox^Zaphod", birth_date="19520311", sex="M"
    )
    study = StudyAttributes(
        description="Thorax", study_date="20260305", accession_number="ACC-4242"
    )
    for uid in ("1.2.777.1", "1.2.777.2"):
        world.receive(uid, patient=patient, study=study)
    world.finish(1, *chest)
    world.reject(2, "no chest", {"1.2.777.2.series": "no chest"})
    with world.database.transaction() as db:
        remote_queries.ask(db, destination="pacs", keys={"patient_id": "XQ-4711"}, asked_by=NAME)
    question = remote_queries.claim_next(world.database)
    assert question is not None
    found = RemoteStudy(
        study_uid="1.2.777.1",
        patient_id="XQ-4711",
        patient_name="Beeblebrox^Zaphod",
        birth_date="19520311",
        accession_number="ACC-4242",
    )
    remote_queries.answer(world.database, question, [found], cut_off=False)
    return world


def hide(client: FlaskClient, *, hidden: bool = True) -> None:
    token = client.get("/account").text.split('name="csrf_token" value="')[1].split('"')[0]
    form = {"csrf_token": token, "hidden": str(hidden).lower()}
    assert client.post("/account/names", data=form).status_code == 302


def everything(app: Flask, client: FlaskClient) -> dict[str, str]:
    """What every address that is read answers of the studies 1 and 2, and of the question 1."""
    answers = {}
    for rule in app.url_map.iter_rules():
        if "GET" not in (rule.methods or ()) or rule.endpoint in {"static", "worklist.live"}:
            continue
        for number in (1, 2):
            values: dict[str, int | str] = {
                name: number if isinstance(converter, IntegerConverter) else "1.2.777.1"
                for name, converter in rule._converters.items()
            }
            built = rule.build(values)
            assert built is not None
            for query in ("", "?query=1"):
                with client.get(built[1] + query) as answer:
                    answers[built[1] + query] = answer.get_data().decode("utf-8", "replace")
    return answers


def told(answers: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (address, secret)
        for address, text in answers.items()
        for secret in SECRETS
        if secret in text.replace(address, "").replace(address.partition("?")[0], "")
    ]


@pytest.mark.parametrize("role", [Role.RADIOLOGIST, Role.ADMINISTRATOR])
def test_no_address_tells_a_name_a_number_or_a_birth_date(
    filled: World, app: Flask, client: FlaskClient, role: Role
):
    with filled.database.transaction() as db:
        accounts.set_role(db, NAME, role, actor="test")
    shown = {secret for _, secret in told(everything(app, client))}
    assert {"Zaphod", "XQ-4711", "ACC-4242", "1952-03-1"} <= shown, "the test looks in vain"

    hide(client)

    assert told(everything(app, client)) == []


def test_what_cannot_be_hidden_is_not_given(filled: World, app: Flask, client: FlaskClient):
    hide(client)

    answer = client.get("/dicom-web/studies")

    assert (answer.status_code, answer.get_json()) == (403, {"error": NAMES_HIDDEN})


def test_the_same_person_has_the_same_code_and_the_names_come_back(
    filled: World, client: FlaskClient
):
    def rows() -> list[dict[str, str]]:
        return list(client.get("/api/worklist").get_json()["rows"])

    hide(client)
    first, second = rows()
    assert first["patient"].startswith("Patient ")
    assert (first["patient"], first["patient_id"]) == (second["patient"], second["patient_id"])
    assert first["birth_date"] == "1952"

    hide(client, hidden=False)
    assert rows()[0]["patient"] == "Beeblebrox, Zaphod"


def test_another_session_of_the_person_shows_the_names(
    filled: World, app: Flask, client: FlaskClient
):
    hide(client)
    elsewhere = app.test_client()
    sign_in(elsewhere)

    assert "Zaphod" in elsewhere.get("/api/worklist").text
