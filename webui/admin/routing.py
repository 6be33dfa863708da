"""What the routing rules send where, and what they would do with a study that is here."""

from dataclasses import fields
from http import HTTPStatus
from typing import Final

from flask import Blueprint, redirect, render_template, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response

from appliance import remote_queries, studies
from appliance.config import RuleSettings
from appliance.remote_queries import Kind
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

blueprint = Blueprint("routing", __name__)

NO_STUDY: Final = marked("There is no study of this number. The worklist's addresses end in it.")
SHOWN: Final = 10
NUMBERS: Final = range(1, 2**31)
"""What a number of a row may be; no database is asked for another."""
PLAIN: Final = frozenset({"name", "destinations", "objects", "when", "outcome"})
"""Columns of their own; every other key of a rule is a condition."""


@blueprint.get("/admin/routing")
def index() -> str:
    """The page."""
    return _page()


@blueprint.post("/admin/routing/trials")
def try_rules() -> Response | tuple[str, int]:
    """Have the rules asked what they say of a study; nothing is sent."""
    study_id = request.form.get("study", 0, type=int)
    with resources().database.transaction() as db:
        if study_id not in NUMBERS or studies.progress(db, study_id) is None:
            return _page(_(NO_STUDY)), HTTPStatus.BAD_REQUEST
        remote_queries.ask(
            db,
            kind=Kind.RULES,
            destination="",
            keys={"study": str(study_id)},
            asked_by=current_user.name,
        )
    return redirect(url_for("admin.routing.index"))


def _page(message: str = "") -> str:
    rules = resources().settings.routing.rules
    with resources().database.snapshot() as db:
        trials = remote_queries.said(db, Kind.RULES)[:SHOWN]
    return render_template(
        "admin/routing.html",
        rules=[(rule, _conditions(rule)) for rule in rules],
        trials=trials,
        message=message,
    )


def _conditions(rule: RuleSettings) -> list[tuple[str, str]]:
    """What a rule asks for, key and value as in the settings."""
    given = ((key.name, getattr(rule, key.name)) for key in fields(rule) if key.name not in PLAIN)
    told = [(name, str(value)) for name, value in given if value not in {None, ""}]
    return told if rule.outcome == "READY" else [("outcome", rule.outcome), *told]
