"""A result as FHIR R4: a DiagnosticReport with its Observations, in one transaction.

Patient, request and study are named by their identifiers, for they are not ours to make. Each of
our resources is updated where the server has one of its identifier, else made (conditional update,
R4 http.html#cond-update): a message that is sent again, or about a later state of the same result,
leaves one report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid5

import requests
from pydicom.sr.coding import Code

from appliance.config import FhirSettings
from dicom_node.errors import MessageError
from dicom_node.messages.measures import measures
from dicom_node.messages.result import Finding, Result, Status, date_of, issuer_oid
from dicom_node.objects import codes
from dicom_node.objects.provenance import MODEL_NAME

MEDIA_TYPE: Final = "application/fhir+json"
LONGEST_REASON: Final = 1000

STATUS: Final[dict[Status, str]] = {
    Status.NONE: "cancelled",
    Status.PRELIMINARY: "preliminary",
    Status.FINAL: "final",
    Status.AMENDED: "amended",
}
"""DiagnosticReport.status and Observation.status."""

SYSTEMS: Final = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
}
RETRIABLE: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

_NO_TEXT: Final = dict.fromkeys({*range(0x20)} - {ord(one) for one in "\t\r\n"}, " ")

Resource = dict[str, Any]


def build(result: Result, destination: FhirSettings) -> bytes:
    """Return the transaction, a Bundle in JSON; the same result always makes the same bytes."""
    observations = (
        () if result.finding is None else tuple(_observations(result, result.finding, destination))
    )
    entries = [_entry(result, one) for one in observations]
    links = [{"reference": entry["fullUrl"]} for entry in entries]
    entries.append(_entry(result, _report(result, destination, links)))
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    return json.dumps(_plain(bundle), ensure_ascii=False).encode()


def send(destination: FhirSettings, message: bytes) -> None:
    """Post a transaction and wait until the server has carried it out.

    Raises:
        MessageError: The server was not reached, or refused; with its own words for why.
    """
    headers = {"Content-Type": f"{MEDIA_TYPE}; charset=utf-8", "Accept": MEDIA_TYPE}
    if destination.token_file is not None:
        headers["Authorization"] = f"Bearer {_token(destination)}"
    with requests.Session() as session:
        # Neither a proxy nor a password of this account's surroundings, nor another server.
        session.trust_env = False
        try:
            response = session.post(
                destination.url,
                data=message,
                headers=headers,
                timeout=destination.timeout_s,
                verify=True if destination.authorities is None else str(destination.authorities),
                allow_redirects=False,
            )
        except OSError as error:  # which requests' own errors are, too
            text = f"{destination.name} at {destination.url}: {error}"
            raise MessageError(text, retriable=True) from error
    status = response.status_code
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    raise MessageError(
        f"{destination.name} answered {status}: {_reason(response)}",
        retriable=status in RETRIABLE or status >= HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def _plain(value: Any) -> Any:
    """Return JSON without the characters that no string may have (R4 datatypes.html#string)."""
    match value:
        case str():
            return value.translate(_NO_TEXT)
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
    return value


def _token(destination: FhirSettings) -> str:
    assert destination.token_file is not None
    try:
        token = destination.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{destination.name}: its token file cannot be read: {error}"
        raise MessageError(text, retriable=True) from error
    if not token or not token.isprintable():
        text = f"{destination.name}: its token file must hold one line, the token"
        raise MessageError(text, retriable=True)
    return token


def _reason(response: requests.Response) -> str:
    """Return what an OperationOutcome says, else how the answer begins."""
    try:
        issues = response.json()["issue"]
        told = [
            issue.get("diagnostics") or issue.get("details", {}).get("text") or issue["code"]
            for issue in issues
        ]
        return "; ".join(told)[:LONGEST_REASON]
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:LONGEST_REASON] or response.reason


def _entry(result: Result, resource: Resource) -> Resource:
    """Return what the transaction does with a resource (R4 bundle.html#transaction)."""
    (identifier,) = resource["identifier"]
    kind, asked = resource["resourceType"], f"{identifier['system']}|{identifier['value']}"
    return {
        "fullUrl": f"urn:uuid:{uuid5(result.name, identifier['value'])}",
        "resource": resource,
        "request": {"method": "PUT", "url": f"{kind}?identifier={quote(asked, safe='')}"},
    }


def _report(result: Result, destination: FhirSettings, observations: list[Resource]) -> Resource:
    report = {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(result, "report")],
        "status": STATUS[result.status],
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "CT"}]}
        ],
        "code": _concept(result, codes.CT),
        **_about(result, destination),
        "issued": f"{result.at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "imagingStudy": [_study(result)],
        "conclusion": f"{result.conclusion} {result.notice}",
    }
    if result.study.accession_number:
        report["basedOn"] = [_request(result)]
    if observations:
        report["result"] = observations
        report["conclusionCode"] = [_answer(result)]
    if result.review is not None:
        report["resultsInterpreter"] = [{"display": result.review.reviewer}]
    if result.viewer_url is not None:
        link = {"contentType": "text/html", "url": result.viewer_url, "title": "Viewer"}
        report["presentedForm"] = [link]
    return report


def _observations(
    result: Result, finding: Finding, destination: FhirSettings
) -> Iterator[Resource]:
    """Yield the answer, with what a reader must know of it, and the measurements."""
    notes = (
        result.notice,
        *finding.warnings,
        *(
            f"Network for {model.purpose}: {model.name} {model.version}, sha256 {model.digest}."
            for model in finding.models
        ),
    )
    yield {
        **_observation(result, destination, codes.COVID_LIKE),
        "valueCodeableConcept": _answer(result),
        "note": [{"text": note} for note in notes],
    }
    for measure in measures(finding):
        yield {
            **_observation(result, destination, measure.concept),
            "valueQuantity": {
                "value": measure.value,
                "unit": measure.unit.meaning,
                "system": SYSTEMS["UCUM"],
                "code": measure.unit.value,
            },
        }


def _observation(result: Result, destination: FhirSettings, concept: Code) -> Resource:
    return {
        "resourceType": "Observation",
        "identifier": [_identifier(result, concept.value)],
        "status": STATUS[result.status],
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "imaging",
                    }
                ]
            }
        ],
        "code": _concept(result, concept),
        **_about(result, destination),
        "derivedFrom": [_study(result)],
        "device": {
            "type": "Device",
            "identifier": {
                "system": "urn:dicom:uid",
                "value": f"urn:oid:{result.equipment.uid}",
            },
            "display": f"{MODEL_NAME} {result.equipment.software_version}",
        },
    }


def _about(result: Result, destination: FhirSettings) -> Resource:
    """Return whom it is about, and the day of the scan."""
    person, day = result.patient, date_of(result.study.study_date)
    oid = issuer_oid(person.issuer)
    system = f"urn:oid:{oid}" if oid else destination.patient_system
    display = person.name.partition("=")[0].replace("^", " ").strip()
    subject: Resource = {"type": "Patient"}
    if person.patient_id:
        number = {"system": system, "value": person.patient_id}
        subject["identifier"] = {key: value for key, value in number.items() if value}
    if display:
        subject["display"] = display
    about: Resource = {"subject": subject} if person.patient_id or display else {}
    return about if day is None else {**about, "effectiveDateTime": day.isoformat()}


def _study(result: Result) -> Resource:
    """Return the study by its UID (R4 imagingstudy.html#notes)."""
    uid = {"system": "urn:dicom:uid", "value": f"urn:oid:{result.study_uid}"}
    return {"type": "ImagingStudy", "identifier": uid}


def _request(result: Result) -> Resource:
    kind = {
        "coding": [
            {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"},
        ]
    }
    number = {"type": kind, "value": result.study.accession_number}
    return {"type": "ServiceRequest", "identifier": number}


def _identifier(result: Result, role: str) -> Resource:
    """Return what tells this resource from all others, of this box and of others."""
    return {"system": f"urn:oid:{result.equipment.uid}", "value": f"{result.name}/{role}"}


def _answer(result: Result) -> Resource:
    code = codes.POSITIVE if result.positive else codes.NEGATIVE
    return {**_concept(result, code), "text": f"{codes.COVID_LIKE.meaning}: {code.meaning.lower()}"}


def _concept(result: Result, code: Code) -> Resource:
    # Concepts that no scheme has are the box's own.
    system = SYSTEMS.get(code.scheme_designator, f"urn:oid:{result.equipment.uid}")
    return {"coding": [{"system": system, "code": code.value, "display": code.meaning}]}
