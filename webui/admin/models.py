"""The models that are installed, their cards, and which of them made the newest result."""

import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from flask import Blueprint, abort, render_template
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from sqlalchemy import select

from appliance import doctor
from appliance.tables import Analysis
from pipelines.findings import model_digest
from webui.resources import resources

blueprint = Blueprint("models", __name__)

CARD: Final = "model_card.md"
CONFIG: Final = "config.json"
SUMS: Final = "SHA256SUMS"
WEIGHTS: Final = "weights.safetensors"

# Without HTML: what stands in a card is text. Links lead out of the appliance and pictures are not
# served, so that they stay what they are in the file.
_markdown: Final = (
    MarkdownIt("commonmark", {"html": False})
    .enable("table")
    .disable(["link", "image", "autolink", "reference"])
)


@dataclass(frozen=True)
class Installed:
    """A model as its folder describes it."""

    purpose: str
    name: str
    version: str
    digest: str
    has_card: bool


@blueprint.get("/admin/models")
def index() -> str:
    """The page."""
    settings = resources().settings
    folder = doctor.weights_dir(settings)
    newest = select(Analysis).order_by(Analysis.id.desc()).limit(1)
    with resources().database.snapshot() as db:
        analysis = db.scalar(newest)
    used = {model["digest"] for model in analysis.models} if analysis else set()
    return render_template(
        "admin/models.html",
        models=[_installed(path.parent) for path in sorted(folder.glob(f"*/{CONFIG}"))],
        used=used,
        analysis=analysis,
        wrong=[found for found in doctor.check_weights(settings) if not found.well],
        analysing=settings.analysis,
    )


@blueprint.get("/admin/models/<purpose>")
def card(purpose: str) -> str:
    """A model's card."""
    folder = doctor.weights_dir(resources().settings)
    # Only folders that are there are looked into, whatever the address says.
    path = {found.parent.name: found for found in folder.glob(f"*/{CARD}")}.get(purpose)
    if path is None:
        abort(HTTPStatus.NOT_FOUND)
    return render_template(
        "admin/model_card.html", purpose=purpose, card=_rendered(path.read_text(encoding="utf-8"))
    )


def _installed(folder: Path) -> Installed:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        config = {}  # the page says what is wrong with the folder: it is not what its checksums say
    return Installed(
        purpose=folder.name,
        name=str(config.get("name", "")),
        version=str(config.get("version", "")),
        digest=_digest(folder),
        has_card=(folder / CARD).is_file(),
    )


def _digest(folder: Path) -> str:
    """The digest that results name; "" where the file of checksums lacks one of the two files."""
    sums = folder / SUMS
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else ()
    digests = {name.strip(): digest for digest, _, name in (line.partition(" ") for line in lines)}
    if not {CONFIG, WEIGHTS} <= set(digests):
        return ""
    return model_digest(digests[CONFIG], digests[WEIGHTS])


def _rendered(text: str) -> Markup:
    tokens = _markdown.parse(text)
    for token in tokens:
        _class_for_style(token)
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"  # the page has the first heading
    return Markup(_markdown.renderer.render(tokens, _markdown.options, {}))  # noqa: S704 - escaped


def _class_for_style(token: Token) -> None:
    """Say by a class what markdown-it says by a style, which our policy forbids."""
    if style := token.attrs.pop("style", None):
        token.attrs["class"] = "number" if "right" in str(style) else "text"
