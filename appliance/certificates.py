"""Whether the files of DICOM TLS can be used, and for how long: said before a peer finds out.

The listener reads them by itself (`dicom_node.tls`) and goes on with what it has while they are
broken.
"""

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509 import Certificate, load_pem_x509_certificates

from appliance.config import DicomSettings


@dataclass(frozen=True)
class Look:
    """What the files are worth; `problem` is "" where they can be used."""

    problem: str
    left: timedelta = timedelta(0)
    """How long until the first certificate of our chain expires."""


def look(dicom: DicomSettings, *, now: datetime) -> Look | None:
    """What the files of `[dicom]` are worth now; None where nothing listens for TLS."""
    if dicom.tls_port is None:
        return None
    certificate, key, authorities = dicom.tls_certificate, dicom.tls_key, dicom.tls_authorities
    if certificate is None or key is None or authorities is None:
        return Look("[dicom] tls_port needs tls_certificate, tls_key and tls_authorities")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if problem := load(context, certificate, key, authorities):
        return Look(problem)
    try:
        chain = load_pem_x509_certificates(certificate.read_bytes())
    except ValueError:  # OpenSSL takes more than X.509, its own "trusted" ones for example
        return Look(f"{certificate} holds something else than plain X.509 certificates in PEM")
    if any(not _issued(one, by) for one, by in pairwise(chain)):
        return Look(f"{certificate} is no chain: each certificate is to be signed by the next")
    if any(one.not_valid_before_utc > now for one in chain):
        return Look(f"{certificate} is not valid yet")
    left = min(one.not_valid_after_utc for one in chain) - now
    return Look(f"{certificate} has expired" if left <= timedelta(0) else "", left)


def load(
    context: ssl.SSLContext, certificate: Path | None, key: Path | None, authorities: Path
) -> str:
    """Load files into a context; returns what is wrong with them, "" for nothing."""
    try:
        for file in filter(None, (certificate, key, authorities)):
            file.read_bytes()
        if certificate is not None:  # without a password one would be asked for
            context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key {key} does not belong to the certificate {certificate}"
        return f"{certificate} and {key} are no certificate and its key without a password, in PEM"
    except OSError as error:
        return f"{error.filename or certificate} cannot be read: {error.strerror}"
    try:
        context.load_verify_locations(authorities)
    except OSError:
        return f"{authorities} holds no certificate in PEM"
    return ""


def _issued(one: Certificate, by: Certificate) -> bool:
    try:
        one.verify_directly_issued_by(by)
    except UnsupportedAlgorithm:  # OpenSSL knows it, and nothing speaks against it
        return True
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True
