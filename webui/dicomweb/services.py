"""What the DICOMweb functions share: the store, who looked at what, and answers that stream."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import quote

from flask import current_app, url_for

from appliance.reception import Reception
from appliance.store import Store
from webui.views import Looks

EXTENSION: Final = "dicomweb"
UPLOADS_AT_ONCE: Final = 8
"""Each holds one of the server's threads for as long as its sender takes."""

Chunk = TypeVar("Chunk", str, bytes)


@dataclass(frozen=True)
class Services:
    """Made once and shared by all threads."""

    store: Store
    reception: Reception
    looks: Looks = field(default_factory=Looks)
    uploads: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(UPLOADS_AT_ONCE)
    )


def services() -> Services:
    """Those of the application that handles the current request."""
    found: Services = current_app.extensions[EXTENSION]
    return found


class Addresses:
    """The addresses of studies, series and instances, as the current request calls this server."""

    def __init__(self) -> None:
        self._studies = url_for("dicomweb.search.search_studies", _external=True)

    def of(self, *uids: str) -> str:
        """The address that one to three UIDs have: study, series, instance."""
        levels = zip(("", "series/", "instances/"), uids, strict=False)
        return "/".join([self._studies, *(level + quote(uid, safe="") for level, uid in levels)])


def unbroken(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks of an answer as they are made.

    They are made without the request's context: what they need of it they bring along. The first is
    made at once, so that what fails before it becomes an answer of its own. What fails
    behind it ends the connection: no client takes a part for the whole.
    """
    rest = iter(chunks)
    first = next(rest, None)

    def sent() -> Iterator[Chunk]:
        if first is not None:
            yield first
        yield from rest

    return sent()
