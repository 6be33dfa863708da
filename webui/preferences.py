"""What a person set for themselves in the browser: a JSON document for each page that keeps one."""

import json
from http import HTTPStatus
from typing import Final

from flask import Blueprint, Response, abort, jsonify, make_response, request
from flask_login import current_user
from flask_wtf.csrf import generate_csrf

from appliance import preferences
from appliance.database import storable
from webui.resources import resources

VIEWER: Final = "viewer"
KEYS: Final = frozenset({VIEWER})
"""The documents that there are."""

LARGEST_CHARACTERS: Final = 16_384
TOO_LARGE: Final = "These are more settings than are kept: remove some of your own."

blueprint = Blueprint("preferences", __name__)


@blueprint.get("/api/preferences/<key>")
def show(key: str) -> Response:
    """What this person last put there, null if nothing, and the form token to put it anew."""
    _require(key)
    with resources().database.snapshot() as db:
        value = preferences.get(db, current_user.account_id, key)
    return jsonify(value=value, csrf_token=generate_csrf())


@blueprint.put("/api/preferences/<key>")
def put(key: str) -> Response:
    """Keep an object in place of the one before."""
    _require(key)
    value = request.get_json(silent=True)
    if not isinstance(value, dict):
        abort(HTTPStatus.BAD_REQUEST)
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > LARGEST_CHARACTERS:
        return make_response(jsonify(error=TOO_LARGE), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    with resources().database.transaction() as db:
        preferences.put(db, current_user.account_id, key, json.loads(storable(text)))
    return Response(status=HTTPStatus.NO_CONTENT)


def _require(key: str) -> None:
    if key not in KEYS:
        abort(HTTPStatus.NOT_FOUND)
