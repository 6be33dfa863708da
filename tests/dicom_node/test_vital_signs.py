"""What the running listener tells of itself."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance import vital_signs
from appliance.config import Settings
from appliance.database import Database
from appliance.vital_signs import ListenerSign
from dicom_node import scp
from tests.support.pacs import HOST, await_port

PATIENCE_S = 30.0


def sign_that(settings: Settings, holds: Callable[[ListenerSign], bool]) -> ListenerSign:
    """The first sign of life for which this holds."""
    deadline = time.monotonic() + PATIENCE_S
    while (sign := vital_signs.last(settings)) is None or not holds(sign):
        assert time.monotonic() < deadline, f"waited in vain; the last sign was {sign}"
        time.sleep(0.02)
    return sign


def test_the_listener_tells_how_many_connections_are_open(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vital_signs, "EVERY_S", 0.02)
    stopping = threading.Event()
    serving = threading.Thread(target=scp.serve, args=(settings, stopping))
    serving.start()
    try:
        await_port(settings.dicom.port)
        sign_that(settings, lambda sign: sign.connections == 0)
        with socket.create_connection((HOST, settings.dicom.port)):
            first = sign_that(settings, lambda sign: sign.connections == 1)
        later = sign_that(settings, lambda sign: sign.connections == 0)
        assert later.at > first.at
    finally:
        stopping.set()
        serving.join()


def test_a_sign_that_cannot_be_left_ends_nothing(settings: Settings, database: Database):
    gone = replace(settings, data_dir=settings.data_dir / "gone")

    vital_signs.leave(gone, 1)

    assert vital_signs.last(gone) is None
