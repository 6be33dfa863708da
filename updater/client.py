"""What the vendor offers, and its files, verified: a thin layer over `tuf.ngclient`.

Signatures, versions, expiry and delegations are python-tuf's affair (specification section 5).
Ours are the files of a target: resumed, bounded, whole, synced; and a sentence for each failure.
Nothing here installs anything.
"""

import errno
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
)
from tuf.api.metadata import TargetFile
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater

from pipelines.files import sync_folder
from updater.errors import (
    ClockError,
    DamagedError,
    DiskFullError,
    ExpiredError,
    IncompleteError,
    LocalDiskError,
    NewerFormatError,
    NoRootError,
    NotOfferedError,
    OlderError,
    SlowError,
    UnreachableError,
    UntrustedError,
    UpdateError,
    WebPageError,
)
from updater.offers import MODELS, Offer, index_of
from updater.sources import Source, WebPageDownloadError

EMBEDDED_ROOT: Final = Path(__file__).with_name("root.json")
"""The vendor's `1.root.json`, put here before a release is built."""

CLOCKS_AGREE: Final = timedelta(days=1)

OUT_OF_TIME: Final = (9, 10)  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID, …_HAS_EXPIRED


def root_of_trust(path: Path = EMBEDDED_ROOT) -> bytes:
    """Return the root metadata that this installation trusts before it has seen any other.

    Raises:
        NoRootError: there are none.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NoRootError(path) from error


class Client:
    """One look at a repository; a later look is another client on the same folders.

    What was trusted is kept in `metadata_dir` and can only be followed by what is newer. Verified
    files are in `staging_dir` under their quoted target paths. `spare_bytes` of its disk stay free.
    Only one process may use the two folders at a time.
    """

    def __init__(
        self,
        source: Source,
        root: bytes,
        *,
        metadata_dir: Path,
        staging_dir: Path,
        spare_bytes: int,
    ) -> None:
        self._source = source
        self._staging_dir = staging_dir
        self._spare_bytes = spare_bytes
        with self._explained():
            metadata_dir.mkdir(parents=True, exist_ok=True)
            staging_dir.mkdir(parents=True, exist_ok=True)
            self._updater = Updater(
                str(metadata_dir), source.metadata_url, fetcher=source.fetcher, bootstrap=root
            )

    def refresh(self) -> None:
        """Bring the trusted metadata up to date; once for each client.

        Raises:
            UpdateError: that cannot be; what was trusted before is trusted still.
        """
        with self._explained():
            self._updater.refresh()

    def check(self) -> tuple[Offer, ...]:
        """Return every version of a model that the vendor has published, the recalled ones too.

        Raises:
            UpdateError: nobody can say now.
        """
        index = self.fetch(index_of(MODELS))
        try:
            return tuple(self._offer(str(path)) for path in json.loads(index.read_bytes()))
        except (TypeError, ValueError) as error:
            raise NewerFormatError(self._source.name, str(error)) from error

    def download(self, offer: Offer) -> Path:
        """Return the bundle of an offer: verified, whole and on the disk.

        Raises:
            UpdateError: it cannot be had now. What came of it is kept, and the next call goes on
                from there.
        """
        return self.fetch(offer.path)

    def fetch(self, target_path: str) -> Path:
        """Return the file of a target, like `download()`."""
        with self._explained():
            target = self._target(target_path)
            path = self._staging_dir / quote(target_path, safe="")
            if self._updater.find_cached_target(target, str(path)) is None:
                self._complete(target, path)
            return path

    def _offer(self, path: str) -> Offer:
        with self._explained():
            offer = Offer.read(self._target(path).custom)
        if offer.path != path:
            raise ValueError(f"{path} calls itself {offer.path}")
        return offer

    def _target(self, path: str) -> TargetFile:
        if (target := self._updater.get_targetinfo(path)) is None:
            raise NotOfferedError(self._source.name, path)
        return target

    def _complete(self, target: TargetFile, path: Path) -> None:
        """Fetch what is missing of a file, and give it its name once it is what was signed."""
        # The content names the part: bytes of two versions never meet in one file.
        digest = next(iter(target.hashes.values()))
        part = path.with_name(f".{path.name}.{digest}.part")
        for other in path.parent.glob(f".{path.name}.*.part"):
            if other != part:
                other.unlink()
        with part.open("ab", buffering=0) as file:
            self._append(target, file)
            os.fsync(file.fileno())
        try:
            with part.open("rb") as file:
                target.verify_length_and_hashes(file)
        except LengthOrHashMismatchError:
            part.unlink()
            raise
        part.replace(path)
        sync_folder(path.parent)

    def _append(self, target: TargetFile, file: FileIO) -> None:
        present_bytes = os.fstat(file.fileno()).st_size
        missing_bytes = target.length - present_bytes
        if missing_bytes <= 0:
            return
        free_bytes = shutil.disk_usage(self._staging_dir).free
        if free_bytes < missing_bytes + self._spare_bytes:
            needed_bytes = missing_bytes + self._spare_bytes - free_bytes
            raise DiskFullError(self._staging_dir, needed_bytes)
        url = self._source.targets_url + target.get_prefixed_paths()[0]
        received_bytes, chunks = self._source.fetcher.resume(url, present_bytes)
        file.truncate(received_bytes)
        for chunk in chunks:
            received_bytes += len(chunk)
            if received_bytes > target.length:
                raise DownloadLengthMismatchError(f"more than {target.length} bytes")
            _write(file, chunk)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DownloadError, RepositoryError, OSError) as error:
            raise self._sentence(error) from error
        finally:
            self._source.fetcher.close()

    def _sentence(self, error: DownloadError | RepositoryError | OSError) -> UpdateError:
        """Return the failure in words for an administrator."""
        place, now = self._source.name, datetime.now(UTC)
        match error:
            case ExpiredMetadataError():
                server_time = self._source.fetcher.server_time
                if server_time is not None and abs(server_time - now) > CLOCKS_AGREE:
                    return ClockError(place, now, f"its own says {server_time:%Y-%m-%d %H:%M}")
                return ExpiredError(place, str(error), now)
            case BadVersionNumberError():
                return OlderError(place, str(error))
            case LengthOrHashMismatchError() | DownloadLengthMismatchError():
                return DamagedError(place, str(error))
            case DeserializationError():
                return DamagedError(place, "it cannot be read")
            case RepositoryError():
                return UntrustedError(place, str(error))
            case WebPageDownloadError():
                return WebPageError(place)
            case SlowRetrievalError():
                return SlowError(place)
            case DownloadHTTPError(status_code=HTTPStatus.NOT_FOUND):
                return IncompleteError(place, str(error))
            case DownloadHTTPError():
                return UnreachableError(place, f"HTTP status {error.status_code}")
            case DownloadError():
                if (problem := _certificate_of_another_time(error)) is not None:
                    return ClockError(place, now, problem)
                return UnreachableError(place, str(error))
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return DiskFullError(self._staging_dir)
            case OSError():
                return LocalDiskError(error)


def _write(file: FileIO, chunk: bytes) -> None:
    with memoryview(chunk) as left:
        written = 0
        while written < len(left):  # a disk that fills up takes a part
            written += file.write(left[written:])


def _certificate_of_another_time(error: DownloadError) -> str | None:
    """Return what OpenSSL says of a certificate that is not valid yet, or no more."""
    seen: BaseException | None = error
    while seen is not None:
        for one in (seen, *seen.args):
            if isinstance(one, ssl.SSLCertVerificationError) and one.verify_code in OUT_OF_TIME:
                return one.verify_message
        seen = seen.__cause__
    return None
