"""What moves right now, pushed to every open page by server-sent events (HTML standard, 9.2).

However many pages are open, the database is asked at most once in `interval_s`: the first stream
that wants to know asks, the others take its answer. Streams end after a while, so that a page whose
person was signed out in the meantime meets the sign-in when it connects again.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from appliance import pulse
from appliance.database import Database
from appliance.pulse import Pulse
from webui.display import STATE_WORDS

log = structlog.get_logger()

STREAM_S: Final = 300.0
RECONNECT_MS: Final = 2000
KEEP_ALIVE_S: Final = 2.0
"""By writing, a stream learns that its reader is gone; by silence, a reader that the server is. A
reader who leafs through studies leaves a stream behind on each page."""

MOST_STREAMS: Final = 24
"""Each stream holds a thread of the web server, and some must stay free for pages; a page that gets
no stream asks every few seconds instead."""

INTERVAL_S: Final = 1.0


class LiveFeed:
    """One look at the database, shared by all streams of this process."""

    def __init__(
        self,
        database: Database,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s = interval_s
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._pulse: Pulse | None = None
        self._latest = ""
        self._read_at = float("-inf")
        self._streams = threading.BoundedSemaphore(MOST_STREAMS)

    def latest(self) -> str:
        """The pulse as JSON, at most `interval_s` old."""
        with self._lock:
            if self._clock() - self._read_at >= self.interval_s:
                with self._database.snapshot() as db:
                    self._pulse = pulse.read(db, before=self._pulse)
                self._latest = json.dumps(_as_json(self._pulse))
                self._read_at = self._clock()
            return self._latest

    def open(self) -> "Stream | None":
        """A stream of pulses, or nothing when too many are open."""
        return Stream(self, self._streams) if self._streams.acquire(blocking=False) else None


@dataclass(eq=False)
class Stream:
    """One reader's events. Closing it, which the server does in any case, gives its place back."""

    feed: LiveFeed
    places: threading.BoundedSemaphore
    closed: bool = False

    def __iter__(self) -> Iterator[str]:
        return self._events()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.places.release()

    def _events(self) -> Iterator[str]:
        yield f"retry: {RECONNECT_MS}\n\n"
        end = time.monotonic() + STREAM_S
        sent, sent_at = "", 0.0
        while time.monotonic() < end and not self.closed:
            try:
                latest = self.feed.latest()
            except SQLAlchemyError as error:
                log.warning("live_feed_failed", error=type(error).__name__)
                return
            if latest != sent:
                sent, sent_at = latest, time.monotonic()
                yield f"data: {latest}\n\n"
            elif time.monotonic() - sent_at > KEEP_ALIVE_S:
                sent_at = time.monotonic()
                yield "event: alive\ndata:\n\n"
            time.sleep(self.feed.interval_s)


def _as_json(latest: Pulse) -> dict[str, Any]:
    return {
        "marker": latest.marker,
        "counts": {stage.value: count for stage, count in latest.counts.items()},
        "moving": [
            {
                "study_id": study.study_id,
                "state": study.state.value,
                "state_word": STATE_WORDS[study.state],
                "images": study.instance_count,
                "step": study.step,
                "step_done": study.step_done,
                "step_total": study.step_total,
                "steps": [
                    {"step": done.step, "seconds": done.seconds, "summary": dict(done.summary)}
                    for done in study.steps
                ],
            }
            for study in latest.moving
        ],
    }
