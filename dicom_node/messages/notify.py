"""One result to one of the systems in the settings, now."""

from __future__ import annotations

from appliance.config import FhirSettings, Hl7Settings
from dicom_node.messages import fhir, hl7
from dicom_node.messages.result import Result

Destination = Hl7Settings | FhirSettings


def build(result: Result, destination: Destination) -> bytes:
    """Return the message that this system is sent about a result."""
    if isinstance(destination, Hl7Settings):
        return hl7.build(result, destination)
    return fhir.build(result, destination)


def send(destination: Destination, message: bytes) -> None:
    """Send a message; raises MessageError, which says whether to try again."""
    if isinstance(destination, Hl7Settings):
        hl7.send(destination, message)
    else:
        fhir.send(destination, message)
