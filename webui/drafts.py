"""What people judged and did not confirm, kept for themselves; and who else is at a result."""

from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, current_app, jsonify, make_response, request
from flask.blueprints import BlueprintSetupState
from flask_login import current_user

from appliance import accounts, drafts, studies
from appliance.errors import ReviewConflictError, ReviewError, ReviewForbiddenError
from webui.fixed_texts import told
from webui.language import marked
from webui.presence import Presence
from webui.resources import resources

EXTENSION: Final = "presence"
MALFORMED: Final = marked("The browser sent no draft that could be understood: reload the page.")

blueprint = Blueprint("drafts", __name__)


@blueprint.record_once
def _prepare(state: BlueprintSetupState) -> None:
    state.app.extensions[EXTENSION] = Presence()


@blueprint.put("/api/analyses/<int:analysis_id>/draft")
def save(analysis_id: int) -> Response:
    """Keep a draft in place of the one that this window saw; 403, 409 and 400 say why not."""
    try:
        judged, digests, revision = _draft(request.get_json(silent=True))
        with resources().database.transaction() as db:
            account = accounts.find(db, current_user.account_id) or abort(HTTPStatus.UNAUTHORIZED)
            kept = drafts.save(
                db, analysis_id, judged, digests=digests, revision=revision, account=account
            )
    except ReviewError as error:
        return make_response(jsonify(error=told(str(error))), status_of(error))
    return jsonify(revision=kept)


@blueprint.delete("/api/analyses/<int:analysis_id>/draft")
def discard(analysis_id: int) -> Response:
    """Forget this person's draft."""
    with resources().database.transaction() as db:
        drafts.discard(db, analysis_id, current_user.account_id)
    return Response(status=HTTPStatus.NO_CONTENT)


@blueprint.get("/api/analyses/<int:analysis_id>/others")
def others(analysis_id: int) -> Response:
    """Who else has the result open or a draft of its review; whoever asks is there, too."""
    with resources().database.snapshot() as db:
        if studies.analysis(db, analysis_id) is None:
            abort(HTTPStatus.NOT_FOUND)
        kept = drafts.others(db, analysis_id, current_user.account_id)
    presence: Presence = current_app.extensions[EXTENSION]
    return jsonify(
        present=presence.others(analysis_id, current_user.name),
        drafts=[{"name": one.name, "at": one.at.isoformat(timespec="seconds")} for one in kept],
    )


def status_of(error: ReviewError) -> HTTPStatus:
    """How the refusal of a judgement is answered."""
    match error:
        case ReviewForbiddenError():
            return HTTPStatus.FORBIDDEN
        case ReviewConflictError():
            return HTTPStatus.CONFLICT
        case _:
            return HTTPStatus.BAD_REQUEST


def _draft(said: object) -> tuple[dict[str, Any], list[str], int]:
    """What was judged, the digests that it names, and the revision seen. Raises ReviewError."""
    match said:
        case {"revision": int(revision), "judged": {"marks": dict(outlined)} as judged}:
            digests = [
                digest
                for mark in outlined.values()
                if isinstance(mark, dict) and isinstance(digest := mark.get("digest"), str)
            ]
        case _:
            raise ReviewError(MALFORMED)
    if len(digests) != len(outlined):
        raise ReviewError(MALFORMED)
    return judged, digests, revision
