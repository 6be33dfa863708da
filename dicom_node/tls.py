"""DICOM TLS as BCP 195 asks for (PS3.15 annex B; RFC 9325), both sides with a certificate.

TLS 1.2 or 1.3, ephemeral keys and authenticated ciphers alone. Certificates are looked at again
with every connection, so a renewed one needs no restart.
"""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from appliance.config import DicomSettings
from dicom_node.errors import DicomNodeError

log = structlog.get_logger()

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2, RFC 9325 section 4.2


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

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return what our side of a connection is made with.

        Raises:
            DicomNodeError: a file cannot be read, or is none of the kind.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key)
            context.load_verify_locations(self.authorities)
        except (OSError, ssl.SSLError) as error:  # the text of the first may lack the file's name
            files = ", ".join(str(path) for path in (self.certificate, self.key, self.authorities))
            raise DicomNodeError(f"DICOM TLS: {error} (files: {files})") from error
        return context

    def stamps(self) -> tuple[int, ...]:
        """Return what changes when one of the files does; raises OSError."""
        files = (self.certificate, self.key, self.authorities)
        return tuple(file.stat().st_mtime_ns for file in files)


class ServerContext:
    """The listener's context, made anew when a file has changed."""

    def __init__(self, credentials: Credentials) -> None:
        """Read the files; raises DicomNodeError."""
        self._credentials = credentials
        self._lock = threading.Lock()
        self._context = credentials.context(server=True)
        self._stamps: tuple[int, ...] = ()  # a file that changed meanwhile is read again

    def current(self) -> ssl.SSLContext:
        """Return the context of the files as they are; while they are broken, the last good one."""
        with self._lock:
            try:
                stamps = self._credentials.stamps()
                if stamps != self._stamps:
                    self._context = self._credentials.context(server=True)
                    if self._stamps:
                        log.info("tls.certificates_renewed")
                    self._stamps = stamps
            except (OSError, DicomNodeError) as error:
                log.warning("tls.certificates_unusable", reason=str(error))
            return self._context
