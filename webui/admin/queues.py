"""What waits, what was given up and why, and the ways to try it again or let it go."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from flask import Blueprint, redirect, render_template, url_for
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from appliance import deliveries, lifecycle, retrievals
from appliance.database import utc_now
from appliance.deliveries import DeliveryState
from appliance.errors import ApplianceError, InvalidMoveError
from appliance.lifecycle import State
from appliance.tables import Study
from webui import display
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

blueprint = Blueprint("queues", __name__)

SHOWN: Final = 100
UNDER_WAY: Final = (State.ANALYSING, State.QUEUED, State.RECEIVING)
AT_AN_END: Final = (State.FAILED, State.REJECTED)
DELIVERY_WORDS: Final = {
    DeliveryState.WAITING: marked("Waiting"),
    DeliveryState.SENDING: marked("Sending"),
    DeliveryState.SENT: marked("Sent, commitment asked for"),
    DeliveryState.COMMITTED: marked("Committed"),
    DeliveryState.FAILED: marked("Given up"),
    DeliveryState.DROPPED: marked("Dropped"),
}
NOT_THERE_ANY_MORE: Final = marked("That study has moved on in the meantime.")


@blueprint.get("/admin/queues")
def index() -> str:
    """The page."""
    return _page()


@blueprint.post("/admin/queues/studies/<int:study_id>/retry")
def retry_study(study_id: int) -> Response | tuple[str, int]:
    """Analyse a failed or refused study again."""
    try:
        # Without a doorbell, for which this process would need the broker: the sweep rings.
        lifecycle.requeue(resources().database, study_id, actor=current_user.name)
    except InvalidMoveError:
        return _page(_(NOT_THERE_ANY_MORE)), HTTPStatus.CONFLICT
    return redirect(url_for("admin.queues.index"))


@blueprint.post("/admin/queues/deliveries/<int:delivery_id>/retry")
def retry_delivery(delivery_id: int) -> Response | tuple[str, int]:
    """Send what is left of a delivery that was given up."""
    return _change(lambda db: deliveries.retry(db, delivery_id, actor=current_user.name))


@blueprint.post("/admin/queues/deliveries/<int:delivery_id>/drop")
def drop_delivery(delivery_id: int) -> Response | tuple[str, int]:
    """Send no more of a delivery."""
    return _change(lambda db: deliveries.drop(db, delivery_id, actor=current_user.name))


@blueprint.post("/admin/queues/deliveries/retry")
def retry_deliveries() -> Response | tuple[str, int]:
    """Send what is left of every delivery that was given up."""
    return _change(lambda db: deliveries.retry_all(db, actor=current_user.name))


def _change(change: Callable[[Session], object]) -> Response | tuple[str, int]:
    try:
        with resources().database.transaction() as db:
            change(db)
    except ApplianceError as error:
        return _page(told(f"{error}.")), HTTPStatus.CONFLICT
    return redirect(url_for("admin.queues.index"))


def _page(message: str = "") -> str:
    with resources().database.snapshot() as db:
        return render_template(
            "admin/queues.html",
            message=message,
            waiting=_studies(db, UNDER_WAY),
            ended=_studies(db, AT_AN_END, newest_first=True),
            state_words=display.STATE_WORDS,
            deliveries=deliveries.unfinished(db, limit=SHOWN),
            delivery_words=DELIVERY_WORDS,
            delivery_count=deliveries.count_unfinished(db),
            retrievals_given_up=retrievals.given_up(db),
            shown=SHOWN,
            now=utc_now(),
        )


def _studies(db: Session, states: tuple[State, ...], *, newest_first: bool = False) -> list[Study]:
    order = Study.state_since.desc() if newest_first else Study.state_since
    rows = select(Study).where(Study.state.in_(states)).order_by(order)
    return list(db.scalars(rows.limit(SHOWN)))
