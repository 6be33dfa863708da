"""F16: every address × every role and stranger × every method, from the route table itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.routing import IntegerConverter, Rule

from appliance import accounts
from appliance.accounts import Role
from appliance.tables import AuditEntry
from tests.webui.world import PASSWORD, World, sign_in
from webui import permissions
from webui.permissions import GRANTED, NO_RULE, REFUSALS, RULES, Permission

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def shared(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World.copied(template, tmp_path_factory.mktemp("permissions") / "data")
    with world.database.transaction() as db:
        for role in Role:
            accounts.add(db, f"some {role}", password=PASSWORD, role=role, actor="test")
    yield world
    world.database.dispose()


@pytest.fixture(scope="module")
def served(shared: World) -> Flask:
    return shared.app()


@pytest.fixture(scope="module")
def people(served: Flask) -> dict[Role | None, FlaskClient]:
    """A client for each role, and one for strangers."""
    clients: dict[Role | None, FlaskClient] = {None: served.test_client()}
    for role in Role:
        clients[role] = served.test_client()
        assert sign_in(clients[role], name=f"some {role}").status_code == 302
    return clients


def address(rule: Rule) -> str:
    """An address of a rule under which nothing is."""
    values: dict[str, int | str] = {
        name: 987654 if isinstance(converter, IntegerConverter) else "x987654"
        for name, converter in rule._converters.items()
    }
    built = rule.build(values)
    assert built is not None, rule
    return built[1]


def expected(role: Role | None, permission: Permission) -> str:
    """What the table says: through, refused or to the sign-in."""
    if permission is Permission.PASS:
        return "through"
    if role is None:
        return "sign in first"
    return "through" if role in GRANTED[permission] else "refused"


def outcome(answer: Any, path: str) -> str:
    if answer.status_code == 302 and answer.location.startswith("/sign-in"):
        return "sign in first"
    if answer.status_code == 401 and path.startswith(("/api/", "/dicom-web/")):
        return "sign in first"
    return "refused" if answer.status_code == 403 else "through"


def test_every_route_has_a_rule_and_every_rule_a_route(served: Flask):
    endpoints = {rule.endpoint for rule in served.url_map.iter_rules()}

    assert sorted(endpoints - RULES.keys()) == [], "give these a line in webui/permissions.py"
    assert sorted(RULES.keys() - endpoints) == [], "these lines are of no route any more"


def test_every_permission_is_granted_and_its_refusal_said():
    assert GRANTED.keys() == set(Permission)
    narrow = {one for one, roles in GRANTED.items() if roles != frozenset(Role)}
    assert narrow == REFUSALS.keys()


@pytest.mark.parametrize("role", [None, *Role])
def test_every_address_answers_each_role_as_the_table_says(
    served: Flask, people: dict[Role | None, FlaskClient], role: Role | None
):
    wrong = []
    for rule in served.url_map.iter_rules():
        path = address(rule)
        for method in METHODS:
            if method not in (rule.methods or ()):
                continue
            if rule.endpoint == "auth.sign_out" and role is not None:
                continue  # it would end the session of this test; another test signs out
            answer = people[role].open(path, method=method)
            said = outcome(answer, path)
            answer.close()
            # Two rules may share a path; one of them answers OPTIONS.
            endpoint, _ = served.url_map.bind("localhost").match(path, method=method)
            if said != expected(role, RULES[endpoint]):
                wrong.append((method, path, answer.status_code, said))

    assert wrong == []


@pytest.mark.parametrize("role", [None, *Role])
def test_a_method_that_no_address_has_reaches_no_view(
    served: Flask, people: dict[Role | None, FlaskClient], role: Role | None
):
    for rule in served.url_map.iter_rules():
        path = address(rule)
        others = set(METHODS) - set(served.url_map.bind("localhost").allowed_methods(path))
        for method in others:
            answer = people[role].open(path, method=method)
            assert answer.status_code in {302, 401, 405}, (method, path)
            answer.close()


def test_a_route_without_a_rule_is_refused_to_everybody_and_noted(world: World):
    app = world.app()
    app.add_url_rule("/forgotten", "forgotten", lambda: "secret")
    reader = app.test_client()
    assert sign_in(reader).status_code == 302

    answer, strange = reader.get("/forgotten"), app.test_client().get("/forgotten")

    assert answer.status_code == 403
    assert NO_RULE in answer.text
    assert strange.status_code == 302
    with world.database.snapshot() as db:
        (entry,) = db.scalars(select(AuditEntry).where(AuditEntry.tag == "web:permission:refused"))
    assert entry.detail == {"endpoint": "forgotten", "method": "GET"}


def test_a_page_that_is_refused_over_and_over_does_not_fill_the_audit(world: World):
    app = world.app()
    app.add_url_rule("/forgotten", "forgotten", lambda: "secret")
    reader = app.test_client()
    sign_in(reader)

    for _ in range(permissions.NOTED_REFUSALS.amount + 5):
        assert reader.get("/forgotten").status_code == 403

    with world.database.snapshot() as db:
        noted = db.scalars(select(AuditEntry).where(AuditEntry.tag == "web:permission:refused"))
        assert len(noted.all()) == permissions.NOTED_REFUSALS.amount


def test_a_role_that_was_taken_away_counts_at_the_next_request(world: World, client: FlaskClient):
    assert client.get("/fetch").status_code == 200

    with world.database.transaction() as db:
        accounts.set_role(db, "reader", Role.VIEWER, actor="test")

    assert client.get("/fetch").status_code == 403


def test_templates_ask_the_same_table(served: Flask, people: dict[Role | None, FlaskClient]):
    for role in Role:
        page = people[role].get("/").text
        assert ("/fetch" in page) is (role in GRANTED[Permission.FETCH]), role
        assert ("/audit" in page) is (role in GRANTED[Permission.ADMINISTER]), role
