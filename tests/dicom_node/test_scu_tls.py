"""Calling peers over DICOM TLS: DCMTK's storescp, pynetdicom, and our own listener."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from appliance import collection, logs
from appliance.config import SETTINGS_VARIABLE, Settings, to_toml
from appliance.errors import ConfigError
from appliance.reception import Reception
from appliance.store import Store
from dicom_node import query, scu
from dicom_node.cli import send
from dicom_node.errors import AssociationError, SendError
from dicom_node.scp import listening
from dicom_node.tls import Credentials, Trust
from tests.support.certificates import authority, openssl, signed
from tests.support.instances import Names, as_file, ct_instance
from tests.support.pacs import DCMTK_ENVIRONMENT, HOST, await_port, free_port, pacs

pytestmark = pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("storescp")),
    reason="openssl or DCMTK is not installed: no certificates, no peer",
)
OURS = f"IP:{HOST}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def hospital(folder: Path) -> Path:
    return authority(folder, "hospital")


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Path:
    return authority(folder, "elsewhere")


@pytest.fixture(scope="module")
def ours(folder: Path, hospital: Path) -> Credentials:
    return signed(folder, "appliance", hospital)


@pytest.fixture(scope="module")
def theirs(folder: Path, hospital: Path) -> Credentials:
    return signed(folder, "pacs", hospital, bears=OURS)


@pytest.fixture
def instances(tmp_path: Path) -> Sequence[collection.InstanceFile]:
    as_file(ct_instance(Names.fresh()), tmp_path / "slice.dcm")
    return collection.collect(tmp_path / "slice.dcm", scratch=tmp_path).instances


def trust(by: Credentials | None, authorities: Path, name: str | None = HOST) -> Trust:
    return Trust(
        authorities=authorities,
        name=name,
        certificate=by and by.certificate,
        key=by and by.key,
    )


def to(port: int, tls: Trust | None) -> scu.Destination:
    return scu.Destination(host=HOST, port=port, called_ae="PACS", calling_ae="CHESTCT", tls=tls)


@contextmanager
def storescp(folder: Path, by: Credentials, *options: str) -> Iterator[int]:
    """DCMTK's storage SCP over TLS, which asks for a certificate of the same authorities."""
    port = free_port()
    command = [
        *("storescp", "-od", folder, "+tls", by.key, by.certificate, "+cf", by.authorities),
        *(*options, str(port)),
    ]
    with subprocess.Popen(
        [*map(str, command)],
        env=DCMTK_ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        await_port(port)
        try:
            yield port
        finally:
            process.terminate()


def refusal(port: int, tls: Trust | None) -> str:
    """Why there is no association."""
    with pytest.raises(AssociationError) as caught:
        query.echo(to(port, tls))
    assert caught.value.retriable
    return str(caught.value)


@pytest.mark.parametrize("profile", ["+py", "+px"])
def test_dcmtk_takes_what_is_sent_over_tls(
    instances: Sequence[collection.InstanceFile],
    ours: Credentials,
    theirs: Credentials,
    tmp_path: Path,
    profile: str,
):
    taken = tmp_path / "taken"
    taken.mkdir()
    with storescp(taken, theirs, profile) as port:
        (sent,) = scu.send(instances, to(port, trust(ours, theirs.authorities)))

    assert sent.problem == ""
    assert len(list(taken.iterdir())) == 1


def test_pynetdicom_is_called_in_tls_1_3(theirs: Credentials, ours: Credentials):
    ae = AE("PACS")
    ae.add_supported_context(Verification)
    server = ae.start_server((HOST, 0), block=False, ssl_context=theirs.context())
    try:
        query.echo(to(server.server_address[1], trust(ours, theirs.authorities)))
    finally:
        server.shutdown()


def test_the_own_listener_is_called(
    settings: Settings,
    reception: Reception,
    store: Store,
    theirs: Credentials,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    port = free_port()
    dicom: dict[str, Any] = {
        "min_free_bytes": 0,
        "port": settings.dicom.port,
        "tls_port": port,
        "tls_certificate": str(theirs.certificate),
        "tls_key": str(theirs.key),
        "tls_authorities": str(theirs.authorities),
        "destinations": [
            {"name": "self", "ae_title": "CHESTCT", "host": HOST, "port": port, "tls": True}
        ],
    }
    chosen = Settings.parse({"data_dir": str(settings.data_dir), "dicom": dicom}).dicom
    del dicom["destinations"]
    (tmp_path / "settings.toml").write_text(
        to_toml({"data_dir": str(settings.data_dir), "dicom": dicom})
    )
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "settings.toml"))
    monkeypatch.setattr(logs, "configure", lambda _process: None)
    path = as_file(ct_instance(Names.fresh()), tmp_path / "slice.dcm")

    with listening(chosen, reception, secure=True):
        query.echo(scu.Destination.configured(chosen, "self"))
        done = CliRunner().invoke(send, ["--tls", "--host", HOST, str(path)])

    assert done.exit_code == 0, done.output
    assert len(list(store.objects_dir.rglob("*.dcm"))) == 1


def test_a_certificate_that_nobody_we_trust_has_signed_is_refused(
    ours: Credentials, theirs: Credentials, elsewhere: Path, tmp_path: Path
):
    with storescp(tmp_path, theirs) as port:
        told = refusal(port, trust(ours, elsewhere))

    assert told == (
        f"no TLS with PACS at {HOST}:{port}: no authority that we trust has signed its certificate"
    )


def test_an_expired_certificate_is_refused(ours: Credentials, hospital: Path, tmp_path: Path):
    old = signed(tmp_path, "old", hospital, bears=OURS, days=-1)
    with storescp(tmp_path, old) as port:
        assert "its certificate has expired" in refusal(port, trust(ours, hospital))


@pytest.mark.parametrize("bears", ["DNS:pacs.hospital.example", "IP:127.0.0.2", ""])
def test_a_certificate_of_another_name_is_refused(
    ours: Credentials, hospital: Path, tmp_path: Path, bears: str
):
    other = signed(tmp_path, HOST, hospital, bears=bears)  # the common name does not count
    with storescp(tmp_path, other) as port:
        assert "its certificate bears another name" in refusal(port, trust(ours, hospital))


def test_the_name_in_the_certificate_may_be_told(ours: Credentials, hospital: Path, tmp_path: Path):
    name = "pacs.hospital.example"
    named = signed(tmp_path, "named", hospital, bears=f"DNS:{name}")
    with storescp(tmp_path, named) as port:
        query.echo(to(port, trust(ours, hospital, name)))


def test_one_certificate_without_a_name_may_be_pinned(
    ours: Credentials, hospital: Path, tmp_path: Path
):
    nameless, other = (signed(tmp_path, name, hospital) for name in ("nameless", "other"))
    pinned = trust(ours, nameless.certificate, None)
    with storescp(tmp_path, nameless) as port:
        query.echo(to(port, pinned))
    with storescp(tmp_path, other) as port:
        assert "no authority that we trust" in refusal(port, pinned)


def test_a_peer_without_tls_is_told_apart(ours: Credentials, theirs: Credentials):
    with pacs() as plain:
        told = refusal(plain.port, trust(ours, theirs.authorities))

    assert "TLS" in told.partition("no TLS with")[2]
    assert "on this port" in told


def test_a_peer_that_says_nothing_is_told_apart(
    ours: Credentials, theirs: Credentials, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(scu, "CONNECT_TIMEOUT_S", 1.0)
    with socket.create_server((HOST, 0)) as silent:
        told = refusal(silent.getsockname()[1], trust(ours, theirs.authorities))

    assert "it does not answer in TLS" in told


def test_nobody_there_is_no_matter_of_tls(ours: Credentials, theirs: Credentials):
    assert "nothing listens there" in refusal(free_port(), trust(ours, theirs.authorities))


def test_a_peer_that_wants_a_certificate_says_so(theirs: Credentials, tmp_path: Path):
    with storescp(tmp_path, theirs) as port:
        told = refusal(port, trust(None, theirs.authorities))

    assert "it wants a certificate: set [dicom] tls_certificate and tls_key" in told


def test_a_peer_that_does_not_know_our_authority_says_so(
    theirs: Credentials, elsewhere: Path, tmp_path: Path
):
    stranger = signed(tmp_path, "stranger", elsewhere)
    with storescp(tmp_path, theirs) as port:
        told = refusal(port, trust(stranger, theirs.authorities))

    assert "it does not accept our certificate" in told


def test_files_that_cannot_be_read_are_named(ours: Credentials, tmp_path: Path):
    told = refusal(free_port(), trust(ours, tmp_path / "absent.crt"))

    assert "absent.crt" in told


def test_a_key_with_a_password_is_told_and_nobody_is_asked_for_it(
    ours: Credentials, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", ours.key, "-aes256", "-passout", "pass:secret", "-out", locked)

    told = refusal(free_port(), trust(replace(ours, key=locked), ours.authorities))

    assert "no certificate and its key without a password" in told
    assert capfd.readouterr().err == ""


def test_a_peer_that_stops_within_tls_does_not_hold_us(
    ours: Credentials, theirs: Credentials, monkeypatch: pytest.MonkeyPatch
):
    """TLS 1.3 sends tickets: bytes that are nothing for DICOM."""
    monkeypatch.setattr("dicom_node.tls.SILENCE_S", 0.5)
    monkeypatch.setattr(scu, "CONNECT_TIMEOUT_S", 2.0)
    ended = threading.Event()

    def serve(listening: socket.socket) -> None:
        plain, _ = listening.accept()
        with theirs.context().wrap_socket(plain, server_side=True):
            ended.wait(30)

    with socket.create_server((HOST, 0)) as mute:
        thread = threading.Thread(target=serve, args=(mute,))
        thread.start()
        with pytest.raises(SendError):
            query.echo(to(mute.getsockname()[1], trust(ours, theirs.authorities)))
        ended.set()
        thread.join()


NODE: dict[str, Any] = {"name": "pacs", "ae_title": "PACS", "host": "10.1.0.5", "port": 2762}


@pytest.mark.parametrize(
    ("dicom", "node", "said"),
    [
        ({}, {"tls": True}, "name who signs its certificate"),
        ({}, {"tls_name": "pacs"}, "set tls = true as well"),
        (
            {"tls_authorities": "a.crt"},
            {"tls": True, "tls_name": "*"},
            "tls_authorities of its own",
        ),
        (
            {"tls_authorities": "a.crt", "tls_key": "a.key"},
            {"tls": True},
            "tls_certificate and tls_key go together",
        ),
    ],
)
def test_settings_that_would_trust_nobody_or_everybody_are_refused(
    dicom: dict[str, Any], node: dict[str, Any], said: str
):
    with pytest.raises(ConfigError, match=said):
        Settings.parse({"dicom": {**dicom, "destinations": [{**NODE, **node}]}})


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({}, Trust(authorities=Path("/a.crt"), name="10.1.0.5")),
        ({"tls_name": "pacs.local"}, Trust(authorities=Path("/a.crt"), name="pacs.local")),
        (
            {"tls_name": "*", "tls_authorities": "/pacs.crt"},
            Trust(authorities=Path("/pacs.crt"), name=None),
        ),
    ],
)
def test_a_destination_has_the_trust_of_its_settings(node: dict[str, Any], expected: Trust):
    parsed = Settings.parse(
        {"dicom": {"tls_authorities": "/a.crt", "destinations": [{**NODE, "tls": True, **node}]}}
    )
    without = replace(parsed.dicom.destinations[0], tls=False)

    assert scu.Destination.configured(parsed.dicom, "pacs").tls == expected
    assert Trust.configured(parsed.dicom, without) is None
