"""What the listener tells of itself in the run folder: the web server has no other way to know."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from appliance.config import Settings

log = structlog.get_logger()

EVERY_S: Final = 5.0


@dataclass(frozen=True)
class ListenerSign:
    """How many connections are open, and when that was so (seconds of the epoch)."""

    connections: int
    at: float


def leave(settings: Settings, connections: int) -> None:
    """Leave a sign of life of the listener; a full disk is no reason for it to end."""
    path = _file(settings)
    aside = path.with_suffix(".new")
    sign = json.dumps(asdict(ListenerSign(connections, time.time())))
    try:
        aside.write_text(sign, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        log.warning("listener.sign_not_left", reason=error.strerror)


def last(settings: Settings) -> ListenerSign | None:
    """The listener's last sign of life; None if it never left one."""
    try:
        return ListenerSign(**json.loads(_file(settings).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _file(settings: Settings) -> Path:
    return settings.run_dir / "listener.json"
