import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts
from appliance.accounts import Role
from appliance.tables import AuditEntry
from tests.support.instances import Names, ct_instance
from tests.webui.dicomweb.conftest import Archive
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui.auth import REMEMBERED_S, SIGN_IN_LIMIT

READING = ("/studies", "/series", "/instances", "/studies/1.2.1/metadata", "/studies/1.2.1")


def opened(world: World) -> int:
    """How often somebody's password was found right."""
    with world.database.snapshot() as db:
        return db.query(AuditEntry).filter_by(tag="accounts:session:opened").count()


@pytest.mark.parametrize("path", [*READING, "/nonsense", "/"])
def test_strangers_are_asked_for_a_password(stranger: FlaskClient, path: str):
    answer = stranger.get(f"/dicom-web{path}")

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.json == {"error": "Sign in first."}


def test_strangers_store_nothing(stranger: FlaskClient):
    for path in ("/studies", "/studies/1.2.3"):
        assert stranger.post(f"/dicom-web{path}", data=b"x").status_code == 401


@pytest.mark.parametrize("role", Role)
def test_everybody_with_an_account_may_read(
    people: None, archive: Archive, stranger: FlaskClient, role: Role
):
    archive.take(ct_instance(Names("1.2.1", "1.2.1.1")))

    for path in READING:
        assert stranger.get(f"/dicom-web{path}", auth=(role.value, PASSWORD)).status_code == 200


def test_the_session_of_the_pages_counts(client: FlaskClient):
    assert client.get("/dicom-web/studies").status_code == 200


def test_name_and_password_open_no_page(stranger: FlaskClient):
    for path in ("/", "/api/worklist"):
        assert stranger.get(path, auth=(NAME, PASSWORD)).status_code in {302, 401}
    assert "Set-Cookie" not in stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).headers


@pytest.mark.parametrize(
    "credentials",
    [
        (NAME, "wrong"),
        ("nobody", PASSWORD),
        (NAME, ""),
        ("", ""),
        (f"{NAME}\0", PASSWORD),
        (NAME, PASSWORD + "\0"),
        (NAME[:-1], NAME[-1] + PASSWORD),
    ],
)
def test_wrong_credentials_are_refused(stranger: FlaskClient, credentials: tuple[str, str]):
    stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD))

    assert stranger.get("/dicom-web/studies", auth=credentials).status_code == 401


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic //8=", "Bearer abc", "Digest a=b"])
def test_a_malformed_header_is_refused(stranger: FlaskClient, header: str):
    answer = stranger.get("/dicom-web/studies", headers={"Authorization": header})

    assert answer.status_code == 401


def test_the_slow_hash_is_computed_once_for_many_requests(
    world: World, stranger: FlaskClient, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(30):
        assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 200
    assert opened(world) == 1

    later = time.monotonic() + REMEMBERED_S + 1
    monkeypatch.setattr("webui.auth.time.monotonic", lambda: later)
    assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 200
    assert opened(world) == 2


def test_a_remembered_password_ends_with_the_account(world: World, stranger: FlaskClient):
    assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 200

    with world.database.transaction() as db:
        accounts.set_password(db, NAME, password="another password", actor="test")
    assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 401
    assert stranger.get("/dicom-web/studies", auth=(NAME, "another password")).status_code == 200

    with world.database.transaction() as db:
        accounts.disable(db, NAME, actor="test")
    assert stranger.get("/dicom-web/studies", auth=(NAME, "another password")).status_code == 401


def test_attempts_are_limited_and_lock_the_account(world: World, stranger: FlaskClient):
    limit = int(SIGN_IN_LIMIT.split()[0])
    assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 200

    answers = [
        stranger.get("/dicom-web/studies", auth=(NAME, f"wrong {n}")).status_code
        for n in range(limit)
    ]

    assert answers == [401] * (limit - 1) + [429]
    with world.database.snapshot() as db:
        assert db.query(AuditEntry).filter_by(tag="accounts:account:locked").count() == 1
    # What was right before is known still, and no other site is shut out by one that fails.
    assert stranger.get("/dicom-web/studies", auth=(NAME, PASSWORD)).status_code == 200


def test_no_other_origin_is_let_in(app: Flask, get: Callable[..., Any]):
    answer = get("/studies")

    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    token = base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
    asked = app.test_client().options(
        "/dicom-web/studies",
        headers={"Authorization": f"Basic {token}", "Origin": "https://evil.example"},
    )
    assert not [name for name, _ in asked.headers if name.startswith("Access-Control")]


def test_a_signed_in_person_may_send_name_and_password_too(people: None, app: Flask):
    client = app.test_client()
    sign_in(client, name="viewer")

    assert client.get("/dicom-web/studies", auth=("viewer", "wrong")).status_code == 200
