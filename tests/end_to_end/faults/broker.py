"""Faults of the broker: F3 of the figures."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import redis

from appliance import broker, maintenance, queue
from tests.end_to_end.faults.box import Box, Row, until

RESUMED_S: Final = 60.0
LONG_PAUSE_S: Final = 60.0
STUDY_EVERY: Final = 5
LONG_EVERY: Final = 20


def _restart(box: Box, _row: Row) -> bool:
    return box.kill("broker")


def _flush(box: Box, _row: Row) -> bool:
    with _client(box) as client:
        return bool(client.flushall())


def _reset(box: Box, _row: Row) -> bool:
    with _client(box) as client:
        return bool(client.client_kill_filter(_type="normal", skipme=True))


def _pause(box: Box, row: Row) -> bool:
    """Stop it for some seconds, now and then for a minute."""
    pid = box.pid_of("broker")
    if pid is None:
        return False
    is_long = (row.times + 1) % LONG_EVERY == 0
    os.kill(pid, signal.SIGSTOP)
    time.sleep(LONG_PAUSE_S if is_long else row.chance.uniform(1, 5))
    os.kill(pid, signal.SIGCONT)
    return True


FAULTS: Final[Mapping[str, Callable[[Box, Row], bool]]] = MappingProxyType(
    {"restart": _restart, "FLUSHALL": _flush, "connections reset": _reset, "pause": _pause}
)


def break_the_broker(box: Box, row: Row) -> None:
    """F3: in every way in turn, with a study on its way now and then; both queues are consumed
    again afterwards."""
    row.limit_s = RESUMED_S
    names = list(FAULTS)
    while row.left:
        if row.times % STUDY_EVERY == 0:
            sending = box.new_study()
            row.sendings.append(sending)
            box.send(sending)
        time.sleep(row.chance.uniform(0, 1))
        name = names[row.times % len(names)]
        if not FAULTS[name](box, row):
            continue
        began, moment = time.monotonic(), time.time()
        until("both queues are consumed", partial(_consumed, box, moment))
        row.waited(time.monotonic() - began)
        row.did(name)


def _consumed(box: Box, since: float) -> bool:
    files = [maintenance.heard_file(box.settings, name) for name in queue.QUEUES]
    return all(file.stat().st_mtime > since for file in files)


def _client(box: Box) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(broker.socket_path(box.settings)), socket_timeout=10)
