"""The worklist: what is suspicious first, then by arrival; live without a reload."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, Response, abort, jsonify, render_template, request, url_for
from flask_login import current_user

from appliance import priority, studies
from appliance.accounts import Role
from appliance.lifecycle import State
from appliance.priority import Priority
from appliance.tables import Series
from webui import display
from webui.resources import resources

PAGE_ROWS: Final = 50
MAY_PRIORITISE: Final = frozenset({Role.RADIOLOGIST, Role.ADMINISTRATOR})
WAITING: Final = frozenset({State.RECEIVING, State.QUEUED})

blueprint = Blueprint("worklist", __name__)


@blueprint.get("/")
def index() -> str:
    """The page; its rows come from `rows`."""
    return render_template("worklist/index.html", page=_wanted_page())


@blueprint.get("/api/worklist")
def rows() -> Response:
    """One page of rows, as the table shows them."""
    with resources().database.snapshot() as db:
        marker = studies.pulse(db).marker
        total = studies.count(db)
        pages = max(1, -(-total // PAGE_ROWS))
        page = min(_wanted_page(), pages)
        listed = studies.worklist(db, limit=PAGE_ROWS, offset=(page - 1) * PAGE_ROWS)
        refused = {
            row.study_id: studies.series_of(db, row.study_id)
            for row in listed
            if row.state is State.REJECTED
        }
    return jsonify(
        marker=marker,
        page=page,
        pages=pages,
        total=total,
        rows=[_row(row, refused.get(row.study_id, ())) for row in listed],
    )


@blueprint.get("/api/live")
def live() -> Response:
    """Server-sent events: what moves, whenever it has moved."""
    stream = resources().feed.open()
    if stream is None:
        # No fault: the event source closes, and the page asks for another a few seconds later.
        return Response(status=204)
    response = Response(iter(stream), mimetype="text/event-stream")
    response.call_on_close(stream.close)
    # A proxy that buffers would hold the events back (nginx reads this header).
    response.headers["X-Accel-Buffering"] = "no"
    return response


@blueprint.post("/api/studies/<int:study_id>/priority")
def set_priority(study_id: int) -> tuple[str, int]:
    """Take `urgent=true` or `urgent=false` from whoever may decide it."""
    if current_user.role not in MAY_PRIORITISE:
        abort(HTTPStatus.FORBIDDEN)
    wanted = {"true": Priority.URGENT, "false": Priority.ROUTINE}.get(
        request.form.get("urgent", "")
    )
    if wanted is None:
        abort(HTTPStatus.BAD_REQUEST)
    with resources().database.transaction() as db:
        if studies.progress(db, study_id) is None:
            abort(HTTPStatus.NOT_FOUND)
        priority.mark(db, study_id, wanted, actor=current_user.name, who=current_user.name)
    return "", HTTPStatus.NO_CONTENT


def _priority_url(row: studies.WorklistRow) -> str | None:
    """Where this person can change a study's priority; none once it makes no difference."""
    if row.state not in WAITING or current_user.role not in MAY_PRIORITISE:
        return None
    return url_for("worklist.set_priority", study_id=row.study_id)


def _wanted_page() -> int:
    return max(1, request.args.get("page", 1, type=int))


def _row(row: studies.WorklistRow, series: Sequence[Series]) -> dict[str, Any]:
    return {
        "study_id": row.study_id,
        "url": url_for("viewer.show", study_id=row.study_id),
        "patient": display.person_name(row.patient_name),
        "patient_id": display.text(row.patient_id),
        "birth_date": display.date(row.birth_date),
        "sex": display.sex(row.sex),
        "description": display.text(row.description),
        "accession_number": display.text(row.accession_number),
        "study_date": display.date(row.study_date),
        "study_time": display.time(row.study_time),
        "source_ae": display.text(row.source_ae),
        "urgent": row.priority is Priority.URGENT,
        "priority_reason": row.priority_reason,
        "priority_url": _priority_url(row),
        "arrived_at": row.first_received_at.isoformat(timespec="seconds"),
        "state": row.state.value,
        "state_word": display.STATE_WORDS[row.state],
        "reason": row.state_reason,
        "images": row.instance_count,
        "conflicts": row.conflict_count,
        "shares_uid": row.shares_uid,
        "step": row.step,
        "step_done": row.step_done,
        "step_total": row.step_total,
        "has_result": row.analysis_id is not None,
        "probability": row.probability,
        "positive": row.positive,
        "lesion_count": row.lesion_count,
        "lesion_volume_ml": row.lesion_volume_ml,
        "stale": row.stale,
        "waits_for_review": row.waits_for_review,
        "review": _review(row),
        "refused_series": [
            {
                "series": f"{item.modality} {item.series_number} {item.description}".strip(),
                "images": item.instance_count,
                "reason": item.outcome_reason,
            }
            for item in series
            if item.outcome == "refused"
        ],
    }


def _review(row: studies.WorklistRow) -> dict[str, Any] | None:
    if row.reviewed_at is None:
        return None
    return {
        "by": row.reviewed_by,
        "at": row.reviewed_at.isoformat(timespec="seconds"),
        "positive": row.confirmed_positive,
        "overridden": row.overridden,
    }
