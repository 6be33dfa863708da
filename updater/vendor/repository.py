"""The vendor's repository: files that any HTTP server or disk can hold (TUF specification 4 to 6).

    REPOSITORY/metadata/N.root.json, N.snapshot.json, N.targets.json, N.models.json, timestamp.json
    REPOSITORY/targets/models/SHA256.lungs-1.1.0.tar, SHA256.index.json

Whatever changes is signed in memory and written in the order in which clients come to see it:
files first, `timestamp.json` next to last, a new root at the very end. Only the last two replace or
follow what is in use, each by one rename. So a change that is interrupted has not happened, and the
next one writes over what it left.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError, StorageError, UnsignedMetadataError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.repository import Repository

from pipelines.files import sync_folder, whole_file
from updater.offers import LINES, MODELS, SOFTWARE, Channel, Offer, index_of
from updater.vendor.bundle import Bundle
from updater.vendor.errors import VendorError
from updater.vendor.keys import Keyring

ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2

OFFLINE: Final = timedelta(days=365)
ONLINE: Final = timedelta(days=14)  # as long as a disk in the post, and as an attack by delay
LIFETIME: Final[Mapping[str, timedelta]] = {
    Root.type: OFFLINE,
    Targets.type: OFFLINE,
    MODELS: OFFLINE,
    SOFTWARE: OFFLINE,
    Snapshot.type: ONLINE,
    Timestamp.type: ONLINE,
}
"""Every role, and for how long its signature counts."""

WRITTEN: Final = (*LINES, Targets.type, Snapshot.type, Timestamp.type, Root.type)
"""The order in which roles are written: none before what it names."""

WARNING: Final = {OFFLINE: timedelta(days=60), ONLINE: timedelta(days=7)}


@dataclass(frozen=True)
class RoleStatus:
    """How long a role's metadata are good for."""

    role: str
    version: int
    expires: datetime
    left: timedelta

    @property
    def warning(self) -> bool:
        """Whether somebody should sign it anew."""
        return self.left < WARNING[LIFETIME[self.role]]


class VendorRepository(Repository):
    """One repository folder; each public method that changes it does so whole or not at all."""

    def __init__(
        self,
        folder: Path,
        keys: Keyring,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._metadata_dir = folder / "metadata"
        self._targets_dir = folder / "targets"
        self._keys = keys
        self._now = now
        self._signed: dict[str, Metadata[Any]] = {}
        self._files: dict[str, bytes] = {}

    def initialise(self) -> None:
        """Make the keys and an empty repository, the key ceremony.

        Raises:
            VendorError: there is one already, or keys of another.
        """
        folders = [self._metadata_dir, *(self._targets_dir / line for line in LINES)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        with self._change(first=True):
            with self.edit_root() as root:
                for role in (Root.type, Targets.type, Snapshot.type, Timestamp.type):
                    for _ in range(ROOT_KEYS if role == Root.type else 1):
                        root.add_key(self._keys.create(role), role)
                root.roles[Root.type].threshold = ROOT_THRESHOLD
            with self.edit_targets() as targets:
                targets.delegations = Delegations({}, {line: _delegation(line) for line in LINES})
                for line in LINES:
                    targets.add_key(self._keys.create(line), line)
            for line in LINES:
                with self.edit_targets(line) as offered:
                    self._list(line, offered)

    def publish(self, bundle: Bundle, *, channel: Channel, share_percent: int) -> Offer:
        """Offer a bundle to a channel and a share of its sites; again to widen either.

        Raises:
            VendorError: the version is out with other bytes or for a wider channel, or was
                recalled.
        """
        try:
            offer = Offer(
                bundle.purpose,
                bundle.version,
                channel,
                share_percent,
                bundle.minimum_software,
                recalled="",
            )
        except ValueError as error:
            raise VendorError(f"This cannot be published: {error}.") from error
        target = TargetFile.from_data(offer.path, bundle.content)
        target.unrecognized_fields["custom"] = offer.custom()
        with self._change(), self.edit_targets(MODELS) as models:
            if (known := models.targets.get(offer.path)) is not None:
                _refuse_another(offer, target, known)
            self._files[target.get_prefixed_paths()[0]] = bundle.content
            models.targets[offer.path] = target
            self._list(MODELS, models)
        return offer

    def recall(self, purpose: str, version: str, reason: str) -> None:
        """Tell every site that nobody shall run a version any more, and why, for good.

        Raises:
            VendorError: it was never published.
        """
        with self._change(), self.edit_targets(MODELS) as models:
            offers = {path: Offer.read(target.custom) for path, target in _bundles(models).items()}
            for path, offer in offers.items():
                if (offer.purpose, offer.version) == (purpose, version):
                    models.targets[path].custom["recalled"] = reason
                    return
            raise VendorError(f"{purpose} {version} was never published.")

    def rotate(self, role: str) -> list[Path]:
        """Give a role new keys; returns the files of the old ones that are at hand.

        Raises:
            VendorError: keys that must sign it are not at hand.
        """
        with self._change():
            if role in LINES:
                with self.edit_targets() as targets:
                    replaced = self._replace_keys(targets, role)
            else:
                with self.edit_root() as root:
                    replaced = self._replace_keys(root, role)
            if role != Root.type:
                self._sign_anew(role)
        return replaced

    def refresh(self, roles: Sequence[str] = (Snapshot.type, Timestamp.type)) -> None:
        """Sign roles anew, for another lifetime.

        Raises:
            VendorError: keys that must sign them are not at hand.
        """
        with self._change():
            for role in roles:
                self._sign_anew(role)

    def status(self) -> list[RoleStatus]:
        """Return how long each role is good for.

        Raises:
            VendorError: there is no repository.
        """
        self._require()
        now = self._now()
        found = [(role, self.open(role).signed) for role in LIFETIME]
        return [RoleStatus(r, s.version, s.expires, s.expires - now) for r, s in found]

    def offers(self) -> list[Offer]:
        """Return what is published.

        Raises:
            VendorError: there is no repository.
        """
        self._require()
        return [Offer.read(t.custom) for t in _bundles(self.targets(MODELS)).values()]

    # What tuf.repository asks of a repository: `edit()` opens, changes and closes.

    def open(self, role: str) -> Metadata[Any]:
        """Return a role's metadata as they are published, or signed in this change."""
        if role in self._signed:
            return self._signed[role]
        if (root := self._published_root()) is None:
            return _first_version(role)
        if role == Root.type:
            return root
        if role == Timestamp.type:
            return self._read("timestamp.json")
        if role == Snapshot.type:
            return self._read(f"{self.timestamp().snapshot_meta.version}.snapshot.json")
        return self._read(f"{self.snapshot().meta[f'{role}.json'].version}.{role}.json")

    def close(self, role: str, md: Metadata[Any]) -> None:
        """Sign a role's metadata with the keys that count now and those that will."""
        if role not in self._signed:
            md.signed.version += 1
        md.signed.expires = self._now() + LIFETIME[role]
        self._signed[role] = md
        md.signatures.clear()
        delegators = self._delegators(role)
        for delegator in delegators:
            for keyid in delegator.get_delegated_role(role).keyids:
                if (signer := self._keys.signer(role, delegator.get_key(keyid))) is not None:
                    md.sign(signer, append=True)
        # A new root must convince those who trust the old one as well.
        for delegator in delegators if role == Root.type else delegators[-1:]:
            try:
                delegator.verify_delegate(role, md.signed_bytes, md.signatures)
            except UnsignedMetadataError as error:
                raise VendorError(
                    f"{role} cannot be signed: {delegator.get_delegated_role(role).threshold} of "
                    f"its keys must be in {', '.join(map(str, self._keys.folders))}."
                ) from error

    def _delegators(self, role: str) -> list[Root | Targets]:
        """Return what says whose signatures count: as published, and as it will be."""
        if role in LINES:
            return [self.targets()]
        published = self._published_root()
        return [*([] if published is None else [published.signed]), self.root()]

    def _sign_anew(self, role: str) -> None:
        with self.edit(role):
            pass

    def _replace_keys(self, delegator: Root | Targets, role: str) -> list[Path]:
        old = [delegator.get_key(keyid) for keyid in delegator.get_delegated_role(role).keyids]
        for key in old:
            delegator.add_key(self._keys.create(role), role)
            delegator.revoke_key(key.keyid, role)
        return [path for key in old if (path := self._keys.path(role, key)) is not None]

    def _list(self, line: str, offered: Targets) -> None:
        """Put the index of a line's targets among them."""
        path = index_of(line)
        content = json.dumps(sorted(_bundles(offered)), indent=0).encode()
        target = TargetFile.from_data(path, content)
        offered.targets[path] = target
        self._files[target.get_prefixed_paths()[0]] = content

    @contextmanager
    def _change(self, *, first: bool = False) -> Iterator[None]:
        """Write what the block signs, if it ends well; one change at a time."""
        if not first:
            self._require()
        folder = os.open(self._metadata_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if first and self._published_root() is not None:
                raise VendorError(f"{self._metadata_dir.parent} holds a repository already.")
            yield
            if self._signed.keys() - {Root.type}:
                self._seal()
            self._write()
        except BlockingIOError as error:
            raise VendorError("Somebody else is publishing: try again later.") from error
        finally:
            os.close(folder)
            self._signed.clear()
            self._files.clear()

    def _require(self) -> None:
        if self._published_root() is None:
            raise VendorError(
                f"There is no repository in {self._metadata_dir.parent}: `appliance-vendor init` "
                "makes one."
            )

    def _seal(self) -> None:
        """Let a new snapshot and a new timestamp tell of what was signed."""
        with self.edit_snapshot() as snapshot:
            for role in self._signed.keys() & {Targets.type, *LINES}:
                snapshot.meta[f"{role}.json"] = self._described(role)
        with self.edit_timestamp() as timestamp:
            timestamp.snapshot_meta = self._described(Snapshot.type)

    def _described(self, role: str) -> MetaFile:
        signed = self._signed[role]
        return MetaFile.from_data(signed.signed.version, signed.to_bytes(), ["sha256"])

    def _write(self) -> None:
        for folder in (self._metadata_dir, *self._targets_dir.iterdir()):
            for left_over in folder.glob(".part-*"):
                shutil.rmtree(left_over)
        for path, content in self._files.items():
            _write_whole(self._targets_dir / path, content)
        for role in sorted(self._signed, key=WRITTEN.index):
            version = "" if role == Timestamp.type else f"{self._signed[role].signed.version}."
            name = f"{version}{role}.json"
            _write_whole(self._metadata_dir / name, self._signed[role].to_bytes())

    def _published_root(self) -> Metadata[Root] | None:
        versions = [int(p.name.split(".")[0]) for p in self._metadata_dir.glob("*.root.json")]
        return self._read(f"{max(versions)}.root.json") if versions else None

    def _read(self, name: str) -> Metadata[Any]:
        try:
            return Metadata.from_file(str(self._metadata_dir / name))
        except (RepositoryError, StorageError) as error:
            raise VendorError(
                f"{self._metadata_dir / name} cannot be read: copy the repository back from "
                "where it is served."
            ) from error


def _delegation(line: str) -> DelegatedRole:
    return DelegatedRole(line, [], 1, terminating=True, paths=[f"{line}/*"])


def _bundles(line: Targets) -> dict[str, TargetFile]:
    return {path: target for path, target in line.targets.items() if target.custom is not None}


def _refuse_another(offer: Offer, target: TargetFile, known: TargetFile) -> None:
    """Refuse what contradicts what sites were told of this version before."""
    before = Offer.read(known.custom)
    if before.recalled:
        raise VendorError(f"{offer.path} was recalled: raise the version in config.json.")
    if known.hashes != target.hashes:
        raise VendorError(
            f"{offer.path} is published with other content: raise the version in config.json."
        )
    if before.channel is Channel.STABLE and offer.channel is not Channel.STABLE:
        raise VendorError(f"{offer.path} is stable already: say --channel stable, or recall it.")


def _first_version(role: str) -> Metadata[Any]:
    first = {Root.type: Root, Timestamp.type: Timestamp, Snapshot.type: Snapshot}
    metadata: Metadata[Any] = Metadata(first.get(role, Targets)())
    metadata.signed.version = 0  # the first change makes it 1
    return metadata


def _write_whole(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
    sync_folder(path.parent)
