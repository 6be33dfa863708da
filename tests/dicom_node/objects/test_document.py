"""The PDF: what it says, how long it is, and that it is always the same bytes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pypdfium2
import pytest
from fontTools.ttLib import TTCollection

from dicom_node.objects.build import trace
from dicom_node.objects.document import build_document, outcome_of
from dicom_node.objects.verification import Verification
from pipelines.report.content import Prior
from pipelines.report.pdf import MOST_LESIONS
from tests.dicom_node.objects.conftest import ANALYSED_AT, EQUIPMENT, Study
from tests.support import ct_series

CONFIRMED = Verification(
    person_name="Doe^Jane",
    organisation="Klinik",
    verified_at=datetime(2026, 11, 23, 8, 5, tzinfo=UTC),
    positive=True,
)


def pdf(study: Study, **changes: object) -> bytes:
    ds = study.objects(**changes)[-1]
    content: bytes = ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength]
    return content


def text(content: bytes) -> str:
    """What a reader can select on all pages."""
    document = pypdfium2.PdfDocument(content)
    said = "\n".join(page.get_textpage().get_text_bounded() for page in document)
    document.close()
    return " ".join(said.split())


def pages(content: bytes) -> int:
    document = pypdfium2.PdfDocument(content)
    count = len(document)
    document.close()
    return count


def test_it_names_the_study_the_result_and_every_lesion(study):
    said = text(pdf(study))

    for expected in (
        "Research use only, not for primary diagnosis.",
        "Phantom, Chest",
        "PHANTOM-0001",
        "1970-01-01",
        "COVID-19-like appearance: positive. Probability 0.81",
        "Not confirmed by a person.",
        "The scan is noisy.",
        "tiny lesions 1.0.0",
    ):
        assert expected in said
    for lesion in study.analysis.lesions:
        assert f"{lesion.volume_ml:.1f} ml" in said


def test_without_lesions_it_is_as_whole(healthy):
    said = text(pdf(healthy))

    assert "COVID-19-like appearance: negative" in said
    assert "0 lesions" in said


def test_many_lesions_stay_on_two_pages_and_none_is_forgotten(study):
    first = study.analysis.lesions[0]
    many = tuple(replace(first, id=number) for number in range(1, 41))
    content = pdf(study, analysis=replace(study.analysis, lesions=many))

    assert pages(content) <= 2
    assert f"{40 - MOST_LESIONS} more" in text(content)


def test_a_verified_result_names_the_person(study):
    said = text(pdf(study, verification=CONFIRMED))

    assert "Confirmed by Jane Doe, Klinik, at 2026-11-23 08:05 +0000." in said
    assert "Not confirmed" not in said
    assert "Research use only, not for primary diagnosis." in said


def test_that_somebody_confirmed_is_said_whatever_the_letters_of_the_name(study):
    person = replace(CONFIRMED, person_name="محمد^", organisation="Klinik", comment="😀")

    said = "".join(text(pdf(study, verification=person)).split())

    unshown = "(inlettersthisdocumentcannotshow:seethestudyitself)"
    assert f"Confirmedby{unshown},Klinik,at2026-11-2308:05+0000." in said
    assert f"Comment:{unshown}" in said


def test_an_overridden_and_amended_result_says_so(study):
    person = replace(
        CONFIRMED,
        positive=False,
        reason="artefact: <b>motion</b>",
        comment="Compare with 2024 & 2025.",
        amends=CONFIRMED,
    )

    said = "".join(text(pdf(study, verification=person)).split())  # it is drawn in pieces

    assert "COVID-19-likeappearance:negative,decidedby" in said
    assert "Theautomaticanalysis:positive,probability0.81" in said
    assert "saidpositive;decidedotherwise:artefact:<b>motion</b>" in said
    assert "Comment:Comparewith2024&2025." in said
    assert "Version2" in said


def test_rejected_lesions_are_not_in_a_verified_result(study):
    first, second, *_ = study.analysis.lesions
    kept = [lesion for lesion in study.analysis.lesions if lesion.id != second.id]

    said = text(pdf(study, verification=replace(CONFIRMED, rejected=(second.id,))))

    volume_ml = sum(lesion.volume_ml for lesion in kept)
    assert f"{len(kept)} lesions, {volume_ml:.1f} ml in all" in said
    assert f"{first.volume_ml:.1f} ml" in said
    assert f"{second.volume_ml:.1f} ml" not in said
    assert f"Rejected and left out of this document: lesions {second.id}." in said


def named(name: str, folder: Path) -> bytes:
    series = ct_series.slices(24)
    for ds in series:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName = name
    return pdf(Study.of(series, folder / "study", with_lesions=False))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Wang^XiaoDong=王^小东", "Wang, XiaoDong (王小东)"),
        ("Chang^Hsueh=張^學友", "Chang, Hsueh (張學友)"),
        ("Hata^Satoshi=畑^聡=はた^さとし", "Hata, Satoshi (畑聡)"),
        ("Hong^Gildong=홍^길동", "Hong, Gildong (홍길동)"),
        ("Иванов^Иван", "Иванов, Иван"),
        ("Łukasiewicz^Grażyna", "Łukasiewicz, Grażyna"),
    ],
)
def test_a_name_is_drawn_in_its_own_letters_and_can_be_selected(name, written, tmp_path):
    content = named(name, tmp_path)

    assert written in text(content)
    assert b"/FontFile2" in content  # embedded: whoever reads it needs no font
    wide = pdf_letters()
    assert all(letter in wide for letter in map(ord, written) if letter > 0x17F)


def pdf_letters() -> set[int]:
    """What the embedded font has a drawing for, as another library reads it."""
    path = files("paperang_p2_fonts_cjk") / "fonts" / "wqy-microhei.ttc"
    font = TTCollection(str(path)).fonts[0]
    return {letter for letter, glyph in font.getBestCmap().items() if glyph != ".notdef"}


def test_letters_that_no_font_has_are_not_left_blank(tmp_path):
    assert "in letters this document cannot show" in text(named("محمد", tmp_path))


def test_unconfirmed_stands_on_every_page_until_a_person_confirmed(study):
    first = study.analysis.lesions[0]
    many = tuple(replace(first, id=number) for number in range(1, 41))
    analysis = replace(study.analysis, lesions=many, lesion_labels=study.analysis.lesion_labels)

    machine = pypdfium2.PdfDocument(pdf(study, analysis=analysis))
    said = [page.get_textpage().get_text_bounded() for page in machine]
    machine.close()
    assert len(said) == 2
    assert all("UNCONFIRMED" in page for page in said)
    assert "UNCONFIRMED" not in text(pdf(study, verification=CONFIRMED))


def test_compared_with_another_result_it_is_another_document(study):
    alone = trace(study.analysis, study.paths, analysed_at=ANALYSED_AT, equipment=EQUIPMENT)
    before = outcome_of(study.analysis, CONFIRMED, ANALYSED_AT)
    compared = replace(alone, prior=Prior(study_date="20260105", outcome=before))

    first, second = build_document(alone), build_document(compared)

    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert "No earlier study of this patient" in text(first.EncapsulatedDocument)
    assert "Compared with the study of 2026-01-05." in text(second.EncapsulatedDocument)
    assert "confirmed by Jane Doe (by the analysis" in text(second.EncapsulatedDocument)
