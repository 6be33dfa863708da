"""Other nodes: how they are called, whether they answer, and who may call here."""

from http import HTTPStatus
from typing import Any

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from appliance import remote_queries
from appliance.database import utc_now
from appliance.deliveries import DeliveryState
from appliance.remote_queries import Kind
from appliance.retrievals import RetrievalState
from appliance.tables import Delivery
from webui.resources import resources

blueprint = Blueprint("peers", __name__)


@blueprint.get("/admin/peers")
def index() -> str:
    """The page."""
    settings = resources().settings
    with resources().database.snapshot() as db:
        return render_template(
            "admin/peers.html",
            nodes=settings.dicom.destinations,
            systems=settings.messages.destinations,
            callers=settings.dicom.peers,
            dicom=settings.dicom,
            echoes=_echoes(db),
            failed=_failed(db),
            now=utc_now(),
        )


@blueprint.post("/admin/peers/echo")
def echo() -> Response:
    """Have a node asked whether it answers."""
    name = request.form.get("node", "")
    if name not in {node.name for node in resources().settings.dicom.destinations}:
        abort(HTTPStatus.NOT_FOUND)
    with resources().database.transaction() as db:
        remote_queries.ask(
            db, kind=Kind.ECHO, destination=name, keys={}, asked_by=current_user.name
        )
    return redirect(url_for("admin.peers.index"))


def _echoes(db: Session) -> dict[str, dict[str, Any]]:
    """What came of the last C-ECHO to each node, as far as it is remembered."""
    found: dict[str, dict[str, Any]] = {}
    for said in remote_queries.said(db, Kind.ECHO):
        found.setdefault(
            said.destination,
            {
                "state": said.state.value,
                "milliseconds": said.lines[0] if said.lines else None,
                "problem": said.problem,
                "asked_at": said.asked_at,
                "is_open": said.state in {RetrievalState.WAITING, RetrievalState.RUNNING},
            },
        )
    return found


def _failed(db: Session) -> dict[str, int]:
    """How many deliveries to each destination were given up."""
    rows = select(Delivery.destination, func.count()).where(Delivery.state == DeliveryState.FAILED)
    return {row[0]: row[1] for row in db.execute(rows.group_by(Delivery.destination))}
