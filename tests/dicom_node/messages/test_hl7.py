"""The messages, read by two parsers that are not ours, and a receiver on the loopback."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import hl7 as python_hl7
import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from appliance.config import Hl7Settings
from dicom_node.errors import MessageError
from dicom_node.messages import hl7
from dicom_node.messages.result import Result
from tests.dicom_node.messages.made import FINDING, HOSTILE, HOSTILE_RESULT, KINDS, RESULT
from tests.support.certificates import openssl

RIS = Hl7Settings(
    name="ris",
    host="127.0.0.1",
    port=1,
    sending_facility="RADIOLOGY",
    receiving_application="RIS",
    assigning_authority="ELSEWHERE",
    timeout_s=1.0,
)


def parsed(result: Result) -> python_hl7.Message:
    return python_hl7.parse(hl7.build(result, RIS).decode())


def observations(message: python_hl7.Message, code: str) -> list[python_hl7.Segment]:
    return [one for one in message.segments("OBX") if str(one[3][0][0]) == code]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_an_oru_of_2_5_1(kind: str):
    text = hl7.build(KINDS[kind], RIS).decode()

    message = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)

    assert message.name == "ORU_R01"
    assert message.validate()


@pytest.mark.parametrize(
    ("kind", "status", "answer"),
    [
        ("positive", "P", "10828004"),
        ("negative", "P", "260385009"),
        ("refused", "X", None),
        ("confirmed", "F", "10828004"),
        ("overridden", "F", "260385009"),
        ("amended", "C", "260385009"),
    ],
)
def test_a_result_says_how_far_it_goes(kind: str, status: str, answer: str | None):
    message = parsed(KINDS[kind])

    assert str(message.segment("OBR")[25]) == status
    assert {str(one[11]) for one in message.segments("OBX")} == {status}
    (told,) = observations(message, "COVID-LIKE")
    if answer is None:
        assert (str(told[2]), str(told[5])) == ("TX", "No result: No series shows the lungs.")
        assert observations(message, "COVID-PROB") == []
    else:
        assert str(told[5][0][0]) == answer
        assert str(observations(message, "COVID-PROB")[0][5]) in ("0.8125", "0.06")
    (notice,) = observations(message, "NOTICE")
    assert ("not confirmed" in str(notice[5])) is (status in "PX")


def test_a_message_names_patient_order_and_study():
    message = parsed(RESULT)

    pid, obr = message.segment("PID"), message.segment("OBR")
    assert str(pid[3]) == "P-1^^^HOSPITAL^PI"
    assert str(pid[5]) == "Bell^Zoë^Ann^jr^Dr^^L^A~鈴^蔵^^^^^L^I"
    assert (str(pid[7]), str(pid[8])) == ("19700102", "F")
    assert str(message.segment("PV1")[8]) == "^Grey^Meredith"
    assert (str(obr[3]), str(obr[18]), str(obr[7])) == ("A-1", "A-1", "20260305")
    assert str(observations(message, "113014")[0][5]) == "1.2.840.1"
    volume = observations(message, "LESION-VOLUME")[0]
    assert (str(volume[2]), str(volume[5]), str(volume[6])) == (
        "NM", "12.3457", "ml^milliliter^UCUM",
    )  # fmt: skip
    assert str(observations(message, "BURDEN-RIGHT")[0][5]) == "1"
    assert str(observations(message, "BURDEN-LEFT")[0][5]) == "0.02"
    assert "resnet 1.0.0" in str(observations(message, "NETWORK")[0][5])
    link = observations(message, "VIEWER")[0]
    assert message.unescape(str(link[5][0][0])) == "https://box/studies/7?a=1&b=2"


def test_an_issuer_that_is_an_oid_and_one_that_is_missing():
    oid = replace(RESULT, patient=replace(RESULT.patient, issuer="1.2.276.1"))
    nobody = replace(RESULT, patient=replace(RESULT.patient, issuer=""))

    assert str(parsed(oid).segment("PID")[3]) == "P-1^^^&1.2.276.1&ISO^PI"
    assert str(parsed(nobody).segment("PID")[3]) == "P-1^^^ELSEWHERE^PI"


def test_hostile_text_stays_text():
    message = parsed(HOSTILE_RESULT)

    assert [str(segment[0]) for segment in message] == [
        str(segment[0]) for segment in parsed(RESULT)
    ]
    assert message.unescape(str(message.segment("OBR")[13])) == HOSTILE * 300
    assert message.unescape(str(message.segment("OBR")[18])) == HOSTILE
    assert message.unescape(str(message.segment("PID")[3][0][0])) == HOSTILE
    assert HOSTILE in [message.unescape(str(one[5])) for one in observations(message, "121106")]
    assert (str(message.segment("PID")[7]), str(message.segment("PID")[8])) == ("", "U")
    raw = hl7.build(HOSTILE_RESULT, RIS)
    assert hl7.START not in raw
    assert hl7.END not in raw


def test_the_same_result_is_the_same_message_and_another_is_not():
    again = replace(RESULT, finding=replace(FINDING))
    ids = {str(parsed(result).segment("MSH")[10]) for result in KINDS.values()}

    assert hl7.build(again, RIS) == hl7.build(RESULT, RIS)
    assert len(ids) == len(KINDS)
    assert {len(one) for one in ids} == {20}


@dataclass
class Receiver:
    """An MLLP receiver that answers as it is told to; None closes, "" says nothing."""

    answer: Callable[[bytes], bytes | None]
    context: ssl.SSLContext | None = None
    received: list[bytes] = field(default_factory=list)
    port: int = 0

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    self.talk(connection)
                except OSError:
                    continue

    def talk(self, connection: socket.socket) -> None:
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True)
        frame = b""
        while not frame.endswith(hl7.END):
            if not (piece := connection.recv(65536)):
                return
            frame += piece
        assert frame.startswith(hl7.START)
        message = frame[1:-2]
        self.received.append(message)
        answer = self.answer(message)
        if answer is not None:
            for number in range(len(answer)):  # as slowly as a network may bring it
                connection.sendall(answer[number : number + 1])
            if not answer:
                time.sleep(2)
            connection.close()


@contextmanager
def receiving(
    answer: Callable[[bytes], bytes | None], context: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    receiver = Receiver(answer, context)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        receiver.port = listening.getsockname()[1]
        thread = threading.Thread(target=receiver.serve, args=(listening,), daemon=True)
        thread.start()
        yield receiver
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def acknowledging(code: str, *, text: str = "", error: str = "", about: str | None = None):
    """An answer as receivers send it, about the message that came unless told otherwise."""

    def answer(message: bytes) -> bytes:
        control_id = about or message.split(b"|")[9].decode()
        lines = ["MSH|^~\\&|RIS||CHESTCT||20260305||ACK^R01|1|P|2.5.1"]
        lines.append(f"MSA|{code}|{control_id}|{text}")
        lines += [f"ERR|||{error}|E||||in words"] if error else []
        return hl7.START + "\r".join(lines).encode() + b"\r" + hl7.END

    return answer


def test_a_receiver_gets_the_message_whole():
    message = hl7.build(HOSTILE_RESULT, RIS)

    with receiving(acknowledging("AA")) as receiver:
        hl7.send(replace(RIS, port=receiver.port), message)

    assert receiver.received == [message]


@pytest.mark.parametrize(
    ("code", "error", "retriable"),
    [
        ("AE", "", False),
        ("AE", "101^Required field missing^HL70357", False),
        ("AE", "207^Application internal error^HL70357", True),
        ("AR", "", True),
        ("AR", "206^Application record locked^HL70357", True),
        ("AR", "200^Unsupported message type^HL70357", False),
        ("CR", "", True),
    ],
)
def test_what_a_receiver_refuses_is_tried_again_where_it_may_help(
    code: str, error: str, *, retriable: bool
):
    with (
        receiving(acknowledging(code, text="no such order", error=error)) as receiver,
        pytest.raises(MessageError, match=f"ris answered {code}: no such order") as refused,
    ):
        hl7.send(replace(RIS, port=receiver.port), hl7.build(RESULT, RIS))

    assert refused.value.retriable is retriable
    assert ("in words" in str(refused.value)) is bool(error)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: b"", "did not answer within 1 s"),
        (lambda _: None, "closed the connection"),
        (lambda _: hl7.START + b"MSH|^~\\&|half an ans", "closed the connection"),
        (lambda _: hl7.START + b"HTTP/1.1 200 OK" + hl7.END, "something else"),
        (acknowledging("AA", about="another"), "something else"),
    ],
)
def test_no_proper_answer_is_no_success(answer: Callable[[bytes], bytes | None], said: str):
    with (
        receiving(answer) as receiver,
        pytest.raises(MessageError, match=said) as failed,
    ):
        hl7.send(replace(RIS, port=receiver.port), hl7.build(RESULT, RIS))

    assert failed.value.retriable


def test_a_receiver_that_is_away():
    with pytest.raises(MessageError, match=r"ris at 127\.0\.0\.1:1") as failed:
        hl7.send(RIS, hl7.build(RESULT, RIS))

    assert failed.value.retriable


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine, its own authority, and its key beside it."""
    path = tmp_path_factory.mktemp("tls") / "ris.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: no certificate")
    return path


def test_over_tls_only_to_whom_the_authority_vouches_for(certificate: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    message = hl7.build(RESULT, RIS)

    with receiving(acknowledging("AA"), context) as receiver:
        trusted = replace(RIS, port=receiver.port, tls=True, tls_authorities=certificate)
        hl7.send(trusted, message)
        with pytest.raises(MessageError, match="not trusted"):
            hl7.send(replace(trusted, tls_authorities=None), message)
        assert receiver.received == [message]


def test_nobody_is_asked_for_the_password_of_a_key(
    certificate: Path, capfd: pytest.CaptureFixture[str]
):
    locked = certificate.with_name("locked.key")
    openssl(
        *("pkey", "-in", certificate.with_suffix(".key"), "-out", locked),
        *("-aes256", "-passout", "pass:secret"),
    )
    shown = replace(RIS, tls=True, tls_certificate=certificate, tls_key=locked)

    with receiving(acknowledging("AA")) as receiver, pytest.raises(MessageError):
        hl7.send(replace(shown, port=receiver.port), hl7.build(RESULT, RIS))

    assert capfd.readouterr().err == ""
