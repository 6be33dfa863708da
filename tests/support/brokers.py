"""A real broker of our own for tests: Valkey or Redis of this machine, or the wheel's."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from appliance import broker
from appliance.config import Settings
from appliance.errors import TransientError


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """The embedded broker, answering."""
    settings.prepare()
    server = subprocess.Popen(broker.prepare(settings), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 15
    while True:
        try:
            broker.ping(settings, timeout_s=0.5)
        except TransientError:
            if time.monotonic() > deadline or server.poll() is not None:
                server.kill()
                server.wait()
                raise
            time.sleep(0.02)
        else:
            return server


@contextmanager
def running(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """The embedded broker for the length of the block."""
    server = start(settings)
    try:
        yield server
    finally:
        server.kill()
        server.wait()
