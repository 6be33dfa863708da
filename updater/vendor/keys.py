"""The keys that sign: Ed25519 in encrypted PEM files, each named after its role and its id.

A key file is found by its id, in whichever folder or on whichever stick it is at hand. Whatever
else securesystemslib has a `Signer` for, such as a PKCS#11 token, would be found here as well.

OpenSSL's encryption makes guessing cheap, 2048 rounds of PBKDF2. So a file's password is not the
passphrase but what scrypt (RFC 7914) makes of it.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from pipelines.files import sync_folder
from updater.vendor.errors import VendorError

SHORTEST_PASSPHRASE: Final = 12  # characters
ID_CHARACTERS: Final = 8
SCRYPT_COST: Final = 2**17  # a third of a second and 128 MiB for each guess, OWASP 2023
SCRYPT_BLOCK: Final = 8


class Passphrases(Protocol):
    """Asks a person for the passphrase of a key."""

    def __call__(self, name: str, *, new: bool) -> str:
        """Return the passphrase of the key of this name, or one for a key to be made."""


class Keyring:
    """The private keys at hand, opened as they are needed."""

    def __init__(self, folders: Sequence[Path], passphrases: Passphrases) -> None:
        self.folders = folders
        self._passphrases = passphrases
        self._opened: dict[str, Signer] = {}

    def create(self, role: str) -> Key:
        """Make a key for a role in the first folder and return its public half.

        Raises:
            VendorError: the passphrase is too short.
        """
        private = Ed25519PrivateKey.generate()
        public = SSlibKey.from_crypto(private.public_key())
        name = _name(role, public)
        passphrase = self._passphrases(name, new=True)
        if len(passphrase) < SHORTEST_PASSPHRASE:
            raise VendorError(f"A passphrase has at least {SHORTEST_PASSPHRASE} characters.")
        encryption = BestAvailableEncryption(_password(passphrase, public))
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        folder = self.folders[0]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(folder / name, "xb", opener=_private) as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
        self._opened[public.keyid] = CryptoSigner(private, public)
        return public

    def signer(self, role: str, key: Key) -> Signer | None:
        """Return what signs with the private half of a key; None if it is not at hand.

        Raises:
            VendorError: the passphrase or the file is wrong.
        """
        if key.keyid not in self._opened:
            if (path := self.path(role, key)) is None:
                return None
            self._opened[key.keyid] = self._open(path, key)
        return self._opened[key.keyid]

    def path(self, role: str, key: Key) -> Path | None:
        """Return the file of a key, if it is at hand."""
        paths = (folder / _name(role, key) for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    def _open(self, path: Path, key: Key) -> Signer:
        passphrase = self._passphrases(path.name, new=False)
        try:
            private = load_pem_private_key(path.read_bytes(), _password(passphrase, key))
            if not isinstance(key, SSlibKey) or not isinstance(private, Ed25519PrivateKey):
                raise VendorError(f"{path} is no Ed25519 key.")
            return CryptoSigner(private, key)
        except ValueError as error:
            raise VendorError(f"{path} does not open: is this its passphrase?") from error


def _password(passphrase: str, key: Key) -> bytes:
    stretched = hashlib.scrypt(
        passphrase.encode(),
        salt=key.keyid.encode(),
        n=SCRYPT_COST,
        r=SCRYPT_BLOCK,
        p=1,
        maxmem=128 * SCRYPT_BLOCK * (SCRYPT_COST + 4),
    )
    return stretched.hex().encode()


def _name(role: str, key: Key) -> str:
    return f"{role}-{key.keyid[:ID_CHARACTERS]}.pem"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
