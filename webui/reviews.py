"""What people confirmed of a result, and the way to confirm or amend it: JSON for the viewer."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, jsonify, make_response, request
from flask_login import current_user
from flask_wtf.csrf import generate_csrf

from appliance import accounts, reviews, studies
from appliance.errors import ReviewConflictError, ReviewError, ReviewForbiddenError
from appliance.reviews import Judgement, Reason
from appliance.tables import Analysis, Review
from webui.permissions import Permission, may
from webui.resources import resources

REASON_WORDS: Final = {
    Reason.SMALL_LESION_MISSED: "A lesion of less than 1 cm was missed",
    Reason.LESION_MISSED: "A larger lesion was missed",
    Reason.OTHER_PNEUMONIA: "Another viral pneumonia, or a lobar one",
    Reason.SEVERAL_KINDS: "Several kinds of lesion",
    Reason.ARTEFACT: "Metal or motion artefact",
    Reason.NORMAL_ANATOMY: "Normal anatomy taken for lesions",
    Reason.OTHER: "Another reason, in words",
}

MALFORMED: Final = "The browser sent no judgement that could be understood: reload the page."

blueprint = Blueprint("reviews", __name__)


@blueprint.get("/api/analyses/<int:analysis_id>/review")
def state(analysis_id: int) -> Response:
    """What was confirmed so far, and whether this person may confirm or amend it."""
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
        problem = reviews.not_reviewable(db, analysis)
        versions = reviews.history(db, analysis_id)
    return jsonify(_state(analysis, versions, problem))


@blueprint.post("/api/analyses/<int:analysis_id>/review")
def confirm(analysis_id: int) -> Response:
    """Confirm or amend; 403, 409 and 400 say in a sentence why nothing was kept."""
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
    try:
        judgement, seen = _judgement(request.get_json(silent=True))
        with resources().database.transaction() as db:
            account = accounts.find(db, current_user.account_id) or abort(HTTPStatus.UNAUTHORIZED)
            reviews.confirm(
                db,
                analysis_id,
                judgement,
                seen=seen,
                account=account,
                organisation=resources().settings.dicom.organisation,
            )
            versions = reviews.history(db, analysis_id)
    except ReviewError as error:
        return make_response(jsonify(error=str(error)), _status(error))
    return make_response(jsonify(_state(analysis, versions, None)), HTTPStatus.CREATED)


def _status(error: ReviewError) -> HTTPStatus:
    match error:
        case ReviewForbiddenError():
            return HTTPStatus.FORBIDDEN
        case ReviewConflictError():
            return HTTPStatus.CONFLICT
        case _:
            return HTTPStatus.BAD_REQUEST


def _judgement(said: object) -> tuple[Judgement, int]:
    """The judgement in a request, and the version that the person saw. Raises ReviewError."""
    match said:
        case {
            "seen": int(seen),
            "positive": bool(positive),
            "lesions": dict(lesions),
            "reason": str(reason) | (None as reason),
            "reason_text": str(reason_text),
            "comment": str(comment),
        } if all(isinstance(accepted, bool) for accepted in lesions.values()):
            pass
        case _:
            raise ReviewError(MALFORMED)
    try:
        judgement = Judgement(
            positive=positive,
            lesions={int(lesion): accepted for lesion, accepted in lesions.items()},
            reason=None if reason is None else Reason(reason),
            reason_text=reason_text,
            comment=comment,
        )
    except ValueError as error:
        raise ReviewError(MALFORMED) from error
    return judgement, seen


def _state(analysis: Analysis, versions: Sequence[Review], problem: str | None) -> dict[str, Any]:
    return {
        "version": versions[-1].version if versions else 0,
        "history": [_version(review) for review in versions],
        "may_confirm": may(Permission.CONFIRM),
        "problem": problem,
        "lesion_count": analysis.lesion_count,
        "reasons": {reason.value: words for reason, words in REASON_WORDS.items()},
        # A page that outlived its session gets a token of the new one with the state.
        "csrf_token": generate_csrf(),
    }


def _version(review: Review) -> dict[str, Any]:
    return {
        "version": review.version,
        "reviewer": review.reviewer,
        "at": review.at.isoformat(timespec="seconds"),
        "positive": review.positive,
        "reason": review.reason,
        "reason_text": review.reason_text,
        "rejected": review.rejected,
        "comment": review.comment,
    }
