"""Security headers on every answer.

Nothing inline and nothing foreign: scripts, styles, images and workers come from this server's own
files, so that a text that reaches a page as markup by mistake still cannot run.
"""

from typing import Final

from flask import Flask, Response, request
from flask.sessions import SecureCookieSessionInterface

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none';"
    " script-src 'self';"
    " style-src 'self';"
    " img-src 'self';"
    " connect-src 'self';"
    " worker-src 'self';"
    " form-action 'self';"
    " base-uri 'none';"
    " frame-ancestors 'none'"
)

HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


A_YEAR_OF_HTTPS: Final = "max-age=31536000"
"""For browsers, which heed it where they know who signed the certificate."""


class Cookies(SecureCookieSessionInterface):
    """Session cookies that never travel unencrypted once they came by HTTPS, from us or a proxy."""

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - the request says it
        return request.is_secure


def register(app: Flask) -> None:
    """Add the headers to everything the application answers."""
    app.session_interface = Cookies()

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        if request.is_secure:
            response.headers["Strict-Transport-Security"] = A_YEAR_OF_HTTPS
        # Pages name patients: no copy stays behind, unless a view chose another rule.
        if "Cache-Control" not in response.headers:
            response.headers["Cache-Control"] = "no-store"
        return response
