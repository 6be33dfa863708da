"""The result for people as an Encapsulated PDF (PS3.3 A.45.1), one or two A4 pages.

Its fonts come with every PDF reader: Helvetica, and for names beyond Western Europe the Asian fonts
of Adobe's collections, which a reader brings along or installs on demand.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from io import BytesIO
from typing import Any, Final
from xml.sax.saxutils import escape

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Spacer, Table

from dicom_node.objects import codes
from dicom_node.objects.capture import draw_key_image, key_slices
from dicom_node.objects.provenance import MODEL_NAME, NOTICE, Provenance, source_image
from pipelines.findings import Analysis, Lesion

ROLE: Final = "document"
SERIES_NUMBER: Final = 9104

TITLE: Final = "Chest CT: result of the automatic analysis"
_UNCONFIRMED: Final = "Not confirmed by a person."
MOST_LESIONS: Final = 15
"""Rows of the table; the report holds all."""

_PICTURE_MM: Final = 54
_PICTURE_PX: Final = 512  # the key images themselves are objects of their own
# What a font can show is what its character set can encode.
_LATIN: Final = "cp1252"  # Helvetica's own
_ASIAN_FONTS: Final = {
    "STSong-Light": "gb2312",
    "MSung-Light": "big5",
    "HeiseiMin-W3": "shift_jis",
    "HYSMyeongJo-Medium": "euc_kr",
}
_LAST_LATIN: Final = "\u036f"  # Unicode's Latin blocks and the marks that combine with them
_STROKES: Final = str.maketrans("ŁłĐđĦħŦŧı", "LlDdHhTti")  # no mark that can be taken off
_UNSHOWN: Final = "(in letters this document cannot show: see the study itself)"

_TEXT: Final = ParagraphStyle("text", fontName="Helvetica", fontSize=9, leading=12)
_SMALL: Final = ParagraphStyle("small", _TEXT, fontSize=7.5, leading=9.5)
_HEADING: Final = ParagraphStyle(
    "heading", _TEXT, fontName="Helvetica-Bold", fontSize=10.5, leading=14, spaceBefore=8
)
_HEADLINE: Final = ParagraphStyle("headline", _HEADING, fontSize=15, leading=19)
_WARNING: Final = ParagraphStyle(
    "warning",
    _TEXT,
    fontName="Helvetica-Bold",
    backColor=colors.Color(1, 0.93, 0.7),
    borderPadding=4,
)
_PLAIN: Final = [("LEFTPADDING", (0, 0), (-1, -1), 0), ("BOTTOMPADDING", (0, 0), (-1, -1), 1)]
_GRID: Final = [
    ("FONT", (0, 0), (-1, -1), "Helvetica", 8),
    ("FONT", (0, 0), (-1, 0), "Helvetica-Bold", 8),
    ("LINEBELOW", (0, 0), (-1, 0), 0.6, colors.black),
    ("LINEBELOW", (0, 1), (-1, -1), 0.2, colors.lightgrey),
    ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
    ("TOPPADDING", (0, 0), (-1, -1), 1.5),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1.5),
]


def build_document(provenance: Provenance) -> Dataset:
    """Return the PDF of an analysis, with the verification if there is one.

    Raises:
        ObjectError: The analysis does not name the networks.
        DecodeError: The pixel data of a key image are damaged.
    """
    ds = provenance.new_object(
        EncapsulatedPDFStorage,
        provenance.verified_uid(ROLE),
        series=ROLE,
        series_number=SERIES_NUMBER,
        modality="DOC",
        written_at=provenance.written_at,
    )
    verification = provenance.verification
    ds.InstanceNumber = 1 if verification is None else verification.version + 1
    ds.ConversionType = "WSD"
    ds.AcquisitionDateTime = ""
    ds.BurnedInAnnotation = "YES"
    ds.VerificationFlag = "UNVERIFIED" if verification is None else "VERIFIED"
    ds.DocumentTitle = TITLE
    ds.ConceptNameCodeSequence = [codes.item(codes.MEASUREMENT_REPORT)]
    ds.SourceInstanceSequence = [source_image(image) for image in provenance.source.images]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    content = render(provenance)
    ds.EncapsulatedDocumentLength = len(content)
    ds.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return ds


def render(provenance: Provenance) -> bytes:
    """Return the PDF; the same result is the same bytes."""
    analysis = provenance.confirmed
    story = [
        Paragraph(TITLE, _HEADLINE),
        Spacer(0, 4),
        Paragraph(NOTICE, _WARNING),
        Spacer(0, 6),
        _identification(provenance),
        Paragraph("Result", _HEADING),
        *(Paragraph(_shown(line), _TEXT) for line in _result(provenance)),
        *_review(provenance),
        *_sentences("To be read with the result", analysis.warnings, _TEXT),
        *_lesions(analysis.lesions),
        *_burden(analysis),
        Paragraph("Key images", _HEADING),
        _key_images(provenance),
        *_sentences("Made by", _made_by(provenance), _SMALL),
    ]
    file = BytesIO()
    page = SimpleDocTemplate(
        file,
        pagesize=A4,
        title=TITLE,
        author=MODEL_NAME,
        invariant=1,
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=14 * mm,
        bottomMargin=16 * mm,
    )
    page.build(story, onFirstPage=_footer, onLaterPages=_footer)
    return file.getvalue()


def _identification(provenance: Provenance) -> Flowable:
    """Return who was scanned and when, as the study says it."""
    attributes = provenance.source.attributes
    told = (
        ("Patient", "PatientName"),
        ("Patient ID", "PatientID"),
        ("Born", "PatientBirthDate"),
        ("Sex", "PatientSex"),
        ("Accession number", "AccessionNumber"),
        ("Study", "StudyDescription"),
        ("Study date", "StudyDate"),
        ("Study time", "StudyTime"),
    )
    cells = [
        Paragraph(f"<b>{label}</b> {_shown(_readable(attributes.get(keyword)))}", _TEXT)
        for label, keyword in told
    ]
    analysed_at = f"{provenance.local(provenance.analysed_at):%Y-%m-%d %H:%M %z}"
    series = f"{provenance.analysis.shape[0]} images, series {provenance.analysis.series_uid}"
    cells += [
        Paragraph(f"<b>Analysed</b> {analysed_at}", _TEXT),
        Paragraph(f"<b>Of</b> {_shown(series)}", _SMALL),
    ]
    return Table(
        [cells[n : n + 2] for n in range(0, len(cells), 2)], colWidths=["42%", "58%"], style=_PLAIN
    )


def _readable(value: Any) -> str:
    """Return a value as text, a date (PS3.5 6.2, DA) with its hyphens."""
    text = str(value or "")
    is_date = len(text) == len("yyyymmdd") and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date else text


def _shown(text: str) -> str:
    """Return text as markup in a font that has its letters.

    Latin letters that Helvetica lacks lose their marks, and the text says so.
    """
    if not text.strip("^ "):
        return "-"
    if _has(text, _LATIN):
        return escape(text)
    if max(text) <= _LAST_LATIN:
        plain = _without_marks(text)
        return f"{escape(plain)} (accents left out)" if _has(plain, _LATIN) else _UNSHOWN
    for font, character_set in _ASIAN_FONTS.items():
        if _has(text, character_set):
            pdfmetrics.registerFont(UnicodeCIDFont(font))
            return f'<font name="{font}">{escape(text)}</font>'
    return _UNSHOWN


def _has(text: str, character_set: str) -> bool:
    try:
        text.encode(character_set)
    except UnicodeEncodeError:
        return False
    return True


def _without_marks(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.translate(_STROKES))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _result(provenance: Provenance) -> list[str]:
    analysis = provenance.confirmed
    volume_ml = sum(lesion.volume_ml for lesion in analysis.lesions)
    score = f"Probability {analysis.probability:.2f}, positive from {analysis.threshold:.2f}"
    lungs = f"Right lung {analysis.lungs.right_ml:.0f} ml, left {analysis.lungs.left_ml:.0f} ml"
    return [
        f"COVID-19-like appearance: {_verdict(provenance.positive)}. {score}.",
        f"{len(analysis.lesions)} lesions, {volume_ml:.1f} ml in all. {lungs}.",
    ]


def _verdict(positive: bool) -> str:  # noqa: FBT001 - a value, not a switch
    return "positive" if positive else "negative"


def _review(provenance: Provenance) -> list[Flowable]:
    """Return who confirmed what and when, or that nobody did."""
    person = provenance.verification
    if person is None:
        return [Spacer(0, 6), Paragraph(_UNCONFIRMED, _WARNING), Spacer(0, 6)]
    when = f"{provenance.written_at:%Y-%m-%d %H:%M %z}"
    # Shown part by part: letters that no font has must not hide that somebody confirmed it.
    who = f"{_shown(person.readable_name)}, {_shown(person.organisation)}"
    lines = [f"Confirmed by {who}, at {when}."]
    if person.amends is not None:
        lines.append(f"Version {person.version}; it replaces the one before.")
    if person.reason:
        machine = _verdict(provenance.analysis.positive)
        reason = _shown(person.reason)
        lines.append(f"The automatic analysis said {machine}; decided otherwise: {reason}")
    if person.rejected:
        numbers = ", ".join(map(str, person.rejected))
        lines.append(f"Rejected and left out of this document: lesions {numbers}.")
    if person.comment:
        lines.append(f"Comment: {_shown(person.comment)}")
    return [Paragraph(line, _TEXT) for line in lines]


def _lesions(lesions: tuple[Lesion, ...]) -> list[Flowable]:
    if not lesions:
        return []
    rows = [("Lesion", "Side", "Volume", "Diameter", "Mean", "Of the lungs", "COVID-like")]
    rows += [
        (
            str(lesion.id),
            lesion.side.value,
            f"{lesion.volume_ml:.1f} ml",
            f"{lesion.diameter_mm:.0f} mm",
            f"{lesion.mean_hu:.0f} HU",
            f"{100 * lesion.lung_share:.2f} %",
            "-" if lesion.probability is None else f"{lesion.probability:.2f}",
        )
        for lesion in lesions[:MOST_LESIONS]
    ]
    told: list[Flowable] = [Paragraph("Lesions", _HEADING), Table(rows, style=_GRID, hAlign="LEFT")]
    if rest := lesions[MOST_LESIONS:]:
        volume_ml = sum(lesion.volume_ml for lesion in rest)
        text = f"{len(rest)} smaller ones, {volume_ml:.1f} ml in all, are in the structured report."
        told.append(Paragraph(text, _TEXT))
    return told


def _burden(analysis: Analysis) -> list[Flowable]:
    """Return how much of each lung is lesion, in thirds of its height."""
    burden = analysis.burden
    if burden is None:
        return []
    rows: list[tuple[str, ...]] = [("Lesion in", "whole", "upper", "middle", "lower third")]
    for name, lung in (("right lung", burden.right), ("left lung", burden.left)):
        parts = (lung.whole, lung.upper, lung.middle, lung.lower)
        rows.append((name, *(f"{100 * part.share:.1f} %" for part in parts)))
    rows.append(("both lungs", f"{100 * burden.both.share:.1f} %", "", "", ""))
    grade = f"{burden.grade} by the masks alone; not validated as a clinical grade."
    return [
        Paragraph("Burden", _HEADING),
        Table(rows, style=_GRID, hAlign="LEFT"),
        Paragraph(grade, _TEXT),
    ]


def _key_images(provenance: Provenance) -> Flowable:
    pictures: list[Any] = []
    for z in key_slices(provenance.confirmed):
        file = BytesIO()
        picture = draw_key_image(provenance, z)
        picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
        picture.save(file, "PNG")
        scale = _PICTURE_MM * mm / max(picture.size)
        pictures.append(Image(file, picture.width * scale, picture.height * scale))
    rows = [pictures[:3], pictures[3:]]
    filled = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows if row]
    return Table(filled, style=_PLAIN, hAlign="LEFT")


def _sentences(heading: str, lines: Iterable[str], style: ParagraphStyle) -> list[Flowable]:
    told = [Paragraph(_shown(line), style) for line in lines]
    return [Paragraph(heading, _HEADING), *told] if told else []


def _made_by(provenance: Provenance) -> list[str]:
    analysis, equipment = provenance.analysis, provenance.equipment
    networks = [
        f"{model.purpose}: {model.name} {model.version}, sha256 {model.digest}"
        for model in analysis.models
    ]
    box = f"{MODEL_NAME} {equipment.software_version}, device {equipment.serial_number}"
    return [*networks, f"computed by {analysis.engine}; {box}"]


def _footer(canvas: Any, document: Any) -> None:
    canvas.saveState()
    canvas.setFont("Helvetica", 7.5)
    canvas.drawString(18 * mm, 9 * mm, NOTICE)
    canvas.drawRightString(A4[0] - 18 * mm, 9 * mm, f"page {document.page}")
    canvas.restoreState()
