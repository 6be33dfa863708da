"""Results to tell, one for each thing that can be said of a study."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from appliance.studies import PatientAttributes, StudyAttributes
from dicom_node.messages.result import Finding, Result, Review
from dicom_node.objects.provenance import Equipment
from pipelines.findings import Burden, Grade, Involvement, LungInvolvement, ModelRef

HOSTILE = "a|b^c&d~e\\f\\F\\ \\.br\\ \\X0D\\\r\nMSH|^~\\&|x\x0b\x1c\r\tÄ漢字\N{WINKING FACE}"


def _lung(lesion_ml: float, share: float) -> LungInvolvement:
    third = Involvement(lesion_ml / 3, share)
    return LungInvolvement(Involvement(lesion_ml, share), third, third, third)


FINDING = Finding(
    probability=0.8125,
    threshold=0.5,
    positive=True,
    lesion_count=2,
    lesion_volume_ml=12.34567,
    burden=Burden(_lung(12, 0.01), _lung(0.5, 0.0002), Involvement(12.5, 0.005), Grade.CT_1),
    models=(ModelRef("screening", "resnet", "1.0.0", "ab" * 32),),
    warnings=("The scan is noisy.",),
)
RESULT = Result(
    study_id=7,
    study_uid="1.2.840.1",
    patient=PatientAttributes(
        patient_id="P-1",
        issuer="HOSPITAL",
        name="Bell^Zoë^Ann^Dr^jr=鈴^蔵",
        birth_date="19700102",
        sex="F",
    ),
    study=StudyAttributes(
        accession_number="A-1",
        description="CT Thorax",
        study_date="20260305",
        study_time="140506",
        referring_physician="Grey^Meredith",
    ),
    finding=FINDING,
    refusal="",
    found_at=datetime(2026, 3, 5, 14, 30, tzinfo=UTC),
    review=None,
    equipment=Equipment("42", "0.1.0"),
    viewer_url="https://box/studies/7?a=1&b=2",
)


def review(**changes: Any) -> Review:
    at = datetime(2026, 3, 5, 15, 0, tzinfo=UTC)
    values: dict[str, Any] = {"reviewer": "Dr Grey", "positive": True, "at": at, "version": 1}
    return Review(**{**values, **changes})


KINDS = {
    "positive": RESULT,
    "negative": replace(RESULT, finding=replace(FINDING, probability=0.06, positive=False)),
    "refused": replace(RESULT, finding=None, refusal="No series shows the lungs."),
    "confirmed": replace(RESULT, review=review()),
    "overridden": replace(RESULT, review=review(positive=False)),
    "amended": replace(RESULT, review=review(positive=False, version=2)),
}

_TEXTS = {"patient_id": HOSTILE, "issuer": HOSTILE, "name": f"{HOSTILE.replace('^', '')}^Z"}
HOSTILE_RESULT = replace(
    RESULT,
    patient=PatientAttributes(**_TEXTS, birth_date="19700231", sex="|"),
    study=StudyAttributes(
        accession_number=HOSTILE,
        description=HOSTILE * 300,
        study_date="yesterday",
        study_time=HOSTILE,
        referring_physician=HOSTILE,
    ),
    finding=replace(FINDING, warnings=(HOSTILE,)),
)
