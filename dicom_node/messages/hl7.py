r"""A result as an HL7 v2.5.1 message ORU^R01, and its way over MLLP.

Chapters are those of HL7 2.5.1: 2 (escape sequences, acknowledgements), 3 (PID, PV1), 4 (ORC), 7
(OBR, OBX). The message asks for an answer in original mode (2.9.2) and is written here, not by
hl7apy: that takes ``\F\`` in a text for an escape sequence and lets a carriage return through.

The same result always makes the same bytes, its control id included, by which a receiver knows a
message that is sent again.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydicom.sr.coding import Code

from appliance.config import Hl7Settings
from dicom_node.errors import MessageError
from dicom_node.messages.measures import measures
from dicom_node.messages.result import Finding, Result, Status, date_of, issuer_oid, named
from dicom_node.objects import codes

START: Final = b"\x0b"
END: Final = b"\x1c\r"
LARGEST_ANSWER: Final = 1 << 20
CONTROL_ID_CHARACTERS: Final = 20  # MSH-10

RESULT_STATUS: Final[dict[Status, str]] = {
    Status.NONE: "X",
    Status.PRELIMINARY: "P",
    Status.FINAL: "F",
    Status.AMENDED: "C",
}
"""OBR-25 (table 0123) and OBX-11 (table 0085)."""

TAKEN: Final = frozenset({"AA", "CA"})
REJECTED: Final = frozenset({"AR", "CR"})
ANSWERS: Final = TAKEN | REJECTED | {"AE", "CE"}
NOT_FOR_IT: Final = frozenset({"200", "201", "202", "203"})
"""Table 0357: it does not know such a type, event, processing id or version."""
ITS_OWN_TROUBLE: Final = frozenset({"206", "207"})
"""Table 0357: a record is locked, an internal error."""

_ESCAPES: Final = str.maketrans(
    {
        "\\": "\\E\\",
        "|": "\\F\\",
        "^": "\\S\\",
        "&": "\\T\\",
        "~": "\\R\\",
        **{chr(code): f"\\X{code:02X}\\" for code in (*range(0x20), 0x7F)},
    }
)
_SEXES: Final = frozenset({"M", "F", "O"})


class Repeated(tuple["Components", ...]):
    """The repetitions of a field."""

    __slots__ = ()


Components = Sequence[str | Sequence[str]]
"""Of a field; each is text or has subcomponents."""

Field = str | Components | Repeated


def build(result: Result, destination: Hl7Settings) -> bytes:
    """Return the message, without MLLP's frame."""
    body = [
        _patient(result, destination),
        # No more is known of the visit than who sent the patient.
        _segment("PV1", {1: "1", 2: "U", 8: _doctor(result.study.referring_physician)}),
        _segment("ORC", {1: "RE", 3: _order_number(result)}),
        _request(result),
        *_observations(result),
    ]
    addressed = (
        destination.sending_application,
        destination.sending_facility,
        destination.receiving_application,
        destination.receiving_facility,
    )
    digest = hashlib.sha256("\r".join((*addressed, *body)).encode()).hexdigest()
    header: dict[int, Field] = {
        **dict(enumerate(addressed, start=3)),
        7: _moment(result),
        9: ("ORU", "R01", "ORU_R01"),
        10: digest[:CONTROL_ID_CHARACTERS],
        11: destination.processing_id,
        12: "2.5.1",
        18: "UNICODE UTF-8",
    }
    # MSH-1 is the separator itself, MSH-2 says which the others are.
    lines = ["MSH|^~\\&" + _segment("", header).removeprefix("||"), *body]
    return "".join(f"{line}\r" for line in lines).encode()


def send(destination: Hl7Settings, message: bytes) -> None:
    """Send a message and wait until the receiver says that it has taken it.

    Raises:
        MessageError: It was not reached, did not answer in time, or did not take the message.
    """
    deadline = time.monotonic() + destination.timeout_s
    try:
        with _connected(destination) as connection:
            connection.sendall(START + message + END)
            answer = _answer(connection, deadline)
    except TimeoutError as error:
        text = f"{destination.name} did not answer within {destination.timeout_s:g} s"
        raise MessageError(text, retriable=True) from error
    except ssl.SSLCertVerificationError as error:
        text = f"{destination.name} shows a certificate that is not trusted: {error.verify_message}"
        raise MessageError(text, retriable=True) from error
    except OSError as error:
        text = f"{destination.name} at {destination.host}:{destination.port}: {error}"
        raise MessageError(text, retriable=True) from error
    check_answer(answer, _header(message)[9], destination.name)


def check_answer(answer: bytes, control_id: str, name: str) -> None:
    """Raise MessageError unless an answer says that the message of this id was taken.

    AE is said of the message and final; AR is said of the receiver, which "in most cases" takes the
    same message later (2.9.2.2). An error code (ERR-3, table 0357) has the last word, for receivers
    use AR for messages that they will never take, and AE for troubles of their own.
    """
    segments = [line.split("|") for line in answer.decode("utf-8", "replace").split("\r")]
    told = {fields[0]: [*fields, *[""] * 8] for fields in reversed(segments)}
    acknowledged, error = told.get("MSA", [""] * 9), told.get("ERR", [""] * 9)
    code = acknowledged[1]
    if code not in ANSWERS or acknowledged[2] != control_id:
        raise MessageError(f"{name} answered something else than was asked", retriable=True)
    if code in TAKEN:
        return
    number = error[3].partition("^")[0]
    reasons = (acknowledged[3], error[3].replace("^", " ").strip(), error[8], error[7])
    raise MessageError(
        f"{name} answered {code}: {'; '.join(filter(None, reasons)) or 'without a reason'}",
        retriable=number in ITS_OWN_TROUBLE or (code in REJECTED and number not in NOT_FOR_IT),
    )


def _connected(destination: Hl7Settings) -> socket.socket:
    address = (destination.host, destination.port)
    connection = socket.create_connection(address, timeout=destination.timeout_s)
    if not destination.tls:
        return connection
    with connection:  # until TLS has taken it over
        context = ssl.create_default_context(cafile=destination.tls_authorities)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if destination.tls_certificate is not None:  # without a password one would be asked for
            context.load_cert_chain(destination.tls_certificate, destination.tls_key, password="")
        return context.wrap_socket(connection, server_hostname=destination.host)


def _answer(connection: socket.socket, deadline: float) -> bytes:
    """Return what stands in the first frame that comes."""
    received = b""
    while END not in received:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        connection.settimeout(left_s)
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("it closed the connection without an answer")
        received += piece
        if len(received) > LARGEST_ANSWER:
            raise ConnectionError("its answer has no end")
    return received.partition(START)[2].partition(END)[0]


def _patient(result: Result, destination: Hl7Settings) -> str:
    person = result.patient
    born = date_of(person.birth_date)
    fields: dict[int, Field] = {
        1: "1",
        3: (person.patient_id, "", "", _authority(person.issuer, destination), "PI"),
        5: Repeated(_person(parts, kind) for kind, parts in named(person.name)),
        7: f"{born:%Y%m%d}" if born else "",
        8: person.sex if person.sex in _SEXES else "U",
    }
    return _segment("PID", fields)


def _authority(issuer: str, destination: Hl7Settings) -> Sequence[str]:
    """Return who assigned a number, as HD."""
    if issuer_oid(issuer):
        return ("", issuer, "ISO")
    return (issuer or destination.assigning_authority,)


def _person(parts: Sequence[str], kind: str) -> Sequence[str]:
    """Return a name as XPN; DICOM has the prefix before the suffix."""
    family, given, middle, prefix, suffix = parts
    return (family, given, middle, suffix, prefix, "", "L", kind)


def _doctor(name: str) -> Sequence[str]:
    """Return a name as XCN, whose first component would be a number."""
    for _, (family, given, middle, prefix, suffix) in named(name):
        return ("", family, given, middle, suffix, prefix)
    return ()


def _order_number(result: Result) -> str:
    """Return what the receiver knows the examination by: OBR-3 must not be empty."""
    return result.study.accession_number or result.study_uid


def _request(result: Result) -> str:
    day = date_of(result.study.study_date)
    reviewer = () if result.review is None else (("", result.review.reviewer),)
    fields: dict[int, Field] = {
        1: "1",
        3: _order_number(result),
        4: _coded(codes.CT),
        7: f"{day:%Y%m%d}" if day else "",
        13: result.study.description,
        18: result.study.accession_number,  # where radiology has it: IHE RAD TF-2 4.4
        22: _moment(result),
        24: "CT",
        25: RESULT_STATUS[result.status],
        32: reviewer,
    }
    return _segment("OBR", fields)


def _observations(result: Result) -> Iterator[str]:
    """Yield the OBX segments, numbered."""
    told: list[tuple[str, Code, Field, Code | None, bool]] = [
        ("ST", codes.DICOM_STUDY, result.study_uid, None, False),
        ("TX", codes.NOTICE, result.notice, None, False),
    ]
    if result.finding is None:
        told.append(("TX", codes.COVID_LIKE, result.conclusion, None, False))
    else:
        told += _found(result, result.finding)
    if result.viewer_url is not None:
        pointer = (result.viewer_url, "CHESTCT", "TEXT", "HTML")
        told.append(("RP", codes.VIEWER, pointer, None, False))
    for number, (kind, concept, value, unit, abnormal) in enumerate(told, start=1):
        fields: dict[int, Field] = {
            1: str(number),
            2: kind,
            3: _coded(concept),
            5: value,
            6: _coded(unit) if unit is not None else "",
            8: "A" if abnormal else "",
            11: RESULT_STATUS[result.status],
            14: _moment(result),
            18: (result.equipment.serial_number, "CHESTCT"),
        }
        yield _segment("OBX", fields)


def _found(
    result: Result, finding: Finding
) -> Iterator[tuple[str, Code, Field, Code | None, bool]]:
    """Yield type, concept, value, unit and whether it is abnormal."""
    answer = codes.POSITIVE if result.positive else codes.NEGATIVE
    yield "CWE", codes.COVID_LIKE, _coded(answer), None, result.positive is True
    yield "TX", codes.COMMENT, result.conclusion, None, False
    for measure in measures(finding):
        yield "NM", measure.concept, f"{measure.value:g}", measure.unit, False
    for warning in finding.warnings:
        yield "TX", codes.COMMENT, warning, None, False
    for model in finding.models:
        text = f"{model.purpose}: {model.name} {model.version}, sha256 {model.digest}"
        yield "ST", codes.NETWORK, text, None, False


def _coded(code: Code) -> Sequence[str]:
    return (code.value, code.meaning, code.scheme_designator)


def _moment(result: Result) -> str:
    return f"{result.at:%Y%m%d%H%M%S%z}"


def _segment(name: str, fields: Mapping[int, Field]) -> str:
    return "|".join((name, *(_field(fields.get(n, "")) for n in range(1, max(fields) + 1))))


def _field(value: Field) -> str:
    """Return a field escaped (2.7), without the empty components at its end."""
    match value:
        case str():
            return value.translate(_ESCAPES)
        case Repeated():
            return "~".join(_field(one) for one in value)
    return "^".join("&".join(_field(one) for one in _parts(part)) for part in value).rstrip("^")


def _parts(component: str | Sequence[str]) -> Sequence[str]:
    return (component,) if isinstance(component, str) else component


def _header(message: bytes) -> list[str]:
    """Return the fields of MSH, MSH-10 at 9."""
    return message.partition(b"\r")[0].decode().split("|")
