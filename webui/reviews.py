"""What people confirmed of a result, and the way to confirm or amend it: JSON for the viewer."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, jsonify, make_response, request
from flask_login import current_user
from flask_wtf.csrf import generate_csrf
from sqlalchemy.orm import Session

from appliance import accounts, drafts, marks, reviews, studies
from appliance.errors import ReviewError
from appliance.reviews import Judgement, Mark, Reason, Sign
from appliance.tables import Analysis, MarkedRegion, Review
from pipelines.marks import clash
from webui.drafts import status_of
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.marks import described, lung_pieces, region_of, result_of
from webui.permissions import Permission, may
from webui.resources import resources
from webui.results import lungs_of

REASON_WORDS: Final = {
    Reason.SMALL_LESION_MISSED: marked("A lesion of less than 1 cm was missed"),
    Reason.LESION_MISSED: marked("A larger lesion was missed"),
    Reason.OTHER_PNEUMONIA: marked("Another viral pneumonia, or a lobar one"),
    Reason.SEVERAL_KINDS: marked("Several kinds of lesion"),
    Reason.ARTEFACT: marked("Metal or motion artefact"),
    Reason.NORMAL_ANATOMY: marked("Normal anatomy taken for lesions"),
    Reason.OTHER: marked("Another reason, in words"),
}

SIGN_WORDS: Final = {
    Sign.GROUND_GLASS: marked("Ground-glass opacity"),
    Sign.SEPTAL_THICKENING: marked("Intralobular septal thickening"),
    Sign.AIR_BRONCHOGRAM: marked("Air bronchogram"),
    Sign.VESSEL_THICKENING: marked("Vessel thickening"),
    Sign.CRAZY_PAVING: marked("Crazy paving"),
    Sign.FIBRE_STRIPES: marked("Fibre stripes"),
    Sign.HONEYCOMB: marked("Honeycomb lung"),
}

MALFORMED: Final = marked(
    "The browser sent no judgement that could be understood: reload the page."
)

blueprint = Blueprint("reviews", __name__)


@blueprint.get("/api/analyses/<int:analysis_id>/review")
def state(analysis_id: int) -> Response:
    """What was confirmed so far, what this person began, and whether they may confirm or amend."""
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
        return jsonify(_state(db, analysis))


@blueprint.post("/api/analyses/<int:analysis_id>/review")
def confirm(analysis_id: int) -> Response:
    """Confirm or amend; 403, 409 and 400 say in a sentence why nothing was kept."""
    with resources().database.snapshot() as db:
        analysis = studies.analysis(db, analysis_id) or abort(HTTPStatus.NOT_FOUND)
    try:
        judgement, seen = _judgement(request.get_json(silent=True))
        # What takes long is done before all who write have to wait for it: voxels never change.
        with resources().database.snapshot() as db:
            account = accounts.find(db, current_user.account_id) or abort(HTTPStatus.UNAUTHORIZED)
            reviews.check(db, analysis_id, judgement, seen=seen, account=account)
            rows = marks.regions(
                db, analysis_id, {mark.digest for mark in judgement.marks.values()}
            )
        _check_outlines(analysis, judgement, rows)
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
            drafts.discard(db, analysis_id, account.id)
    except ReviewError as error:
        return make_response(jsonify(error=told(str(error))), status_of(error))
    with resources().database.snapshot() as db:
        return make_response(jsonify(_state(db, analysis)), HTTPStatus.CREATED)


def _check_outlines(
    analysis: Analysis, judgement: Judgement, rows: Mapping[str, MarkedRegion]
) -> None:
    """Make sure that no voxel counts twice. Raises ReviewError."""
    if not judgement.marks:
        return
    outlined = {number: region_of(rows[mark.digest]) for number, mark in judgement.marks.items()}
    standing = [number for number, accepted in judgement.lesions.items() if accepted]
    result = result_of(analysis)
    if (pair := clash(outlined, standing, result.folder, result.facts)) is not None:
        one, other = pair
        raise ReviewError(
            _(
                "Lesions %(one)s and %(other)s overlap: erase one where they do, or reject one of"
                " them.",
                one=one,
                other=other,
            )
        )


def _judgement(said: object) -> tuple[Judgement, int]:
    """The judgement in a request, and the version that the person saw. Raises ReviewError."""
    match {"marks": {}, "signs": {}, **said} if isinstance(said, dict) else said:
        case {
            "seen": int(seen),
            "positive": bool(positive),
            "lesions": dict(lesions),
            "reason": str(reason) | (None as reason),
            "reason_text": str(reason_text),
            "comment": str(comment),
            "marks": dict(outlined),
            "signs": dict(signs),
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
            marks={int(number): _mark(mark) for number, mark in outlined.items()},
            signs={int(number): tuple(map(Sign, seen)) for number, seen in signs.items()},
        )
    except (TypeError, ValueError) as error:
        raise ReviewError(MALFORMED) from error
    return judgement, seen


def _mark(said: object) -> Mark:
    """A marked lesion. Raises ValueError."""
    match said:
        case {"digest": str(digest), "grown": bool(grown)}:
            return Mark(digest, grown)
        case _:
            raise ValueError(said)


def _state(db: Session, analysis: Analysis) -> dict[str, Any]:
    versions = reviews.history(db, analysis.id)
    draft = drafts.find(db, analysis.id, current_user.account_id)
    named = {mark["digest"] for review in versions for mark in review.marks}
    if draft is not None:
        named |= {mark["digest"] for mark in draft.judged["marks"].values()}
    return {
        "version": versions[-1].version if versions else 0,
        "history": [_version(review) for review in versions],
        "draft": draft and {"revision": draft.revision, "judged": draft.judged},
        "regions": {
            digest: described(row) for digest, row in marks.regions(db, analysis.id, named).items()
        },
        "lungs": lung_pieces(analysis.id, lungs_of(result_of(analysis).facts)),
        "you": current_user.name,
        "may_confirm": may(Permission.CONFIRM),
        "problem": told(reviews.not_reviewable(db, analysis)) or None,
        "lesion_count": analysis.lesion_count,
        "reasons": {reason.value: _(words) for reason, words in REASON_WORDS.items()},
        "signs": {sign.value: _(words) for sign, words in SIGN_WORDS.items()},
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
        "marks": {
            str(mark["number"]): {"digest": mark["digest"], "grown": mark["grown"]}
            for mark in review.marks
        },
        "signs": review.signs,
    }
