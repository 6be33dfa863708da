"""Scripts and styles as they travel: without comments, compressed.

There is no build step: the browser runs the files as they are written, and line numbers stay. A
third of the viewer's scripts is comments and types, and slow lines wait for all of it.
"""

import gzip
import re
from functools import lru_cache
from typing import Final

import zstandard
from flask import Flask, Response, request

TEXTS: Final = frozenset({"text/javascript", "text/css", "application/json"})
ENDPOINTS: Final = frozenset({"static", "language.words"})
COMMENTS: Final = re.compile(rb"^[ \t]*(?:/\*(?:(?!\*/).)*\*/|//[^\n]*)", re.MULTILINE | re.DOTALL)
"""Comments that begin a line; those behind code stay, and what looks like one in a string."""

ZSTD_LEVEL: Final = 19
ENCODINGS: Final = ("zstd", "gzip", "identity")
KEPT: Final = 512


def register(app: Flask) -> None:
    """Pack every script and style that is sent whole."""

    @app.after_request
    def pack(response: Response) -> Response:
        if request.endpoint not in ENDPOINTS or response.status_code != 200:
            return response
        if response.mimetype not in TEXTS:
            return response
        encoding = request.accept_encodings.best_match(ENCODINGS, default="identity")
        response.direct_passthrough = False
        response.set_data(_packed(response.get_data(), encoding))
        response.headers["Content-Encoding"] = encoding
        response.vary.add("Accept-Encoding")
        # The address names the content: nobody has to ask whether it is still the same.
        response.headers.pop("ETag", None)
        return response


def without_comments(text: bytes) -> bytes:
    """The text with its lines where they were."""
    return COMMENTS.sub(lambda comment: b"\n" * comment.group().count(b"\n"), text)


@lru_cache(maxsize=KEPT)
def _packed(text: bytes, encoding: str) -> bytes:
    shorter = without_comments(text)
    match encoding:
        case "zstd":
            return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(shorter)
        case "gzip":
            return gzip.compress(shorter, mtime=0)
        case _:
            return shorter
