from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from appliance import accounts
from appliance.tables import AuditEntry, WebSession
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui.auth import SIGN_IN_LIMIT


def test_a_right_password_leads_to_the_wanted_page(stranger: FlaskClient):
    answer = sign_in(stranger, target="/studies/1")

    assert (answer.status_code, answer.location) == (302, "/studies/1")


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil", "evil", "", "//["],
)
def test_a_sign_in_never_leads_to_another_server(stranger: FlaskClient, target: str):
    assert sign_in(stranger, target=target).location == "/"


def test_a_wrong_password_is_refused_without_saying_what_was_wrong(stranger: FlaskClient):
    wrong_password = sign_in(stranger, password="wrong").get_data(as_text=True)
    wrong_name = sign_in(stranger, name="nobody").get_data(as_text=True)

    assert "wrong, or the account is locked" in wrong_password
    assert "wrong, or the account is locked" in wrong_name


def test_a_form_without_its_token_is_refused(stranger: FlaskClient):
    answer = stranger.post("/sign-in", data={"name": NAME, "password": PASSWORD})

    assert answer.status_code == 400


def test_sign_ins_from_one_address_are_limited(stranger: FlaskClient):
    limit = int(SIGN_IN_LIMIT.split()[0])

    answers = [sign_in(stranger, name=f"nobody{i}").status_code for i in range(limit + 1)]

    assert answers[-1] == 429
    assert set(answers[:-1]) == {401}


@pytest.mark.parametrize(("proxy", "limited"), [("127.0.0.1", False), ("10.0.0.9", True)])
def test_people_behind_a_proxy_of_this_machine_are_limited_each(
    stranger: FlaskClient, proxy: str, *, limited: bool
):
    def try_from(address: str) -> int:
        stranger.environ_base.update(REMOTE_ADDR=proxy, HTTP_X_FORWARDED_FOR=address)
        return int(stranger.get("/sign-in/openid").status_code)  # no slow hash

    for _ in range(int(SIGN_IN_LIMIT.split()[0])):
        try_from("10.1.1.1")

    assert try_from("made up, 10.1.1.2") == (429 if limited else 404)
    assert try_from("made up, 10.1.1.1") == 429


def test_the_session_cookie_is_kept_from_scripts_and_other_sites(stranger: FlaskClient):
    cookie = sign_in(stranger).headers["Set-Cookie"]

    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


def test_signing_out_ends_the_session(client: FlaskClient):
    page = client.get("/").get_data(as_text=True)
    token = page.split('name="csrf_token" value="')[1].split('"')[0]

    client.post("/sign-out", data={"csrf_token": token})

    assert client.get("/").status_code == 302


@pytest.mark.parametrize("change", ["disabled", "new password"])
def test_a_disabled_account_and_a_new_password_end_running_sessions(
    world: World, client: FlaskClient, change: str
):
    with world.database.transaction() as db:
        if change == "disabled":
            accounts.disable(db, NAME, actor="test")
        else:
            accounts.set_password(db, NAME, password="another long one", actor="test")

    assert client.get("/").status_code == 302
    assert client.get("/api/worklist").status_code == 401


def test_what_a_page_asks_for_later_does_not_renew_the_session(client: FlaskClient):
    client.get("/")  # the first page puts its token against forged requests into the session

    answers = [client.get("/"), client.get("/api/worklist")]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert not any("Set-Cookie" in answer.headers for answer in answers)


def form_token(client: FlaskClient, address: str = "/account") -> str:
    return str(client.get(address).text.split('name="csrf_token" value="')[1].split('"')[0])


def left_alone(world: World, *, minutes: float = 16) -> None:
    """Let every session be without its person for a while."""
    with world.database.transaction() as db:
        for row in db.scalars(select(WebSession)):
            row.active_at -= timedelta(minutes=minutes)


def test_a_cookie_that_was_kept_is_of_no_use_after_the_sign_out(app: Flask, client: FlaskClient):
    kept = client.get_cookie("chest_ct_session")
    assert kept is not None
    client.post("/sign-out", data={"csrf_token": form_token(client)})

    thief = app.test_client()
    thief.set_cookie("chest_ct_session", kept.decoded_value)

    assert thief.get("/").status_code == 302


def test_a_session_that_was_left_is_locked(world: World, client: FlaskClient):
    left_alone(world)

    assert client.get("/").status_code == 302
    assert client.get("/api/worklist").status_code == 401
    assert client.get("/api/session").get_json()["account_id"] is None


def test_what_pages_ask_for_by_themselves_keeps_no_session_open(world: World, client: FlaskClient):
    left_alone(world, minutes=14)
    for address in ("/api/live", "/api/worklist", "/api/session", "/dicom-web/studies"):
        client.get(address).close()

    left_alone(world, minutes=2)

    assert client.get("/").status_code == 302


def test_a_page_that_is_opened_and_a_key_that_is_pressed_keep_it_open(
    world: World, client: FlaskClient
):
    headers = {"X-CSRFToken": form_token(client)}
    for sign_of_life in (
        lambda: client.get("/"),
        lambda: client.post("/api/session/active", headers=headers),
    ):
        client.get("/")
        left_alone(world, minutes=14)
        assert sign_of_life().status_code in {200, 204}
        left_alone(world, minutes=14)
        assert client.get("/api/worklist").status_code == 200


def test_a_locked_page_goes_on_with_its_form_token(world: World, client: FlaskClient):
    study_id, token = world.receive("1.1"), form_token(client)
    left_alone(world)
    now = client.get("/api/session").get_json()["csrf_token"]

    wrong = unlock(client, now, password="wrong")
    right = unlock(client, now)

    assert (wrong.status_code, right.status_code) == (401, 200)
    answer = client.post(
        f"/api/studies/{study_id}/priority", data={"urgent": "true", "csrf_token": token}
    )
    assert answer.status_code == 204


def test_nobody_signs_what_another_person_left_in_the_page(
    world: World, app: Flask, client: FlaskClient
):
    with world.database.transaction() as db:
        other = accounts.add(
            db, "other", password=PASSWORD, role=accounts.Role.RADIOLOGIST, actor="test"
        )
    study_id, token = world.receive("1.1"), form_token(client)
    left_alone(world)

    now = client.get("/api/session").get_json()["csrf_token"]
    assert unlock(client, now, account_id=other).status_code == 200
    path, form = f"/api/studies/{study_id}/priority", {"urgent": "true"}
    old_token = client.post(path, data={**form, "csrf_token": token})
    new_token = client.post(
        path, data={**form, "csrf_token": form_token(client)}, headers={"X-Account": "1"}
    )

    assert (old_token.status_code, new_token.status_code) == (400, 401)


def unlock(client: FlaskClient, token: str, *, account_id: int = 1, password: str = PASSWORD):
    return client.post(
        "/api/session",
        json={"account_id": account_id, "password": password},
        headers={"X-CSRFToken": token},
    )


def test_a_first_password_must_be_changed_before_anything_else(world: World, app: Flask):
    with world.database.transaction() as db:
        accounts.add(
            db,
            "new one",
            password=PASSWORD,
            role=accounts.Role.RADIOLOGIST,
            actor="test",
            temporary=True,
        )
    client = app.test_client()
    sign_in(client, name="new one")

    assert client.get("/").location == "/account"
    assert client.get("/api/worklist").status_code == 403
    assert client.get("/dicom-web/studies", auth=("new one", PASSWORD)).status_code == 403

    def change(**form: str) -> Any:
        given = {"old": PASSWORD, "new": "quiet river lantern", "again": "quiet river lantern"}
        return client.post(
            "/account/password", data={"csrf_token": form_token(client), **given, **form}
        )

    assert "differ" in change(again="quiet river").text
    assert "characters" in change(new="short", again="short").text
    assert "wrong" in change(old="not this one here").text
    assert "old password" in change(new=PASSWORD, again=PASSWORD).text
    assert change().location == "/"
    assert client.get("/").status_code == 200
    assert client.get(
        "/dicom-web/studies", auth=("new one", "quiet river lantern")
    ).status_code in {200, 204}


def test_signing_out_everywhere_leaves_this_browser_alone(app: Flask, client: FlaskClient):
    elsewhere = app.test_client()
    sign_in(elsewhere)

    client.post("/account/sign-out-everywhere", data={"csrf_token": form_token(client)})

    assert elsewhere.get("/").status_code == 302
    assert client.get("/").status_code == 200


def test_right_and_wrong_sign_ins_are_in_the_audit_without_what_was_typed(
    world: World, stranger: FlaskClient
):
    sign_in(stranger, name="a password typed here")
    sign_in(stranger, password="wrong")
    sign_in(stranger)

    with world.database.snapshot() as db:
        entries = db.scalars(select(AuditEntry).where(AuditEntry.tag.like("accounts:session:%")))
        told = [(entry.actor, entry.tag, entry.subject, entry.detail) for entry in entries]
    source = {"from": "127.0.0.1"}
    assert told == [
        ("anonymous", "accounts:session:refused", "no account", source),
        ("anonymous", "accounts:session:refused", "account 1", source),
        (NAME, "accounts:session:opened", "account 1", source),
    ]


def test_who_tries_a_name_elsewhere_shuts_nobody_out_who_is_at_work(
    world: World, app: Flask, client: FlaskClient
):
    for _ in range(accounts.MAX_FAILED_LOGINS):
        sign_in(app.test_client(), password="wrong")
    left_alone(world)
    token = client.get("/api/session").get_json()["csrf_token"]

    assert sign_in(app.test_client()).status_code == 401
    assert unlock(client, token).status_code == 200


def test_a_locked_page_has_a_count_of_its_own(world: World, app: Flask, client: FlaskClient):
    left_alone(world)
    token = client.get("/api/session").get_json()["csrf_token"]

    tries = [
        unlock(client, token, password="wrong").status_code
        for _ in range(2 * accounts.MAX_FAILED_LOGINS)
    ]

    assert set(tries) == {401}
    assert unlock(client, token).status_code == 401
