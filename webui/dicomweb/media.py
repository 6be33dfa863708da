"""Media types as a client asks for them (PS3.18 section 8.7; RFC 9110 section 12.5.1)."""

import re
from dataclasses import dataclass
from typing import Final

from flask import Request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header, parse_options_header

DICOM: Final = "application/dicom"
JSON: Final = "application/dicom+json"
XML: Final = "application/dicom+xml"
OCTETS: Final = "application/octet-stream"
MULTIPART: Final = "multipart/related"
ANY: Final = "*/*"


@dataclass(frozen=True)
class MediaRange:
    """One thing that a client accepts.

    Attributes:
        media_type: In lower case, without parameters; may be ``*/*`` or ``image/*``.
        transfer_syntax: A UID, ``*`` for any, None where none is named.
        is_multipart: Whether it shall come as a part of multipart/related.
    """

    media_type: str
    transfer_syntax: str | None = None
    is_multipart: bool = False

    def takes(self, media_type: str) -> bool:
        """Whether a media type, without parameters, is in the range."""
        group = self.media_type.removesuffix("*") if self.media_type.endswith("/*") else None
        if group is None:
            return self.media_type == media_type
        return self.media_type == ANY or media_type.startswith(group)


def accepted(request: Request) -> tuple[MediaRange, ...]:
    """What a client accepts, the best first; everything if it does not say.

    The query parameter ``accept`` counts before the header (PS3.18 8.3.3.1).
    """
    # A plus in an address is one (RFC 3986), though forms write it for a space.
    in_address = re.sub(r"(?<=\w) (?=\w)", "+", request.args.get("accept", ""))
    given = in_address or request.headers.get("Accept") or ANY
    ranges = parse_accept_header(given, MIMEAccept)
    best_first = sorted(ranges, key=lambda ranged: -ranged[1])  # stable: the client's order
    return tuple(_range(text) for text, quality in best_first if quality > 0)


def _range(text: str) -> MediaRange:
    media_type, options = parse_options_header(text)
    syntax = options.get("transfer-syntax")
    if media_type.lower() != MULTIPART:
        return MediaRange(media_type.lower(), syntax)
    # Some write the inner type's parameters within the quotes, as in type="image/jls; q=1".
    inner, inner_options = parse_options_header(options.get("type", ANY))
    return MediaRange(
        inner.lower(), syntax or inner_options.get("transfer-syntax"), is_multipart=True
    )
