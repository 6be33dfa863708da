"""A web server that serves a folder as any does, and misbehaves where it is told to."""

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

Misbehaviour = Callable[[BaseHTTPRequestHandler, bytes], None]
"""Answers a request for a file with this content in its own way."""


@dataclass
class Mirror:
    """A running server."""

    folder: Path
    url: str = ""
    instead: dict[str, Misbehaviour] = field(default_factory=dict)
    """By the end of a path: what is done instead of an honest answer."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths and ranges that were asked for."""
    now: datetime | None = None
    """What its clock says, if it is not this machine's."""
    closing: threading.Event = field(default_factory=threading.Event)

    def misbehaviour(self, path: str) -> Misbehaviour:
        ends = (end for end in self.instead if path.endswith(end))
        return self.instead.get(next(ends, ""), honestly)


@contextmanager
def mirror(folder: Path, certificate: tuple[Path, Path] | None = None) -> Iterator[Mirror]:
    """Serve a folder on the loopback; with a certificate and its key by HTTPS."""
    served = Mirror(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path)
            served.requests.append((path, self.headers.get("Range")))
            file = served.folder / path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            served.misbehaviour(path)(self, file.read_bytes())

        def date_time_string(self, timestamp: float | None = None) -> str:
            now = None if served.now is None else served.now.timestamp()
            return super().date_time_string(now if timestamp is None else timestamp)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients that give up are what many tests are about

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    served.url = f"{scheme}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield served
    finally:
        served.closing.set()
        server.shutdown()
        server.server_close()


def honestly(request: BaseHTTPRequestHandler, content: bytes) -> None:
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
    start = int(asked[1]) if asked else 0
    request.send_response(206 if asked else 200)
    if asked:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    request.end_headers()
    request.wfile.write(content[start:])


def without_ranges(request: BaseHTTPRequestHandler, content: bytes) -> None:
    del request.headers["Range"]
    honestly(request, content)


def cut_off(after_bytes: int) -> Misbehaviour:
    """Close the connection in the middle of a file."""

    def answer(request: BaseHTTPRequestHandler, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:after_bytes])
        request.close_connection = True

    return answer


def endless(request: BaseHTTPRequestHandler, content: bytes) -> None:
    """Go on after the end; a client that listens on gets 64 MiB, not all of this machine's disk."""
    _announce_nothing(request)
    request.wfile.write(content)
    for _ in range(1024):
        request.wfile.write(b" " * 65536)


def trickle(closing: threading.Event) -> Misbehaviour:
    """Send a byte at a time for ten seconds, often enough for no time-out of the socket."""

    def answer(request: BaseHTTPRequestHandler, content: bytes) -> None:
        _announce_nothing(request)
        for position in range(200):
            request.wfile.write(content[position : position + 1])
            if closing.wait(0.05):
                return
        request.wfile.write(content[200:])

    return answer


def silence(closing: threading.Event, after_bytes: int) -> Misbehaviour:
    """Send a part and then nothing, without hanging up."""

    def answer(request: BaseHTTPRequestHandler, content: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:after_bytes])
        request.wfile.flush()
        closing.wait()

    return answer


def saying(
    content: bytes, status: int = 200, content_type: str = "text/html", date: str | None = None
) -> Misbehaviour:
    """Answer with something else."""

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response_only(status)
        request.send_header("Date", date or request.date_time_string())
        request.send_header("Content-Type", content_type)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def _announce_nothing(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Connection", "close")
    request.end_headers()
