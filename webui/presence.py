"""Who has a result open now: each open viewer asks every few seconds who else is there.

Kept in this process alone, of which there is one (`appliance.web_server`): it is of no use after a
restart.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

GONE_AFTER_S: Final = 15.0
"""Three times as long as a viewer waits between two questions: one may get lost."""


class Presence:
    """The people with a result open, from any number of threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, str], float] = {}

    def others(self, analysis_id: int, name: str) -> list[str]:
        """The names of the others there, by name; whoever asks is there from now on."""
        now = self._clock()
        with self._lock:
            self._seen = {one: at for one, at in self._seen.items() if now - at < GONE_AFTER_S}
            self._seen[analysis_id, name] = now
            return sorted(other for at, other in self._seen if at == analysis_id and other != name)
