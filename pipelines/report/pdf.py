"""A report as PDF, one or two A4 pages; the same report is the same bytes.

Its text can be selected. What Helvetica lacks, which every reader brings along, is set in WenQuanYi
Micro Hei, which has Latin, Greek, Cyrillic, Chinese, Japanese and Korean letters; those that occur
are embedded, so that a name never depends on the fonts of whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import as_file, files
from io import BytesIO
from itertools import groupby
from typing import Any, Final
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.enums import TA_CENTER
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer
from reportlab.platypus import Table as PdfTable

from pipelines.report.content import (
    NOTICE,
    TITLE,
    Report,
    Section,
    Table,
    identification,
    sections,
)

MOST_LESIONS: Final = 15
"""Rows of the table; the structured report and the page hold all."""

_LATIN: Final = "Helvetica"
_LATIN_SET: Final = "cp1252"  # what its encoding holds
_WIDE: Final = "WenQuanYiMicroHei"
_UNSHOWN: Final = "(in letters this document cannot show: see the study itself)"
_PICTURE_MM: Final = 54
_PICTURES_IN_A_ROW: Final = 3
_SIDE_MARGIN: Final = 18 * mm
_WHOSE_WIDTH: Final = 70 * mm
_STAMP_SIZE: Final = 26
_STAMP_COLOUR: Final = colors.Color(0.75, 0.1, 0.1)

_TEXT: Final = ParagraphStyle("text", fontName=_LATIN, fontSize=9, leading=12)
_SMALL: Final = ParagraphStyle("small", _TEXT, fontSize=7.5, leading=9.5)
_HEADING: Final = ParagraphStyle(
    "heading",
    _TEXT,
    fontName="Helvetica-Bold",
    fontSize=10.5,
    leading=14,
    spaceBefore=6,
    keepWithNext=True,
)
_HEADLINE: Final = ParagraphStyle("headline", _HEADING, fontSize=15, leading=19)
_WHOSE: Final = ParagraphStyle("whose", _SMALL, alignment=TA_CENTER)
_WARNING: Final = ParagraphStyle(
    "warning",
    _TEXT,
    fontName="Helvetica-Bold",
    backColor=colors.Color(1, 0.93, 0.7),
    borderPadding=4,
)
_PLAIN: Final = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)]
_GRID: Final = [
    ("FONT", (0, 0), (-1, -1), _LATIN, 8),
    ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8),
    ("LINEBELOW", (0, 0), (-1, 0), 0.6, colors.black),
    ("LINEBELOW", (0, 1), (-1, -1), 0.2, colors.lightgrey),
    ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
    ("TOPPADDING", (0, 0), (-1, -1), 1.5),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
]


def render(report: Report) -> bytes:
    """Return the PDF."""
    story: list[Flowable] = [
        Paragraph(TITLE, _HEADLINE),
        Spacer(0, 4),
        Paragraph(NOTICE, _WARNING),
        Spacer(0, 6),
        _identification(report),
    ]
    for part in sections(report, most_lesions=MOST_LESIONS):
        story += _section(part, report)
    file = BytesIO()
    stamped = bool(report.stamps)
    page = SimpleDocTemplate(
        file,
        pagesize=A4,
        title=" ".join((*report.stamps, TITLE)),
        author=report.box,
        invariant=1,
        leftMargin=_SIDE_MARGIN,
        rightMargin=_SIDE_MARGIN,
        topMargin=(22 if stamped else 14) * mm,
        bottomMargin=16 * mm,
    )

    def frame(canvas: Any, document: Any) -> None:
        _frame(canvas, document.page, report)

    page.build(story, onFirstPage=frame, onLaterPages=frame)
    return file.getvalue()


def _frame(canvas: Any, number: int, report: Report) -> None:
    """Draw what every page says: how far it may be relied upon, and whose it is."""
    canvas.saveState()
    if report.stamps:
        canvas.setFont("Helvetica-Bold", _STAMP_SIZE)
        canvas.setFillColor(_STAMP_COLOUR)
        canvas.drawCentredString(A4[0] / 2, A4[1] - 16 * mm, " · ".join(report.stamps))
    canvas.setFont(_LATIN, 7.5)
    canvas.setFillColor(colors.black)
    canvas.drawString(_SIDE_MARGIN, 9 * mm, NOTICE)
    canvas.drawRightString(A4[0] - _SIDE_MARGIN, 9 * mm, f"page {number}")
    (_, name), (_, patient_id) = identification(report)[:2]
    whose = Paragraph(f"{_shown(name)}, {_shown(patient_id)}", _WHOSE)
    _, height = whose.wrapOn(canvas, _WHOSE_WIDTH, 10 * mm)
    whose.drawOn(canvas, (A4[0] - _WHOSE_WIDTH) / 2, 9 * mm + _SMALL.leading - 3 - height)
    canvas.restoreState()


def _identification(report: Report) -> Flowable:
    cells = [
        Paragraph(f"<b>{label}</b> {_shown(value)}", _TEXT if len(value) < 60 else _SMALL)
        for label, value in identification(report)
    ]
    pairs = [cells[n : n + 2] for n in range(0, len(cells), 2)]
    rows = [[*pair, *[""] * (2 - len(pair))] for pair in pairs]
    return PdfTable(rows, colWidths=["42%", "58%"], style=_PLAIN)


def _section(part: Section, report: Report) -> Iterator[Flowable]:
    yield Paragraph(part.heading, _HEADING)
    if part.table is not None:
        yield _table(part.table)
    style = _SMALL if part.is_small else _TEXT
    yield from (Paragraph(_shown(line), style) for line in part.lines)
    if part.shows_pictures:
        yield _pictures(report.pictures)


def _table(table: Table) -> Flowable:
    return PdfTable([table.header, *table.rows], style=_GRID, hAlign="LEFT")


def _pictures(pictures: Iterable[bytes]) -> Flowable:
    images: list[Any] = []
    for content in pictures:
        width, height = ImageReader(BytesIO(content)).getSize()
        scale = _PICTURE_MM * mm / max(width, height)
        images.append(Image(BytesIO(content), width * scale, height * scale))
    rows = [images[n : n + _PICTURES_IN_A_ROW] for n in range(0, len(images), _PICTURES_IN_A_ROW)]
    filled = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    return PdfTable(filled, style=_PLAIN, hAlign="LEFT")


def _shown(text: str) -> str:
    """Return text as markup, each run of letters in a font that has them."""
    return "".join(_run(font, "".join(letters)) for font, letters in groupby(text, _font_of))


def _run(font: str, letters: str) -> str:
    if font == _LATIN:
        return escape(letters)
    return f'<font name="{font}">{escape(letters)}</font>' if font else _UNSHOWN


def _font_of(letter: str) -> str:
    """Return the font that has a letter, "" where none does."""
    try:
        letter.encode(_LATIN_SET)
    except UnicodeEncodeError:
        return _WIDE if ord(letter) in _wide_letters() else ""
    return _LATIN


@cache
def _wide_letters() -> frozenset[int]:
    """Return what the wide font has, which is there to be used from now on."""
    # Without the package `appliance` could not have been installed: it is one of its requirements.
    with as_file(files("paperang_p2_fonts_cjk") / "fonts" / "wqy-microhei.ttc") as path:
        font = TTFont(_WIDE, str(path))
    pdfmetrics.registerFont(font)
    return frozenset(font.face.charToGlyph)
