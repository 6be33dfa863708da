"""Where updates come from: a server by HTTP, or the same files in a folder, as on a USB disk.

Both are fetchers of python-tuf. It bounds what they yield; they may also begin in the middle of a
file, for a download to go on where it ended.
"""

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface
from urllib3 import exceptions as http

CHUNK_BYTES: Final = 256 * 1024
GAP_S: Final = 30.0
"""Silence after which a server counts as gone."""
PATIENCE_S: Final = 60.0
"""Time after which a download must have been as fast as this on average:"""
SLOWEST_BYTES_PER_S: Final = 4096

HEADERS: Final = {
    "User-Agent": "chest-ct-appliance",
    "Accept-Encoding": "identity",
    "Cache-Control": "no-cache",  # timestamp.json is the one name whose content changes
}


class WebPageDownloadError(DownloadError):
    """What came is HTML, and nothing of an update is."""


class Fetcher(FetcherInterface):
    """Fetches files, also from the middle on."""

    server_time: datetime | None = None
    """What the source's clock said last, if it has one."""

    @abstractmethod
    def resume(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """Return a file's bytes from `offset` on, or from 0 if need be, and from where they are.

        Raises:
            DownloadError: it cannot be had; the iterator raises it as well.
        """

    def close(self) -> None:
        """Hang up, if a file was not read to its end."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.resume(url, 0)[1]


class HttpFetcher(Fetcher):
    """Fetches by HTTP or HTTPS, through the proxy that the environment names.

    Certificates are checked against the operating system's authorities.
    """

    def __init__(self, *, gap_s: float = GAP_S, patience_s: float = PATIENCE_S) -> None:
        self._gap_s = gap_s
        self._patience_s = patience_s
        self._response: urllib3.BaseHTTPResponse | None = None

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def resume(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        self.close()
        with _as_download_errors():
            response = _pool(url).request(
                "GET",
                url,
                headers={**HEADERS, "Range": f"bytes={offset}-"} if offset else HEADERS,
                timeout=urllib3.Timeout(self._gap_s),
                retries=urllib3.Retry(connect=0, read=0, redirect=3),
                preload_content=False,
            )
        self._response = response
        self.server_time = _date(response.headers.get("Date"))
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise DownloadHTTPError(url, response.status)
        start = offset if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        return start, self._chunks(response, url, start)

    def _chunks(self, response: urllib3.BaseHTTPResponse, url: str, start: int) -> Iterator[bytes]:
        began, received = time.monotonic(), 0
        while True:
            with _as_download_errors():
                chunk = response.read1(CHUNK_BYTES)
            if not chunk:
                return
            if start + received == 0 and chunk.lstrip().startswith(b"<"):
                raise WebPageDownloadError(f"{url} is a web page")
            received += len(chunk)
            elapsed_s = time.monotonic() - began
            if elapsed_s > self._patience_s and received < elapsed_s * SLOWEST_BYTES_PER_S:
                raise SlowRetrievalError(f"{url}: {received} bytes in {elapsed_s:.0f} s")
            yield chunk


def _pool(url: str) -> urllib3.PoolManager:
    address = urlsplit(url)
    proxy = getproxies().get(address.scheme)
    if proxy is None or proxy_bypass(address.netloc):
        return urllib3.PoolManager()
    return urllib3.ProxyManager(proxy)


def _date(header: str | None) -> datetime | None:
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@contextmanager
def _as_download_errors() -> Iterator[None]:
    try:
        yield
    except http.HTTPError as error:
        reason = error.reason if isinstance(error, http.MaxRetryError) else error
        if isinstance(reason, http.ReadTimeoutError):
            raise SlowRetrievalError(str(reason)) from reason
        raise DownloadError(str(reason)) from reason


class MediaFetcher(Fetcher):
    """Reads the files of a repository below one folder; its URLs are paths relative to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resume(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        path = self._folder / unquote(url)
        if not path.is_file():
            if not self._folder.is_dir():
                raise DownloadError("there is no such folder")
            raise DownloadHTTPError(url, HTTPStatus.NOT_FOUND)
        return offset, _read(path, offset)


def _read(path: Path, offset: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise DownloadError(f"{path.name}: {error.strerror}") from error


@dataclass(frozen=True)
class Source:
    """A repository and the way to it."""

    name: str
    """What it is called in messages."""
    fetcher: Fetcher
    metadata_url: str
    targets_url: str

    @classmethod
    def at(cls, place: str) -> Self:
        """Return the repository at a web address or in a folder."""
        if urlsplit(place).scheme in {"http", "https"}:
            base = place.rstrip("/")
            return cls(place, HttpFetcher(), f"{base}/metadata/", f"{base}/targets/")
        return cls(place, MediaFetcher(Path(place)), "metadata/", "targets/")
