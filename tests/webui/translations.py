"""The catalogue beside the code: `make translations` brings it up to date."""

import io
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

from webui.language import CATALOGUE

WEBUI: Final = CATALOGUE.parents[3]
METHODS: Final = [
    ("static/**.js", "javascript"),
    ("templates/**.html", "jinja2"),
    ("**.py", "python"),
]
OPTIONS: Final[dict[str, dict[str, object]]] = {
    "templates/**.html": {"silent": "false"},
}
# Within a template string Babel looks for no sentence: none of ours stands there.
KEYWORDS: Final = {"_": None, "_n": (1, 2), "gettext": None, "ngettext": (1, 2), "marked": None}


def extracted() -> Catalog:
    """Every sentence that stands in a template, a script or a module."""
    found = Catalog(charset="utf-8")
    for name, _line, text, comments, context in extract_from_dir(WEBUI, METHODS, OPTIONS, KEYWORDS):
        # Files without lines: a catalogue does not change where nothing is said anew.
        found.add(text, None, [(f"webui/{name}", None)], auto_comments=comments, context=context)
    return found


def updated() -> str:
    """The catalogue with what the code says now: what is new is empty, what is gone is left out."""
    with CATALOGUE.open("rb") as file:
        catalogue = read_po(file, locale="zh_Hans_CN")
    catalogue.project = str(catalogue.project).strip()
    made, revised = catalogue.creation_date, catalogue.revision_date
    catalogue.update(extracted(), no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    catalogue.creation_date, catalogue.revision_date = made, revised
    text = io.BytesIO()
    write_po(text, catalogue, width=100, include_lineno=False, sort_by_file=True)
    return text.getvalue().decode()


def main() -> None:
    """Write it."""
    Path(CATALOGUE).write_text(updated(), encoding="utf-8")


if __name__ == "__main__":
    main()
