"""A person's measurements of one result: JSON for the viewer."""

from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, jsonify, make_response, request
from flask_login import current_user
from flask_wtf.csrf import generate_csrf
from sqlalchemy.orm import Session

from appliance import accounts, measurements, studies
from appliance.errors import MeasurementError
from appliance.measurements import Kind, Measured, Point
from appliance.tables import Account, Analysis, Measurement
from webui.fixed_texts import told
from webui.language import marked
from webui.resources import resources

MALFORMED: Final = marked(
    "The browser sent no measurement that could be understood: reload the page and draw it again."
)

blueprint = Blueprint("measurements", __name__)


@blueprint.get("/api/analyses/<int:analysis_id>/measurements")
def index(analysis_id: int) -> Response:
    """What this person measured, in the order it was made, and the form token to save more."""
    with resources().database.snapshot() as db:
        analysis, account = _which(db, analysis_id)
        rows = measurements.of(db, analysis.id, account.id)
    return jsonify(measurements=[_told(row) for row in rows], csrf_token=generate_csrf())


@blueprint.put("/api/analyses/<int:analysis_id>/measurements/<key>")
def save(analysis_id: int, key: str) -> Response:
    """Keep a new or changed measurement; 400 says in a sentence why it was not kept."""
    try:
        measured = _measured(request.get_json(silent=True))
        with resources().database.transaction() as db:
            measurements.save(db, *_which(db, analysis_id), key, measured)
    except MeasurementError as error:
        return make_response(jsonify(error=told(str(error))), HTTPStatus.BAD_REQUEST)
    return Response(status=HTTPStatus.NO_CONTENT)


@blueprint.delete("/api/analyses/<int:analysis_id>/measurements/<key>")
def remove(analysis_id: int, key: str) -> Response:
    """Delete a measurement of this person; one that is gone already is deleted, too."""
    with resources().database.transaction() as db:
        measurements.remove(db, *_which(db, analysis_id), key)
    return Response(status=HTTPStatus.NO_CONTENT)


def _which(db: Session, analysis_id: int) -> tuple[Analysis, Account]:
    analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
    account = accounts.find(db, current_user.account_id) or abort(HTTPStatus.UNAUTHORIZED)
    return analysis, account


def _measured(said: object) -> Measured:
    match said:
        case {
            "kind": str(kind),
            "plane": str(plane),
            "points": list(points),
            "text": str(text),
            "values": dict(values),
        } if kind in set(Kind) and all(_is_number(value) for value in values.values()):
            return Measured(
                kind=Kind(kind),
                plane=plane,
                points=tuple(map(_point, points)),
                text=text,
                values=values,
            )
    raise MeasurementError(MALFORMED)


def _point(said: object) -> Point:
    if not isinstance(said, list) or len(said) != 3 or not all(map(_is_number, said)):
        raise MeasurementError(MALFORMED)
    x, y, z = map(float, said)
    return x, y, z


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _told(row: Measurement) -> dict[str, Any]:
    shown = ("key", "kind", "plane", "points", "text", "values")
    return {name: getattr(row, name) for name in shown}
