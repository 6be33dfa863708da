"""The settings in force, with what each means; no secret is shown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from flask import Blueprint, render_template

from appliance.config import SECTIONS, Settings, to_toml
from webui.resources import resources

blueprint = Blueprint("configuration", __name__)

SECRET_WORDS: Final = ("password", "secret", "token")
HIDDEN: Final = "•••"


@dataclass(frozen=True)
class Shown:
    """One setting."""

    key: str
    value: str
    changed: bool
    meaning: str


@blueprint.get("/admin/settings")
def index() -> str:
    """The page."""
    settings = resources().settings
    return render_template(
        "admin/configuration.html",
        data_dir=settings.data_dir,
        database_url=without_password(settings.database_url),
        broker_url=without_password(settings.broker_url) if settings.broker_url else None,
        sections=[(name, list(_shown(settings, name))) for name, cls in SECTIONS.items() if cls],
    )


def without_password(url: str) -> str:
    """An address without the password in it, nor what stands behind its question mark."""
    hidden = re.sub(r"://([^:/@]*):.*@", rf"://\1:{HIDDEN}@", url)
    # libpq takes a password there as well.
    return re.sub(r"\?.+", f"?{HIDDEN}", hidden)


def _shown(settings: Settings, section: str) -> Iterator[Shown]:
    table = getattr(settings, section)
    for key in fields(table):
        value = getattr(table, key.name)
        yield Shown(
            key=key.name,
            value="" if value is None else _text(key.name, value),
            changed=value != key.default,
            meaning=key.metadata["doc"],
        )


def _text(name: str, value: Any) -> str:
    is_secret = any(word in name for word in SECRET_WORDS) and isinstance(value, str)
    return HIDDEN if is_secret else to_toml({name: value}).partition(" = ")[2].strip()
