"""What people upload, until it was taken in: files that grow piece by piece.

    uploads/<random>/upload.json     whose it is, and which files it has
    uploads/<random>/00000.zip       what has come of the first file
    uploads/<random>/outcome.json    what became of it, once it was taken in

A file's length is how far it has come: a piece is appended where the last one ended, and
acknowledged once it is on the disk. So whatever breaks off, a browser or this appliance, goes on
where it ended, as in the tus protocol (https://tus.io). The files' own names are data, never paths.
What nobody touched for a day is removed.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from appliance.config import GIB, Settings
from appliance.errors import UploadBusyError, UploadError, UploadOffsetError

MOST_FILES: Final = 20_000
MOST_BYTES: Final = 64 * GIB
MOST_WAITING: Final = 4
"""Uploads of one person that were not taken in yet."""
KEPT_S: Final = 24 * 3600.0
LONGEST_NAME: Final = 1000

_NAME: Final = re.compile(r"[0-9a-f]{32}")
_SUFFIXES: Final = (".zip", ".nii.gz", ".nii")
_UPLOAD_FILE: Final = "upload.json"
_OUTCOME_FILE: Final = "outcome.json"
_SCRATCH: Final = "scratch"


@dataclass(frozen=True)
class UploadedFile:
    """A file as the browser announced it; `modified` tells it from another of the same name."""

    name: str
    size_bytes: int
    modified: int

    @property
    def suffix(self) -> str:
        """What its name says it is, "" for a DICOM file or anything else."""
        lowered = self.name.lower()
        return next((suffix for suffix in _SUFFIXES if lowered.endswith(suffix)), "")


@dataclass(frozen=True)
class Upload:
    """Some files of one person that come in together."""

    folder: Path
    account_id: int
    files: tuple[UploadedFile, ...]

    @property
    def name(self) -> str:
        """What it is called in addresses."""
        return self.folder.name

    @property
    def scratch(self) -> Path:
        """A folder for whoever takes it in."""
        return self.folder / _SCRATCH

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What became of it; None until it was taken in."""
        try:
            found: dict[str, Any] = json.loads((self.folder / _OUTCOME_FILE).read_text("utf-8"))
        except FileNotFoundError:
            return None
        return found

    def path_of(self, number: int) -> Path:
        """Where the bytes of a file lie."""
        return self.folder / f"{number:05d}{self.files[number].suffix}"

    def offset(self, number: int) -> int:
        """How many bytes of a file have come."""
        try:
            return self.path_of(number).stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def missing_bytes(self) -> int:
        """How many bytes are still to come."""
        return sum(file.size_bytes - self.offset(n) for n, file in enumerate(self.files))

    def append(
        self, number: int, offset: int, pieces: Iterable[bytes], *, check: Callable[[], None]
    ) -> int:
        """Append pieces to a file and return how long it is, once that is on the disk.

        Args:
            number: Of the file.
            offset: Where the first piece belongs.
            pieces: Its bytes; what came before they broke off is kept.
            check: Called before each piece is written; raises where the disk is too full.

        Raises:
            UploadOffsetError: The file is longer or shorter.
            UploadBusyError: Another request writes it.
            UploadError: There are more bytes than announced.
            OSError: The disk is full.
        """
        with self._writing(number) as file:
            here = os.fstat(file.fileno()).st_size
            if offset != here:
                raise UploadOffsetError(here)
            for piece in pieces:
                check()
                if here + len(piece) > self.files[number].size_bytes:
                    raise UploadError("The file has changed since it was chosen: choose it again.")
                here += _write(file, piece)
            os.fsync(file.fileno())
        return here

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Let one at a time take it in; raises UploadBusyError."""
        with (self.folder / _UPLOAD_FILE).open("rb") as file:
            _lock(file)
            yield

    def finish(self, outcome: dict[str, Any]) -> None:
        """Note what became of it, for good, and remove its files."""
        _write_whole(self.folder / _OUTCOME_FILE, outcome)
        for number in range(len(self.files)):
            self.path_of(number).unlink(missing_ok=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def remove(self) -> None:
        """Forget it, also while pieces of it are coming."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _writing(self, number: int) -> Iterator[BinaryIO]:
        try:
            opened = self.path_of(number).open("ab", buffering=0)
        except FileNotFoundError as error:
            raise UploadError("The upload was cancelled.") from error
        with opened as file:
            _lock(file)
            yield file


def open_upload(settings: Settings, account_id: int, files: Sequence[UploadedFile]) -> Upload:
    """Return a new upload of a person's files.

    Raises:
        UploadError: It has no file, or more than it may.
        UploadBusyError: The person has too many that were not taken in.
    """
    if not files:
        raise UploadError("Choose at least one file.")
    if len(files) > MOST_FILES:
        raise UploadError(f"At most {MOST_FILES} files go at once: choose fewer, or a zip file.")
    if sum(file.size_bytes for file in files) > MOST_BYTES:
        raise UploadError(f"At most {MOST_BYTES // GIB} GiB go at once: choose fewer files.")
    waiting = [upload for upload in uploads_of(settings, account_id) if upload.outcome is None]
    if len(waiting) >= MOST_WAITING:
        raise UploadBusyError(
            f"{MOST_WAITING} uploads of yours were not finished: finish or discard one of them."
        )
    folder = settings.uploads_dir / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)
    about = {"account_id": account_id, "files": [asdict(file) for file in files]}
    _write_whole(folder / _UPLOAD_FILE, about)
    _sync(settings.uploads_dir)
    return Upload(folder, account_id, tuple(files))


def find(settings: Settings, account_id: int, name: str) -> Upload | None:
    """Return a person's own upload; None if there is none of this name."""
    if not _NAME.fullmatch(name):
        return None
    upload = _read(settings.uploads_dir / name)
    return upload if upload is not None and upload.account_id == account_id else None


def uploads_of(settings: Settings, account_id: int) -> list[Upload]:
    """Return a person's uploads."""
    found = map(_read, _folders(settings))
    return [upload for upload in found if upload is not None and upload.account_id == account_id]


def remove_old(settings: Settings, *, now: float | None = None) -> int:
    """Remove what nobody touched for a day; returns how many uploads."""
    before = (time.time() if now is None else now) - KEPT_S
    removed = 0
    for folder in _folders(settings):
        try:
            touched = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except FileNotFoundError:  # it is being taken in or removed just now
            continue
        if touched < before:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def _folders(settings: Settings) -> list[Path]:
    try:
        return [path for path in settings.uploads_dir.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []


def _read(folder: Path) -> Upload | None:
    try:
        about = json.loads((folder / _UPLOAD_FILE).read_text("utf-8"))
    except FileNotFoundError:  # none, or one that a crash left before it was acknowledged
        return None
    files = tuple(UploadedFile(**file) for file in about["files"])
    return Upload(folder, about["account_id"], files)


def _lock(file: BinaryIO) -> None:
    """Lock a file until it is closed, also by the end of the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UploadBusyError("Another request is still at it: try again in a moment.") from error


def _write(file: BinaryIO, piece: bytes) -> int:
    with memoryview(piece) as left:
        written = 0
        while written < len(left):  # a disk that fills up takes a part
            written += file.write(left[written:])
    return written


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
