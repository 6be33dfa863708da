"""Who is there: sign-in, sign-out, and the rule that everything else needs a signed-in person.

The session is a signed cookie that names the account and a fingerprint of its password hash: a
changed password or a disabled account ends every session at its next request.

Programs that speak DICOMweb may send name and password with each request instead (HTTP Basic, RFC
7617). The slow hash is computed once for many requests: a pair that was right is known again for a
while by its keyed digest, which is of no use outside of this process.
"""

import hashlib
import hmac
import secrets
import threading
import time
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
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_wtf import CSRFProtect
from limits import parse
from werkzeug.wrappers import Response

from appliance import accounts, audit
from appliance.tables import Account
from webui.errors import FOR_PROGRAMS
from webui.resources import resources

PUBLIC: Final = frozenset({"static", "auth.sign_in", "health.healthz"})
"""The endpoints that answer strangers; every other one, new ones too, wants a sign-in."""

SIGN_IN_LIMIT: Final = "20 per minute"
"""From one address; an account is locked sooner by `accounts.authenticate`."""

PROGRAMS_PATH: Final = "/dicom-web/"
"""Below this address name and password may come with the request."""

REMEMBERED_S: Final = 300
REMEMBERED: Final = 256
"""For how long, and how many pairs of name and password are known again without the slow hash."""

REFUSED: Final = "Name or password is wrong, or the account is locked for a while."

blueprint = Blueprint("auth", __name__)
csrf = CSRFProtect()
limiter = Limiter(get_remote_address, storage_uri="memory://")
login = LoginManager()


class User(UserMixin):  # type: ignore[misc]  # flask-login has no types
    """The signed-in person, as flask-login wants it."""

    def __init__(self, account: Account) -> None:
        self.account_id = account.id
        self.name = account.name
        self.role = accounts.Role(account.role)
        digest = hashlib.sha256(account.password_hash.encode()).hexdigest()
        self.session_id = f"{account.id}:{digest[:16]}"

    def get_id(self) -> str:
        return self.session_id


class Credentials:
    """Names and passwords that were right a while ago, and whose session they open."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def user(self, name: str, password: str) -> User | None:
        """The person, or nobody; a changed password or a disabled account counts at once.

        What is not known yet is verified one after the other, and counts against the limit.
        """
        pair = hmac.digest(self._key, f"{name}\0{password}".encode(), "sha256")
        with self._lock:
            now = time.monotonic()
            session_id, until = self._known.get(pair, ("", 0.0))
            known: User | None = load_user(session_id) if now < until else None
            if known is not None:
                return known
            self._known.pop(pair, None)
            if not limiter.limiter.hit(parse(SIGN_IN_LIMIT), "password", get_remote_address()):
                abort(HTTPStatus.TOO_MANY_REQUESTS)
            account = accounts.authenticate(resources().database, name=name, password=password)
            if account is None:
                return None
            user = User(account)
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[pair] = user.session_id, now + REMEMBERED_S
            return user


CREDENTIALS: Final = "credentials"


def register(app: Flask) -> None:
    """Put the sign-in before every page that is not public."""
    app.extensions[CREDENTIALS] = Credentials()
    csrf.init_app(app)
    limiter.init_app(app)
    login.init_app(app)
    app.register_blueprint(blueprint)

    @app.before_request
    def require_sign_in() -> Response | None:
        if request.endpoint in PUBLIC or current_user.is_authenticated:
            return None
        if request.path.startswith(FOR_PROGRAMS):
            abort(HTTPStatus.UNAUTHORIZED)
        wanted = request.full_path.rstrip("?") if request.method == "GET" else "/"
        return redirect(url_for("auth.sign_in", next=wanted))

    @app.after_request
    def ask_for_password(response: Response) -> Response:
        refused = response.status_code == HTTPStatus.UNAUTHORIZED
        if refused and request.path.startswith(PROGRAMS_PATH):
            response.headers["WWW-Authenticate"] = 'Basic realm="DICOMweb", charset="UTF-8"'
        return response


@blueprint.route("/sign-in", methods=["GET", "POST"])
@limiter.limit(SIGN_IN_LIMIT, methods=["POST"])
def sign_in() -> Response | str | tuple[str, int]:
    """The form; a right answer opens a session and goes where the person wanted to."""
    if request.method != "POST":
        return render_template("auth/sign_in.html")
    account = accounts.authenticate(
        resources().database,
        name=request.form.get("name", ""),
        password=request.form.get("password", ""),
    )
    if account is None:
        return render_template("auth/sign_in.html", message=REFUSED), HTTPStatus.UNAUTHORIZED
    session.clear()
    session.permanent = True
    login_user(User(account))
    return redirect(_local(request.args.get("next", "/")))


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End this session."""
    with resources().database.transaction() as db:
        subject = f"account {current_user.account_id}"
        audit.record(db, actor=current_user.name, tag="accounts:session:closed", subject=subject)
    logout_user()
    session.clear()
    return redirect(url_for("auth.sign_in"))


@login.user_loader  # type: ignore[untyped-decorator]
def load_user(session_id: str) -> User | None:
    """The person a session names, unless the account or its password changed since."""
    account_id = session_id.partition(":")[0]
    if not account_id.isdecimal():
        return None
    with resources().database.snapshot() as db:
        account = accounts.find(db, int(account_id))
    if account is None or not account.active:
        return None
    user = User(account)
    return user if user.session_id == session_id else None


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


def _local(target: str) -> str:
    """`target` if it is a path on this server, else the front page: no sign-in leads elsewhere."""
    # Browsers read a backslash as a slash, and "//host" as another server.
    try:
        parts = urlsplit(target.replace("\\", "/"))
    except ValueError:  # a bracket where a host could stand
        return "/"
    is_path = not parts.scheme and not parts.netloc and parts.path.startswith("/")
    return target if is_path else "/"
