"""Authorities and the certificates they sign, made by OpenSSL."""

import subprocess
from pathlib import Path

from dicom_node.tls import Credentials


def new_key(curve: str = "P-256") -> tuple[str, ...]:
    """What makes a key on an elliptic curve, which takes no time."""
    return ("-newkey", "ec", "-pkeyopt", f"ec_paramgen_curve:{curve}", "-nodes")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str, *, curve: str = "P-256") -> Path:
    """Make an authority that signs certificates; returns its own."""
    certificate = folder / f"{name}.crt"
    openssl(
        *("req", "-x509", *new_key(curve), "-days", 2, "-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", certificate),
    )
    return certificate


def signed(folder: Path, name: str, by: Path, *, bears: str = "", days: int = 2) -> Credentials:
    """Make a key and a certificate signed by an authority.

    `bears` is its subjectAltName, as "IP:127.0.0.1"; with `days` below 0 it has expired.
    """
    key, certificate, asked, more = (
        folder / f"{name}.{end}" for end in ("key", "crt", "csr", "ext")
    )
    openssl(*("req", *new_key(), "-subj", f"/CN={name}"), *("-keyout", key, "-out", asked))
    more.write_text(f"subjectAltName={bears}\n" if bears else "")
    openssl(
        *("x509", "-req", "-in", asked, "-days", days, "-CA", by, "-CAkey", by.with_suffix(".key")),
        *("-CAcreateserial", "-out", certificate, "-extfile", more),
    )
    return Credentials(certificate, key, by)
