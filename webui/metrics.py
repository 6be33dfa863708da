"""``/metrics`` for Prometheus, in its text format or OpenMetrics.

Whoever asks from this machine may read it; from elsewhere a bearer token is needed, as Prometheus
sends with ``authorization: credentials_file``. A proxy on this machine would let everybody in: what
came through one is not from here.
"""

import hmac
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import structlog
from flask import Blueprint, Response, abort, current_app, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from appliance.metrics import Metrics
from webui.resources import resources

log = structlog.get_logger()

EXTENSION: Final = "metrics"
PROXY_HEADERS: Final = (
    "Forwarded",
    "Via",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
)
"""What proxies add; README asks for X-Forwarded-Proto."""

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def scrape() -> Response:
    """All metrics, as of now."""
    if not (_is_from_here() or _has_token()):
        abort(HTTPStatus.FORBIDDEN)
    registry = CollectorRegistry()
    registry.register(
        current_app.extensions.setdefault(
            EXTENSION, Metrics(resources().settings, resources().database)
        )
    )
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), content_type=content_type)


def _is_from_here() -> bool:
    if any(header in request.headers for header in PROXY_HEADERS):
        return False
    try:
        return ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        return False


def _has_token() -> bool:
    path = resources().settings.web.metrics_token_file
    given = request.authorization
    if path is None or given is None or given.type != "bearer" or given.token is None:
        return False
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        log.error("metrics.no_token", reason=error.strerror)  # noqa: TRY400 - the reason says all
        return False
    return bool(token) and hmac.compare_digest(token, given.token.encode())
