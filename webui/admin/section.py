"""The administrators' pages: a blueprint for each, kept for them by `permissions`."""

from typing import Any, Final

from flask import Blueprint, request, url_for

from webui.admin import (
    configuration,
    models,
    overview,
    peers,
    quality,
    queues,
    routing,
    storage,
    users,
)
from webui.language import gettext as _
from webui.language import marked

PAGES: Final = (
    (overview, marked("Overview")),
    (queues, marked("Queues and failures")),
    (peers, marked("Peers")),
    (routing, marked("Routing")),
    (storage, marked("Storage")),
    (quality, marked("Quality")),
    (models, marked("Models")),
    (users, marked("Users")),
    (configuration, marked("Settings")),
)
"""In the order in which the pages offer each other; each has a view `index`."""


def routes() -> Blueprint:
    """All pages, for one application."""
    section = Blueprint("admin", __name__)
    section.context_processor(_navigation)
    for page, _title in PAGES:
        section.register_blueprint(page.blueprint)
    return section


def _navigation() -> dict[str, Any]:
    """What each template needs to offer the others, and to look itself up again."""
    return {
        "admin_pages": [(f"admin.{page.blueprint.name}.index", _(title)) for page, title in PAGES],
        "admin_page": url_for(f"{request.blueprint}.index"),
    }
