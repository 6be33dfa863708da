"""For probes: the process answers and its database does."""

from http import HTTPStatus

from flask import Blueprint, Response, jsonify, make_response
from sqlalchemy.exc import SQLAlchemyError

from appliance import studies
from webui.resources import resources

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """200 while pages can be served, 503 while the database does not answer."""
    try:
        with resources().database.snapshot() as db:
            studies.count(db)
    except SQLAlchemyError:
        return make_response(
            jsonify(status="database does not answer"), HTTPStatus.SERVICE_UNAVAILABLE
        )
    return jsonify(status="ok")
