"""The objects of a result that lies in the database, as they reach a PACS."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom.dsutils import decode

from appliance import accounts, deliveries, drafts, lifecycle, marks, reviews
from appliance.accounts import Role
from appliance.config import Settings
from appliance.database import Database
from appliance.deliveries import Content
from appliance.errors import ApplianceError
from appliance.lifecycle import FinishedAnalysis, State
from appliance.reception import Command, Reception
from appliance.reviews import Judgement, Mark, Reason
from appliance.tables import Analysis, Delivery
from dicom_node import delivery, dispatch
from dicom_node.messages import notify
from dicom_node.messages.result import Status, read_result
from dicom_node.objects import provenance, segmentation
from pipelines.findings import Analysis as Findings
from pipelines.marks import Region
from pipelines.series import load_input
from tests.appliance import world
from tests.support import ct_series
from tests.support.instances import encoded
from tests.support.pacs import HOST, Pacs, pacs
from tests.support.phantom import small_chest
from tests.support.results import analysis_of_chest

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ZONE = "Asia/Kolkata"  # +05:30, and no summer time


@pytest.fixture
def images(
    settings: Settings, database: Database, reception: Reception, tmp_path: Path
) -> list[Dataset]:
    """The images of a study that is READY, with its true result."""
    series = ct_series.slices(24)
    ct_series.write(series, tmp_path / "study")
    volume, _ = load_input(tmp_path / "study")
    analysis = analysis_of_chest(volume, small_chest())
    for ds in series:
        take(reception, ds)
    lifecycle.move(database, None, 1, State.RECEIVING, State.QUEUED)
    claim = lifecycle.claim(database, 1, owner="test", lease_s=600)
    assert claim is not None
    analysis.save(settings.analyses_dir / "1" / "a", volume)
    result = FinishedAnalysis(
        folder="analyses/1/a",
        probability=analysis.probability,
        positive=analysis.positive,
        lesion_count=len(analysis.lesions),
        lesion_volume_ml=1.0,
    )
    lifecycle.finish(database, claim, result)
    return series


@pytest.fixture
def archive() -> Iterator[Pacs]:
    with pacs() as running:
        yield running


def take(reception: Reception, ds: Dataset) -> None:
    command = Command(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        source_ae="PACS",
    )
    reception.take(encoded(ds), command)


def routed(settings: Settings, port: int, *rules: dict[str, Any], name: str = "pacs") -> Settings:
    node = {"name": name, "ae_title": "PACS", "host": HOST, "port": port}
    named = [
        {"name": str(number), "destinations": ["pacs"]} | one for number, one in enumerate(rules)
    ]
    parsed = Settings.parse({"dicom": {"destinations": [node]}, "routing": {"rules": named}})
    dicom = replace(settings.dicom, destinations=parsed.dicom.destinations)
    return replace(settings, dicom=dicom, routing=parsed.routing)


def confirm(database: Database, judgement: Judgement | None = None) -> None:
    """A radiologist confirms what the machine found, or says otherwise."""
    with database.transaction() as db:
        number = accounts.add(
            db, "grey", password="correct horse battery", role=Role.RADIOLOGIST, actor="a"
        )
        account = accounts.find(db, number)
        assert account is not None
        lesions = dict.fromkeys(range(1, db.get_one(Analysis, 1).lesion_count + 1), True)
        reviews.confirm(
            db,
            1,
            judgement or Judgement(positive=True, lesions=lesions),
            seen=0,
            account=account,
            organisation="Klinik",
        )


def deliver(settings: Settings, database: Database) -> None:
    dispatch.consider(settings, database)
    delivery.deliver_waiting(settings, database)
    with database.snapshot() as db:
        assert {(row.state, row.last_problem) for row in db.query(Delivery)} <= {("SENT", None)}


def taken(archive: Pacs, sop_class_uid: str) -> list[Dataset]:
    everything = [
        decode(BytesIO(content), is_implicit_vr=False, is_little_endian=True)
        for content in archive.received.values()
    ]
    return [ds for ds in everything if ds.SOPClassUID == sop_class_uid]


def referenced(items: list[Dataset]) -> set[tuple[str, str]]:
    """Series and instances."""
    return {
        (series.SeriesInstanceUID, one.ReferencedSOPInstanceUID)
        for study in items
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }


def release(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """Another release of the appliance, which sees more in an analysis than the one before."""
    monkeypatch.setattr(provenance, "version", lambda _name: number)
    summary = provenance.Analysis.summary
    monkeypatch.setattr(
        provenance.Analysis, "summary", lambda self: summary(self) | {f"new in {number}": None}
    )


def test_a_verified_report_refers_to_what_an_earlier_release_delivered(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    archive: Pacs,
    monkeypatch: pytest.MonkeyPatch,
):
    chosen = routed(
        settings,
        archive.port,
        {"objects": ["seg", "sr"]},
        {"objects": ["sr"], "when": "confirmed"},
    )
    deliver(chosen, database)
    (masks,) = taken(archive, SegmentationStorage)
    (machine,) = taken(archive, Comprehensive3DSRStorage)

    release(monkeypatch, "9.0")
    confirm(database)
    deliver(chosen, database)

    (verified,) = [
        ds for ds in taken(archive, Comprehensive3DSRStorage) if ds.VerificationFlag == "VERIFIED"
    ]
    assert referenced(list(verified.PredecessorDocumentsSequence)) == {
        (machine.SeriesInstanceUID, machine.SOPInstanceUID)
    }
    evidence = referenced(list(verified.CurrentRequestedProcedureEvidenceSequence))
    assert (masks.SeriesInstanceUID, masks.SOPInstanceUID) in evidence


def test_a_result_that_is_sent_again_by_a_later_release_is_the_same_objects(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    archive: Pacs,
    monkeypatch: pytest.MonkeyPatch,
):
    chosen = routed(settings, archive.port, {"objects": ["seg", "sr", "sc", "pdf"]})
    deliver(chosen, database)
    first = dict(archive.received)
    assert list(settings.deliveries_dir.iterdir()) == []

    release(monkeypatch, "9.0")
    archive.received.clear()
    contents = [Content.SEG, Content.SR, Content.SC, Content.PDF]
    dispatch.request(chosen, database, 1, "pacs", contents=contents, actor="ann")
    deliver(chosen, database)

    assert archive.received == first


def test_a_verified_report_is_written_in_the_zone_of_the_machines(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    archive: Pacs,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TZ", ZONE)
    time.tzset()
    try:
        confirm(database)
        both = ({"objects": ["sr"]}, {"objects": ["sr"], "when": "confirmed"})
        deliver(routed(settings, archive.port, *both), database)
        reports = sorted(taken(archive, Comprehensive3DSRStorage), key=written_at)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert [ds.VerificationFlag for ds in reports] == ["UNVERIFIED", "VERIFIED"]
    assert (written_at(reports[1]) - written_at(reports[0])).total_seconds() < 3600
    (observer,) = reports[1].VerifyingObserverSequence
    assert str(observer.VerificationDateTime).endswith("+0530")


def written_at(ds: Dataset) -> datetime:
    return datetime.strptime(f"{ds.ContentDate}{ds.ContentTime}", "%Y%m%d%H%M%S")  # noqa: DTZ007


MISSED = 50
MESSAGES = {
    "messages": {
        "hl7": [{"name": "ris", "host": HOST, "port": 2575}],
        "fhir": [{"name": "kis", "url": "https://fhir.example.org/r4"}],
    }
}


def outline(settings: Settings, database: Database, *, judged: bool) -> Judgement:
    """A radiologist draws a lesion that was missed; `judged` also keeps a draft of the rest."""
    found = Findings.load(settings.analyses_dir / "1" / "a")
    free = (found.lung_mask > 0) & (found.lesion_labels == 0)
    z, y, x = np.argwhere(free)[free.sum() // 2]
    region = Region((int(z), int(y), int(x)), np.ones((1, 1, 1), bool))
    lesion = replace(found.lesions[0], id=0, volume_ml=0.5, probability=None)
    lesions = {each.id: each.id != 1 for each in found.lesions}
    with database.transaction() as db:
        number = accounts.add(
            db, "ann", password="correct horse battery", role=Role.RADIOLOGIST, actor="a"
        )
        account = accounts.find(db, number)
        assert account is not None
        marks.keep(
            db,
            analysis_id=1,
            account_id=number,
            digest=region.digest,
            box=region.box,
            bits=region.bits,
            measures=asdict(replace(lesion, first_slice=int(z), last_slice=int(z))),
        )
        if judged:
            kept = {"lesions": lesions, "marks": {MISSED: {"digest": region.digest}}}
            drafts.save(db, 1, kept, digests=[region.digest], revision=0, account=account)
    return Judgement(positive=True, lesions=lesions, marks={MISSED: Mark(region.digest)})


def test_a_verified_report_goes_out_with_what_was_outlined_and_the_machines_masks_stay(
    settings: Settings, database: Database, images: list[Dataset], archive: Pacs
):
    machines = {"objects": ["seg", "sr"]}
    chosen = routed(settings, archive.port, machines, {"objects": ["sr"], "when": "confirmed"})
    deliver(chosen, database)
    (masks,) = taken(archive, SegmentationStorage)
    archive.received.clear()

    confirm(database, outline(settings, database, judged=True))
    deliver(chosen, database)

    (outlined,) = taken(archive, SegmentationStorage)
    (verified,) = taken(archive, Comprehensive3DSRStorage)
    assert outlined.ContentLabel == segmentation.PERSONS_LABEL
    assert [one.SegmentLabel for one in outlined.SegmentSequence] == [f"Lesion {MISSED}"]
    evidence = referenced(list(verified.CurrentRequestedProcedureEvidenceSequence))
    for ds in (masks, outlined):
        assert (ds.SeriesInstanceUID, ds.SOPInstanceUID) in evidence


def test_what_nobody_confirmed_leaves_by_no_way_as_confirmed(
    settings: Settings, database: Database, images: list[Dataset], archive: Pacs
):
    """A draft rejects lesions and adds one: neither it nor who began it is in anything sent."""
    chosen = routed(
        settings,
        archive.port,
        {"objects": ["seg", "sr", "sc", "pdf"]},
        {"objects": ["seg", "sr", "sc", "pdf"], "when": "confirmed"},
    )
    outline(settings, database, judged=True)

    deliver(chosen, database)

    everything = [
        decode(BytesIO(content), is_implicit_vr=False, is_little_endian=True)
        for content in archive.received.values()
    ]
    kinds = {ds.Modality for ds in everything}
    assert kinds == {"SEG", "SR", "OT", "DOC"}
    for ds in everything:
        assert ds.get("VerificationFlag", "UNVERIFIED") == "UNVERIFIED"
        assert ds.get("CompletionFlag", "PARTIAL") == "PARTIAL"
        assert ds.get("ContentLabel") != segmentation.PERSONS_LABEL
    for content in archive.received.values():
        assert b"ann^" not in content
    result = read_result(database, settings, 1)
    assert (result.status, result.review) == (Status.PRELIMINARY, None)
    found = Findings.load(settings.analyses_dir / "1" / "a")
    assert result.finding is not None
    assert result.finding.lesion_count == len(found.lesions)
    destinations = Settings.parse(MESSAGES).messages.destinations
    assert len(destinations) == 2
    for destination in destinations:
        told = notify.build(result, destination).decode()
        assert "not confirmed" in told
        assert "ann" not in told.split()
        assert '"final"' not in told
        assert "|F|" not in told
    with database.snapshot() as db:
        latest = deliveries.latest(db, 1)
        assert latest is not None
        facts = dispatch.facts_of(db, latest)
    assert facts.lesion_count == len(found.lesions)


def test_results_that_came_back_are_no_images_of_the_study(
    settings: Settings,
    database: Database,
    images: list[Dataset],
    archive: Pacs,
    reception: Reception,
):
    deliver(routed(settings, archive.port, {"objects": ["seg"]}), database)
    (masks,) = taken(archive, SegmentationStorage)
    take(reception, masks)

    archive.received.clear()
    chosen = routed(settings, archive.port, name="another")
    wanted = [Content.IMAGES, Content.SEG]
    dispatch.request(chosen, database, 1, "another", contents=wanted, actor="ann")
    deliver(chosen, database)

    expected = {ds.SOPInstanceUID for ds in images} | {masks.SOPInstanceUID}
    assert set(archive.received) == expected


def test_a_message_and_objects_are_not_asked_for_together(settings: Settings, database: Database):
    world.in_state(database, State.READY)
    wanted = [Content.SR, Content.MESSAGE]

    with pytest.raises(ApplianceError, match="ask for each by itself"):
        dispatch.request(settings, database, 1, "ris", contents=wanted, actor="ann")


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ({"positive": True}, False),
        ({"positive": False}, True),
        ({"lesions": True}, False),
        ({"lesions": False}, True),
    ],
)
def test_rules_go_by_what_the_person_said(
    settings: Settings,
    database: Database,
    condition: dict[str, bool],
    matches: bool,  # noqa: FBT001
):
    world.in_state(database, State.READY)
    nothing = {1: False, 2: False}
    confirm(database, Judgement(positive=False, lesions=nothing, reason=Reason.NORMAL_ANATOMY))

    rule = {"objects": ["sr"], "when": "confirmed"} | condition
    assert dispatch.consider(routed(settings, 104, rule), database) == int(matches)
