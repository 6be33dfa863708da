"""The measurements as a Comprehensive 3D SR (PS3.3 A.35.13) on TID 1500 (PS3.16).

One TID 1411 group for each lung and each lesion refers to its segment; one TID 1501 group is about
the case. The machine's own report is PARTIAL and UNVERIFIED; a verified one is COMPLETE, names the
person, and names what it replaces as its predecessor: the machine's, or the version before.

In a verified report the answer for the case is the person's, who is its observer (TID 1002), and
the probability stays the algorithm's. Lesions that were rejected have no group: TID 1411 has no
place for such a mark, so whoever reads it would take them for findings. A comment names them.
Lesions that the person outlined, those that the analysis missed among them, refer to the person's
own Segmentation and name no algorithm. The signs that the person saw have the person for observer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from pydicom.valuerep import PersonName

from dicom_node.objects import codes, segmentation
from dicom_node.objects.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    Provenance,
    reference,
)
from dicom_node.objects.segmentation import Segment, outlined_segments, segments
from dicom_node.objects.verification import Verification
from pipelines.findings import ModelRef, Side
from pipelines.report.content import NOTICE

ROLE: Final = "report"
SERIES_NUMBER: Final = 9102

_DECIMALS: Final = 4


def build_report(provenance: Provenance) -> Dataset:
    """Return the report of an analysis, verified if `provenance` says by whom.

    Raises:
        ObjectError: The analysis does not name the networks.
    """
    ds = provenance.new_object(
        Comprehensive3DSRStorage,
        provenance.verified_uid(ROLE),
        series=ROLE,
        series_number=SERIES_NUMBER,
        modality="SR",
        written_at=provenance.written_at,
    )
    ds.CodingSchemeIdentificationSequence = [codes.scheme_item()]
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.CurrentRequestedProcedureEvidenceSequence = [_evidence(provenance)]
    ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag = (
        "PARTIAL",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    if provenance.verification is not None:
        _verify(ds, provenance, provenance.verification)
    (content,) = _content(provenance)
    ds.update(content)
    return ds


def _verify(ds: Dataset, provenance: Provenance, verification: Verification) -> None:
    """Name the verifying observer and the report that this one supersedes (PS3.3 C.17.2)."""
    ds.InstanceNumber = verification.version + 1
    ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag = "COMPLETE", "VERIFIED", "FINAL"
    observer = Dataset()
    observer.VerifyingObserverName = PersonName(verification.person_name)
    observer.VerifyingOrganization = verification.organisation
    observer.VerificationDateTime = f"{provenance.written_at:%Y%m%d%H%M%S%z}"
    observer.VerifyingObserverIdentificationCodeSequence = []
    ds.VerifyingObserverSequence = [observer]
    ds.PredecessorDocumentsSequence = [
        _instances(
            ds.StudyInstanceUID,
            {ds.SeriesInstanceUID: [reference(ds.SOPClassUID, provenance.predecessor_uid(ROLE))]},
        )
    ]


def _evidence(provenance: Provenance) -> Dataset:
    """Return the Segmentations and the images they were made of."""
    source, study_uid = provenance.source, provenance.source.attributes.StudyInstanceUID
    masks = reference(SegmentationStorage, provenance.uid(segmentation.ROLE))
    images = [reference(image.sop_class_uid, image.sop_instance_uid) for image in source.images]
    series = {provenance.uid("series", segmentation.ROLE): [masks]}
    if provenance.marks:
        role = segmentation.PERSONS_ROLE
        outlines = reference(SegmentationStorage, provenance.verified_uid(role))
        series[provenance.verified_uid("series", role)] = [outlines]
    return _instances(study_uid, {**series, provenance.analysis.series_uid: images})


def _instances(study_uid: str, series: dict[str, list[Dataset]]) -> Dataset:
    """Return instances of one study by their series (PS3.3 table C.17-3)."""
    item = Dataset()
    item.StudyInstanceUID = study_uid
    item.ReferencedSeriesSequence = []
    for uid, instances in series.items():
        of_series = Dataset()
        of_series.SeriesInstanceUID = uid
        of_series.ReferencedSOPSequence = instances
        item.ReferencedSeriesSequence.append(of_series)
    return item


def _content(provenance: Provenance) -> MeasurementReport:
    stand = {lesion.id for lesion in provenance.confirmed.lesions} - provenance.marks.keys()
    described = [s for s in segments(provenance) if s.lesion is None or s.lesion.id in stand]
    described += outlined_segments(provenance)
    described.sort(key=lambda segment: 0 if segment.lesion is None else segment.lesion.id)
    groups = [
        _lung(provenance, s) if s.lesion is None else _lesion(provenance, s) for s in described
    ]
    equipment = provenance.equipment
    device = DeviceObserverIdentifyingAttributes(
        uid=equipment.uid,
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=equipment.serial_number,
    )
    return MeasurementReport(
        ObservationContext(observer_device_context=ObserverContext(_concept(codes.DEVICE), device)),
        procedure_reported=codes.CT,
        imaging_measurements=[_case(provenance), *groups],
        title=codes.MEASUREMENT_REPORT,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(
            _concept(codes.ENGLISH)
        ),
    )


def _case(provenance: Provenance) -> MeasurementsAndQualitativeEvaluations:
    """Return what is said of the whole case, and what its reader must know (TID 1501)."""
    analysis, screening = provenance.confirmed, _algorithm(provenance.model("screening"))
    volume_ml = sum(lesion.volume_ml for lesion in analysis.lesions)
    measured = [
        _number(codes.COVID_PROBABILITY, analysis.probability, codes.NO_UNITS, screening),
        _number(codes.COVID_THRESHOLD, analysis.threshold, codes.NO_UNITS, screening),
        _number(codes.LESION_COUNT, len(analysis.lesions), codes.NO_UNITS),
        _number(codes.LESION_VOLUME, volume_ml, codes.MILLILITRE),
    ]
    if analysis.burden is not None:
        measured.append(_number(codes.BURDEN, 100 * analysis.burden.both.share, codes.PERCENT))
    answer = QualitativeEvaluation(
        codes.COVID_LIKE, codes.POSITIVE if provenance.positive else codes.NEGATIVE
    )
    said = [_comment(line) for line in (NOTICE, *analysis.warnings, *_made_by(provenance))]
    if (person := provenance.verification) is not None:
        words = [_comment(line) for line in _said_by(person, provenance)]
        for item in (answer[0], *words):
            item.ContentSequence = _observer(person)
        said += words
    case = MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(provenance.uid("tracking", "Case"), "Case"),
        finding_type=codes.FINDING,
        finding_sites=[_site(Side.BOTH)],
        measurements=measured,
        qualitative_evaluations=[answer],
    )
    case[0].ContentSequence.extend(said)
    return case


def _comment(sentence: str) -> TextContentItem:
    return TextContentItem(codes.COMMENT, sentence, RelationshipTypeValues.CONTAINS)


def _said_by(person: Verification, provenance: Provenance) -> list[str]:
    """Return what the person says beside the answer."""
    said = []
    if person.reason:
        machine = "positive" if provenance.analysis.positive else "negative"
        said.append(f"The automatic analysis said {machine}; decided otherwise: {person.reason}")
    if person.rejected:
        numbers = ", ".join(map(str, person.rejected))
        said.append(f"Rejected lesions of the automatic analysis: {numbers}")
    if provenance.corrected:
        numbers = ", ".join(map(str, provenance.corrected))
        said.append(f"Lesions of the automatic analysis outlined anew by the reader: {numbers}")
    if provenance.added:
        numbers = ", ".join(map(str, provenance.added))
        said.append(f"Lesions added by the reader: {numbers}")
    return [*said, *filter(None, [person.comment])]


def _observer(person: Verification) -> ObserverContext:
    """Return the person as the observer of one content item (TID 1002, TID 1003)."""
    attributes = PersonObserverIdentifyingAttributes(
        person.person_name, organization_name=person.organisation
    )
    return ObserverContext(_concept(codes.PERSON), attributes)


def _made_by(provenance: Provenance) -> list[str]:
    """Return a sentence for each network that took part, and one for what computed them."""
    analysis = provenance.analysis
    networks = [
        f"Network for {model.purpose}: {model.name} {model.version}, sha256 {model.digest}."
        for model in analysis.models
    ]
    return [*networks, f"Computed by {analysis.engine}."]


def _lung(
    provenance: Provenance, segment: Segment
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    analysis = provenance.confirmed
    is_left = segment.side is Side.LEFT
    volume_ml = analysis.lungs.left_ml if is_left else analysis.lungs.right_ml
    measured = [_number(codes.VOLUME, volume_ml, codes.MILLILITRE)]
    if analysis.burden is not None:
        involved = analysis.burden.left if is_left else analysis.burden.right
        measured.append(_number(codes.BURDEN, 100 * involved.whole.share, codes.PERCENT))
    return _group(provenance, segment, measured)


def _lesion(
    provenance: Provenance, segment: Segment
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    lesion = segment.lesion
    assert lesion is not None
    measured = [
        _number(codes.VOLUME, lesion.volume_ml, codes.MILLILITRE),
        _number(codes.LONG_AXIS, lesion.diameter_mm, codes.MILLIMETRE),
        _number(codes.ATTENUATION, lesion.mean_hu, codes.HOUNSFIELD, derivation=codes.MEAN),
        _number(codes.LUNG_SHARE, 100 * lesion.lung_share, codes.PERCENT),
    ]
    if lesion.probability is not None:
        screening = _algorithm(provenance.model("screening"))
        measured.append(
            _number(codes.COVID_PROBABILITY, lesion.probability, codes.NO_UNITS, screening)
        )
    return _group(provenance, segment, measured)


def _group(
    provenance: Provenance, segment: Segment, measured: Sequence[Measurement]
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return the measurements of one segment (TID 1411)."""
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(segment.tracking_uid, segment.name),
        # Built by hand: highdicom finds no frame groups in a Segmentation of a single segment.
        referenced_segment=ReferencedSegment(
            SegmentationStorage,
            segment.inside,
            segment.number,
            source_series=SourceSeriesForSegmentation(provenance.analysis.series_uid),
        ),
        finding_category=segment.category,
        finding_type=segment.kind,
        algorithm_id=None if segment.model is None else _algorithm(segment.model),
        finding_sites=[_site(segment.side)],
        measurements=measured,
        qualitative_evaluations=_signs(provenance, segment) or None,
    )


def _signs(provenance: Provenance, segment: Segment) -> list[QualitativeEvaluation]:
    """Return what a person saw in a lesion."""
    person = provenance.verification
    if person is None or segment.lesion is None:
        return []
    seen = []
    for sign in person.signs.get(segment.lesion.id, ()):
        evaluation = QualitativeEvaluation(codes.SIGN, codes.SIGNS[sign])
        evaluation[0].ContentSequence = _observer(person)
        seen.append(evaluation)
    return seen


def _number(
    name: Code,
    value: float,
    unit: Code,
    algorithm: AlgorithmIdentification | None = None,
    *,
    derivation: Code | None = None,
) -> Measurement:
    """Return one measurement (TID 300, TID 1419)."""
    rounded = round(float(value), _DECIMALS)
    return Measurement(name, rounded, unit, algorithm_id=algorithm, derivation=derivation)


def _algorithm(model: ModelRef) -> AlgorithmIdentification:
    """Return a network as TID 4019 has it."""
    return AlgorithmIdentification(model.name, model.version, parameters=[f"sha256 {model.digest}"])


def _site(side: Side) -> FindingSite:
    return FindingSite(codes.LUNG, laterality=codes.LATERALITY[side])


def _concept(code: Code) -> CodedConcept:
    return CodedConcept.from_code(code)
