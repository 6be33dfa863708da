"""One's own account: another password, the end of all sessions, names of patients hidden."""

from http import HTTPStatus

from flask import Blueprint, redirect, render_template, request, url_for
from flask_login import current_user
from werkzeug.wrappers import Response

from appliance import accounts, audit, sessions
from appliance.errors import ApplianceError
from webui import auth, language
from webui.auth import SIGN_IN_LIMIT, limiter
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

NOT_TWICE = marked("The two new passwords differ: type the new one twice.")

blueprint = Blueprint("account", __name__, url_prefix="/account")


@blueprint.get("")
def index() -> str:
    """The page."""
    return _page()


@blueprint.post("/password")
@limiter.limit(SIGN_IN_LIMIT)
def change_password() -> Response | tuple[str, int]:
    """Take another password; all sessions but this one end."""
    old, new, again = (request.form.get(name, "") for name in ("old", "new", "again"))
    if new != again:
        return _page(_(NOT_TWICE)), HTTPStatus.BAD_REQUEST
    try:
        accounts.change_password(resources().database, current_user.name, old=old, new=new)
    except ApplianceError as error:
        return _page(told(str(error))), HTTPStatus.BAD_REQUEST
    _enter_again()
    return redirect(url_for("worklist.index"))


@blueprint.post("/sign-out-everywhere")
def sign_out_everywhere() -> Response:
    """End every session of this person but this one."""
    with resources().database.transaction() as db:
        ended = sessions.end_all(db, current_user.account_id)
        audit.record(
            db,
            actor=current_user.name,
            tag="accounts:sessions:closed",
            subject=f"account {current_user.account_id}",
            detail={"others": ended - 1},
        )
    _enter_again()
    return redirect(url_for("account.index"))


@blueprint.post("/names")
def hide_names() -> Response:
    """Replace patients' names in this session with ``hidden=true``, else show them."""
    hidden = request.form.get("hidden") == "true"
    if current_user.opened is not None:
        with resources().database.transaction() as db:
            sessions.hide_names(db, current_user.opened.id, hidden=hidden)
            audit.record(
                db,
                actor=current_user.name,
                tag="accounts:names:hidden" if hidden else "accounts:names:shown",
                subject=f"account {current_user.account_id}",
            )
    return redirect(url_for("account.index"))


@blueprint.post("/language")
def set_language() -> Response:
    """Speak another language to this person, here and wherever they sign in."""
    with resources().database.transaction() as db:
        language.keep(db, current_user.account_id, request.form.get("language", ""))
    return redirect(url_for("account.index"))


def _enter_again() -> None:
    with resources().database.snapshot() as db:
        account = accounts.find(db, current_user.account_id)
    assert account is not None  # accounts are never removed
    auth.enter(account, names_hidden=current_user.names_hidden)


def _page(problem: str = "") -> str:
    return render_template(
        "account/index.html", problem=problem, least=accounts.MIN_PASSWORD_LENGTH
    )
