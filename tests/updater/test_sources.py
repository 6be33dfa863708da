import ipaddress
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tuf.api.exceptions import DownloadError

from tests.support.mirror import Mirror, mirror, saying
from tests.support.pacs import free_port
from tests.support.vendor import Appliance, Vendor, new_vendor
from updater.errors import (
    ClockError,
    IncompleteError,
    UnreachableError,
    UpdateError,
    WebPageError,
)
from updater.sources import HttpFetcher, MediaFetcher

NOW = datetime.now(UTC)


@pytest.fixture
def vendor(tmp_path: Path) -> Vendor:
    vendor = new_vendor(tmp_path / "vendor")
    vendor.publish("1.0.0")
    return vendor


@pytest.fixture
def appliance(tmp_path: Path, vendor: Vendor) -> Appliance:
    return Appliance(tmp_path / "appliance", vendor.root())


@pytest.fixture
def served(vendor: Vendor) -> Iterator[Mirror]:
    with mirror(vendor.served) as served:
        yield served


def certificate(folder: Path, *, valid_from: datetime) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "updates")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(valid_from)
        .not_valid_after(valid_from + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "updates.crt", folder / "updates.key"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


def refusal(appliance: Appliance, place: str) -> UpdateError:
    """What the administrator is told: one sentence that names the place."""
    with pytest.raises(UpdateError) as refused:
        appliance.versions(place)
    text = str(refused.value)
    assert place in text
    assert text.endswith(".")
    assert "\n" not in text
    return refused.value


def test_updates_come_by_http_and_from_a_folder_alike(
    tmp_path: Path, vendor: Vendor, appliance: Appliance, served: Mirror
):
    disk = shutil.copytree(vendor.served, tmp_path / "usb")

    assert appliance.versions(served.url) == ["1.0.0"]
    assert Appliance(tmp_path / "other", vendor.root()).versions(disk) == ["1.0.0"]


def test_updates_come_by_https_where_the_system_knows_the_authority(
    tmp_path: Path, vendor: Vendor, appliance: Appliance, monkeypatch: pytest.MonkeyPatch
):
    paths = certificate(tmp_path, valid_from=NOW - timedelta(days=1))
    with mirror(vendor.served, paths) as served:
        unknown = refusal(appliance, served.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(paths[0]))
        assert appliance.versions(served.url) == ["1.0.0"]

    assert isinstance(unknown, UnreachableError)
    assert "certificate verify failed" in str(unknown)


@pytest.mark.parametrize(("days", "said"), [(10, "not yet valid"), (-40, "has expired")])
def test_a_clock_and_a_certificate_of_two_times_are_named(
    tmp_path: Path,
    vendor: Vendor,
    appliance: Appliance,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    said: str,
):
    paths = certificate(tmp_path, valid_from=NOW + timedelta(days=days))
    monkeypatch.setenv("SSL_CERT_FILE", str(paths[0]))

    with mirror(vendor.served, paths) as served:
        refused = refusal(appliance, served.url)

    assert isinstance(refused, ClockError)
    assert said in str(refused)


def test_a_clock_ahead_of_the_servers_is_named(tmp_path: Path):
    """Vendor and server live in a past that this machine's clock has left."""
    then = NOW - timedelta(days=40)
    vendor = new_vendor(tmp_path / "vendor", lambda: then)
    appliance = Appliance(tmp_path / "appliance", vendor.root())

    with mirror(vendor.served) as served:
        served.now = then
        refused = refusal(appliance, served.url)

    assert isinstance(refused, ClockError)
    assert f"{NOW:%Y-%m-%d}" in str(refused)
    assert f"{then:%Y-%m-%d %H:%M}" in str(refused)


def test_a_date_that_is_none_is_no_clock(vendor: Vendor, served: Mirror):
    fetcher = HttpFetcher()
    served.instead["timestamp.json"] = saying(b"{}", date="yesterday")

    fetcher.download_bytes(f"{served.url}/metadata/timestamp.json", 100)

    assert fetcher.server_time is None


def test_a_proxy_that_answers_with_a_page_is_named(
    vendor: Vendor, appliance: Appliance, served: Mirror
):
    served.instead["timestamp.json"] = saying(b" \n<!DOCTYPE html><title>Sign in</title>")
    assert isinstance(refusal(appliance, served.url), WebPageError)

    served.instead.clear()
    served.instead[".tar"] = saying(b"<html>blocked</html>")
    assert isinstance(refusal(appliance, served.url), WebPageError)


def test_the_environments_proxy_is_used(
    vendor: Vendor, appliance: Appliance, served: Mirror, monkeypatch: pytest.MonkeyPatch
):
    """What asks a proxy sends it the whole address."""
    monkeypatch.setenv("http_proxy", served.url)
    monkeypatch.setenv("no_proxy", "")

    refused = refusal(appliance, "http://updates.invalid")

    assert isinstance(refused, IncompleteError)
    assert served.requests[0][0] == "http://updates.invalid/metadata/2.root.json"


@pytest.mark.parametrize("status", [401, 403, 407, 500, 503])
def test_a_server_that_refuses_is_quoted(appliance: Appliance, served: Mirror, status: int):
    served.instead["timestamp.json"] = saying(b"<html>no</html>", status=status)

    refused = refusal(appliance, served.url)

    assert isinstance(refused, UnreachableError)
    assert str(status) in str(refused)


def test_a_server_that_is_not_there_is_named(appliance: Appliance):
    refused = refusal(appliance, f"http://127.0.0.1:{free_port()}")

    assert isinstance(refused, UnreachableError)
    assert "Connection refused" in str(refused)


def test_a_disk_that_is_not_there_is_named(tmp_path: Path, appliance: Appliance):
    assert isinstance(refusal(appliance, str(tmp_path / "usb")), UnreachableError)


def test_a_disk_with_something_else_on_it_is_named(tmp_path: Path, appliance: Appliance):
    (tmp_path / "usb").mkdir()

    refused = refusal(appliance, str(tmp_path / "usb"))

    assert isinstance(refused, IncompleteError)
    assert "metadata/timestamp.json" in str(refused)


def test_a_disk_that_cannot_be_read_is_named(tmp_path: Path):
    """Opening it works, reading does not: /proc/self/mem at 0 answers EIO, as bad sectors do."""
    (tmp_path / "file").symlink_to("/proc/self/mem")

    with pytest.raises(DownloadError, match=os.strerror(5)):
        MediaFetcher(tmp_path).download_bytes("file", 100)
