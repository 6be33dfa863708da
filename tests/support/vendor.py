"""A vendor with keys and a repository in a folder, models to publish, and clients of it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.metadata import Metadata

from updater.client import Client
from updater.offers import Channel, Offer
from updater.sources import Source
from updater.vendor import bundle
from updater.vendor.keys import Keyring
from updater.vendor.repository import VendorRepository

PASSPHRASE = "correct horse battery"
SOFTWARE = "0.1.0"


def passphrase(name: str, *, new: bool) -> str:
    return PASSPHRASE


@dataclass(frozen=True)
class Vendor:
    """One vendor; `now` is its clock."""

    folder: Path
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def served(self) -> Path:
        return self.folder / "repository"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def repository(self) -> VendorRepository:
        """The tool as a new process would open it."""
        return VendorRepository(self.served, Keyring([self.keys], passphrase), now=self.now)

    def publish(
        self,
        version: str,
        *,
        purpose: str = "lungs",
        content: bytes = b"weights",
        channel: Channel = Channel.STABLE,
        share_percent: int = 100,
    ) -> Offer:
        folder = weights(self.folder / "weights" / purpose, version, purpose, content)
        made = bundle.build(folder, SOFTWARE)
        return self.repository.publish(made, channel=channel, share_percent=share_percent)

    def copy(self, folder: Path) -> "Vendor":
        """The same vendor, keys and all, with a life of its own."""
        shutil.copytree(self.folder, folder)
        return Vendor(folder, self.now)

    def root(self) -> bytes:
        return (self.served / "metadata" / "1.root.json").read_bytes()

    def read(self, name: str) -> Metadata:
        return Metadata.from_file(str(self.served / "metadata" / name))


def new_vendor(folder: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Vendor:
    vendor = Vendor(folder, now)
    vendor.repository.initialise()
    return vendor


def weights(folder: Path, version: str, purpose: str = "lungs", content: bytes = b"w") -> Path:
    """A folder as `appliance train` leaves it, as far as a bundle is concerned."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps({"name": "net", "purpose": purpose, "version": version}).encode()
    files = {"config.json": config, "weights.safetensors": content}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    sums = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    (folder / "SHA256SUMS").write_text("".join(sums))
    (folder / "model_card.md").write_text(f"# {purpose} {version}\n")
    return folder


@dataclass(frozen=True)
class Appliance:
    """What an appliance keeps between two looks at a repository."""

    folder: Path
    root: bytes

    def looks_at(self, place: Path | str | Source, *, spare_bytes: int = 0) -> Client:
        source = place if isinstance(place, Source) else Source.at(str(place))
        return Client(
            source,
            self.root,
            metadata_dir=self.folder / "metadata",
            staging_dir=self.folder / "staging",
            spare_bytes=spare_bytes,
        )

    def versions(self, place: Path | str) -> list[str]:
        """The versions that it sees and can have, each downloaded."""
        client = self.looks_at(place)
        offers = client.check()
        for offer in offers:
            client.download(offer)
        return sorted(offer.version for offer in offers)
