"""The report through Flask's client: what it says, in which form, and who may see which version."""

from __future__ import annotations

import html
import io
import re
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pypdfium2
import pytest
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import select

from appliance import accounts, audit, marks, reviews
from appliance.reviews import Judgement, Mark, Reason, Sign
from appliance.studies import VIEWED, StudyAttributes
from appliance.tables import AuditEntry
from pipelines.findings import Lesion, ModelRef
from pipelines.marks import Region, measure
from pipelines.severity import as_judged
from tests.webui.world import NAME, World
from webui import report
from webui.results import open_result

BY_HAND = "A person rejected or outlined lesions of the result"


def pdf_text(content: bytes) -> list[str]:
    """What a reader can select, by pages."""
    document = pypdfium2.PdfDocument(content)
    said = [" ".join(page.get_textpage().get_text_bounded().split()) for page in document]
    document.close()
    return said


def study_of(world: World, uid: str, chest: Any, *, date: str = "20260305", **found: Any) -> int:
    """A study of a day that was analysed; the row id of the study."""
    volume, analysis = chest
    study_id = world.receive(uid, study=StudyAttributes(description="Thorax", study_date=date))
    world.finish(study_id, volume, replace(analysis, **found))
    return study_id


def confirm(world: World, analysis_id: int, *, seen: int = 0, **judged: Any) -> None:
    with world.database.transaction() as db:
        account = accounts.find(db, 1)
        assert account is not None
        reviews.confirm(
            db, analysis_id, Judgement(**judged), seen=seen, account=account, organisation="Klinik"
        )


@pytest.fixture
def analysed(world: World, chest: Any) -> int:
    return study_of(world, "1.2.3", chest)


def test_the_page_the_text_and_the_pdf_say_the_same(client: FlaskClient, analysed: int, chest: Any):
    _, analysis = chest
    page = client.get(f"/studies/{analysed}/report").text
    pdf = " ".join(pdf_text(client.get(f"/studies/{analysed}/analyses/1/report.pdf").data))
    text = page.split("<textarea")[1].split("</textarea>")[0]

    lesion = analysis.lesions[0]
    for said in (
        "UNCONFIRMED",
        "Research use only, not for primary diagnosis.",
        "Phantom, Chest",
        "PHANTOM-0001",
        "COVID-19-like appearance: positive. Probability 0.87",
        "Not confirmed by a person.",
        f"{lesion.volume_ml:.1f} ml",
        f"{lesion.diameter_mm:.0f} mm",
        f"{lesion.mean_hu:.0f} HU",
        f"{analysis.burden.grade} by the masks alone; not validated as a clinical grade.",
        "No earlier study of this patient with a result is here.",
        "U-Net++ 1.0.0",
    ):
        assert said in page
        assert said in " ".join(text.split())
        assert said in pdf
    for lesion in analysis.lesions:
        assert f"{lesion.volume_ml:.1f} ml" in text
    assert "<b>" not in text


def test_every_page_says_unconfirmed_until_somebody_confirmed(
    world: World, client: FlaskClient, analysed: int, chest: Any
):
    address = f"/studies/{analysed}/analyses/1/report.pdf"
    assert all("UNCONFIRMED" in page for page in pdf_text(client.get(address).data))

    every = {lesion.id: lesion.id != 1 for lesion in chest[1].lesions}
    confirm(world, 1, positive=True, lesions=every, comment="<script>pwned()</script>")

    page = client.get(f"/studies/{analysed}/report").text
    pdf = " ".join(pdf_text(client.get(address).data))
    for said in (page, pdf):
        assert "UNCONFIRMED" not in said
        assert f"Confirmed by {NAME}, Klinik, at " in said
        assert "Rejected and left out of this document: lesions 1." in said
    assert "Comment: &lt;script&gt;pwned()" in page
    rejected = chest[1].lesions[0]
    assert f"{rejected.volume_ml:.1f} ml" not in pdf.split("Lesions")[1].split("Burden")[0]


def outline(world: World, mask: np.ndarray) -> tuple[str, Lesion]:
    """Somebody marks these voxels of the first result; their digest and measures."""
    z, y, x = mask.shape
    region = Region.unpacked((0, 0, 0, x, y, z), np.packbits(mask, bitorder="little"), (x, y, z))
    result = open_result(world.settings.data_dir / "analyses" / "1-1")
    measured = measure(region, result.folder, result.facts)
    with world.database.transaction() as db:
        marks.keep(
            db,
            analysis_id=1,
            account_id=1,
            digest=region.digest,
            box=region.box,
            bits=region.bits,
            measures=asdict(measured),
        )
    return region.digest, measured


def test_what_a_person_outlined_is_told_with_its_volume(
    world: World, client: FlaskClient, analysed: int, chest: Any
):
    _, analysis = chest
    first = analysis.lesions[0]
    smaller = analysis.lesion_labels == first.id
    smaller[first.key_slice :] = False
    beside = (analysis.lung_mask > 0) & (analysis.lesion_labels == 0)
    beside[: first.key_slice] = False
    beside[first.key_slice + 1 :] = False
    (corrected, of_corrected), (added, of_added) = outline(world, smaller), outline(world, beside)
    machines = client.get(f"/studies/{analysed}/report").text
    confirm(
        world, 1,
        positive=True,
        lesions=dict.fromkeys((lesion.id for lesion in analysis.lesions), True),
        marks={first.id: Mark(corrected), 90: Mark(added, grown=True)},
        signs={90: [Sign.HONEYCOMB, Sign.GROUND_GLASS]},
    )  # fmt: skip

    page = client.get(f"/studies/{analysed}/report").text
    text = " ".join(page.split("<textarea")[1].split("</textarea>")[0].split())
    pdf = " ".join(pdf_text(client.get(f"/studies/{analysed}/analyses/1/report.pdf").data))

    volumes = [lesion.volume_ml for lesion in analysis.lesions[1:]]
    volumes += [of_corrected.volume_ml, of_added.volume_ml]
    for said in (page, text, pdf):
        assert f"{len(volumes)} lesions, {sum(volumes):.1f} ml in all" in said
        assert f"Lesions outlined anew by the reader: {first.id}." in said
        assert "Lesions added by the reader: 90." in said
        assert "Seen in lesion 90 by the reader: ground-glass opacity, honeycomb lung." in said
        assert f"{first.volume_ml:.1f} ml" not in said.split("Mean")[1].split("Burden")[0]
    for number, lesion in ((f"{first.id}, outlined anew", of_corrected), ("90, added", of_added)):
        assert re.search(rf"{number} {lesion.side} \w+ \d+ {lesion.volume_ml:.1f} ml", text)
        assert f"<td>{lesion.volume_ml:.1f} ml</td>" in page
    assert f"Confirmed by {NAME}" in text
    # The version before is told as it was.
    assert "by the reader" not in machines
    assert f"<td>{first.volume_ml:.1f} ml</td>" in machines
    older = client.get(f"/studies/{analysed}/analyses/1/report?review=0").text
    assert f"<td>{first.volume_ml:.1f} ml</td>" in older


def test_an_earlier_version_stays_to_be_read_and_is_marked(
    world: World, client: FlaskClient, analysed: int, chest: Any
):
    every = dict.fromkeys((lesion.id for lesion in chest[1].lesions), True)
    confirm(world, 1, positive=True, lesions=every)
    confirm(
        world, 1, seen=1, positive=False, lesions=every, reason=Reason.OTHER, reason_text="Seen."
    )
    address = f"/studies/{analysed}/analyses/1/report"

    newest, older = client.get(address).text, client.get(f"{address}?review=1").text
    machine = client.get(f"{address}.pdf?review=0")

    assert f"appearance: negative, decided by {NAME}. The automatic analysis: positive" in newest
    assert "SUPERSEDED" not in newest
    assert "The automatic analysis said positive; decided otherwise: other: Seen." in newest
    assert report.AMENDED in older
    assert "appearance: positive" in older
    assert all("UNCONFIRMED · SUPERSEDED" in page for page in pdf_text(machine.data))
    assert client.get(f"{address}?review=3").status_code == 404
    with world.database.snapshot() as db:
        (taken,) = db.scalars(select(AuditEntry).where(AuditEntry.tag == report.DOWNLOADED))
        assert (taken.actor, taken.subject) == (NAME, f"study {analysed}")
        assert taken.detail == {"analysis": 1, "review": 0}
        assert audit.verify(db) is None
    assert looks(world) == 2


def test_a_replaced_result_is_marked(world: World, client: FlaskClient, analysed: int, chest: Any):
    world.receive("1.2.3", instance="2")
    assert report.INCOMPLETE in client.get(f"/studies/{analysed}/analyses/1/report").text

    world.finish(analysed, *chest)

    assert report.REPLACED in client.get(f"/studies/{analysed}/analyses/1/report").text
    assert "SUPERSEDED" not in client.get(f"/studies/{analysed}/report").text


def test_it_is_compared_with_the_study_before(world: World, client: FlaskClient, chest: Any):
    _, analysis = chest
    other = (ModelRef("lesions", "U-Net++", "0.9.0", "a" * 64), *analysis.models[1:])
    study_of(world, "1.1", chest, date="20250101", probability=0.2)
    kept = analysis.lesions[:1]
    smaller = as_judged(analysis, rejected=[lesion.id for lesion in analysis.lesions[1:]])
    study_of(
        world, "1.2", chest, date="20260105", models=other, lesions=kept,
        lesion_labels=smaller.lesion_labels, burden=smaller.burden,
    )  # fmt: skip
    new = study_of(world, "1.3", chest)

    page = client.get(f"/studies/{new}/report").text
    text = " ".join(page.split("<textarea")[1].split("</textarea>")[0].split())

    assert "Compared with the study of 2026-01-05." in text
    assert "The models differ, so a change may come from them and not from the patient." in text
    assert "Before: U-Net++ 0.9.0" in text
    before, now = smaller.burden.both.lesion_ml, analysis.burden.both.lesion_ml
    change = (
        f"{before:.1f} ml {now:.1f} ml {now - before:+.1f} ml {100 * (now / before - 1):+.0f} %"
    )
    assert f"both lungs {change}" in text
    assert "1 lesions; analysed" in text
    assert BY_HAND not in text

    every = {lesion.id: lesion.id != 1 for lesion in analysis.lesions}
    confirm(world, 3, positive=False, lesions=every, reason=Reason.OTHER, reason_text="Seen.")

    edited = client.get(f"/studies/{new}/report").text
    assert f"{BY_HAND} now: a change may come from that" in edited
    assert f"negative, confirmed by {NAME} (by the analysis positive, probability" in edited


def test_a_prior_that_cannot_be_read_is_told(world: World, client: FlaskClient, chest: Any):
    study_of(world, "1.2", chest, date="20260105")
    new = study_of(world, "1.3", chest)
    (world.settings.data_dir / "analyses" / "1-1" / "analysis.json").unlink()
    report._read.cache_clear()

    said = client.get(f"/studies/{new}/report").text

    assert "The result of the study of 2026-01-05 cannot be read: nothing is compared." in said


def looks(world: World) -> int:
    with world.database.snapshot() as db:
        return len(db.scalars(select(AuditEntry).where(AuditEntry.tag == VIEWED)).all())


def test_the_key_images_show_the_contours_and_alone_are_a_look(
    world: World, client: FlaskClient, analysed: int, chest: Any
):
    _, analysis = chest
    page = client.get(f"/studies/{analysed}/report").text

    address = re.findall(r'<img src="([^"]+report/images/0[^"]+)"', page)[0]
    assert client.get(html.unescape(address)).status_code == 200
    assert looks(world) == 1
    assert page.count("report/images/") == min(5, len({one.key_slice for one in analysis.lesions}))
    answer = client.get(f"/studies/{analysed}/analyses/1/report/images/0.png")
    picture = Image.open(io.BytesIO(answer.data)).convert("RGB")
    reds = [colour for _, colour in picture.getcolors(1 << 20) if colour[0] > 200 > colour[1] + 50]
    assert reds
    assert looks(world) == 2
    assert client.get(f"/studies/{analysed}/analyses/1/report/images/9.png").status_code == 404


def test_a_study_without_a_result_has_no_report(
    world: World, client: FlaskClient, stranger: FlaskClient, analysed: int
):
    waiting = world.receive("9.9")

    assert client.get(f"/studies/{waiting}/report").status_code == 404
    assert client.get(f"/studies/{waiting}/analyses/1/report").status_code == 404
    assert stranger.get(f"/studies/{analysed}/report").status_code == 302
