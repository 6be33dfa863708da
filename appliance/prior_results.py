"""The result that a new one is compared with: of the patient's last study before it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from appliance import studies
from appliance.lifecycle import State
from appliance.tables import Analysis, Patient, Review, Study


@dataclass(frozen=True, kw_only=True)
class PriorResult:
    """The current result of an earlier study; `review` is its last version, 0 while unconfirmed."""

    study_id: int
    study_date: str
    analysis_id: int
    folder: str
    analysed_at: datetime
    review: int


def last(db: Session, study_id: int) -> PriorResult | None:
    """Return the result of the same patient's last earlier study that has one.

    Only who has a number is looked for, and nothing that both studies say of the person may
    contradict: a result compared with another person's would be worse than none.
    """
    study = db.get(Study, study_id)
    if study is None or not study.patient.patient_id.strip() or not study.study_date.strip():
        return None
    earlier = or_(
        Study.study_date < study.study_date,
        and_(Study.study_date == study.study_date, Study.study_time < study.study_time),
    )
    found = db.execute(
        select(Study, Analysis)
        .join(Patient, Study.patient_key == Patient.id)
        .join(Analysis, (Analysis.study_id == Study.id) & Analysis.current)
        .where(
            Patient.patient_id == study.patient.patient_id,
            Study.state == State.READY,
            Study.study_date != "",
            earlier,
        )
        .order_by(Study.study_date.desc(), Study.study_time.desc(), Study.id.desc())
    )
    for other, analysis in found:
        if studies.same_person(study.patient, other.patient):
            versions = select(func.max(Review.version)).where(Review.analysis_id == analysis.id)
            return PriorResult(
                study_id=other.id,
                study_date=other.study_date,
                analysis_id=analysis.id,
                folder=analysis.folder,
                analysed_at=analysis.created_at,
                review=db.scalar(versions) or 0,
            )
    return None
