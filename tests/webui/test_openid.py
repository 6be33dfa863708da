"""Sign-in at an identity provider, against one that really speaks the protocol."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from joserfc.jwk import RSAKey
from sqlalchemy import select

from appliance import accounts
from appliance.config import OpenIDRoleSettings, OpenIDSettings, Settings
from appliance.errors import ConfigError
from appliance.tables import AuditEntry
from tests.support.identity_provider import CLIENT, SECRET, Provider
from tests.webui.browser import serving
from tests.webui.world import NAME, World, sign_in
from webui import openid

RULES = (
    OpenIDRoleSettings(value="chief", role="senior radiologist"),
    OpenIDRoleSettings(value="doctor", role="radiologist"),
)


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves it to the test to follow."""

    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    with serving(made.app()) as address:
        made.issuer = address
        yield made


@pytest.fixture
def world(world: World, provider: Provider, tmp_path: Path) -> World:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    chosen = OpenIDSettings(
        issuer=provider.issuer, client_id=CLIENT, client_secret_file=secret, roles=RULES
    )
    return replace(world, settings=replace(world.settings, openid=chosen))


def through(client: FlaskClient, target: str = "/") -> Any:
    """What a browser gets that goes to the provider and comes back."""
    sent = client.get("/sign-in/openid", query_string={"next": target})
    assert sent.status_code == 302
    try:
        urllib.request.build_opener(NoRedirect).open(sent.location)
    except urllib.error.HTTPError as answer:
        with answer:
            back = urlsplit(answer.headers["Location"])
    return client.get(f"{back.path}?{back.query}")


def refusals(world: World) -> list[dict[str, str]]:
    with world.database.snapshot() as db:
        wanted = select(AuditEntry).where(AuditEntry.tag == "accounts:session:refused")
        return [entry.detail for entry in db.scalars(wanted)]


def test_a_person_comes_in_with_the_role_that_the_provider_gives(
    world: World, stranger: FlaskClient
):
    answer = through(stranger, "/account")

    assert (answer.status_code, answer.location) == (302, "/account")
    page = stranger.get("/account").text
    assert "grey, radiologist" in page
    assert "identity provider" in page
    with world.database.snapshot() as db:
        account = accounts.named(db, "grey")
        assert account is not None
        assert account.external_id == f"{world.settings.openid.issuer} 42"
    assert sign_in(stranger, name="grey", password="!").status_code == 401


def test_another_role_at_the_provider_is_another_one_here(
    world: World, provider: Provider, stranger: FlaskClient
):
    through(stranger)
    provider.claims["roles"] = ["doctor", "chief"]

    through(stranger)

    assert "grey, senior radiologist" in stranger.get("/account").text
    with world.database.snapshot() as db:
        assert len(accounts.everyone(db)) == 2


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"roles": ["cleaner"]}, openid.NO_ROLE),
        ({"roles": None}, openid.NO_ROLE),
        ({"preferred_username": ""}, openid.NO_NAME),
        ({"preferred_username": NAME}, "another user"),
        ({"iss": "https://evil.example"}, openid.NOT_VOUCHED),
        ({"aud": "another client"}, openid.NOT_VOUCHED),
        ({"aud": ["another client"], "azp": CLIENT}, openid.NOT_VOUCHED),
        ({"nonce": "of another sign-in"}, openid.NOT_VOUCHED),
        ({"exp": 1}, openid.NOT_VOUCHED),
        ({"key": RSAKey.generate_key(2048, {"kid": "1"})}, openid.NOT_VOUCHED),
    ],
)
def test_who_is_not_vouched_for_stays_outside(
    world: World, provider: Provider, stranger: FlaskClient, claims: dict[str, Any], said: str
):
    provider.forged = claims

    answer = through(stranger)

    assert answer.status_code == 401
    assert said.replace("'", "&#39;") in answer.text
    assert stranger.get("/").status_code == 302
    assert len(refusals(world)) == 1


def test_who_turns_back_at_the_provider_is_told_so(provider: Provider, stranger: FlaskClient):
    provider.denies = True

    assert openid.NOT_VOUCHED in through(stranger).text


@pytest.mark.parametrize("query", ["", "?code=x", "?code=x&state=y"])
def test_an_answer_that_nobody_asked_for_opens_nothing(stranger: FlaskClient, query: str):
    assert stranger.get(f"/sign-in/openid/back{query}").status_code == 401


def test_a_disabled_person_stays_outside(world: World, stranger: FlaskClient):
    through(stranger)
    with world.database.transaction() as db:
        accounts.disable(db, "grey", actor="test")

    assert "disabled" in through(stranger).text


def test_names_and_passwords_go_on_when_the_provider_does_not_answer(
    world: World, stranger: FlaskClient
):
    silent = replace(world.settings.openid, issuer="http://127.0.0.1:9")
    client = replace(world, settings=replace(world.settings, openid=silent)).app().test_client()

    answer = client.get("/sign-in/openid")

    assert (answer.status_code, openid.NO_ANSWER in answer.text) == (502, True)
    assert sign_in(client).status_code == 302


def test_without_a_provider_nothing_of_it_is_there(world: World):
    local = replace(world, settings=replace(world.settings, openid=OpenIDSettings()))
    client = local.app().test_client()

    assert client.get("/sign-in/openid").status_code == 404
    assert "/sign-in/openid" not in client.get("/sign-in").text


@pytest.mark.parametrize(
    "chosen",
    [
        {"issuer": "http://login.example", "client_id": "a"},
        {"issuer": "https://login.example"},
        {"issuer": "https://login.example", "client_id": "a", "roles": [{"value": "x"}]},
        {
            "issuer": "https://login.example",
            "client_id": "a",
            "roles": [{"value": "x", "role": "boss"}],
        },
    ],
)
def test_a_provider_that_could_not_work_is_refused(tmp_path: Path, chosen: dict[str, Any]):
    with pytest.raises(ConfigError, match="openid"):
        Settings.parse({"data_dir": str(tmp_path), "openid": chosen})
