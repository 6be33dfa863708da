"""The result for people as an Encapsulated PDF (PS3.3 A.45.1): the report of `pipelines.report`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage

from dicom_node.objects import codes
from dicom_node.objects.capture import draw_key_image
from dicom_node.objects.provenance import Provenance, source_image
from dicom_node.objects.verification import Verification, as_confirmed
from pipelines.findings import Analysis
from pipelines.report.content import (
    TITLE,
    Confirmation,
    Outcome,
    Report,
    Subject,
    box_name,
    thirds_of,
)
from pipelines.report.key_images import key_slices, picture
from pipelines.report.pdf import render

ROLE: Final = "document"
SERIES_NUMBER: Final = 9104

_SUBJECT: Final = {
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "description": "StudyDescription",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
}


def build_document(provenance: Provenance) -> Dataset:
    """Return the PDF of an analysis, with the verification if there is one.

    Raises:
        ObjectError: The analysis does not name the networks.
        DecodeError: The pixel data of a key image are damaged.
    """
    prior = provenance.prior
    ds = provenance.new_object(
        EncapsulatedPDFStorage,
        # The same result compared with another is another document.
        provenance.verified_uid(ROLE, *([] if prior is None else [prior.name])),
        series=ROLE,
        series_number=SERIES_NUMBER,
        modality="DOC",
        written_at=provenance.written_at,
    )
    verification = provenance.verification
    ds.InstanceNumber = 1 if verification is None else verification.version + 1
    ds.ConversionType = "WSD"
    ds.AcquisitionDateTime = ""
    ds.BurnedInAnnotation = "YES"
    ds.VerificationFlag = "UNVERIFIED" if verification is None else "VERIFIED"
    ds.DocumentTitle = TITLE
    ds.ConceptNameCodeSequence = [codes.item(codes.MEASUREMENT_REPORT)]
    ds.SourceInstanceSequence = [source_image(image) for image in provenance.source.images]
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    content = render(report_of(provenance))
    ds.EncapsulatedDocumentLength = len(content)
    ds.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    return ds


def report_of(provenance: Provenance) -> Report:
    """Return what the document says.

    Raises:
        DecodeError: The pixel data of a key image are damaged.
    """
    attributes = provenance.source.attributes
    values: dict[str, Any] = {
        field: str(attributes.get(keyword) or "") for field, keyword in _SUBJECT.items()
    }
    analysed_at = provenance.local(provenance.analysed_at)
    outcome = outcome_of(provenance.analysis, provenance.verification, analysed_at)
    person = outcome.confirmation
    if person is not None:
        outcome = replace(outcome, confirmation=replace(person, at=provenance.written_at))
    equipment = provenance.equipment
    return Report(
        subject=Subject(**values),
        outcome=outcome,
        thirds=thirds_of(outcome.analysis),
        pictures=tuple(
            picture(draw_key_image(provenance, z)) for z in key_slices(outcome.analysis)
        ),
        box=box_name(equipment.software_version, equipment.serial_number),
        prior=provenance.prior,
    )


def outcome_of(
    analysis: Analysis, verification: Verification | None, analysed_at: datetime
) -> Outcome:
    """Return a result as a person left it, for the report.

    Raises:
        ObjectError: The verification is of another analysis.
    """
    return Outcome(
        analysis=as_confirmed(analysis, verification),
        machine_positive=analysis.positive,
        machine_lesions=tuple(lesion.id for lesion in analysis.lesions),
        analysed_at=analysed_at,
        confirmation=None if verification is None else _confirmation(verification),
    )


def _confirmation(person: Verification) -> Confirmation:
    return Confirmation(
        name=person.readable_name,
        organisation=person.organisation,
        at=person.verified_at,
        version=person.version,
        positive=person.positive,
        reason=person.reason,
        comment=person.comment,
        rejected=person.rejected,
        outlined=tuple(mark.lesion.id for mark in person.marks),
        signs={number: tuple(signs) for number, signs in person.signs.items()},
    )
