"""A model as one file: a tar that is the same, byte for byte, whenever it is made of the same."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from updater.offers import PURPOSE, VERSION
from updater.vendor.errors import VendorError

MEMBERS: Final = ("config.json", "model_card.md", "weights.safetensors")
REQUIREMENTS: Final = "bundle.json"
SUMS: Final = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A model, ready to be published."""

    purpose: str
    version: str
    minimum_software: str
    content: bytes


def build(folder: Path, minimum_software: str) -> Bundle:
    """Return the model in a folder of weights as a bundle.

    Raises:
        VendorError: a file is missing or not what the folder's checksums say.
    """
    if not VERSION.fullmatch(minimum_software):
        raise VendorError(f"'{minimum_software}' is no release such as 0.1.0.")
    files = {name: _read(folder / name) for name in MEMBERS}
    _check(folder, files)
    try:
        config = json.loads(files["config.json"])
        purpose, version = str(config["purpose"]), str(config["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise VendorError(
            f"{folder / 'config.json'} does not say the model's purpose and version."
        ) from error
    if not (PURPOSE.fullmatch(purpose) and VERSION.fullmatch(version)):
        raise VendorError(
            f"{folder / 'config.json'} says purpose '{purpose}' and version '{version}'; such as "
            "'lungs' and '1.10.0' are wanted."
        )
    requirements = {"minimum_software": minimum_software}
    files[REQUIREMENTS] = (json.dumps(requirements, indent=2) + "\n").encode()
    sums = (f"{_digest(files[name])}  {name}\n" for name in sorted(files))
    files[SUMS] = "".join(sums).encode()
    return Bundle(purpose, version, minimum_software, _tar(files))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VendorError(
            f"{path} cannot be read ({error.strerror}): only a trained model with its card can be "
            "published."
        ) from error


def _check(folder: Path, files: dict[str, bytes]) -> None:
    """Refuse weights that are not those that were trained and measured together."""
    lines = _read(folder / SUMS).decode().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        if name in files and _digest(files[name]) != digest:
            raise VendorError(f"{folder / name} is not what {folder / SUMS} says.")
    listed = {line.partition("  ")[2] for line in lines}
    if missing := {"config.json", "weights.safetensors"} - listed:
        raise VendorError(f"{folder / SUMS} does not list {', '.join(sorted(missing))}.")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tar(files: dict[str, bytes]) -> bytes:
    """Return files without owners, times or order: what is left depends on their content alone."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return whole.getvalue()
