"""Fetch from PACS: search another node, have a study retrieved, see how far retrievals are.

The page speaks no DICOM: what is asked lies in the database until a worker asks it.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response as AnyResponse

from appliance import audit, remote_queries, retrievals, studies
from appliance.config import DestinationSettings
from appliance.remote_queries import Answers, RemoteStudy
from appliance.retrievals import Aim, RetrievalState, Why
from appliance.tables import Retrieval
from webui import display
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

MOST_RETRIEVALS: Final = 50
LONGEST_KEY: Final = 64  # an LO, PS3.5 section 6.2
DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")

STATE_WORDS: Final = {
    RetrievalState.WAITING: marked("Waiting"),
    RetrievalState.RUNNING: marked("Running"),
    RetrievalState.DONE: marked("Done"),
    RetrievalState.FAILED: marked("Given up"),
}
UNKNOWN_NODE: Final = marked("Choose a node that is there to be asked.")
NO_KEY: Final = marked("Give a patient number, an accession number or a date to search by.")
BAD_KEY: Final = marked("A number is at most 64 characters long and has no backslash.")
BAD_DATE: Final = marked("Give the date as year, month and day.")
EXPIRED: Final = marked("The answers are no longer kept. Search again.")
NOT_LISTED: Final = marked("That study is not in the list. Search again.")
NOTHING_TO_FETCH: Final = marked("That study is here already, is coming in, or is being fetched.")
TOO_LATE: Final = marked("That retrieval has moved on in the meantime.")

blueprint = Blueprint("fetching", __name__)


@blueprint.get("/fetch")
def index() -> str:
    """The page; its lists come from `rows`."""
    return _page()


@blueprint.get("/api/fetch")
def rows() -> Response:
    """The answers to a query, if one is named, and the retrievals."""
    query_id = request.args.get("query", type=int)
    with resources().database.snapshot() as db:
        answers = _answers(db, query_id) if query_id is not None else None
        listed = retrievals.recent(db, limit=MOST_RETRIEVALS)
        shown = [_retrieval(db, row) for row in listed]
    if query_id is not None and answers is None:
        return jsonify(query={"state": "FAILED", "problem": _(EXPIRED)}, retrievals=shown)
    query = None if answers is None or query_id is None else _query(answers, query_id)
    return jsonify(query=query, retrievals=shown)


@blueprint.post("/fetch/queries")
def ask() -> AnyResponse | tuple[str, int]:
    """Have a node asked, and show the page that waits for its answers."""
    asked = {
        name: request.form.get(name, "").strip() for name in ("patient_id", "accession_number")
    }
    day = DATE.fullmatch(date := request.form.get("study_date", "").strip())
    destination = request.form.get("destination", "")
    if destination not in {node.name for node in _nodes()}:
        return _refused(UNKNOWN_NODE)
    if date and day is None:
        return _refused(BAD_DATE)
    keys = {**asked, "study_date": "".join(day.groups()) if day else ""}
    if not any(value.strip("*? ") for value in keys.values()):
        return _refused(NO_KEY)
    if any(len(value) > LONGEST_KEY or "\\" in value for value in keys.values()):
        return _refused(BAD_KEY)
    with resources().database.transaction() as db:
        query_id = remote_queries.ask(
            db, destination=destination, keys=keys, asked_by=current_user.name
        )
    return redirect(url_for("fetching.index", query=query_id))


@blueprint.post("/fetch/queries/<int:query_id>/studies/<int:number>")
def fetch(query_id: int, number: int) -> AnyResponse | tuple[str, int]:
    """Have a study retrieved that a node named in its answers."""
    with resources().database.transaction() as db:
        answers = _answers(db, query_id)
        if answers is None or number >= len(answers.studies):
            return _refused(EXPIRED if answers is None else NOT_LISTED)
        study = answers.studies[number]
        noted = retrievals.ask(
            db,
            destination=answers.destination,
            aim=Aim.STUDY,
            study_uid=study.study_uid,
            why=Why.BY_HAND,
            expected=study.instance_count,
        )
        if not noted:
            return _refused(NOTHING_TO_FETCH)
        retrieval_id = retrievals.id_of(db, answers.destination, study.study_uid)
        _note(db, "asked", retrieval_id, destination=answers.destination)
    return redirect(url_for("fetching.index", query=query_id))


@blueprint.post("/fetch/retrievals/<int:retrieval_id>/retry")
def retry(retrieval_id: int) -> AnyResponse | tuple[str, int]:
    """Try a retrieval again at once."""
    with resources().database.transaction() as db:
        if not retrievals.retry(db, retrieval_id):
            return _refused(TOO_LATE)
        _note(db, "retried", retrieval_id)
    return redirect(url_for("fetching.index"))


@blueprint.post("/fetch/retrievals/<int:retrieval_id>/give-up")
def give_up(retrieval_id: int) -> AnyResponse | tuple[str, int]:
    """Ask for a retrieval no more."""
    with resources().database.transaction() as db:
        if not retrievals.give_up(db, retrieval_id, by=current_user.name):
            return _refused(TOO_LATE)
        _note(db, "given_up", retrieval_id)
    return redirect(url_for("fetching.index"))


def _nodes() -> list[DestinationSettings]:
    return [node for node in resources().settings.dicom.destinations if node.query]


def _page(message: str = "") -> str:
    return render_template(
        "fetching/index.html",
        nodes=_nodes(),
        query=request.args.get("query", type=int),
        message=message,
    )


def _refused(message: str) -> tuple[str, int]:
    return _page(_(message)), HTTPStatus.BAD_REQUEST


def _answers(db: Session, query_id: int) -> Answers | None:
    return remote_queries.find(db, query_id, asked_by=current_user.name)


def _note(db: Session, what: str, retrieval_id: int, **detail: str) -> None:
    audit.record(
        db,
        actor=current_user.name,
        tag=f"web:retrieval:{what}",
        subject=f"retrieval {retrieval_id}",
        detail=detail,
    )


def _query(answers: Answers, query_id: int) -> Mapping[str, Any]:
    return {
        "destination": answers.destination,
        "state": answers.state.value,
        "problem": answers.problem,
        "cut_off": answers.cut_off,
        "studies": [
            _study(study, url_for("fetching.fetch", query_id=query_id, number=number))
            for number, study in enumerate(answers.studies)
        ],
    }


def _study(study: RemoteStudy, fetch_url: str) -> Mapping[str, Any]:
    return {
        "fetch_url": fetch_url,
        "patient": display.person_name(study.patient_name),
        "patient_id": display.number(study.patient_id),
        "birth_date": display.birth_date(study.birth_date),
        "description": display.text(study.description),
        "accession_number": display.number(study.accession_number),
        "study_date": display.date(study.study_date),
        "study_time": display.time(study.study_time),
        "modalities": display.text(study.modalities.replace("\\", " ")),
        "images": study.instance_count,
    }


def _retrieval(db: Session, row: Retrieval) -> Mapping[str, Any]:
    here = studies.named(db, row.study_uid)
    state = RetrievalState(row.state)
    is_open = state in {RetrievalState.WAITING, RetrievalState.RUNNING}
    return {
        "retrieval_id": row.id,
        "destination": row.destination,
        "study_uid": display.number(row.study_uid),
        "why": told(row.why),
        "state": state.value,
        "state_word": _(STATE_WORDS[state]),
        "problem": row.last_problem,
        "attempts": row.attempts,
        "images": retrievals.held(db, row.study_uid),
        "expected": row.expected,
        "patients": [
            {
                "name": display.person_name(study.patient.name),
                "url": url_for("viewer.show", study_id=study.id),
            }
            for study in here
        ],
        "retry_url": None
        if state in {RetrievalState.RUNNING, RetrievalState.DONE}
        else url_for("fetching.retry", retrieval_id=row.id),
        "give_up_url": url_for("fetching.give_up", retrieval_id=row.id) if is_open else None,
    }
