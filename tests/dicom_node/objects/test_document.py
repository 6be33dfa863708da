"""The PDF: what it says, how long it is, and that it is always the same bytes."""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dicom_node.objects.document import MOST_LESIONS
from dicom_node.objects.verification import Verification
from tests.dicom_node.objects.conftest import Study
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
    """The strings that the pages draw, by lines."""
    drawn = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
        try:
            page = zlib.decompress(base64.a85decode(stream.strip(), adobe=False))
        except ValueError:
            page = zlib.decompress(base64.a85decode(stream.strip().removesuffix(b"~>")))
        except zlib.error:
            continue
        drawn += re.findall(rb"\((.*?)(?<!\\)\) Tj", page)
    return (
        "\n".join(part.decode("latin-1") for part in drawn).replace("\\(", "(").replace("\\)", ")")
    )


def pages(content: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", content))


def test_it_names_the_study_the_result_and_every_lesion(study):
    said = text(pdf(study))

    for expected in (
        "Research use only, not for primary diagnosis.",
        "Phantom^Chest",
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
    assert f"{40 - MOST_LESIONS} smaller ones" in text(content)


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

    assert "COVID-19-likeappearance:negative.Probability0.81" in said
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


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("Wang^XiaoDong=王^小东", b"STSong-Light"),
        ("Chang^Hsueh=張^學友", b"MSung-Light"),
        ("Hata^Satoshi=畑^聡=はた^さとし", b"HeiseiMin-W3"),
        ("Hong^Gildong=홍^길동", b"HYSMyeongJo-Medium"),
        ("Иванов^Иван", b"STSong-Light"),
    ],
)
def test_a_name_is_set_in_a_font_that_has_its_letters(name, font, tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        ds.PatientName = name
    study = Study.of(series, tmp_path / "study", with_lesions=False)

    assert font in pdf(study)


def test_latin_letters_that_helvetica_lacks_lose_their_marks_and_the_text_says_so(tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        ds.PatientName = "Łukasiewicz^Grażyna"
    study = Study.of(series, tmp_path / "study", with_lesions=False)

    assert "Lukasiewicz^Grazyna (accents left out)" in text(pdf(study))


def test_letters_that_no_font_has_are_not_left_blank(tmp_path):
    series = ct_series.slices(24)
    for ds in series:
        ds.PatientName = "محمد"
    study = Study.of(series, tmp_path / "study", with_lesions=False)

    assert "in letters this document cannot show" in text(pdf(study))
