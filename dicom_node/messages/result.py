"""What messages say of a study's result, gathered in one object that the builders read.

A message is preliminary until a person has confirmed the result. What a person decided stands in
place of the machine's answer, and lesions that were rejected do not count, as in the report that
goes to the PACS; the other figures are the machine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

from appliance import reviews, studies, tables
from appliance.config import Settings
from appliance.database import Database
from appliance.errors import ApplianceError
from appliance.lifecycle import State
from appliance.studies import PatientAttributes, StudyAttributes
from appliance.tables import Patient, Study
from dicom_node.objects.provenance import NAMESPACE, Equipment
from dicom_node.objects.verification import as_confirmed, load_verification
from pipelines.findings import Analysis, Burden, ModelRef

NOT_CONFIRMED: Final = (
    "Research use only, not for primary diagnosis. Computed by software, not confirmed by a"
    " physician."
)
CONFIRMED: Final = "Research use only, not for primary diagnosis. Computed by software."

_DATE: Final = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")  # with dots: ACR-NEMA
_OID: Final = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")


class Status(StrEnum):
    """How far a result can be relied upon."""

    NONE = "none"
    """There is none: the study could not be analysed."""
    PRELIMINARY = "preliminary"
    """The machine's alone."""
    FINAL = "final"
    """A person answers for it."""
    AMENDED = "amended"
    """A person changed a final one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found and not rejected, or added; volumes in ml, probabilities and shares 0 to 1."""

    probability: float
    threshold: float
    positive: bool
    lesion_count: int
    lesion_volume_ml: float
    burden: Burden | None
    models: tuple[ModelRef, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a person decided; `version` counts from 1, a later one amends the earlier."""

    reviewer: str
    positive: bool
    at: datetime
    version: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """A study, and what was found in it or why nothing was.

    Attributes:
        study_id: The row, for the link to the viewer.
        finding: None where the study could not be analysed; then `refusal` says why.
        found_at: When the analysis ended, with its time zone.
        review: None as long as nobody confirmed it.
        viewer_url: Where people see it; None where no address is configured.
    """

    study_id: int
    study_uid: str
    patient: PatientAttributes
    study: StudyAttributes
    finding: Finding | None
    refusal: str
    found_at: datetime
    review: Review | None
    equipment: Equipment
    viewer_url: str | None

    @property
    def status(self) -> Status:
        if self.finding is None:
            return Status.NONE
        if self.review is None:
            return Status.PRELIMINARY
        return Status.FINAL if self.review.version == 1 else Status.AMENDED

    @property
    def positive(self) -> bool | None:
        """The answer that counts: the person's, else the machine's; None where there is none."""
        if self.finding is None:
            return None
        return self.finding.positive if self.review is None else self.review.positive

    @property
    def overridden(self) -> bool:
        """Whether a person decided otherwise than the machine."""
        return self.finding is not None and self.positive is not self.finding.positive

    @property
    def at(self) -> datetime:
        """When it became what it is."""
        return self.found_at if self.review is None else self.review.at

    @property
    def notice(self) -> str:
        return NOT_CONFIRMED if self.review is None else CONFIRMED

    @property
    def conclusion(self) -> str:
        """The result in one sentence."""
        if self.finding is None:
            return f"No result: {self.refusal}"
        answer = "positive" if self.positive else "negative"
        if self.review is None:
            return f"COVID-19-like appearance: {answer}."
        decided = "changed" if self.overridden else "confirmed"
        return f"COVID-19-like appearance: {answer}, {decided} by {self.review.reviewer}."

    @property
    def name(self) -> UUID:
        """The same in each message about this person's study, and in no other's.

        Several people's images may come under one Study Instance UID, hence the person.
        """
        person = self.patient
        parts = (self.study_uid, person.patient_id, person.issuer, person.name, person.birth_date)
        return uuid5(NAMESPACE, chr(0x1F).join(("message", *parts)))


def read_result(database: Database, settings: Settings, study_id: int) -> Result:
    """Return what is known of a study's result now, with what a person decided about it.

    Raises:
        ApplianceError: There is no such study, or it has no result and was not refused.
        ObjectError: The review is of lesions that the result does not have.
        ResultError: The result folder cannot be read.
    """
    with database.snapshot() as db:
        row = studies.worklist_row(db, study_id)
        if row is None:
            raise ApplianceError(f"there is no study {study_id}")
        (study,) = (one for one in studies.named(db, row.study_uid) if one.id == study_id)
        current = studies.current_analysis(db, study_id)
        patient = PatientAttributes(**_attributes(study.patient, PatientAttributes))
        described = StudyAttributes(**_attributes(study, StudyAttributes))
        confirmed = None if current is None else reviews.current_review(db, current.id)
        verification = (
            None
            if current is None or confirmed is None
            else load_verification(db, current.id, version=confirmed.version)
        )
    finding, refusal, found_at = None, "", row.state_since
    if row.state is State.REJECTED:
        refusal = row.state_reason or "the study is not supported"
    elif row.state is State.READY and current is not None:
        analysis = Analysis.load(settings.data_dir / current.folder)
        finding = _finding(as_confirmed(analysis, verification))
        found_at = current.created_at
    else:
        raise ApplianceError(
            f"study {study_id} is {row.state}: only of a READY or REJECTED one is there anything"
            " to tell"
        )
    base = settings.messages.viewer_url
    return Result(
        study_id=study_id,
        study_uid=row.study_uid,
        patient=patient,
        study=described,
        finding=finding,
        refusal=refusal,
        found_at=found_at,
        review=None if finding is None or confirmed is None else _review(confirmed),
        equipment=Equipment.here(settings.dicom.serial_number),
        viewer_url=None if base is None else f"{base.rstrip('/')}/studies/{study_id}",
    )


def date_of(value: str) -> date | None:
    """Return a DA value's day, None where it is none."""
    match = _DATE.fullmatch(value.strip())
    try:
        return date(*(int(part) for part in match.groups())) if match else None
    except ValueError:  # the 31st of February
        return None


def named(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return a PN value's groups that name somebody (PS3.5 6.2.1).

    Each with A, I or P for alphabetic, ideographic or phonetic, and its five components: family and
    given name, middle name, prefix, suffix.
    """
    groups = []
    for kind, group in zip("AIP", name.split("="), strict=False):
        parts = [part.strip() for part in group.split("^")]
        if any(parts):
            groups.append((kind, tuple([*parts, "", "", "", "", ""][:5])))
    return groups


def issuer_oid(issuer: str) -> str | None:
    """Return an Issuer of Patient ID that is an OID, as universal systems name it, else None."""
    return issuer if _OID.fullmatch(issuer) else None


def _finding(analysis: Analysis) -> Finding:
    return Finding(
        probability=analysis.probability,
        threshold=analysis.threshold,
        positive=analysis.positive,
        lesion_count=len(analysis.lesions),
        lesion_volume_ml=sum(lesion.volume_ml for lesion in analysis.lesions),
        burden=analysis.burden,
        models=analysis.models,
        warnings=analysis.warnings,
    )


def _review(row: tables.Review) -> Review:
    return Review(reviewer=row.reviewer, positive=row.positive, at=row.at, version=row.version)


def _attributes(
    row: Patient | Study, kind: type[PatientAttributes | StudyAttributes]
) -> dict[str, str]:
    return {key.name: getattr(row, key.name) for key in fields(kind)}
