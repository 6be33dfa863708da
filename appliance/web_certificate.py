"""The certificate of the web server: the hospital's own, else one that we sign ourselves.

A certificate of our own making keeps listeners out, but no browser knows who signed it: compare
its fingerprint, which `appliance serve` and `appliance doctor` print, or name files of the
hospital's authority in `[web] certificate` and `private_key`. It is made at the first start and
again before it expires.
"""

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.config import Settings
from appliance.database import utc_now
from appliance.errors import ConfigError

GOOD_FOR: Final = timedelta(days=825)  # the most that some systems take of a server's certificate
RENEWED_BEFORE: Final = timedelta(days=30)
LONGEST_COMMON_NAME: Final = 64  # RFC 5280, ub-common-name


@dataclass(frozen=True)
class Certificate:
    """What the web server shows, and until when it is good."""

    file: Path
    key: Path
    fingerprint: str
    expires_at: datetime
    is_own: bool


def prepare(settings: Settings) -> Certificate | None:
    """The certificate to serve with, made if need be; nothing where pages are served by HTTP.

    Raises:
        ConfigError: the files of the settings cannot be used; the text says why.
    """
    web = settings.web
    if not web.serves_https:
        return None
    if web.certificate is not None and web.private_key is not None:
        return _read(web.certificate, web.private_key, is_own=False)
    folder = settings.data_dir / "web"
    file, key = folder / "certificate.pem", folder / "private_key.pem"
    if file.exists() and key.exists():
        found = _read(file, key, is_own=True)
        if found.expires_at - utc_now() > RENEWED_BEFORE:
            return found
    _make(settings, file, key)
    return _read(file, key, is_own=True)


def _read(file: Path, key: Path, *, is_own: bool) -> Certificate:
    try:
        shown = x509.load_pem_x509_certificate(file.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{file} and {key} must be a certificate and its key without a password, both PEM"
        ) from error
    if _public(shown.public_key()) != _public(private.public_key()):
        raise ConfigError(f"{key} is not the key of the certificate {file}")
    return Certificate(
        file=file,
        key=key,
        fingerprint=shown.fingerprint(hashes.SHA256()).hex(":").upper(),
        expires_at=shown.not_valid_after_utc,
        is_own=is_own,
    )


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _make(settings: Settings, file: Path, key: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = socket.getfqdn()[:LONGEST_COMMON_NAME] or "localhost"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = utc_now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + GOOD_FOR)
        .add_extension(x509.SubjectAlternativeName(_names(settings.web.host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    settings.prepare()
    file.parent.mkdir(mode=0o700, exist_ok=True)
    _write(
        key,
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    _write(file, certificate.public_bytes(serialization.Encoding.PEM))


def _names(host: str) -> list[x509.GeneralName]:
    """The names by which this machine may be called."""
    names = dict.fromkeys(("localhost", socket.gethostname(), socket.getfqdn()))
    addresses = dict.fromkeys(("127.0.0.1", "::1"))
    try:
        address = ip_address(host)
    except ValueError:
        names[host] = None
    else:
        if not address.is_unspecified:
            addresses[str(address)] = None
    return [
        *(x509.DNSName(name) for name in names if name),
        *(x509.IPAddress(ip_address(address)) for address in addresses),
    ]


def _write(path: Path, content: bytes) -> None:
    """Write a file whole, readable by this user alone."""
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
