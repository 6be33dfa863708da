"""F25: whatever a study says of its patient, no log line and no audit entry says it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.routing import IntegerConverter

from appliance import accounts, logs
from appliance.accounts import Role
from appliance.tables import AuditEntry
from tests.support import identified
from tests.support.instances import Names, as_file, ct_instance
from tests.webui.dicomweb.conftest import Archive, archive
from tests.webui.dicomweb.test_store import TYPE, message
from tests.webui.world import NAME, PASSWORD, World, sign_in

SECRET = "ZAPHOD^XQ4711"
STUDY = f"1.2.{SECRET}"
"""Received identifiers are data: some senders put a number of the patient into them."""

__all__ = ["archive"]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Everything that is logged from now on, down to the last detail."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv(logs.LOG_VARIABLE, "json")
    logs.configure("web", level=logging.DEBUG)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written := io.StringIO())
    yield written.getvalue
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def sent(archive: Archive) -> bytes:
    """An instance that names its patient in every attribute that takes text."""
    ds = ct_instance(Names(study_uid=STUDY, series_uid=f"{STUDY}.1"))
    identified.plant(ds, list(identified.PLACES), SECRET.encode())
    identified.plant_privately(ds, SECRET)
    ds.PatientID = SECRET
    return as_file(ds, archive.folder / "sent.dcm").read_bytes()


def everything(app: Flask, client: FlaskClient) -> int:
    """Ask for every address, of the study by its number and by its UID; how many answered."""
    asked = 0
    for rule in app.url_map.iter_rules():
        values: dict[str, int | str] = {
            name: 1 if isinstance(converter, IntegerConverter) else STUDY
            for name, converter in rule._converters.items()
        }
        built = rule.build(values)
        assert built is not None
        for method in sorted((rule.methods or set()) - {"OPTIONS"}):
            if rule.endpoint in {"worklist.live", "auth.sign_out"}:
                continue
            with client.open(built[1], method=method, query_string={"PatientID": SECRET}):
                asked += 1
    return asked


def test_no_line_and_no_entry_says_whose_study_it_is(
    archive: Archive, app: Flask, sent: bytes, lines: Any
) -> None:
    with archive.world.database.transaction() as db:
        role = Role.ADMINISTRATOR
        accounts.add(db, "boss", password=PASSWORD, role=role, actor="test")
    client = app.test_client()
    auth = (NAME, PASSWORD)
    for data in (message(sent), message(sent[:-9]), message(b"no file " + SECRET.encode())):
        client.post("/dicom-web/studies", data=data, content_type=TYPE, auth=auth).close()
    for name in (NAME, "boss"):
        sign_in(client, name=name)
        assert everything(app, client) > 20

    logging.getLogger("test").info("the end")

    written = lines()
    assert "the end" in written
    assert SECRET not in written
    assert SECRET not in entries(archive.world)


def test_a_view_that_fails_over_a_study_does_not_quote_it(
    archive: Archive, app: Flask, sent: bytes, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise ValueError(f"cannot read {SECRET}")

    client = app.test_client()
    sign_in(client)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    for endpoint in app.view_functions:
        if endpoint not in {"static", "auth.sign_in"}:
            monkeypatch.setitem(app.view_functions, endpoint, fail)

    everything(app, client)

    written = lines()
    assert written.count("request_failed") > 20
    assert SECRET not in written


def entries(world: World) -> str:
    with world.database.snapshot() as db:
        found = db.scalars(select(AuditEntry)).all()
        return json.dumps([[one.actor, one.subject, one.detail] for one in found])
