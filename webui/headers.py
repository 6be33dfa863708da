"""Security headers on every answer.

Nothing inline and nothing foreign: scripts, styles, images and workers come from this server's own
files, so that a text that reaches a page as markup by mistake still cannot run.
"""

from typing import Final

from flask import Flask, Response

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


def register(app: Flask) -> None:
    """Add the headers to everything the application answers."""

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        # Pages name patients: no copy stays behind, unless a view chose another rule.
        if "Cache-Control" not in response.headers:
            response.headers["Cache-Control"] = "no-store"
        return response
