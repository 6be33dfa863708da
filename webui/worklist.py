"""The worklist: what waits to be read first, filtered and searched by its address, live."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from flask import (
    Blueprint,
    Response,
    abort,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask_login import current_user
from werkzeug.wrappers import Response as AnyResponse

from appliance import lifecycle, preferences, priority, pulse, studies, worklist
from appliance.errors import InvalidMoveError, QueryError
from appliance.lifecycle import State
from appliance.priority import Priority
from appliance.studies import WorklistRow
from appliance.tables import Series
from appliance.worklist import Line, View
from webui import display, worklist_address
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.permissions import Permission, may
from webui.resources import resources

PAGE_ROWS: Final = 50
WAITING: Final = frozenset({State.RECEIVING, State.QUEUED})
ENDED_WITHOUT: Final = frozenset({State.FAILED, State.REJECTED})
DEFAULT_VIEW: Final = "worklist.view"
"""The name of the preference: a query string."""

NOTHING_TO_RETRY: Final = marked("The study has moved on in the meantime: look at its line.")

blueprint = Blueprint("worklist", __name__)


@blueprint.errorhandler(QueryError)
def wrong_address(error: QueryError) -> Response:
    """Say what is wrong with the address."""
    return make_response(jsonify(error=str(error)), HTTPStatus.BAD_REQUEST)


@blueprint.get("/")
def index() -> str | AnyResponse:
    """The page; its rows come from `rows`. Without any wish it is the person's own view."""
    default = _default_view()
    if default and not request.args:
        return redirect(f"{url_for('worklist.index')}?{default}")
    return render_template("worklist/index.html", default=default)


@blueprint.get("/api/worklist")
def rows() -> Response:
    """One page of rows, as the table shows them, and how many came after the study `since`."""
    view = _view(request.args)
    since = request.args.get("since", type=int)
    with resources().database.snapshot() as db:
        marker = pulse.marker(db)
        total = worklist.count(db, view)
        pages = max(1, -(-total // PAGE_ROWS))
        page = min(max(1, request.args.get("page", 1, type=int)), pages)
        lines = worklist.page(db, view, limit=PAGE_ROWS, offset=(page - 1) * PAGE_ROWS)
        refused = {
            line.row.study_id: studies.series_of(db, line.row.study_id)
            for line in lines
            if line.row.state is State.REJECTED
        }
        newest = worklist.newest(db)
        arrived = 0
        if since is not None and since < newest:
            arrived = worklist.count(db, view, newer_than=since)
    return jsonify(
        marker=marker,
        page=page,
        pages=pages,
        total=total,
        newest=newest,
        arrived=arrived,
        rows=[_row(line, refused.get(line.row.study_id, ())) for line in lines],
    )


@blueprint.get("/api/worklist/next")
def next_to_review() -> Response:
    """The study that waits for review after the one named, in the view that the address has.

    An address without a view means the person's own.
    """
    asked: Mapping[str, str] = request.args
    after = request.args.get("after", 0, type=int)
    if not any(key in asked for key in worklist_address.KEYS):
        asked = dict(parse_qsl(_default_view()))
    with resources().database.snapshot() as db:
        study_id = worklist.next_to_review(db, _view(asked), after=after)
    url = None if study_id is None else url_for("viewer.show", study_id=study_id)
    return jsonify(study_id=study_id, url=url)


@blueprint.get("/api/worklist/choices")
def choices() -> Response:
    """What the filters offer."""
    with resources().database.snapshot() as db:
        found = worklist.choices(db)
    return jsonify(
        source=[{"value": name, "text": display.text(name)} for name in found.sources],
        station=[{"value": name, "text": display.text(name)} for name in found.stations],
        device=[
            {"value": "\\".join(device), "text": display.text(" ".join(device))}
            for device in found.devices
        ],
    )


@blueprint.post("/api/worklist/view")
def keep_view() -> tuple[str, int]:
    """Make the view of an address the person's own; that of an empty one forgets it."""
    asked = dict(parse_qsl(request.form.get("address", "")))
    _view(asked)
    with resources().database.transaction() as db:
        kept = worklist_address.lasting(asked) or None
        preferences.put(db, current_user.account_id, DEFAULT_VIEW, kept)
    return "", HTTPStatus.NO_CONTENT


@blueprint.get("/api/studies/<int:study_id>/others")
def others(study_id: int) -> Response:
    """The other studies of the same patient, the newest first."""
    with resources().database.snapshot() as db:
        found = worklist.others_of_patient(db, study_id)
    return jsonify(studies=[_other(row) for row in found])


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
    """Take `urgent=true` or `urgent=false`."""
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


@blueprint.post("/api/studies/<int:study_id>/retry")
def retry(study_id: int) -> Response:
    """Have a failed or refused study analysed anew; the next sweep tells a worker."""
    try:
        lifecycle.requeue(resources().database, study_id, actor=current_user.name)
    except InvalidMoveError as error:
        if error.source not in lifecycle.NEXT:
            abort(HTTPStatus.NOT_FOUND)
        return make_response(jsonify(error=_(NOTHING_TO_RETRY)), HTTPStatus.CONFLICT)
    return make_response("", HTTPStatus.NO_CONTENT)


def _view(asked: Mapping[str, str]) -> View:
    return worklist_address.view_of(
        asked, account_id=current_user.account_id, account=current_user.name
    )


def _default_view() -> str:
    with resources().database.snapshot() as db:
        return preferences.get(db, current_user.account_id, DEFAULT_VIEW) or ""


def _priority_url(row: WorklistRow) -> str | None:
    """Where this person can change a study's priority; none once it makes no difference."""
    if row.state not in WAITING or not may(Permission.PRIORITISE):
        return None
    return url_for("worklist.set_priority", study_id=row.study_id)


def _retry_url(row: WorklistRow) -> str | None:
    """Where this person can have a study analysed anew."""
    if row.state not in ENDED_WITHOUT or not may(Permission.ADMINISTER):
        return None
    return url_for("worklist.retry", study_id=row.study_id)


def _row(line: Line, series: Sequence[Series]) -> dict[str, Any]:
    row = line.row
    return {
        **_other(row),
        "rank": line.rank.name.lower(),
        "earlier": line.earlier,
        "later": line.later,
        "others_url": url_for("worklist.others", study_id=row.study_id),
        "patient": display.person_name(row.patient_name),
        "patient_id": display.number(row.patient_id),
        "birth_date": display.birth_date(row.birth_date),
        "sex": display.sex(row.sex),
        "accession_number": display.number(row.accession_number),
        "study_time": display.time(row.study_time),
        "source_ae": display.text(row.source_ae),
        "urgent": row.priority is Priority.URGENT,
        "priority_reason": told(row.priority_reason) or None,
        "priority_url": _priority_url(row),
        "retry_url": _retry_url(row),
        "arrived_at": row.first_received_at.isoformat(timespec="seconds"),
        "reason": told(row.state_reason) or None,
        "images": row.instance_count,
        "conflicts": row.conflict_count,
        "shares_uid": row.shares_uid,
        "step": row.step,
        "step_done": row.step_done,
        "step_total": row.step_total,
        "stale": row.stale,
        "waits_for_review": row.waits_for_review,
        "refused_series": [
            {
                "series": f"{item.modality} {item.series_number} {item.description}".strip(),
                "images": item.instance_count,
                "reason": told(item.outcome_reason) or None,
            }
            for item in series
            if item.outcome == "refused"
        ],
    }


def _other(row: WorklistRow) -> dict[str, Any]:
    """What is told of a study wherever it is named."""
    return {
        "study_id": row.study_id,
        "url": url_for("viewer.show", study_id=row.study_id),
        "description": display.text(row.description),
        "study_date": display.date(row.study_date),
        "state": row.state.value,
        "state_word": _(display.STATE_WORDS[row.state]),
        "has_result": row.analysis_id is not None,
        "probability": row.probability,
        "positive": row.positive,
        "lesion_count": row.lesion_count,
        "lesion_volume_ml": row.lesion_volume_ml,
        "review": _review(row),
    }


def _review(row: WorklistRow) -> dict[str, Any] | None:
    if row.reviewed_at is None:
        return None
    return {
        "by": row.reviewed_by,
        "at": row.reviewed_at.isoformat(timespec="seconds"),
        "positive": row.confirmed_positive,
        "overridden": row.overridden,
        "lesion_count": row.confirmed_lesion_count,
    }
