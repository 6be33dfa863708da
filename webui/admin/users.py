"""The people who may sign in: add, let in and shut out, unlock, give a role or a password."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from flask import Blueprint, abort, redirect, render_template, request, url_for
from flask_login import current_user
from sqlalchemy.orm import Session
from werkzeug.wrappers import Response

from appliance import accounts
from appliance.accounts import Role
from appliance.database import utc_now
from appliance.errors import ApplianceError
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

blueprint = Blueprint("users", __name__)

UNKNOWN_ROLE: Final = marked("Choose one of the roles.")
NOT_YOURSELF: Final = marked(
    "You cannot shut yourself out or change your own role: ask another administrator."
)


@blueprint.get("/admin/users")
def index() -> str:
    """The page."""
    return _page()


@blueprint.post("/admin/users")
def add() -> Response | str | tuple[str, int]:
    """Add a person; the password that is made is shown once, and theirs to change first."""
    name, password = request.form.get("name", "").strip(), accounts.new_password()
    if (role := _role()) is None:
        return _page(_(UNKNOWN_ROLE)), HTTPStatus.BAD_REQUEST

    def change(db: Session) -> None:
        accounts.add(
            db, name, password=password, role=role, actor=current_user.name, temporary=True
        )

    return _change(change) or _page(made=(name, password))


@blueprint.post("/admin/users/<int:account_id>/password")
def reset_password(account_id: int) -> Response | str | tuple[str, int]:
    """Make a new password, show it once and lift a lock; the person's sessions end."""
    name, password = _name(account_id), accounts.new_password()

    def change(db: Session) -> None:
        accounts.set_password(db, name, password=password, actor=current_user.name, temporary=True)

    return _change(change) or _page(made=(name, password))


@blueprint.post("/admin/users/<int:account_id>/role")
def set_role(account_id: int) -> Response | tuple[str, int]:
    """Let a person do something else."""
    name, role = _name(account_id), _role()
    if role is None or account_id == current_user.account_id:
        return _page(_(UNKNOWN_ROLE if role is None else NOT_YOURSELF)), HTTPStatus.BAD_REQUEST
    return _changed(lambda db: accounts.set_role(db, name, role, actor=current_user.name))


@blueprint.post("/admin/users/<int:account_id>/unlock")
def unlock(account_id: int) -> Response | tuple[str, int]:
    """Lift the lock that too many wrong passwords put on."""
    name = _name(account_id)
    return _changed(lambda db: accounts.unlock(db, name, actor=current_user.name))


@blueprint.post("/admin/users/<int:account_id>/disable")
def disable(account_id: int) -> Response | tuple[str, int]:
    """Shut a person out, at their next request."""
    if account_id == current_user.account_id:
        return _page(NOT_YOURSELF), HTTPStatus.BAD_REQUEST
    name = _name(account_id)
    return _changed(lambda db: accounts.disable(db, name, actor=current_user.name))


@blueprint.post("/admin/users/<int:account_id>/enable")
def enable(account_id: int) -> Response | tuple[str, int]:
    """Let a person in again."""
    name = _name(account_id)
    return _changed(lambda db: accounts.enable(db, name, actor=current_user.name))


def _name(account_id: int) -> str:
    """Whose account it is; addresses have numbers, because a name may hold any character."""
    with resources().database.snapshot() as db:
        account = accounts.find(db, account_id)
    return account.name if account else abort(HTTPStatus.NOT_FOUND)


def _role() -> Role | None:
    wanted = request.form.get("role", "")
    return Role(wanted) if wanted in set(Role) else None


def _change(change: Callable[[Session], None]) -> tuple[str, int] | None:
    """Make a change; the page that says why not, where it cannot be made."""
    try:
        with resources().database.transaction() as db:
            change(db)
    except ApplianceError as error:
        return _page(told(f"{error}.")), HTTPStatus.BAD_REQUEST
    return None


def _changed(change: Callable[[Session], None]) -> Response | tuple[str, int]:
    return _change(change) or redirect(url_for("admin.users.index"))


def _page(message: str = "", *, made: tuple[str, str] | None = None) -> str:
    with resources().database.snapshot() as db:
        return render_template(
            "admin/users.html",
            users=accounts.everyone(db),
            roles=[role.value for role in Role],
            message=message,
            made=made,
            now=utc_now(),
        )
