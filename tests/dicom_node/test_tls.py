"""DICOM TLS with DCMTK as the peer, and without a certificate."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian
from structlog.testing import capture_logs

from appliance import certificates, doctor, status
from appliance.config import Settings
from appliance.database import Database, utc_now
from appliance.reception import Reception
from appliance.store import Incoming, Store
from dicom_node import scp
from dicom_node.errors import DicomNodeError
from dicom_node.scp import Listener, listening
from dicom_node.tls import Credentials, ServerContext
from tests.support.certificates import authority, openssl, signed
from tests.support.instances import Names, as_file, ct_instance, dataset_bytes, encoded
from tests.support.pacs import DCMTK_ENVIRONMENT, HOST, await_port, echo, free_port, store

pytestmark = pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("storescu")),
    reason="openssl or DCMTK is not installed: no certificates, no peer",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def hospital(folder: Path) -> Path:
    return authority(folder, "hospital")


@pytest.fixture(scope="module")
def scanner(folder: Path, hospital: Path) -> Credentials:
    return signed(folder, "scanner", hospital)


@pytest.fixture
def ours(tmp_path: Path, hospital: Path) -> Credentials:
    return signed(tmp_path, "appliance", hospital)


@pytest.fixture
def listener(settings: Settings, reception: Reception, ours: Credentials):
    chosen = replace(
        settings.dicom,
        tls_port=free_port(),
        tls_certificate=ours.certificate,
        tls_key=ours.key,
        tls_authorities=ours.authorities,
        network_timeout_s=3,
    )
    with listening(chosen, reception, secure=True) as running:
        yield running


def storescu(listener: Listener, path: Path, by: Credentials) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *("storescu", "-aec", "CHESTCT", "+tls", by.key, by.certificate),
            *("+cf", by.authorities, HOST, str(listener.port), path),
        ],
        env=DCMTK_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def reached(listener: Listener, context: ssl.SSLContext) -> bool:
    """Whether the handshake came to its end; in TLS 1.3 the first read tells."""
    try:
        with (
            socket.create_connection((HOST, listener.port), timeout=10) as plain,
            context.wrap_socket(plain) as secured,
        ):
            secured.settimeout(1)
            return bool(secured.recv(1))
    except TimeoutError:
        return True  # it waits for an A-ASSOCIATE-RQ
    except OSError:
        return False


def test_a_known_scanner_stores_over_tls(
    listener: Listener, store: Store, scanner: Credentials, tmp_path: Path
):
    ds = ct_instance(Names.fresh(), PixelData=os.urandom(300_000))
    path = as_file(ds, tmp_path / "slice.dcm")

    done = storescu(listener, path, scanner)

    assert done.returncode == 0, done.stderr
    (file,) = store.objects_dir.rglob("*.dcm")
    assert dataset_bytes(file) == encoded(ds)


@pytest.mark.parametrize("stranger", ["of another authority", "without a certificate"])
def test_a_stranger_is_refused_and_nobody_else(
    listener: Listener, scanner: Credentials, tmp_path: Path, stranger: str
):
    other = signed(tmp_path, "stranger", authority(tmp_path, "elsewhere"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(scanner.authorities)
    if stranger == "of another authority":
        context.load_cert_chain(other.certificate, other.key)

    assert not reached(listener, context)
    context.load_cert_chain(scanner.certificate, scanner.key)
    assert reached(listener, context)


def test_tls_1_1_is_refused(listener: Listener, scanner: Credentials):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_verify_locations(scanner.authorities)
    context.load_cert_chain(scanner.certificate, scanner.key)
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1

    assert not reached(listener, context)


def test_who_speaks_without_tls_is_dropped_in_time(listener: Listener):
    assert not echo(listener.port)
    with socket.create_connection((HOST, listener.port), timeout=10) as silent:
        assert silent.recv(1) == b""


def test_a_renewed_certificate_needs_no_restart(
    listener: Listener, ours: Credentials, scanner: Credentials, tmp_path: Path
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(scanner.authorities)
    context.load_cert_chain(scanner.certificate, scanner.key)

    def serial() -> str:
        with (
            socket.create_connection((HOST, listener.port), timeout=10) as plain,
            context.wrap_socket(plain) as secured,
        ):
            return str(secured.getpeercert()["serialNumber"])

    before = serial()
    renewed = signed(tmp_path, "renewed", ours.authorities)
    ours.key.write_bytes(renewed.key.read_bytes())
    ours.certificate.write_bytes(renewed.certificate.read_bytes())
    after = serial()
    ours.certificate.write_text("half")
    with capture_logs() as logs:
        assert serial() == after

    assert before != after
    assert [entry["event"] for entry in logs if "tls" in entry["event"]] == [
        "tls.certificates_unusable"
    ]


def test_tls_without_its_files_is_refused_by_name(settings: Settings, reception: Reception):
    chosen = replace(settings.dicom, tls_port=free_port())

    with (
        pytest.raises(DicomNodeError, match="tls_certificate, tls_key, tls_authorities"),
        listening(chosen, reception, secure=True),
    ):
        pass


def test_a_broken_certificate_stops_no_plain_dicom_and_is_taken_once_it_is_mended(
    settings: Settings, reception: Reception, ours: Credentials, scanner: Credentials
):
    good = ours.certificate.read_text()
    ours.certificate.write_text("broken")
    chosen = replace(
        settings.dicom,
        tls_port=free_port(),
        tls_certificate=ours.certificate,
        tls_key=ours.key,
        tls_authorities=ours.authorities,
    )
    with pytest.raises(DicomNodeError, match="DICOM TLS"):
        scp.Listener(replace(chosen, tls_only=True), reception, secure=True)

    with (
        capture_logs() as logs,
        listening(chosen, reception) as plain,
        listening(chosen, reception, secure=True) as secured,
    ):
        assert echo(plain.port)
        looked = certificates.look(chosen, now=utc_now())
        assert looked is not None
        assert "are no certificate and its key" in looked.problem
        assert status.security(chosen) == [f"DICOM TLS is not in order: {looked.problem}"]
        assert not shakes_hands(secured.port, scanner)
        ours.certificate.write_text(good)
        assert shakes_hands(secured.port, scanner)
        assert status.security(chosen) == []
    assert "tls.certificates_unusable" in [entry["event"] for entry in logs]


def shakes_hands(port: int, peer: Credentials) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(peer.authorities)
    context.load_cert_chain(peer.certificate, peer.key)
    try:
        with (
            socket.create_connection((HOST, port), timeout=10) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except OSError:
        return False


def test_the_files_of_tls_are_looked_at_before_a_peer_finds_out(
    settings: Settings, tmp_path: Path, hospital: Path, ours: Credentials, scanner: Credentials
):
    def problem(**changes: Path) -> str:
        files = {
            "tls_certificate": ours.certificate,
            "tls_key": ours.key,
            "tls_authorities": ours.authorities,
        }
        chosen = replace(settings.dicom, tls_port=1, **{**files, **changes})
        looked = certificates.look(chosen, now=utc_now())
        assert looked is not None
        return looked.problem

    late = signed(tmp_path, "late", hospital, days=-1)
    both = tmp_path / "both.crt"
    both.write_bytes(ours.certificate.read_bytes() + scanner.certificate.read_bytes())
    trusted = tmp_path / "trusted.crt"
    openssl("x509", "-in", ours.certificate, "-trustout", "-out", trusted)
    # OpenSSL knows curves that nothing else here does.
    rare = authority(tmp_path, "rare", curve="brainpoolP256t1")
    leaf = signed(tmp_path, "leaf", rare)
    chain = tmp_path / "chain.crt"
    chain.write_bytes(leaf.certificate.read_bytes() + rare.read_bytes())
    absent = tmp_path / "absent.pem"
    good = replace(settings, dicom=replace(settings.dicom, tls_port=1, **vars_of(ours)))
    (soon,) = doctor.check_tls(good)

    assert problem() == ""
    assert "does not belong to" in problem(tls_key=scanner.key)
    assert "cannot be read: No such file" in problem(tls_authorities=absent)
    assert "holds no certificate" in problem(tls_authorities=ours.key)
    assert "has expired" in problem(tls_certificate=late.certificate, tls_key=late.key)
    assert "is no chain" in problem(tls_certificate=both)
    assert problem(tls_certificate=chain, tls_key=leaf.key) == ""
    assert "something else than plain X.509" in problem(tls_certificate=trusted)
    assert certificates.look(settings.dicom, now=utc_now()) is None
    assert (soon.well, soon.text) == (False, "the certificate is good for 1 days")
    assert list(doctor.check_tls(settings)) == []


def vars_of(files: Credentials) -> dict[str, Path]:
    return {f"tls_{name}": path for name, path in vars(files).items()}


def test_both_ports_stop_in_the_time_of_one(
    settings: Settings, database: Database, ours: Credentials, monkeypatch: pytest.MonkeyPatch
):
    entered, leave, stopping = threading.Event(), threading.Event(), threading.Event()

    class Slow(Store):
        def incoming(self) -> Incoming:
            entered.set()
            leave.wait(30)
            return super().incoming()

    monkeypatch.setattr(scp, "Store", Slow)
    monkeypatch.setattr(scp, "STOP_GRACE_S", 2.0)
    monkeypatch.setattr(scp, "FAREWELL_S", 0.5)
    secured = {
        "tls_certificate": ours.certificate,
        "tls_key": ours.key,
        "tls_authorities": ours.authorities,
    }
    chosen = replace(settings.dicom, port=free_port(), tls_port=free_port(), **secured)
    instance = ct_instance(Names.fresh())
    with ThreadPoolExecutor(2) as pool:
        serving = pool.submit(scp.serve, replace(settings, dicom=chosen), stopping)
        for port in chosen.ports.values():
            await_port(port)
        syntax = ExplicitVRLittleEndian
        storing = pool.submit(store, chosen.port, instance, transfer_syntax_uid=syntax)
        assert entered.wait(10)
        began_at = time.monotonic()
        stopping.set()
        serving.result(30)
        took_s = time.monotonic() - began_at
        leave.set()
        storing.result(30)

    assert 2.0 <= took_s < 4.0


def test_a_certificate_that_is_renewed_while_it_is_read_is_read_again(ours: Credentials):
    read: list[ssl.SSLContext] = []

    class Renewed(Credentials):
        def context(self) -> ssl.SSLContext:
            read.append(super().context())
            if len(read) == 1:
                os.utime(self.certificate, ns=(1, 1))
            return read[-1]

    server = ServerContext(Renewed(ours.certificate, ours.key, ours.authorities))

    assert server.current() is server.current() is read[1]
