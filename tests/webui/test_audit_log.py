"""The audit as an administrator searches it and takes it away."""

import csv
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, audit
from appliance.accounts import Role
from appliance.tables import AuditEntry
from tests.webui.world import PASSWORD, World, sign_in
from webui import audit_log


@pytest.fixture
def boss(world: World, app: Flask) -> FlaskClient:
    """An administrator, in front of what three people did."""
    with world.database.transaction() as db:
        accounts.add(db, "boss", password=PASSWORD, role=Role.ADMINISTRATOR, actor="test")
        for actor, tag, subject in (
            ("ann", audit_log.KINDS["views"].tags[0], "study 7"),
            ("ann", "reviews:analysis:confirmed", "study 7"),
            ("bob", audit_log.KINDS["views"].tags[0], "study 70"),
            ("=HYPERLINK()", audit_log.KINDS["views"].tags[0], "study 8"),
        ):
            audit.record(db, actor=actor, tag=tag, subject=subject, detail={"analysis": 3})
    client = app.test_client()
    sign_in(client, name="boss")
    return client


def lines(client: FlaskClient, **asked: str) -> list[dict[str, object]]:
    answer = client.get("/audit/export/jsonl", query_string=asked)
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"person": "ann"}, [("ann", "study 7"), ("ann", "study 7")]),
        ({"study": "7"}, [("ann", "study 7"), ("ann", "study 7")]),
        ({"kind": "confirmations"}, [("ann", "study 7")]),
        ({"kind": "views", "study": "70"}, [("bob", "study 70")]),
        ({"person": "bob", "to": "2020-01-01"}, []),
        ({"person": "bob", "from": "2020-01-01", "to": "2999-01-01"}, [("bob", "study 70")]),
    ],
)
def test_entries_are_found_by_person_study_kind_and_time(
    boss: FlaskClient, asked: dict[str, str], found: list[tuple[str, str]]
):
    assert [(line["actor"], line["subject"]) for line in lines(boss, **asked)] == found
    page = boss.get("/audit", query_string=asked).text
    assert all(f'<td lang="en">{subject}</td>' in page for _, subject in found)
    assert ("No entry matches." in page) is (not found)


@pytest.mark.parametrize(
    "asked", [{"from": "yesterday"}, {"study": "Miller"}, {"to": "2026-13-01"}]
)
def test_a_search_that_cannot_be_is_refused_and_exports_nothing(
    boss: FlaskClient, asked: dict[str, str]
):
    page = boss.get("/audit", query_string=asked)

    assert page.status_code == 400
    assert 'role="alert"' in page.text
    assert boss.get("/audit/export/csv", query_string=asked).status_code == 400


def test_what_is_no_field_of_the_search_is_left_out(boss: FlaskClient):
    page = boss.get("/audit?person=ann&suffix=x&_anchor=y&_scheme=ftp&before=99")

    assert page.status_code == 200
    assert 'href="/audit/export/csv?person=ann"' in page.text


def test_long_searches_are_paged(world: World, boss: FlaskClient):
    with world.database.transaction() as db:
        for number in range(audit_log.PAGE_ENTRIES + 1):
            audit.record(db, actor="carl", tag="web:study:viewed", subject=f"study {number}")

    first = boss.get("/audit?person=carl").text
    address = first.split('aria-label="Pages"><a href="')[1].split('"')[0].replace("&amp;", "&")
    second = boss.get(address).text

    assert first.count("<td>carl</td>") == audit_log.PAGE_ENTRIES
    assert second.count("<td>carl</td>") == 1
    assert "Older entries" not in second


def test_what_is_taken_away_carries_the_chain_and_is_in_it(world: World, boss: FlaskClient):
    exported = lines(boss)

    assert [line["id"] for line in exported] == list(range(1, len(exported) + 1))
    for before, after in pairwise(exported):
        assert after["previous_hash"] == before["hash"]
    with world.database.snapshot() as db:
        last = db.get_one(AuditEntry, len(exported))
        assert audit.verify(db) is None
    assert (exported[-1]["hash"], last.tag) == (last.hash, "web:audit:exported")


def test_a_table_has_the_same_and_no_formula(boss: FlaskClient):
    answer = boss.get("/audit/export/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))

    assert [row["hash"] for row in rows] == [line["hash"] for line in lines(boss)][: len(rows)]
    assert "'=HYPERLINK()" in {row["actor"] for row in rows}
    assert answer.headers["Content-Disposition"].endswith('.csv"')


def test_no_other_format_is_there(boss: FlaskClient):
    assert boss.get("/audit/export/xml").status_code == 404


OF_NO_KIND = {
    "deliveries:delivery:{action}",
    "dicom:instance:conflict",
    "dicom:study:retrieved",
    "import:medium:taken",
    "lifecycle:study:requeued",
    "messages:result:told",
    "priority:study:marked",
    "reception:patient:completed",
    "retention:study:removed",
    "web:instances:stored",
    "web:node:asked",
    "web:retrieval:{what}",
    "web:rules:asked",
}
"""Found by person, study and time alone."""


def test_each_tag_is_of_a_kind_or_meant_to_be_of_none():
    packages = [Path(audit_log.__file__).parent, Path(audit.__file__).parent]
    packages += [packages[0].parent / name for name in ("dicom_node", "pipelines")]
    written = re.compile(r'"((?!urn:)[a-z_-]+:[a-z_-]+:(?:[a-z_-]+|\{\w+\}))"')
    tags = {
        tag
        for package in packages
        for path in package.rglob("*.py")
        for tag in written.findall(path.read_text(encoding="utf-8"))
    }
    kinds = [
        re.compile(tag.replace("%", ".*")) for kind in audit_log.KINDS.values() for tag in kind.tags
    ]

    assert "reviews:analysis:confirmed" in tags
    assert {tag for tag in tags if not any(kind.fullmatch(tag) for kind in kinds)} == OF_NO_KIND
