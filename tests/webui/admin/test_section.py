"""All administrators' pages: who sees them, and what holds of each."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.webui.test_auth import left_alone
from tests.webui.world import World
from webui import errors

PAGES = (
    "/admin",
    "/admin/queues",
    "/admin/peers",
    "/admin/routing",
    "/admin/storage",
    "/admin/quality",
    "/admin/models",
    "/admin/models/lungs",
    "/admin/users",
    "/admin/settings",
)


def test_only_administrators_see_and_change_anything(
    app: Flask, client: FlaskClient, stranger: FlaskClient
):
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/admin")]
    assert len(rules) > len(PAGES)
    token = client.get("/").text.split('name="csrf_token" value="')[1].split('"')[0]

    for rule in rules:
        path = re.sub(r"<int:[^>]*>", "1", re.sub(r"<[a-z_]*>", "x", rule.rule))
        if "POST" in (rule.methods or ()):
            assert client.post(path, data={"csrf_token": token}).status_code == 403, path
            assert stranger.post(path).status_code in {302, 400}, path
        else:
            assert client.get(path).status_code == 403, path
            assert stranger.get(path).status_code == 302, path
    assert "Administration" not in client.get("/").text


def test_nothing_is_changed_without_the_form_token(app: Flask, administrator: FlaskClient):
    rules = [
        rule
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/admin") and "POST" in (rule.methods or ())
    ]
    assert len(rules) >= 12

    for rule in rules:
        answered = administrator.post(re.sub(r"<int:[^>]*>", "1", rule.rule))
        assert answered.status_code == 400, rule
        assert errors.FORM_TOO_OLD in answered.text


def test_a_page_that_follows_what_goes_on_keeps_no_session_open(
    world: World, administrator: FlaskClient
):
    by_itself = {"X-Unattended": "true"}
    left_alone(world, minutes=14)
    assert administrator.get("/admin", headers=by_itself).status_code == 200

    left_alone(world, minutes=2)

    assert administrator.get("/admin", headers=by_itself).status_code == 401
    assert administrator.get("/admin").status_code == 302


@pytest.mark.parametrize("path", PAGES)
def test_each_page_is_made_and_has_nothing_inline(administrator: FlaskClient, path: str):
    answered = administrator.get(path)

    assert answered.status_code == 200
    assert not re.search(r"<[^>]* style=|<style|<script(?![^>]* src=)| on[a-z]+=", answered.text)
    assert answered.text.count("<h1>") == 1


def test_administrators_are_led_there(administrator: FlaskClient):
    assert 'href="/admin"' in administrator.get("/").text
    page = administrator.get("/admin/peers").text
    assert re.search(r'href="/admin/peers" aria-current="page"', page)


def test_pages_name_no_patient(world: World, administrator: FlaskClient):
    world.reject(world.receive("1.2.3"), "no chest", {})

    for path in PAGES:
        page = administrator.get(path).text
        assert "Phantom" not in page
        assert "PHANTOM-0001" not in page
        assert "1.2.3" not in page
