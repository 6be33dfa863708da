"""The structured report, read by dcmqi and checked by validators."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import highdicom.sr
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage

from dicom_node.errors import ObjectError
from dicom_node.objects.verification import Verification
from pipelines.severity import measure_burden
from tests.support.validators import (
    dciodvfy_errors,
    dcmqi_report,
    dsrdump_problems,
    needs_pixelmed,
    pixelmed_errors,
)

VERIFIED = Verification(
    person_name="Müller^Jörg",
    organisation="Klinik am See",
    verified_at=datetime(2026, 11, 23, 8, 5, tzinfo=UTC),
    positive=True,
)
OVERRIDDEN = replace(
    VERIFIED,
    person_name="reader^",
    positive=False,
    reason="artefact: motion",
    comment="See the CT of 2024.",
    rejected=(2,),
    amends=VERIFIED,
)


@pytest.fixture
def read(files: list[Path], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What dcmqi reads of each measurement group, by its tracking identifier."""
    groups = dcmqi_report(files[1], tmp_path)["Measurements"]
    return {group["TrackingIdentifier"]: group for group in groups}


def measured(group: dict[str, Any]) -> dict[str, tuple[float, str]]:
    return {
        item["quantity"]["CodeMeaning"]: (float(item["value"]), item["units"]["CodeValue"])
        for item in group["measurementItems"]
    }


def test_every_lesion_has_its_measures(study, objects, read):
    segmentation = objects[0]
    for lesion in study.analysis.lesions:
        group = read[f"Lesion {lesion.id}"]

        assert measured(group) == {
            "Volume": (pytest.approx(lesion.volume_ml, abs=1e-4), "ml"),
            "Long axis": (pytest.approx(lesion.diameter_mm, abs=1e-4), "mm"),
            "Attenuation Coefficient": (pytest.approx(lesion.mean_hu, abs=1e-4), "[hnsf'U]"),
            "Share of the volume of both lungs": (
                pytest.approx(100 * lesion.lung_share, abs=1e-4),
                "%",
            ),
            "Probability of COVID-19-like appearance": (
                pytest.approx(lesion.probability, abs=1e-4),
                "1",
            ),
        }
        assert group["Laterality"]["CodeMeaning"].lower() == lesion.side
        assert group["Finding"]["CodeMeaning"] == "Lesion"
        assert group["segmentationSOPInstanceUID"] == segmentation.SOPInstanceUID
        segment = segmentation.SegmentSequence[group["ReferencedSegment"] - 1]
        assert segment.SegmentLabel == f"Lesion {lesion.id}"
        assert segment.TrackingUID == group["TrackingUniqueIdentifier"]


def test_each_lung_has_its_volume_and_burden(study, read):
    found = study.analysis
    for name, volume_ml, burden in (
        ("Right lung", found.lungs.right_ml, found.burden.right),
        ("Left lung", found.lungs.left_ml, found.burden.left),
    ):
        assert measured(read[name]) == {
            "Volume": (pytest.approx(volume_ml, abs=1e-4), "ml"),
            "Share of the lung that is lesion": (
                pytest.approx(100 * burden.whole.share, abs=1e-4),
                "%",
            ),
        }


def test_the_case_has_its_probability_threshold_and_answer(study, read):
    case = read["Case"]
    numbers = measured(case)

    assert numbers["Probability of COVID-19-like appearance"][0] == study.analysis.probability
    assert numbers["Probability from which the case is called positive"][0] == 0.5
    assert numbers["Number of lesions"][0] == len(study.analysis.lesions)
    answer, *comments = case["qualitativeEvaluations"]
    assert answer["conceptValue"]["CodeMeaning"] == "Positive"
    algorithm = case["measurementItems"][0]["measurementAlgorithmIdentification"]
    assert (algorithm["AlgorithmName"], algorithm["AlgorithmVersion"]) == (
        "tiny screening",
        "1.0.0",
    )
    told = [comment["conceptValue"] for comment in comments]
    assert told[:2] == ["Research use only, not for primary diagnosis.", "The scan is noisy."]
    for model in study.analysis.models:
        assert any(model.name in text and model.digest in text for text in told)


def test_a_case_below_the_threshold_is_negative(healthy, tmp_path):
    report = healthy.write(tmp_path / "objects")[1]

    groups = dcmqi_report(report, tmp_path)["Measurements"]

    assert [group["TrackingIdentifier"] for group in groups] == ["Case", "Right lung", "Left lung"]
    answer = groups[0]["qualitativeEvaluations"][0]["conceptValue"]
    assert answer["CodeMeaning"] == "Negative"


def test_the_machine_alone_verifies_nothing(objects):
    report = objects[1]

    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert "VerifyingObserverSequence" not in report
    assert "PredecessorDocumentsSequence" not in report


def test_a_verified_report_names_the_person_and_supersedes_the_machines(study, objects):
    machine, verified = objects[1], study.objects(verification=VERIFIED)[1]

    assert (verified.CompletionFlag, verified.VerificationFlag) == ("COMPLETE", "VERIFIED")
    (observer,) = verified.VerifyingObserverSequence
    assert observer.VerifyingObserverName == "Müller^Jörg"
    assert observer.VerifyingOrganization == "Klinik am See"
    assert observer.VerificationDateTime == "20261123080500+0000"
    assert verified.ContentDate == "20261123"
    (predecessor,) = verified.PredecessorDocumentsSequence
    (series,) = predecessor.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert predecessor.StudyInstanceUID == machine.StudyInstanceUID
    assert series.SeriesInstanceUID == machine.SeriesInstanceUID
    assert instance.ReferencedSOPClassUID == Comprehensive3DSRStorage
    assert instance.ReferencedSOPInstanceUID == machine.SOPInstanceUID
    assert verified.SOPInstanceUID != machine.SOPInstanceUID


def test_an_amendment_supersedes_the_version_before(study):
    first = study.objects(verification=VERIFIED)[1]
    second = study.objects(verification=replace(VERIFIED, comment="More.", amends=VERIFIED))[1]

    (predecessor,) = second.PredecessorDocumentsSequence
    (series,) = predecessor.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (2, 3)


def test_a_person_is_the_observer_of_the_answer_and_an_algorithm_of_the_probability(study):
    report = study.objects(verification=OVERRIDDEN)[1]

    (case, *_) = report.ContentSequence[-1].ContentSequence
    said = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in case.ContentSequence}
    answer = said["COVID-19-like appearance"]
    assert answer.ConceptCodeSequence[0].CodeMeaning == "Negative"
    observer = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item for item in answer.ContentSequence
    }
    assert {item.RelationshipType for item in answer.ContentSequence} == {"HAS OBS CONTEXT"}
    assert observer["Observer Type"].ConceptCodeSequence[0].CodeMeaning == "Person"
    assert str(observer["Person Observer Name"].PersonName) == "reader^"
    assert observer["Person Observer's Organization Name"].TextValue == "Klinik am See"
    probability = said["Probability of COVID-19-like appearance"]
    assert probability.MeasuredValueSequence[0].NumericValue == study.analysis.probability
    assert any(
        item.ConceptNameCodeSequence[0].CodeMeaning == "Algorithm Name"
        for item in probability.ContentSequence
    )
    words = [
        item.TextValue
        for item in case.ContentSequence
        if item.ValueType == "TEXT" and "ContentSequence" in item
    ]
    assert words == [
        "The automatic analysis said positive; decided otherwise: artefact: motion",
        "Rejected lesions of the automatic analysis: 2",
        "See the CT of 2024.",
    ]


def test_the_machine_alone_has_no_person_for_an_observer(objects):
    assert "Person Observer Name" not in str(objects[1])


def test_a_rejected_lesion_is_in_no_measurement_of_a_verified_report(study, tmp_path):
    path = study.write(tmp_path / "objects", verification=OVERRIDDEN)[1]

    groups = {
        group["TrackingIdentifier"]: group for group in dcmqi_report(path, tmp_path)["Measurements"]
    }

    kept = [lesion for lesion in study.analysis.lesions if lesion.id != 2]
    names = {f"Lesion {lesion.id}" for lesion in kept}
    assert set(groups) == {"Case", "Right lung", "Left lung", *names}
    case = measured(groups["Case"])
    assert case["Number of lesions"][0] == len(kept)
    volume_ml = sum(lesion.volume_ml for lesion in kept)
    assert case["Volume of all lesions"][0] == pytest.approx(volume_ml, abs=1e-3)
    labels = np.where(study.analysis.lesion_labels == 2, 0, study.analysis.lesion_labels)
    voxel_ml = float(np.prod(study.analysis.spacing)) / 1000
    burden = measure_burden(study.analysis.lung_mask, labels, voxel_ml)
    for name, share in (
        ("Case", burden.both.share),
        ("Right lung", burden.right.whole.share),
        ("Left lung", burden.left.whole.share),
    ):
        told = measured(groups[name])["Share of the lung that is lesion"][0]
        assert told == pytest.approx(100 * share, abs=1e-4)
    answer = groups["Case"]["qualitativeEvaluations"][0]["conceptValue"]
    assert answer["CodeMeaning"] == "Negative"


def test_a_review_of_another_analysis_is_refused(study):
    with pytest.raises(ObjectError, match="no lesion 99"):
        study.objects(verification=replace(VERIFIED, rejected=(99,)))


def test_highdicom_reads_a_verified_report_back(study, tmp_path):
    path = study.write(tmp_path, verification=OVERRIDDEN)[1]

    report = highdicom.sr.srread(path).content

    groups = report.get_volumetric_roi_measurement_groups()
    kept = [f"Lesion {lesion.id}" for lesion in study.analysis.lesions if lesion.id != 2]
    assert [group.tracking_identifier for group in groups] == ["Right lung", "Left lung", *kept]


@pytest.mark.parametrize("verification", [VERIFIED, OVERRIDDEN])
def test_dcmtk_reads_a_verified_report(study, tmp_path, verification):
    path = study.write(tmp_path, verification=verification)[1]

    assert dsrdump_problems(path) == []


@pytest.mark.parametrize("verification", [None, VERIFIED, OVERRIDDEN])
def test_the_validators_find_no_error(study, tmp_path, verification):
    for path in study.write(tmp_path, verification=verification):
        assert dciodvfy_errors(path) == [], path.name


@needs_pixelmed
@pytest.mark.parametrize("template", ["1411", "1501"])
@pytest.mark.parametrize("verification", [None, OVERRIDDEN])
def test_the_report_keeps_to_its_templates(study, tmp_path, template, verification):
    """The validator takes all groups of a container for one template: each kind is shown alone."""
    report = dcmread(study.write(tmp_path, verification=verification)[1])
    groups = report.ContentSequence[-1].ContentSequence
    report.ContentSequence[-1].ContentSequence = [
        group for group in groups if group.ContentTemplateSequence[0].TemplateIdentifier == template
    ]
    report.save_as(tmp_path / "report.dcm")

    assert pixelmed_errors(tmp_path / "report.dcm") == []
