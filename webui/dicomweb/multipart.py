"""multipart/related (RFC 2387, RFC 2046 section 5.1), written and read as a stream.

The parser is strict, for what it reads are images: lines end with CRLF, a boundary stands at the
beginning of a line, and a message that ends before its last boundary is refused. It holds the head
of a part and a piece of its content, never more. (Werkzeug's decoder wants a form's
Content-Disposition, and takes a bare CR or LF in an image for the end of a line.)
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from webui.dicomweb.media import MULTIPART

CHUNK_BYTES: Final = 64 * 1024
LARGEST_HEAD_BYTES: Final = 8 * 1024
LARGEST_PREAMBLE_BYTES: Final = 8 * 1024
LONGEST_BOUNDARY: Final = 200
"""The RFC has 70; clients that write longer ones do no harm."""


class MultipartError(Exception):
    """The message is no multipart message, or is cut short; the text is for the client."""


class MultipartLimitError(MultipartError):
    """The message has more or larger parts than are taken."""


class Readable(Protocol):
    """What a message is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none at the end."""


@dataclass(frozen=True)
class Part:
    """One part; its header fields by their names in lower case, its content in pieces, once."""

    headers: Mapping[str, str]
    content: Iterator[bytes]


@dataclass(frozen=True)
class Outgoing:
    """A part to be written."""

    content_type: str
    chunks: Iterable[bytes]


def new_boundary() -> str:
    """A boundary that no image holds."""
    return secrets.token_hex(16)


def content_type_of(media_type: str, boundary: str) -> str:
    """The Content-Type of a message whose parts have a media type."""
    return f'{MULTIPART}; type="{media_type}"; boundary={boundary}'


def write(parts: Iterable[Outgoing], boundary: str) -> Iterator[bytes]:
    """Yield the message, part by part as they are made; no part is begun before it has bytes."""
    for part in parts:
        chunks = iter(part.chunks)
        first = next(chunks, b"")
        yield f"\r\n--{boundary}\r\nContent-Type: {part.content_type}\r\n\r\n".encode("ascii")
        yield first
        yield from chunks
    yield f"\r\n--{boundary}--\r\n".encode("ascii")


def read(
    stream: Readable, boundary: str, *, largest_part_bytes: int, most_parts: int
) -> Iterator[Part]:
    """Yield the parts of a message as they come; what is left unread of one is passed over.

    Raises, here or while a part's content is read:
        MultipartError: it is malformed or cut short.
        MultipartLimitError: a part is too large, or there are too many.
    """
    if not 0 < len(boundary) <= LONGEST_BOUNDARY or not boundary.isascii():
        raise MultipartError("The Content-Type has no usable boundary.")
    message = _Message(stream)
    delimiter = b"\r\n--" + boundary.encode("ascii")
    message.until(delimiter, LARGEST_PREAMBLE_BYTES, "preamble")
    for count in range(most_parts + 1):
        if message.ends():
            return
        if count == most_parts:
            raise MultipartLimitError(f"The message has more than {most_parts} parts.")
        if message.until(b"\r\n", LARGEST_HEAD_BYTES, "line of the boundary").strip(b" \t"):
            raise MultipartError("Something follows a boundary on its line.")
        # A part without header fields begins with the empty line itself.
        message.insert(b"\r\n")
        head = message.until(b"\r\n\r\n", LARGEST_HEAD_BYTES, "head of a part")
        content = _content(message, delimiter, largest_part_bytes)
        yield Part(_headers(head), content)
        for _ in content:
            pass


def _content(message: "_Message", delimiter: bytes, largest: int) -> Iterator[bytes]:
    # The CRLF before a boundary is the boundary's, also where the content is empty.
    message.insert(b"\r\n")
    inserted = 2
    for piece in message.pieces(delimiter, largest + 2, "part"):
        yield piece[inserted:]
        inserted -= min(inserted, len(piece))


class _Message:
    """A stream with a look ahead."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        # As if a line ended before the message: its first boundary may be its first bytes.
        self._buffer = bytearray(b"\r\n")

    def until(self, mark: bytes, largest: int, what: str) -> bytes:
        """What precedes the next mark, which is passed over."""
        return b"".join(self.pieces(mark, largest, what))

    def pieces(self, mark: bytes, largest: int, what: str) -> Iterator[bytes]:
        """Yield what precedes the next mark, which is passed over, in pieces."""
        size = 0
        found = -1
        while found < 0:
            found = self._buffer.find(mark)
            # Without a mark all is certain but what could be the beginning of one.
            end = found if found >= 0 else max(0, len(self._buffer) - len(mark) + 1)
            size += end
            if size > largest:
                raise MultipartLimitError(f"The {what} has more than {largest} bytes.")
            if end:
                yield self._cut(end)
            if found < 0:
                self._read_on(what)
        del self._buffer[: len(mark)]

    def ends(self) -> bool:
        """Whether the boundary just passed is the last one."""
        while len(self._buffer) < 2:
            self._read_on("message")
        return self._buffer.startswith(b"--")

    def _cut(self, size: int) -> bytes:
        cut = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return cut

    def insert(self, data: bytes) -> None:
        self._buffer[:0] = data

    def _read_on(self, what: str) -> None:
        chunk = self._stream.read(CHUNK_BYTES)
        if not chunk:
            raise MultipartError(f"The message ends within the {what}.")
        self._buffer += chunk


def _headers(head: bytes) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise MultipartError("A part's header field has no name.")
        fields[name.strip().lower()] = value.strip()
    return fields
