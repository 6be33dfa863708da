"""The web application: `create_app` puts the pages together."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Final

from flask import Flask

from appliance.config import Settings, secret_key
from appliance.database import open_database
from webui import (
    account,
    audit_log,
    auth,
    display,
    drafts,
    errors,
    fetching,
    headers,
    health,
    language,
    marks,
    measurements,
    metrics,
    openapi,
    openid,
    packing,
    permissions,
    preferences,
    report,
    reviews,
    upload,
    viewer,
    worklist,
)
from webui.admin import section
from webui.dicomweb import service
from webui.live import LiveFeed
from webui.resources import EXTENSION, Resources

STATIC: Final = Path(__file__).parent / "static"
LARGEST_REQUEST_BYTES: Final = 64 * 1024
"""No page takes more than a form or a review; what stores instances has limits of its own."""

A_YEAR: Final = timedelta(days=365)


def create_app(settings: Settings | None = None) -> Flask:
    """The application for these settings, else for the file named by $APPLIANCE_SETTINGS."""
    settings = settings or Settings.load()
    # The fingerprint in the path makes static files immutable and an update visible at once,
    # also to modules that import each other by relative address.
    app = Flask(__name__, static_url_path=f"/static/{_fingerprint(STATIC)}")
    app.config.update(
        SECRET_KEY=secret_key(settings),
        SESSION_COOKIE_NAME="chest_ct_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=settings.web.session_hours),
        # An answer under way at sign-out would revive the session, a live page never let it end.
        SESSION_REFRESH_EACH_REQUEST=False,
        MAX_CONTENT_LENGTH=LARGEST_REQUEST_BYTES,
        SEND_FILE_MAX_AGE_DEFAULT=A_YEAR,
        WTF_CSRF_TIME_LIMIT=None,
    )
    database = open_database(settings)
    app.extensions[EXTENSION] = Resources(settings, database, LiveFeed(database))
    language.register(app)
    display.register(app)
    headers.register(app)
    packing.register(app)
    errors.register(app)
    permissions.register(app)
    auth.register(app)
    for page in (
        worklist,
        viewer,
        reviews,
        drafts,
        marks,
        measurements,
        preferences,
        report,
        fetching,
        upload,
        account,
        audit_log,
        health,
        metrics,
        openapi,
    ):
        app.register_blueprint(page.blueprint)
    app.register_blueprint(section.routes())
    openid.register(app, settings)
    service.register(app, settings, database)
    return app


def _fingerprint(folder: Path) -> str:
    """A short hash of every file in a folder, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
