"""Bytes on disk by their content: written aside, linked, synced; a received UID is never a path.

    root/incoming/<random>          being written, worthless
    root/discarded/<digest>         on its way out, put back if somebody came to want it
    root/objects/ab/abcd….dcm       whole, for ever; the name is the SHA-256 of the bytes

The store knows no database: a row that names a digest is written after `commit()` returned.
"""

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
SETTLED_S: Final = 3600.0
"""Longer than any instance takes from its last byte to its row."""
DIGEST_PATTERN: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredObject:
    """Bytes that are on disk for good."""

    digest: str
    size_bytes: int
    path: Path


class Incoming:
    """A file being written; whatever ends the block before `commit()`, nothing of it stays."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._path = store.incoming_dir / f"{os.getpid()}-{secrets.token_hex(8)}"
        # Unbuffered: nothing is left to be written when the disk is full and the file is closed.
        self._file = self._path.open("x+b", buffering=0)
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        """How much was written so far."""
        return self._size_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; raises OSError when the disk is full."""
        with memoryview(data) as left:
            written = 0
            while written < len(left):  # a disk that fills up takes a part
                written += self._file.write(left[written:])
        self._hash.update(data)
        self._size_bytes += len(data)

    def read_at(self, position: int, size_bytes: int) -> bytes:
        """Return some of what was written so far, fewer bytes where it ends."""
        return os.pread(self._file.fileno(), size_bytes, position)

    def read_back(self) -> BinaryIO:
        """Open what was written so far."""
        return self._path.open("rb")

    def commit(self, *, sync: bool = True) -> StoredObject:
        """Make the bytes permanent and return where they are; the same bytes are kept once.

        Without `sync` they are permanent after the next `Store.sync()`. A new name is given before
        the sync, so that one write of the file system's journal holds both. After a crash or a
        failed sync it may stand for less than its bytes: no row has it then, and the bytes sent
        again take its place. A name that is there already may be another's answer of Success, and
        its bytes are as good as the last sync of them was, which nobody here has seen: ours replace
        them, and are permanent before they do.
        """
        digest = self._hash.hexdigest()
        target = self._store.path_of(digest)
        try:
            target.hardlink_to(self._path)
            if sync:
                os.fsync(self._file.fileno())
        except FileExistsError:
            os.fsync(self._file.fileno())
            self._path.replace(target)
        if sync:
            _sync(target.parent)
        return StoredObject(digest=digest, size_bytes=self._size_bytes, path=target)


class Store:
    """A content-addressed store below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming_dir = root / "incoming"
        self.objects_dir = root / "objects"
        self.discarded_dir = root / "discarded"
        folders = [self.objects_dir / f"{number:02x}" for number in range(256)]
        folders = [self.incoming_dir, self.discarded_dir, self.objects_dir, *folders]
        missing = [folder for folder in folders if not folder.is_dir()]
        for folder in missing:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if missing:  # then a new file needs its own folder synced, and no other
            _sync(self.objects_dir)
            _sync(root)

    def incoming(self) -> Incoming:
        """A new file to write to, used as a context manager."""
        return Incoming(self)

    def path_of(self, digest: str) -> Path:
        """Where the bytes with this SHA-256 lie, or would."""
        if not DIGEST_PATTERN.fullmatch(digest):
            raise ValueError("a digest is 64 hexadecimal digits")
        return self.objects_dir / digest[:2] / f"{digest}.dcm"

    def holds(self, digest: str) -> bool:
        """Whether these bytes are there, and whole: they are read; raises OSError."""
        try:
            with self.path_of(digest).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        """Make everything written so far permanent, in one go: syncfs(2).

        Raises OSError when the disk could not take it.
        """
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _LIBC.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        """Free space on the store's disk for this user."""
        return shutil.disk_usage(self.root).free

    def settled(self, at_once: int) -> Iterator[list[str]]:
        """Yield the digests of all that came more than an hour ago, some at once."""
        before = time.time() - SETTLED_S
        for folder in sorted(self.objects_dir.iterdir()):
            names = [entry.name for entry in os.scandir(folder) if entry.stat().st_mtime < before]
            digests = [name.removesuffix(".dcm") for name in names]
            yield from (digests[i : i + at_once] for i in range(0, len(digests), at_once))

    def discard(self, digest: str, *, is_named: Callable[[str], bool]) -> bool:
        """Remove bytes for good unless they are wanted; whether they are gone.

        The same bytes may be arriving at this moment, to be named by a row afterwards. So these are
        first taken from their place, and put back if they came within the hour or if `is_named`
        says that a row has them by now.
        """
        aside = self.discarded_dir / digest
        try:
            self.path_of(digest).rename(aside)
        except FileNotFoundError:
            return False
        return self._decide(aside, is_named)

    def finish_discarding(self, *, is_named: Callable[[str], bool]) -> int:
        """Decide about what a crash left on its way out; returns how many are gone."""
        return sum(self._decide(aside, is_named) for aside in self.discarded_dir.iterdir())

    def _decide(self, aside: Path, is_named: Callable[[str], bool]) -> bool:
        """Remove what was taken from its place, or put it back; whether it is gone."""
        target = self.path_of(aside.name)
        try:
            wanted = aside.stat().st_mtime >= time.time() - SETTLED_S or is_named(aside.name)
            if wanted:
                with suppress(FileExistsError):  # the same bytes have come again meanwhile
                    target.hardlink_to(aside)
                _sync(target.parent)
            aside.unlink()
        except FileNotFoundError:  # another process decided the same
            return False
        return not wanted

    def sweep_incoming(self, *, older_than_s: float = 3600.0) -> int:
        """Remove what dead writers left; returns how many files.

        A live writer touches its file with every fragment, so an old one has no writer.
        """
        before = time.time() - older_than_s
        removed = 0
        for path in self.incoming_dir.iterdir():
            try:
                if path.stat().st_mtime <= before:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        return removed


def _sync(path: Path) -> None:
    """Sync a file, or a folder: a name in it is durable then (POSIX leaves it open before)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
