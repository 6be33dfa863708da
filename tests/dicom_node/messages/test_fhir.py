"""The transactions, held against the resources' definitions, and a server on the loopback.

Of what is used here R4B changed nothing since R4.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from appliance.config import FhirSettings
from appliance.errors import ConfigError
from dicom_node.errors import MessageError
from dicom_node.messages import fhir
from dicom_node.messages.result import Result
from tests.dicom_node.messages.made import HOSTILE, HOSTILE_RESULT, KINDS, RESULT
from tests.support.databases import settings_in

SERVER = FhirSettings(
    name="ehr", url="http://127.0.0.1:1/r4", patient_system="urn:oid:2.16.1", timeout_s=1.0
)
TOKEN = "secret-token"


def bundle(result: Result) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(fhir.build(result, SERVER))
    return read


def report(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = bundle(result)["entry"][-1]["resource"]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, "hostile"])
def test_every_message_is_a_bundle_of_valid_resources(kind: str):
    from fhir.resources.R4B.bundle import Bundle  # noqa: PLC0415 - warns when it is imported

    message = fhir.build({**KINDS, "hostile": HOSTILE_RESULT}[kind], SERVER)

    read = Bundle.model_validate_json(message)

    assert read.type == "transaction"
    assert json.loads(read.model_dump_json()) == json.loads(message)


@pytest.mark.parametrize(
    ("kind", "status", "answer"),
    [
        ("positive", "preliminary", "10828004"),
        ("negative", "preliminary", "260385009"),
        ("refused", "cancelled", None),
        ("confirmed", "final", "10828004"),
        ("overridden", "final", "260385009"),
        ("amended", "amended", "260385009"),
    ],
)
def test_a_result_says_how_far_it_goes(kind: str, status: str, answer: str | None):
    told = report(KINDS[kind])
    others = [entry["resource"] for entry in bundle(KINDS[kind])["entry"][:-1]]

    assert told["status"] == status
    assert {one["status"] for one in others} <= {status}
    assert ("not confirmed" in told["conclusion"]) is (status in ("preliminary", "cancelled"))
    if answer is None:
        assert others == []
        assert "No series shows the lungs." in told["conclusion"]
    else:
        assert told["conclusionCode"][0]["coding"][0]["code"] == answer
        assert others[0]["valueCodeableConcept"]["coding"][0]["code"] == answer
        assert others[1]["valueQuantity"]["value"] in (0.8125, 0.06)
    assert ("resultsInterpreter" in told) is (status in ("final", "amended"))


def test_a_report_names_patient_request_and_study_and_links_what_comes_with_it():
    message = bundle(RESULT)
    told = report(RESULT)

    assert told["subject"] == {
        "type": "Patient",
        "identifier": {"system": "urn:oid:2.16.1", "value": "P-1"},
        "display": "Bell Zoë Ann Dr jr",
    }
    assert told["basedOn"][0]["identifier"]["value"] == "A-1"
    assert told["imagingStudy"][0]["identifier"] == {
        "system": "urn:dicom:uid",
        "value": "urn:oid:1.2.840.1",
    }
    assert told["effectiveDateTime"] == "2026-03-05"
    assert told["issued"] == "2026-03-05T14:30:00Z"
    assert told["presentedForm"][0]["url"] == RESULT.viewer_url
    assert [one["reference"] for one in told["result"]] == [
        entry["fullUrl"] for entry in message["entry"][:-1]
    ]


def test_every_state_of_a_result_updates_the_same_resources():
    asked = {
        kind: {entry["request"]["url"] for entry in bundle(result)["entry"]}
        for kind, result in KINDS.items()
    }
    another = replace(RESULT, patient=replace(RESULT.patient, name="Other^Person"))

    assert asked["positive"] == asked["overridden"] == asked["amended"] > asked["refused"]
    assert asked["positive"].isdisjoint(e["request"]["url"] for e in bundle(another)["entry"])
    assert fhir.build(replace(RESULT), SERVER) == fhir.build(RESULT, SERVER)


def test_hostile_text_stays_text():
    told = report(HOSTILE_RESULT)
    without_controls = HOSTILE.replace("\x0b", " ").replace("\x1c", " ")

    assert told["subject"]["identifier"]["value"] == without_controls
    assert told["basedOn"][0]["identifier"]["value"] == without_controls
    assert "effectiveDateTime" not in told


@dataclass
class Answers:
    """What a server does with what it is sent: the resources it has, by identifier."""

    status: int = 200
    body: bytes = b"{}"
    kept: dict[str, Any] = field(default_factory=dict)
    authorizations: list[str | None] = field(default_factory=list)


@contextmanager
def serving(answers: Answers) -> Iterator[FhirSettings]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/r4"
            assert self.headers["Content-Type"].startswith("application/fhir+json")
            answers.authorizations.append(self.headers["Authorization"])
            if answers.status == 200:
                for entry in message["entry"]:
                    address = urlsplit(entry["request"]["url"])
                    (identifier,) = parse_qs(address.query)["identifier"]
                    answers.kept[f"{address.path} {identifier}"] = entry["resource"]
            self.send_response(answers.status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(answers.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield replace(SERVER, url=f"http://127.0.0.1:{server.server_port}/r4")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_message_sent_twice_and_its_confirmation_leave_one_report(tmp_path: Path):
    answers, token = Answers(), tmp_path / "token"
    token.write_text(f"{TOKEN}\n")

    with serving(answers) as server:
        with_token = replace(server, token_file=token)
        for result in (RESULT, RESULT, KINDS["confirmed"]):
            fhir.send(with_token, fhir.build(result, with_token))

    reports = [one for key, one in answers.kept.items() if key.startswith("DiagnosticReport")]
    assert [one["status"] for one in reports] == ["final"]
    assert len(answers.kept) == len(bundle(RESULT)["entry"])
    assert set(answers.authorizations) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("status", "retriable"),
    [
        *((status, False) for status in (302, 400, 401, 412, 422)),
        *((status, True) for status in (408, 429, 500, 503)),
    ],
)
def test_what_a_server_refuses_is_tried_again_where_it_may_help(status: int, *, retriable: bool):
    issue = {"severity": "error", "code": "invalid", "diagnostics": "no such patient"}
    body = json.dumps({"resourceType": "OperationOutcome", "issue": [issue]}).encode()

    with (
        serving(Answers(status, body)) as server,
        pytest.raises(MessageError, match=f"ehr answered {status}: no such patient") as refused,
    ):
        fhir.send(server, fhir.build(RESULT, server))

    assert refused.value.retriable is retriable


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"issue": 1}', b""])
def test_an_answer_that_is_no_outcome_is_quoted(body: bytes):
    with serving(Answers(400, body)) as server, pytest.raises(MessageError, match=r"400: .+"):
        fhir.send(server, fhir.build(RESULT, server))


def test_a_server_that_is_away_and_a_token_that_is_missing(tmp_path: Path):
    without = replace(SERVER, token_file=tmp_path / "none")

    for destination, said in ((SERVER, "ehr at http"), (without, "token file cannot be read")):
        with pytest.raises(MessageError, match=said) as failed:
            fhir.send(destination, fhir.build(RESULT, destination))
        assert failed.value.retriable


def test_no_one_on_the_way_reads_along(tmp_path: Path):
    entry = {"name": "ehr", "url": "http://fhir.example.org/r4"}
    with pytest.raises(ConfigError, match="must begin with https"):
        settings_in(tmp_path, messages={"fhir": [entry]})
