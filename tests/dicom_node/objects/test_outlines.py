"""What a person outlined, in the objects: read by dcmqi, checked by validators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
import pytest
from pydicom import dcmread

from appliance.reviews import Sign
from dicom_node.errors import ObjectError
from dicom_node.objects.build import trace
from dicom_node.objects.segmentation import PERSONS_LABEL, outlined_segments
from dicom_node.objects.verification import Verification
from pipelines.findings import LEFT_LUNG, Analysis, Lesion, Side
from pipelines.marks import Mark, Region
from pipelines.measures import Grid, measure_region
from pipelines.report.key_images import draw_key_image
from pipelines.severity import measure_burden
from tests.dicom_node.objects.conftest import ANALYSED_AT, EQUIPMENT, Study
from tests.support.phantom import small_chest
from tests.support.validators import (
    dcentvfy_errors,
    dciodvfy_errors,
    dcmqi_report,
    dcmqi_segments,
    dsrdump_problems,
    needs_pixelmed,
    on_grid,
    pixelmed_errors,
)

CORRECTED, REJECTED, ADDED = 1, 2, 90


def mark(analysis: Analysis, number: int, mask: np.ndarray, *, grown: bool = False) -> Mark:
    """A lesion that a person outlined like this."""
    z, y, x = mask.shape
    region = Region.unpacked((0, 0, 0, x, y, z), np.packbits(mask, bitorder="little"), (x, y, z))
    voxel_ml = float(np.prod(analysis.spacing)) / 1000
    lesion = measure_region(
        number,
        region.mask,
        region.corner,
        hu=small_chest().volume.hu[region.place],
        lungs=analysis.lung_mask[region.place],
        grid=Grid(analysis.spacing, voxel_ml, x, np.count_nonzero(analysis.lung_mask)),
    )
    return Mark(lesion=lesion, region=region, digest=region.digest, grown=grown)


@dataclass(frozen=True)
class Review:
    """A review with one lesion corrected, one rejected and one added."""

    study: Study
    verification: Verification
    masks: dict[int, np.ndarray]

    @property
    def lesions(self) -> dict[int, Lesion]:
        """Those that stand."""
        machines = {lesion.id: lesion for lesion in self.study.analysis.lesions}
        del machines[REJECTED]
        return machines | {one.lesion.id: one.lesion for one in self.verification.marks}


@pytest.fixture(scope="module")
def review(study: Study) -> Review:
    analysis = study.analysis
    corrected = analysis.lesion_labels == CORRECTED
    corrected[: analysis.lesions[0].key_slice] = False
    free = (analysis.lung_mask == LEFT_LUNG) & (analysis.lesion_labels == 0)
    z = int(free.sum(axis=(1, 2)).argmax())
    added = np.zeros_like(free)
    added[z - 1 : z + 2] = free[z - 1 : z + 2]
    added[:, :, ::2] = False  # holes and parts: an outline need not hang together
    masks = {CORRECTED: corrected, ADDED: added}
    verification = Verification(
        person_name="Müller^Jörg",
        organisation="Klinik am See",
        verified_at=datetime(2026, 11, 23, 8, 5, tzinfo=UTC),
        positive=True,
        rejected=(REJECTED,),
        marks=tuple(mark(analysis, n, m, grown=n == ADDED) for n, m in masks.items()),
        signs={
            CORRECTED: (Sign.GROUND_GLASS, Sign.CRAZY_PAVING),
            3: (Sign.VESSEL_THICKENING,),
            ADDED: tuple(Sign),
        },
    )
    return Review(study, verification, masks)


@pytest.fixture(scope="module")
def files(review: Review, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("outlined")
    return review.study.write(folder, verification=review.verification)


def test_the_machines_segmentation_stays_as_it_was(objects, files):
    assert dcmread(files[0]).SOPInstanceUID == objects[0].SOPInstanceUID
    assert dcmread(files[0]).PixelData == objects[0].PixelData
    assert objects[0].ContentLabel != PERSONS_LABEL


def test_dcmqi_reads_what_was_outlined_voxel_by_voxel(review: Review, files, tmp_path):
    analysis = review.study.analysis

    read = dcmqi_segments(files[1], tmp_path / "masks")

    assert len(read) == len(review.masks)
    for place, (number, mask) in enumerate(review.masks.items(), start=1):
        described, image = read[place]
        assert described["SegmentLabel"] == f"Lesion {number}"
        np.testing.assert_array_equal(on_grid(image, analysis.affine, analysis.shape), mask)


def test_what_a_person_outlined_names_no_network(files):
    ds = dcmread(files[1])

    assert ds.ContentLabel == PERSONS_LABEL
    assert str(ds.ContentCreatorName) == "Müller^Jörg"
    assert [segment.SegmentAlgorithmType for segment in ds.SegmentSequence] == [
        "MANUAL",
        "SEMIAUTOMATIC",
    ]
    assert "SegmentAlgorithmName" not in ds.SegmentSequence[0]
    assert "U-Net" not in str(ds.SegmentSequence)
    assert "tiny" not in str(ds.SegmentSequence)


def test_lesions_that_two_people_added_under_one_number_are_tracked_apart(review: Review):
    study, first = review.study, review.verification
    other = review.masks[ADDED].copy()
    other[np.argwhere(other)[0][0]] = False
    moved = replace(first, marks=(mark(study.analysis, ADDED, other),))

    def tracked(verification: Verification) -> str:
        provenance = trace(
            study.analysis,
            study.paths,
            analysed_at=ANALYSED_AT,
            equipment=EQUIPMENT,
            verification=verification,
        )
        return outlined_segments(provenance)[-1].tracking_uid

    assert tracked(moved) != tracked(first)
    # Who outlines it anew means the same lesion.
    assert tracked(replace(moved, amends=first)) == tracked(first)


def test_the_report_measures_what_was_outlined(review: Review, files, tmp_path):
    groups = {
        group["TrackingIdentifier"]: group
        for group in dcmqi_report(files[2], tmp_path)["Measurements"]
    }

    names = {f"Lesion {number}" for number in review.lesions}
    assert set(groups) == {"Case", "Right lung", "Left lung", *names}
    case = measured(groups["Case"])
    assert case["Number of lesions"] == len(review.lesions)
    volume_ml = sum(lesion.volume_ml for lesion in review.lesions.values())
    assert case["Volume of all lesions"] == pytest.approx(volume_ml, abs=1e-3)
    for number in (CORRECTED, ADDED):
        told, lesion = measured(groups[f"Lesion {number}"]), review.lesions[number]
        assert told["Volume"] == pytest.approx(lesion.volume_ml, abs=1e-3)
        assert told["Attenuation Coefficient"] == pytest.approx(lesion.mean_hu, abs=1e-3)
        assert "Probability of COVID-19-like appearance" not in told
    assert review.lesions[ADDED].side is Side.LEFT
    analysis = review.study.analysis
    labels = analysis.lesion_labels.copy()
    labels[np.isin(labels, (CORRECTED, REJECTED))] = 0
    for number, mask in review.masks.items():
        labels[mask] = number
    voxel_ml = float(np.prod(analysis.spacing)) / 1000
    share = measure_burden(analysis.lung_mask, labels, voxel_ml).both.share
    assert case["Share of the lung that is lesion"] == pytest.approx(100 * share, abs=1e-4)


def test_the_report_refers_to_the_persons_segmentation(review: Review, files):
    machine, outlined, report = (dcmread(path) for path in files[:3])

    referred = {}
    for group in report.ContentSequence[-1].ContentSequence:
        items = {
            item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group.ContentSequence
        }
        if "Referenced Segment" in items:
            (instance,) = items["Referenced Segment"].ReferencedSOPSequence
            referred[items["Tracking Identifier"].TextValue] = instance.ReferencedSOPInstanceUID
    persons = {name for name, uid in referred.items() if uid == outlined.SOPInstanceUID}
    assert persons == {f"Lesion {CORRECTED}", f"Lesion {ADDED}"}
    assert set(referred.values()) == {machine.SOPInstanceUID, outlined.SOPInstanceUID}
    evidence = {
        instance.ReferencedSOPInstanceUID
        for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert set(referred.values()) <= evidence


def test_the_signs_are_coded_and_the_persons(review: Review, files):
    report = dcmread(files[2])

    seen: dict[str, list[str]] = {}
    for group in report.ContentSequence[-1].ContentSequence:
        for item in group.ContentSequence:
            name = item.ConceptNameCodeSequence[0].CodeMeaning
            if name == "Tracking Identifier":
                lesion = item.TextValue
            elif name == "Imaging finding":
                seen.setdefault(lesion, []).append(item.ConceptCodeSequence[0].CodeValue)
                assert str(item.ContentSequence[1].PersonName) == "Müller^Jörg"
    assert seen[f"Lesion {CORRECTED}"] == ["112120", "CRAZY-PAVING"]
    assert seen["Lesion 3"] == ["VESSEL-THICK"]
    assert len(seen[f"Lesion {ADDED}"]) == len(Sign)
    words = [
        item.TextValue
        for item in report.ContentSequence[-1].ContentSequence[0].ContentSequence
        if item.ValueType == "TEXT"
    ]
    assert f"Lesions added by the reader: {ADDED}" in words
    assert f"Lesions of the automatic analysis outlined anew by the reader: {CORRECTED}" in words


def test_the_document_tells_what_was_outlined(review: Review, files):
    ds = dcmread(files[-1])
    content = pypdfium2.PdfDocument(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])
    said = " ".join(" ".join(p.get_textpage().get_text_bounded() for p in content).split())
    content.close()

    assert f"Lesions outlined anew by the reader: {CORRECTED}." in said
    assert f"Lesions added by the reader: {ADDED}." in said
    assert f"Seen in lesion {CORRECTED} by the reader: ground-glass opacity, crazy paving." in said
    for number, word in ((CORRECTED, "outlined anew"), (ADDED, "added")):
        lesion = review.lesions[number]
        assert f"{number}, {word} {lesion.side}" in said
        assert f"{lesion.volume_ml:.1f} ml" in said


def test_the_key_images_show_what_was_outlined_dashed(review: Review):
    analysis, added = review.study.analysis, review.lesions[ADDED]
    mask = review.masks[ADDED][added.key_slice]
    labels = np.zeros_like(analysis.lesion_labels)
    labels[added.key_slice][mask] = ADDED
    alone = replace(analysis, lesions=(added,), lesion_labels=labels)
    hu = small_chest().volume.hu[added.key_slice]

    whole, dashed = (
        np.asarray(draw_key_image(alone, added.key_slice, hu, number=None, of_reader=of_reader))
        for of_reader in ((), (ADDED,))
    )

    changed = (whole != dashed).any(axis=2)
    below = changed[120:]  # beneath the captions
    assert below.any()
    assert (whole[120:][below] == whole[120:][below][0]).all()  # the outline alone, in parts


def test_the_validators_find_no_error(files):
    for path in files:
        assert dciodvfy_errors(path) == [], path.name
    assert dcentvfy_errors(files) == []
    assert dsrdump_problems(files[2]) == []


@needs_pixelmed
@pytest.mark.parametrize("template", ["1411", "1501"])
def test_the_report_keeps_to_its_templates(files, tmp_path, template):
    """Lesions that the machine alone outlined are left out: the validator takes long for each."""
    names = {"Case", f"Lesion {CORRECTED}", f"Lesion {ADDED}"}
    report = dcmread(files[2])
    groups = report.ContentSequence[-1].ContentSequence
    report.ContentSequence[-1].ContentSequence = [
        group
        for group in groups
        if group.ContentTemplateSequence[0].TemplateIdentifier == template
        and group.ContentSequence[0].TextValue in names
    ]
    assert len(report.ContentSequence[-1].ContentSequence) == {"1411": 2, "1501": 1}[template]
    report.save_as(tmp_path / "report.dcm")

    assert pixelmed_errors(tmp_path / "report.dcm") == []


def test_other_outlines_are_other_objects(review: Review, files):
    moved = review.masks[ADDED] & ~np.roll(review.masks[ADDED], 1, axis=1)
    (first, _) = review.verification.marks
    other = replace(
        review.verification,
        marks=(first, mark(review.study.analysis, ADDED, moved, grown=True)),
    )

    again = review.study.objects(verification=review.verification)
    changed = review.study.objects(verification=other)

    assert [ds.SOPInstanceUID for ds in again] == [dcmread(path).SOPInstanceUID for path in files]
    same = [
        one.SOPInstanceUID == two.SOPInstanceUID
        for one, two in zip(again[:3], changed[:3], strict=True)
    ]
    assert same == [True, False, False]


def test_outlines_of_another_volume_are_refused(review: Review):
    shape = review.study.analysis.shape
    mask = np.zeros((shape[0] + 1, *shape[1:]), bool)
    mask[shape[0], 1, 1] = True
    region = Region.unpacked(
        (0, 0, 0, *reversed(mask.shape)),
        np.packbits(mask, bitorder="little"),
        tuple(reversed(mask.shape)),
    )
    (first, _) = review.verification.marks
    other = replace(review.verification, marks=(replace(first, region=region),))

    with pytest.raises(ObjectError, match="review is of another analysis"):
        review.study.objects(verification=other)


def measured(group: dict[str, Any]) -> dict[str, float]:
    """The numbers of a measurement group, as dcmqi reads them."""
    return {
        item["quantity"]["CodeMeaning"]: float(item["value"]) for item in group["measurementItems"]
    }
