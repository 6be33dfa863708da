"""DICOM TLS as BCP 195 asks for (PS3.15 annex B; RFC 9325), as server and as client.

TLS 1.2 or 1.3, ephemeral keys and authenticated ciphers alone. Certificates are looked at again
with every connection, so a renewed one needs no restart. Who calls us shows a certificate.

Whom we call shows one that leads to the authorities named for it, always, and that bears its name:
the host of the settings, or `tls_name` where the certificate has another, as where the settings
have a bare address. Names are those of subjectAltName (RFC 9525); of a certificate that has none
there, the authorities are the whole test: `tls_name` "*" takes any certificate of the destination's
own `tls_authorities`, which may hold that one certificate and nothing else.
"""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import structlog

from appliance import certificates
from appliance.config import ANY_NAME, DestinationSettings, DicomSettings
from dicom_node.errors import DicomNodeError

log = structlog.get_logger()

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, RFC 9325 section 4.2
SILENCE_S: Final = 30.0  # between two pieces of a record

# What OpenSSL has against a certificate: X509_V_ERR_* of x509_vfy.h.
CERTIFICATE_FAULTS: Final = {
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    **dict.fromkeys((2, 18, 19, 20, 21), "no authority that we trust has signed its certificate"),
    **dict.fromkeys((62, 64), "its certificate bears another name"),
}
# What the peer says it has against ours (RFC 8446 section 6.2), as OpenSSL spells it.
WANTS_A_CERTIFICATE: Final = frozenset(
    {"SSLV3_ALERT_HANDSHAKE_FAILURE", "TLSV13_ALERT_CERTIFICATE_REQUIRED"}
)
REFUSES_OURS: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
TOO_OLD: Final = frozenset(
    {"TLSV1_ALERT_INSUFFICIENT_SECURITY", "TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"}
)
NO_TLS: Final = frozenset({"HTTP_REQUEST", "WRONG_VERSION_NUMBER"})


@dataclass(frozen=True)
class Credentials:
    """PEM files: our certificate with its chain, its key, and the authorities peers belong to."""

    certificate: Path
    key: Path
    authorities: Path

    @classmethod
    def of(cls, settings: DicomSettings) -> Self:
        """Return those of the `[dicom]` table.

        Raises:
            DicomNodeError: one is not named.
        """
        named = {
            "tls_certificate": settings.tls_certificate,
            "tls_key": settings.tls_key,
            "tls_authorities": settings.tls_authorities,
        }
        if missing := [name for name, path in named.items() if path is None]:
            raise DicomNodeError(f"DICOM TLS needs [dicom] {', '.join(missing)}")
        return cls(*(Path(path) for path in named.values() if path is not None))

    def context(self) -> ssl.SSLContext:
        """Return what our side of a connection that comes in is made with.

        Raises:
            DicomNodeError: a file cannot be read, or is none of the kind.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _profile(context, self.authorities, self.certificate, self.key)
        return context

    def stamps(self) -> tuple[int, ...]:
        """Return what changes when one of the files does; raises OSError."""
        files = (self.certificate, self.key, self.authorities)
        return tuple(file.stat().st_mtime_ns for file in files)


class ServerContext:
    """The listener's context, made anew when a file has changed."""

    def __init__(self, credentials: Credentials, *, patient: bool = False) -> None:
        """Read the files; raises DicomNodeError unless it may wait until they are mended."""
        self._credentials = credentials
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[int, ...] = ()  # a file that changed meanwhile is read again
        try:
            self._context = credentials.context()
        except DicomNodeError as error:
            if not patient:
                raise
            log.error("tls.certificates_unusable", reason=str(error))  # noqa: TRY400 - it is said

    def current(self) -> ssl.SSLContext | None:
        """Return the context of the files as they are; while they are broken, the last good one.

        None where there never was one.
        """
        with self._lock:
            try:
                stamps = self._credentials.stamps()
                if stamps != self._stamps:
                    self._context = self._credentials.context()
                    if self._stamps:
                        log.info("tls.certificates_renewed")
                    self._stamps = stamps
            except (OSError, DicomNodeError) as error:
                log.warning("tls.certificates_unusable", reason=str(error))
            return self._context


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a peer must show when we call it, and what we show it.

    Attributes:
        authorities: PEM; the certificates that its own must lead to.
        name: the name or address in its certificate; None for any that leads there.
        certificate: ours with its chain, PEM, and `key`; None where we show none.
    """

    authorities: Path
    name: str | None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def configured(cls, dicom: DicomSettings, node: DestinationSettings) -> Self | None:
        """Return what the settings say of a destination; None if it is called without TLS.

        Raises:
            DicomNodeError: no authorities are named.
        """
        if not node.tls:
            return None
        name = None if node.tls_name == ANY_NAME else node.tls_name or node.host
        return cls.of_node(dicom, name, authorities=node.tls_authorities)

    @classmethod
    def of_node(
        cls, dicom: DicomSettings, name: str | None, *, authorities: Path | None = None
    ) -> Self:
        """Return what a peer must show that has this name, by the files of the `[dicom]` table.

        Raises:
            DicomNodeError: no authorities are named.
        """
        trusted = authorities or dicom.tls_authorities
        if trusted is None:
            raise DicomNodeError("DICOM TLS needs [dicom] tls_authorities")
        return cls(
            authorities=trusted,
            name=name,
            certificate=dicom.tls_certificate,
            key=dicom.tls_key,
        )

    def context(self) -> "CallContext":
        """Return what one call is made with.

        Raises:
            DicomNodeError: a file cannot be read, or is none of the kind.
        """
        context = CallContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.name is not None
        context.hostname_checks_common_name = False
        # A certificate among the authorities is trusted as it is, whoever signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _profile(context, self.authorities, self.certificate, self.key)
        context.shows_certificate = self.certificate is not None
        return context


class CallContext(ssl.SSLContext):
    """The context of one call, which keeps what went wrong: pynetdicom tells nobody."""

    shows_certificate = False
    failure: OSError | None = None

    def reason(self) -> str:
        """Return why there is no secure connection, in words; "" if TLS is not to blame."""
        match self.failure:
            case None:
                return ""
            case ssl.SSLCertVerificationError() as error:
                told = error.verify_message or "it cannot be verified"
                return CERTIFICATE_FAULTS.get(error.verify_code, f"its certificate: {told}")
            case ssl.SSLError(reason=reason) if reason in NO_TLS:
                return "it does not speak TLS on this port"
            case ssl.SSLError(reason=reason) if reason in TOO_OLD:
                return "it speaks neither TLS 1.2 nor 1.3 in a way that is secure today"
            case ssl.SSLError(reason=reason) if reason in REFUSES_OURS:
                return f"it does not accept our certificate ({reason})"
            case ssl.SSLError(reason=reason) if reason in WANTS_A_CERTIFICATE:
                if not self.shows_certificate:
                    return "it wants a certificate: set [dicom] tls_certificate and tls_key"
                return "it accepts neither our certificate nor our ciphers"
            case TimeoutError():
                return "it does not answer in TLS; perhaps it speaks none on this port"
            case _:
                return (
                    "it ended the connection while TLS began: it speaks none on this port, or it"
                    " does not accept " + ("our certificate" if self.shows_certificate else "us")
                )


class CallSocket(ssl.SSLSocket):
    """A connection of ours to a peer; tells its `CallContext` what fails, and is closed then.

    pynetdicom would leave it open where the peer has gone already.
    """

    _begun = False

    def connect(self, addr: Any) -> None:
        try:
            super().connect(addr)
        except OSError:
            self.close()
            raise

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as in the base
        self._begun = True
        with self._noted():
            super().do_handshake(block)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Return some bytes; of TLS 1.3 the first ones show whether the peer takes us.

        In time, for pynetdicom comes here for any record of TLS, also one that holds nothing for
        it, and would wait for the next without end.
        """
        if not self._begun:  # the base class looks whether anything came before the handshake
            return super().recv(buflen, flags)
        self.settimeout(SILENCE_S)
        with self._noted():
            received = super().recv(buflen, flags)
        self.settimeout(None)
        return received

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cast("CallContext", self.context).failure = error
            self.close()
            raise


CallContext.sslsocket_class = CallSocket


def _profile(
    context: ssl.SSLContext, authorities: Path, certificate: Path | None, key: Path | None
) -> None:
    """Make a context one of BCP 195 with these files; raises DicomNodeError."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    if problem := certificates.load(context, certificate, key, authorities):
        raise DicomNodeError(f"DICOM TLS: {problem}")
