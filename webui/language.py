"""The language of the pages: English, which stands in the code, or Chinese, from a catalogue.

Who is signed in has the language of their account (`webui.account`), anybody else the one chosen at
the sign-in or the one that the browser asks for. The session remembers it, so that a page that says
what went wrong needs no database.

A sentence is its own key in ``translations/zh_Hans_CN/LC_MESSAGES/messages.po``. That text file is
read at the start, so there is nothing to compile; `make translations` brings it up to date, and a
test fails while one sentence is missing. Scripts get the part of it that they say as one document
which never changes under its address (`words`, static/words.js).

What other programs read stays English: DICOM objects, reports, the audit and logs.
"""

import hashlib
import io
import json
from functools import lru_cache
from gettext import NullTranslations
from http import HTTPStatus
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations
from flask import Blueprint, Flask, Response, abort, has_request_context, request, session, url_for
from sqlalchemy.orm import Session

from appliance import preferences

ENGLISH: Final = "en"
CHINESE: Final = "zh"
NAMES: Final = {ENGLISH: "English", CHINESE: "简体中文"}
"""The languages, each as its readers call it."""

TAGS: Final = {ENGLISH: "en", CHINESE: "zh-Hans-CN"}
"""For the `lang` of a page, BCP 47."""

CATALOGUE: Final = Path(__file__).parent / "translations/zh_Hans_CN/LC_MESSAGES/messages.po"

FOR_SCRIPTS: Final = ("webui/static/", "webui/display.py", "webui/fixed_texts.py")
"""Where a sentence stands that a script says, or that reaches one in English by the live feed."""

KEY: Final = "language"
"""In the session, and of the account's preference."""

blueprint = Blueprint("language", __name__)


def marked(text: str) -> str:
    """A sentence that is translated where it is shown."""
    return text


def gettext(text: str, **values: object) -> str:
    """A sentence in the reader's language; `values` take the places of ``%(name)s``."""
    said = _translations(spoken()).gettext(text)
    return said % values if values else said


def ngettext(one: str, many: str, number: int, **values: object) -> str:
    """A sentence that differs with a number, ``%(num)s``."""
    return _translations(spoken()).ngettext(one, many, number) % {"num": number, **values}


def spoken() -> str:
    """The language of whoever asks."""
    if not has_request_context():
        return ENGLISH
    chosen = session.get(KEY)
    return chosen if chosen in NAMES else request.accept_languages.best_match(NAMES) or ENGLISH


def choose(language: str) -> None:
    """Speak a language in this session."""
    if language not in NAMES:
        abort(HTTPStatus.BAD_REQUEST)
    session[KEY] = language


def of_account(db: Session, account_id: int) -> str | None:
    """The language that a person chose for their account."""
    found: str | None = preferences.get(db, account_id, KEY)
    return found


def keep(db: Session, account_id: int, language: str) -> None:
    """Make a language that of an account, and of this session."""
    choose(language)
    preferences.put(db, account_id, KEY, language)


@blueprint.get("/words/<version>/zh.json")
def words(version: str) -> Response:
    """What scripts say, by the English; the address changes with the content."""
    text, newest = _words()
    if version != newest:
        abort(HTTPStatus.NOT_FOUND)
    response = Response(text, mimetype="application/json")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def register(app: Flask) -> None:
    """Let the templates speak."""
    app.jinja_env.add_extension("jinja2.ext.i18n")
    app.jinja_env.install_gettext_callables(  # type: ignore[attr-defined]  # of the extension
        lambda text: _translations(spoken()).gettext(text),
        lambda one, many, number: _translations(spoken()).ngettext(one, many, number),
        newstyle=True,
    )
    app.add_template_global(lambda: TAGS[spoken()], "language_tag")
    app.add_template_global(spoken, "language")
    app.jinja_env.globals.update(languages=NAMES, language_tags=TAGS)
    app.add_template_global(_words_url, "words_url")
    app.register_blueprint(blueprint)


@lru_cache(maxsize=1)
def catalogue() -> Catalog:
    """The Chinese sentences."""
    with CATALOGUE.open("rb") as file:
        return read_po(file, locale="zh_Hans_CN")


@lru_cache(maxsize=len(NAMES))
def _translations(language: str) -> NullTranslations:
    if language == ENGLISH:
        return NullTranslations()
    compiled = io.BytesIO()
    write_mo(compiled, catalogue())
    compiled.seek(0)
    return Translations(compiled)


@lru_cache(maxsize=1)
def _words() -> tuple[bytes, str]:
    """The sentences of the scripts as JSON, and the version in its address.

    Chinese has one form for every number: a sentence that differs with one in English has one here.
    """
    said = {}
    for message in catalogue():
        if any(place.startswith(FOR_SCRIPTS) for place, _line in message.locations):
            said[_one(message.id)] = _one(message.string)
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    return text, hashlib.sha256(text).hexdigest()[:12]


def _one(said: object) -> str:
    """A sentence, or the first form of one that differs with a number."""
    return str(said[0] if isinstance(said, list | tuple) else said)


def _words_url() -> str | None:
    """Where the scripts of this page find their words; English ones carry them."""
    return None if spoken() == ENGLISH else url_for("language.words", version=_words()[1])
