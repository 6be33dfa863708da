"""Who is there: sign-in, sign-out, the lock of a page that was left, and the gate before all views.

A browser's cookie names a row of `appliance.sessions`. Before a view runs, `admit` wants somebody
who is signed in and whom `permissions.RULES` allows it.

A page that was left is locked (`static/session.js`): it asks for the password in place and goes on
where it was. What a page asks for by itself, its event stream above all, does not keep the session
open: only pages that are opened do, and `active`, which a page calls when keys or the pointer were
used. A page says in what it changes for whom it was made (`X-Account`), so that nobody signs in
another person's name what that one left behind in another tab.

Programs that speak DICOMweb may send name and password with each request instead (HTTP Basic, RFC
7617). The slow hash is computed once for many requests: a pair that was right is known again for a
while by its keyed digest, which is of no use outside of this process.
"""

import hmac
import secrets
import threading
import time
from datetime import timedelta
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Request,
    abort,
    current_app,
    g,
    jsonify,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_limiter import Limiter
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_wtf import CSRFProtect
from flask_wtf.csrf import generate_csrf
from limits import parse
from werkzeug.wrappers import Response

from appliance import accounts, audit, sessions
from appliance.config import THIS_MACHINE_NAMES
from appliance.database import utc_now
from appliance.sessions import Limits, Opened
from appliance.tables import Account
from webui import language, permissions
from webui.errors import FOR_PROGRAMS
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

SIGN_IN_LIMIT: Final = "20 per minute"
"""From one address; an account is locked sooner by `accounts.authenticate`."""

PROGRAMS_PATH: Final = "/dicom-web/"
"""Below this address name and password may come with the request."""

REMEMBERED_S: Final = 300
REMEMBERED: Final = 256
"""For how long, and how many pairs of name and password are known again without the slow hash."""

REFUSED: Final = marked("Name or password is wrong, or the account is locked for a while.")
WRONG_PASSWORD: Final = marked("The password is wrong, or the account is locked for a while.")

UNATTENDED: Final = "X-Unattended"
"""A header of what a page asks by itself, again and again: it keeps no session open."""

FORM_SECRET: Final = "csrf_token"  # noqa: S105 - a key's name
"""The key under which Flask-WTF keeps in the session what form tokens are made from."""


def caller() -> str:
    """The network address of who asks; a proxy on this machine says it, and nobody else may."""
    address = request.remote_addr or ""
    return request.access_route[-1] if address in THIS_MACHINE_NAMES else address


blueprint = Blueprint("auth", __name__)
csrf = CSRFProtect()
limiter = Limiter(caller, storage_uri="memory://")
login = LoginManager()


class User(UserMixin):  # type: ignore[misc]  # flask-login has no types
    """The signed-in person, as flask-login wants it."""

    def __init__(self, account: Account, *, token: str = "", opened: Opened | None = None) -> None:
        self.account_id = account.id
        self.name = account.name
        self.role = accounts.Role(account.role)
        self.is_external = account.external_id is not None
        self.must_change_password = account.temporary
        self.token = token
        self.opened = opened

    @property
    def names_hidden(self) -> bool:
        """Whether patients' names are replaced for this person now."""
        return self.opened is not None and self.opened.names_hidden

    def get_id(self) -> str:
        return self.token


class Credentials:
    """Names and passwords that were right a while ago, and the account and hash they fit."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[int, str, float]] = {}
        self._lock = threading.Lock()

    def user(self, name: str, password: str) -> User | None:
        """The person, or nobody; a changed password or a disabled account counts at once.

        What is not known yet is verified one after the other, and counts against the limit.
        """
        pair = hmac.digest(self._key, f"{name}\0{password}".encode(), "sha256")
        with self._lock:
            now = time.monotonic()
            account_id, password_hash, until = self._known.pop(pair, (0, "", 0.0))
            if now < until and (account := _unchanged(account_id, password_hash)) is not None:
                self._known[pair] = account_id, password_hash, until
                return User(account)
            if not limiter.limiter.hit(parse(SIGN_IN_LIMIT), "password", caller()):
                abort(HTTPStatus.TOO_MANY_REQUESTS)
            account = _authenticate(name, password)
            if account is None:
                return None
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[pair] = account.id, account.password_hash, now + REMEMBERED_S
            return User(account)


CREDENTIALS: Final = "credentials"


def register(app: Flask) -> None:
    """Put the gate before every view."""
    app.extensions[CREDENTIALS] = Credentials()
    app.before_request(admit)  # before the form token is looked at: who may not, is told so
    csrf.init_app(app)
    limiter.init_app(app)
    login.init_app(app)
    app.register_blueprint(blueprint)
    app.add_template_global(_idle, "idle_seconds")

    @app.after_request
    def ask_for_password(response: Response) -> Response:
        refused = response.status_code == HTTPStatus.UNAUTHORIZED
        if refused and request.path.startswith(PROGRAMS_PATH):
            response.headers["WWW-Authenticate"] = 'Basic realm="DICOMweb", charset="UTF-8"'
        return response


def admit() -> Response | None:
    """Let the request through to its view, or send the person to what comes first."""
    if permissions.is_public(request.endpoint):
        return None
    # A page that follows what goes on asks like a program: nobody is there for its asking.
    for_programs = request.path.startswith(FOR_PROGRAMS) or UNATTENDED in request.headers
    if not current_user.is_authenticated:
        if for_programs:
            abort(HTTPStatus.UNAUTHORIZED)
        wanted = request.full_path.rstrip("?") if request.method == "GET" else "/"
        return redirect(url_for("auth.sign_in", next=wanted))
    if request.headers.get("X-Account", str(current_user.account_id)) != str(
        current_user.account_id
    ):
        abort(HTTPStatus.UNAUTHORIZED)
    if request.endpoint is None:
        return None  # nothing is there, and the answer says so
    is_own = permissions.is_own(request.endpoint)
    if current_user.must_change_password and not is_own and not for_programs:
        return redirect(url_for("account.index"))
    permissions.require(request.endpoint, limiter.limiter)
    if current_user.opened is not None and not for_programs:
        sessions.touch(resources().database, current_user.opened)
    return None


@blueprint.route("/sign-in", methods=["GET", "POST"])
@limiter.limit(SIGN_IN_LIMIT, methods=["POST"])
def sign_in() -> Response | str | tuple[str, int]:
    """The form; a right answer opens a session and goes where the person wanted to."""
    if request.method != "POST":
        if (wanted := request.args.get("language")) is not None:
            language.choose(wanted)
        return render_template("auth/sign_in.html")
    account = _authenticate(request.form.get("name", ""), request.form.get("password", ""))
    if account is None:
        return render_template("auth/sign_in.html", message=_(REFUSED)), HTTPStatus.UNAUTHORIZED
    enter(account)
    return redirect(local(request.args.get("next", "/")))


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End this session."""
    with resources().database.transaction() as db:
        sessions.end(db, current_user.token)
        subject = f"account {current_user.account_id}"
        audit.record(db, actor=current_user.name, tag="accounts:session:closed", subject=subject)
    logout_user()
    session.clear()
    return redirect(url_for("auth.sign_in"))


@blueprint.get("/api/session")
def state() -> Response:
    """Whose session this browser has, for how long, and the token to change it with."""
    opened = _opened()
    here = opened is not None and not opened.locked
    return jsonify(
        account_id=opened.account.id if opened is not None and here else None,
        seconds_left=_seconds_left(opened) if opened is not None and here else 0,
        csrf_token=generate_csrf(),
    )


@blueprint.post("/api/session")
@limiter.limit(SIGN_IN_LIMIT)
def unlock() -> Response | tuple[Response, int]:
    """Open the session of the person for whom a page was made again, by the password."""
    said = request.get_json(silent=True)
    match said:
        case {"account_id": int(account_id), "password": str(password)}:
            pass
        case _:
            abort(HTTPStatus.BAD_REQUEST)
    with resources().database.snapshot() as db:
        known = accounts.find(db, account_id)
    opened = _opened()
    own = opened.id if opened is not None and opened.account.id == account_id else None
    account = _authenticate(known.name if known is not None else "", password, own_session=own)
    if account is None:
        return jsonify(error=_(WRONG_PASSWORD)), HTTPStatus.UNAUTHORIZED
    enter(account)
    return jsonify(csrf_token=generate_csrf(), seconds_left=_idle())


@blueprint.post("/api/session/active")
def active() -> tuple[str, int]:
    """Note that keys or the pointer of a page were used."""
    if current_user.opened is not None:
        sessions.touch(resources().database, current_user.opened)
    return "", HTTPStatus.NO_CONTENT


def enter(account: Account, *, names_hidden: bool = False) -> None:
    """Open a session for a person, in place of the one that this browser had.

    If that one was the person's own, as where a page was locked, its form tokens stay good and what
    was hidden stays hidden; somebody else's leaves nothing behind.
    """
    before, form_secret = _opened(), session.get(FORM_SECRET)
    goes_on = before is not None and before.account.id == account.id
    chosen = session.get(language.KEY) if before is None or goes_on else None
    with resources().database.transaction() as db:
        sessions.end(db, session.get("_user_id", ""))
        token = sessions.open_session(
            db,
            account.id,
            limits(),
            names_hidden=names_hidden or (before is not None and goes_on and before.names_hidden),
        )
        opened = sessions.find(db, token, limits())
        spoken = language.of_account(db, account.id) or chosen
    session.clear()
    session.permanent = True
    if spoken is not None:
        language.choose(spoken)
    if goes_on and form_secret is not None:
        session[FORM_SECRET] = form_secret
    login_user(User(account, token=token, opened=opened))


def limits() -> Limits:
    """How long sessions last, by the settings."""
    web = resources().settings.web
    return Limits(timedelta(hours=web.session_hours), timedelta(minutes=web.idle_minutes))


@login.user_loader  # type: ignore[untyped-decorator]
def load_user(token: str) -> User | None:
    """The person whose session a token names, unless it ended or is locked."""
    with resources().database.snapshot() as db:
        opened = sessions.find(db, token, limits())
    if opened is None or opened.locked:
        return None
    return User(opened.account, token=token, opened=opened)


@login.request_loader  # type: ignore[untyped-decorator]
def load_program(asked: Request) -> User | None:
    """The person whose name and password came with a request for DICOMweb."""
    given = asked.authorization
    if given is None or given.type != "basic" or not asked.path.startswith(PROGRAMS_PATH):
        return None
    credentials: Credentials = current_app.extensions[CREDENTIALS]
    name, password = given.username or "", given.password or ""
    user = credentials.user(name, password) if name.isprintable() else None
    g.came_by_password = user is not None
    return user


def protect_session() -> None:
    """Refuse a changing request of a browser's session that lacks the form token's header.

    Name and password in the request are no session, but a browser that was asked for them sends
    them by itself, too: whoever calls this must refuse what another site's page can send unasked.
    """
    if not g.get("came_by_password", False):
        csrf.protect()


def _authenticate(name: str, password: str, *, own_session: int | None = None) -> Account | None:
    return accounts.authenticate(
        resources().database,
        name=name,
        password=password,
        source=caller(),
        own_session=own_session,
    )


def _unchanged(account_id: int, password_hash: str) -> Account | None:
    """The account, if it is open and has the password still."""
    with resources().database.snapshot() as db:
        account = accounts.find(db, account_id)
    is_same = account is not None and account.active and account.password_hash == password_hash
    return account if is_same else None


def _opened() -> Opened | None:
    """This browser's session, locked or not."""
    with resources().database.snapshot() as db:
        return sessions.find(db, session.get("_user_id", ""), limits())


def _seconds_left(opened: Opened) -> float:
    return (opened.active_at + limits().idle - utc_now()).total_seconds()


def _idle() -> float:
    return limits().idle.total_seconds()


def local(target: str) -> str:
    """`target` if it is a path on this server, else the front page: no sign-in leads elsewhere."""
    # Browsers read a backslash as a slash, and "//host" as another server.
    try:
        parts = urlsplit(target.replace("\\", "/"))
    except ValueError:  # a bracket where a host could stand
        return "/"
    is_path = not parts.scheme and not parts.netloc and parts.path.startswith("/")
    return target if is_path else "/"
