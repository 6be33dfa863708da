"""The audit for administrators: who did what; searched, paged, and taken away with its hashes."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

from flask import Blueprint, Response, abort, render_template, request
from flask_login import current_user

from appliance import audit
from appliance.audit import Search
from appliance.database import Database, utc_now
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

PAGE_ENTRIES: Final = 100
FIELDS: Final = ("person", "study", "kind", "from", "to")
COLUMNS: Final = ("id", "at", "actor", "tag", "subject", "detail", "previous_hash", "hash")
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula."""

BAD_DAY: Final = marked("Give a date as year, month and day.")
BAD_STUDY: Final = marked("Give the number of a study, as its address has it.")


@dataclass(frozen=True)
class Kind:
    """Some kind of entries, by their tags; "%" in them stands for anything."""

    words: str
    tags: tuple[str, ...]


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "views": Kind(marked("Looks at studies"), ("web:study:viewed",)),
        "confirmations": Kind(marked("Confirmations and amendments"), ("reviews:%",)),
        "measurements": Kind(marked("Measurements"), ("%:measurement:%",)),
        "sign-ins": Kind(
            marked("Sign-ins and sign-outs"), ("accounts:session:%", "accounts:sessions:%")
        ),
        "refused": Kind(
            marked("Refused"),
            ("accounts:session:refused", "accounts:account:locked", "web:permission:refused"),
        ),
        "accounts": Kind(
            marked("Changes of accounts"),
            ("accounts:account:%", "accounts:password:%", "accounts:role:%", "accounts:names:%"),
        ),
        "exports": Kind(marked("Exports"), ("%:exported", "%:export:%", "web:report:downloaded")),
    }
)

blueprint = Blueprint("audit_log", __name__, url_prefix="/audit")


@dataclass(frozen=True)
class Asked:
    """A search as the form has it, and what is wrong with it."""

    search: Search
    problem: str = ""


@blueprint.get("")
def index() -> str | tuple[str, int]:
    """The entries that were searched for, newest first."""
    asked = _asked()
    before = request.args.get("before", type=int)
    with resources().database.snapshot() as db:
        found = audit.page(db, asked.search, limit=PAGE_ENTRIES + 1, before=before)
    entries = found[:PAGE_ENTRIES]
    page = render_template(
        "audit/index.html",
        entries=entries,
        kinds=KINDS,
        asked=request.args,
        problem=_(asked.problem) if asked.problem else "",
        searched=_searched(),
        older=entries[-1].id if len(found) > PAGE_ENTRIES else None,
    )
    return (page, HTTPStatus.BAD_REQUEST) if asked.problem else page


@blueprint.get("/export/<suffix>")
def export(suffix: str) -> Response:
    """All entries that were searched for, as ``csv`` or ``jsonl``; this, too, is in the audit."""
    if suffix not in FORMATS:
        abort(HTTPStatus.NOT_FOUND)
    asked = _asked()
    if asked.problem:
        abort(HTTPStatus.BAD_REQUEST)
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor=current_user.name,
            tag="web:audit:exported",
            subject="audit",
            detail={"format": suffix, "search": sorted(_searched())},
        )
    mimetype, written = FORMATS[suffix]
    response = Response(written(_rows(resources().database, asked.search)), mimetype=mimetype)
    moment = f"{utc_now():%Y%m%dT%H%M%SZ}"
    response.headers["Content-Disposition"] = f'attachment; filename="audit-{moment}.{suffix}"'
    return response


def _searched() -> dict[str, str]:
    """The fields of the form that are filled in, and nothing else that an address may hold."""
    return {name: request.args[name] for name in FIELDS if request.args.get(name)}


def _asked() -> Asked:
    study = request.args.get("study", "").strip()
    kind = KINDS.get(request.args.get("kind", ""))
    try:
        since, until = _day("from"), _day("to")
    except ValueError:
        return Asked(Search(), BAD_DAY)
    if study and not study.isdecimal():
        return Asked(Search(), BAD_STUDY)
    return Asked(
        Search(
            actor=request.args.get("person", "").strip(),
            subject=f"study {int(study)}" if study else "",
            tags=kind.tags if kind is not None else (),
            since=since,
            until=until + timedelta(days=1) if until is not None else None,
        )
    )


def _day(name: str) -> datetime | None:
    """The beginning of a day (UTC) that the form names. Raises ValueError."""
    text = request.args.get(name, "").strip()
    if not text:
        return None
    day = date.fromisoformat(text)
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _rows(database: Database, search: Search) -> Iterator[dict[str, Any]]:
    with database.snapshot() as db:
        yield from audit.export(db, search)


def _as_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _as_table(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for row in rows:
        detail = json.dumps(row["detail"], sort_keys=True)
        table.writerow([_harmless({**row, "detail": detail}[name]) for name in COLUMNS])
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _harmless(value: object) -> str:
    """A cell that no spreadsheet computes, whatever name somebody chose."""
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


FORMATS: Final = MappingProxyType(
    {"csv": ("text/csv", _as_table), "jsonl": ("application/jsonl", _as_lines)}
)
