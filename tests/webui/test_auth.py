import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts
from tests.webui.world import NAME, PASSWORD, World, sign_in
from webui.auth import PUBLIC, SIGN_IN_LIMIT


def test_only_sign_in_static_files_and_health_answer_strangers(app: Flask, stranger: FlaskClient):
    for rule in app.url_map.iter_rules():
        address = rule.build(dict.fromkeys(rule.arguments, "1"))[1]
        for method in sorted(rule.methods - {"OPTIONS"}):
            answer = stranger.open(address, method=method)
            if rule.endpoint in PUBLIC:
                assert answer.status_code != 401, address
            elif method == "POST":
                expected = (401,) if address.startswith("/dicom-web/") else (302, 400)
                assert answer.status_code in expected, (method, address)
            else:
                assert answer.status_code in (302, 401), (method, address)
                if answer.status_code == 302:
                    assert answer.location.startswith("/sign-in"), address


def test_the_public_endpoints_all_exist(app: Flask):
    assert {rule.endpoint for rule in app.url_map.iter_rules()} >= PUBLIC


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
