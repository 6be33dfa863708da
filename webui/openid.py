"""Sign-in at the hospital's identity provider: OpenID Connect, Authorization Code with PKCE.

Off unless `[openid] issuer` is set. Name and password stay beside it, for the administrator who
has to come in when the provider does not answer. Who may come, and as what, the provider says: a
claim of the ID token is looked up in `[[openid.roles]]` at each sign-in, and who has none of the
values is refused. authlib speaks the protocol and checks the token: signature, issuer, audience,
nonce, time.

OpenID Connect Core 1.0, sections 3.1 and 5.4; RFC 7636.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.flask_client import FlaskOAuth2App, OAuth
from flask import Blueprint, Flask, abort, current_app, redirect, render_template, request, session
from flask import url_for as address_of
from joserfc.errors import JoseError
from requests import RequestException
from werkzeug.wrappers import Response

from appliance import accounts, audit
from appliance.accounts import Role
from appliance.config import OpenIDSettings, Settings
from appliance.errors import ApplianceError
from webui import auth
from webui.auth import SIGN_IN_LIMIT, limiter
from webui.fixed_texts import told
from webui.language import gettext as _
from webui.language import marked
from webui.resources import resources

log = structlog.get_logger()

EXTENSION: Final = "openid"
WANTED: Final = "openid_next"
TIMEOUT_S: Final = 10.0

NO_ANSWER: Final = marked(
    "The identity provider does not answer. Try again, or call an administrator."
)
NOT_VOUCHED: Final = marked("The identity provider did not sign you in. Try again.")
NO_ROLE: Final = marked(
    "Nothing here is open to you: ask an administrator for a role at the provider."
)
NO_NAME: Final = marked("The identity provider does not say your name. Call an administrator.")

blueprint = Blueprint("openid", __name__)


def register(app: Flask, settings: Settings) -> None:
    """Add the sign-in at the provider that the settings name, if they name one."""
    chosen = settings.openid
    app.register_blueprint(blueprint)
    app.jinja_env.globals["openid_label"] = chosen.label if chosen.issuer else ""
    if chosen.issuer is None:
        return
    app.extensions[EXTENSION] = OAuth(app).register(
        "provider",
        server_metadata_url=f"{chosen.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_id=chosen.client_id,
        client_secret=chosen.client_secret,
        client_kwargs={
            "scope": " ".join(dict.fromkeys(("openid", *chosen.scopes))),
            "code_challenge_method": "S256",
            "default_timeout": TIMEOUT_S,
        },
    )


@blueprint.get("/sign-in/openid")
@limiter.limit(SIGN_IN_LIMIT)
def start() -> Response | tuple[str, int]:
    """Send the browser to the provider."""
    client = _client()
    session[WANTED] = auth.local(request.args.get("next", "/"))
    try:
        answer: Response = client.authorize_redirect(address_of("openid.back", _external=True))
    except (RequestException, AuthlibBaseError, ValueError, KeyError, RuntimeError) as error:
        return _no_answer(error)
    return answer


@blueprint.get("/sign-in/openid/back")
@limiter.limit(SIGN_IN_LIMIT)
def back() -> Response | tuple[str, int]:
    """Where the provider sends the browser back: open the session of whom it vouches for."""
    client, chosen = _client(), resources().settings.openid
    claims_options = {
        "iss": {"essential": True, "value": chosen.issuer},
        "aud": {"essential": True, "value": chosen.client_id},
    }
    try:
        token = client.authorize_access_token(claims_options=claims_options)
    except (AuthlibBaseError, JoseError) as error:
        return _refused(NOT_VOUCHED, type(error).__name__)
    except (RequestException, ValueError, KeyError, RuntimeError) as error:
        return _no_answer(error)
    claims = token.get("userinfo")
    if claims is None:
        return _refused(NOT_VOUCHED, "no ID token")
    role, name = _role(claims, chosen), _claim(claims, chosen.name_claim)
    if role is None:
        return _refused(NO_ROLE, "no role")
    if not isinstance(name, str) or not name.strip():
        return _refused(NO_NAME, "no name")
    try:
        account = accounts.sign_in_external(
            resources().database,
            external_id=f"{chosen.issuer} {claims['sub']}",
            name=name.strip(),
            role=role,
            source=auth.caller(),
        )
    except ApplianceError as error:
        return _refused(told(str(error)), "account")
    wanted = session.get(WANTED, "/")
    auth.enter(account)
    return redirect(auth.local(wanted))


def _client() -> FlaskOAuth2App:
    found: FlaskOAuth2App | None = current_app.extensions.get(EXTENSION)
    return found or abort(HTTPStatus.NOT_FOUND)


def _role(claims: Mapping[str, Any], chosen: OpenIDSettings) -> Role | None:
    """The role of the first rule whose value the person has."""
    said = _claim(claims, chosen.role_claim)
    values = said if isinstance(said, list) else [said]
    for rule in chosen.roles:
        if rule.value in values:
            return Role(rule.role)
    return None


def _claim(claims: Mapping[str, Any], path: str) -> object:
    """A claim by its name; dots lead into objects, as in Keycloak's ``realm_access.roles``."""
    found: object = claims
    for name in (path,) if path in claims else path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _refused(sentence: str, why: str) -> tuple[str, int]:
    with resources().database.transaction() as db:
        audit.record(
            db,
            actor="anonymous",
            tag="accounts:session:refused",
            subject="no account",
            detail={"from": auth.caller(), "identity provider": why},
        )
    return render_template("auth/sign_in.html", message=_(sentence)), HTTPStatus.UNAUTHORIZED


def _no_answer(error: Exception) -> tuple[str, int]:
    log.warning("openid.no_answer", error=type(error).__name__)
    return render_template("auth/sign_in.html", message=_(NO_ANSWER)), HTTPStatus.BAD_GATEWAY
